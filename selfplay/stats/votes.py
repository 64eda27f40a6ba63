"""Votes on pairs of models, and the table (prompts x pairs) that every statistic of several models starts from.

A vote is P(a is better than b) on one prompt, from a judge of ours or from a file of someone else's (`vote_files`). Left
out on purpose: what a vote was based on; texts and verdicts stay in `matches.parquet`.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from selfplay.errors import ConfigError
from selfplay.stats.intervals import Array


class Vote(NamedTuple):
    """One judgement: P(a is better) in [0, 1], NaN if unscored; lengths in any one unit, NaN if unknown."""

    prompt: str
    a: str
    b: str
    preference: float
    length_a: float = math.nan
    length_b: float = math.nan


@dataclass(frozen=True, eq=False)
class VoteTable:
    """Votes gathered by prompt (P of them) and by pair of models (K of them).

    Each pair stands in one direction only, the model named later first: the newer checkpoint against the older.
    `score` and `count` (P, K) hold the sum of preferences for a pair's first model and the number of scored votes;
    `unscored` (P, K) the number of votes without a preference; `length` (P, K) the mean length of the first model's
    text less that of the second's, NaN where unknown. `pairs` (K, 2) holds indices into `models`.
    """

    prompts: tuple[str, ...]
    models: tuple[str, ...]
    pairs: NDArray[np.int64]
    score: Array
    count: Array
    unscored: Array
    length: Array

    def mean(self) -> Array:
        """Mean preference per prompt and pair (P, K), NaN where no vote was scored."""
        with np.errstate(invalid="ignore"):
            return self.score / self.count

    def against(self, baseline: str) -> "VoteTable":
        """Return the same votes with `baseline` as the first model, so that every pair it is in speaks of the other one.

        Raises ConfigError for a baseline that is not in the table.
        """
        if baseline not in self.models:
            raise ConfigError(f"the baseline {baseline!r} is none of the models compared: {', '.join(self.models)}")
        order = sorted(range(len(self.models)), key=lambda index: self.models[index] != baseline)
        pairs = np.argsort(order)[self.pairs]
        turned = pairs[:, 0] < pairs[:, 1]
        columns = np.lexsort((pairs.min(axis=1), pairs.max(axis=1)))
        return VoteTable(
            prompts=self.prompts,
            models=tuple(self.models[index] for index in order),
            pairs=np.sort(pairs, axis=1)[:, ::-1][columns].astype(np.int64),
            score=np.where(turned, self.count - self.score, self.score)[:, columns],
            count=self.count[:, columns],
            unscored=self.unscored[:, columns],
            length=np.where(turned, -self.length, self.length)[:, columns],
        )

    def where(self, rows: NDArray[np.bool_]) -> "VoteTable":
        """Return the votes on some of the prompts (P,)."""
        return VoteTable(
            tuple(prompt for prompt, kept in zip(self.prompts, rows, strict=True) if kept),
            self.models,
            self.pairs,
            *(part[rows] for part in (self.score, self.count, self.unscored, self.length)),
        )

    def towards(self, model: int, other: int) -> Array | None:
        """Mean preference per prompt (P,) for `model` over `other`; `None` if the two never met."""
        for column, (a, b) in enumerate(self.pairs):
            if (a, b) == (model, other):
                return self.mean()[:, column]
            if (b, a) == (model, other):
                return 1 - self.mean()[:, column]
        return None


def tabulate(votes: Iterable[Vote], models: Sequence[str] = ()) -> VoteTable:
    """Gather votes; models are ordered as in `models`, then as they first appear, `b` before `a`.

    So the first vote on two models that `models` does not name keeps its direction; a vote the other way is turned.
    Raises ConfigError for a model that plays itself and for a preference outside [0, 1].
    """
    prompt_of: dict[str, int] = {}
    model_of: dict[str, int] = {name: index for index, name in enumerate(models)}
    rows = array("d")
    for prompt, a, b, preference, length_a, length_b in votes:
        if a == b:
            raise ConfigError(f"a vote on prompt {prompt!r} compares {a!r} with itself; leave such votes out")
        if preference < 0 or preference > 1:
            raise ConfigError(
                f"the preference {preference} on prompt {prompt!r} is outside [0, 1]: give "
                "P(a is better), or one of the words a, b and tie"
            )
        place_b = model_of.setdefault(b, len(model_of))
        place_a = model_of.setdefault(a, len(model_of))
        place = prompt_of.setdefault(prompt, len(prompt_of))
        rows.extend((place, place_a, place_b, preference, length_a - length_b))
    return _gather(tuple(prompt_of), tuple(model_of), np.frombuffer(rows, dtype=np.float64).reshape(-1, 5))


def _gather(prompts: tuple[str, ...], models: tuple[str, ...], data: Array) -> VoteTable:
    """Return the table of rows (prompt, a, b, preference, length of a less that of b)."""
    a, b = data[:, 1].astype(np.int64), data[:, 2].astype(np.int64)
    flip = a < b
    preference = np.where(flip, 1 - data[:, 3], data[:, 3])
    length = np.where(flip, -data[:, 4], data[:, 4])
    size = max(len(models), 1)
    codes, column = np.unique(np.maximum(a, b) * size + np.minimum(a, b), return_inverse=True)
    shape = (len(prompts), len(codes))
    cell = data[:, 0].astype(np.int64) * shape[1] + column.ravel()

    def add(weights: Array) -> Array:
        sums = np.bincount(cell, weights=weights, minlength=shape[0] * shape[1])
        return np.asarray(sums, dtype=np.float64).reshape(shape)

    scored, measured = ~np.isnan(preference), ~np.isnan(length)
    with np.errstate(invalid="ignore"):
        mean_length = add(np.where(measured, length, 0)) / add(measured.astype(np.float64))
    return VoteTable(
        prompts=prompts,
        models=models,
        pairs=np.stack([codes // size, codes % size], axis=1).astype(np.int64),
        score=add(np.where(scored, preference, 0)),
        count=add(scored.astype(np.float64)),
        unscored=add((~scored).astype(np.float64)),
        length=mean_length,
    )
