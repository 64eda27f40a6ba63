"""Votes on pairs of models, and the table (prompts x pairs) that every statistic of several models starts from.

A vote is P(a is better than b) on one prompt, from a judge of ours or from a file of someone else's. Left out on
purpose: what a vote was based on; texts and verdicts stay in `matches.parquet`.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selfplay.errors import ConfigError
from selfplay.stats.intervals import Array

WORDS = {"a": 1.0, "model_a": 1.0, "b": 0.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "": math.nan}
"""Preferences that are words; the chatbot arena writes `model_a`, `model_b` and `tie (bothbad)`."""


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

    def towards(self, model: int, other: int) -> Array | None:
        """Mean preference per prompt (P,) for `model` over `other`; `None` if the two never met."""
        for column, (a, b) in enumerate(self.pairs):
            if (a, b) == (model, other):
                return self.mean()[:, column]
            if (b, a) == (model, other):
                return 1 - self.mean()[:, column]
        return None


def tabulate(votes: Iterable[Vote], models: Sequence[str] = ()) -> VoteTable:
    """Gather votes; models are ordered as in `models`, then as they first appear. A vote on (b, a) is turned round.

    Raises ConfigError for a model that plays itself and for a preference outside [0, 1].
    """
    prompt_of: dict[str, int] = {}
    model_of: dict[str, int] = {name: index for index, name in enumerate(models)}
    rows = []
    for vote in votes:
        if vote.a == vote.b:
            raise ConfigError(f"a vote on prompt {vote.prompt!r} compares {vote.a!r} with itself; leave such votes out")
        if vote.preference < 0 or vote.preference > 1:
            raise ConfigError(
                f"the preference {vote.preference} on prompt {vote.prompt!r} is outside [0, 1]: give "
                "P(a is better), or one of the words a, b and tie"
            )
        prompt = prompt_of.setdefault(vote.prompt, len(prompt_of))
        a, b = (model_of.setdefault(name, len(model_of)) for name in (vote.a, vote.b))
        rows.append((prompt, a, b, vote.preference, vote.length_a - vote.length_b))
    data = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return _gather(tuple(prompt_of), tuple(model_of), data)


def _gather(prompts: tuple[str, ...], models: tuple[str, ...], data: Array) -> VoteTable:
    """The table of rows (prompt, a, b, preference, length of a less that of b)."""
    prompt, a, b = data[:, :3].astype(np.int64).T
    flip = a < b
    preference = np.where(flip, 1 - data[:, 3], data[:, 3])
    length = np.where(flip, -data[:, 4], data[:, 4])
    pairs, column = np.unique(np.stack([np.maximum(a, b), np.minimum(a, b)], axis=1), axis=0, return_inverse=True)
    shape = (len(prompts), len(pairs))
    cell = prompt * shape[1] + column.ravel()

    def add(weights: Array) -> Array:
        return np.asarray(np.bincount(cell, weights=weights, minlength=shape[0] * shape[1]), dtype=np.float64).reshape(
            shape
        )

    scored, measured = ~np.isnan(preference), ~np.isnan(length)
    with np.errstate(invalid="ignore"):
        mean_length = add(np.where(measured, length, 0)) / add(measured.astype(np.float64))
    return VoteTable(
        prompts=prompts,
        models=models,
        pairs=pairs.astype(np.int64),
        score=add(np.where(scored, preference, 0)),
        count=add(scored.astype(np.float64)),
        unscored=add((~scored).astype(np.float64)),
        length=mean_length,
    )


def read_votes(path: str | Path, judge: str | None = None) -> VoteTable:
    """Votes of a CSV or JSONL file with the columns prompt, model_a, model_b and preference (or winner).

    A preference is P(model_a is better), or a, b, tie; empty or null is unscored. `length_a` and `length_b` are
    optional, and so is `judge`: name one to count its votes alone. Raises ConfigError naming the line that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file of votes {str(path)!r}; name a CSV or JSONL file")
    rows = [row for row in _rows(path) if judge is None or row[1].get("judge") == judge]
    if not rows:
        raise ConfigError(f"{path} holds no votes" + (f" of the judge {judge!r}" if judge else ""))
    return tabulate(_vote(path, line, row) for line, row in rows)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a CSV (also tab-separated) or JSONL file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix in (".csv", ".tsv"):
            reader = csv.DictReader(
                file, delimiter="\t" if path.suffix == ".tsv" else ",", restkey="(beyond the header)"
            )
            for row in reader:
                yield reader.line_num, row
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigError(
                        f"{path}:{number} is not JSON ({error}); name the file .csv if it is CSV"
                    ) from None
                if not isinstance(row, dict):
                    raise ConfigError(
                        f"{path}:{number} is no JSON object with the keys prompt, model_a, model_b, preference"
                    )
                yield number, row


def _vote(path: Path, line: int, row: dict[str, Any]) -> Vote:
    """One row as a vote."""
    where = f"{path}:{line}"
    for column in ("prompt", "model_a", "model_b"):
        if row.get(column) in (None, ""):
            raise ConfigError(f"{where} has no {column}; votes need the columns prompt, model_a, model_b, preference")
    if "preference" not in row and "winner" not in row:
        raise ConfigError(f"{where} has no preference; give P(model_a is better) in [0, 1], or a, b, tie")
    value = row.get("preference", row.get("winner"))
    preference = math.nan if value is None else WORDS.get(str(value).strip().lower())
    if preference is None:
        preference = _number(value, f"{where}: preference")
    lengths = [
        _number(row[key], f"{where}: {key}") if row.get(key) not in (None, "") else math.nan
        for key in ("length_a", "length_b")
    ]
    return Vote(str(row["prompt"]), str(row["model_a"]), str(row["model_b"]), preference, *lengths)


def _number(value: Any, where: str) -> float:
    """A finite number; raises ConfigError naming `where`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{where} is {value!r}, which is no number")
    return number
