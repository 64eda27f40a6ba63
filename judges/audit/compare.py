"""Two judges on the same pairs: how far they agree, which of them is right where the answer is known, what each costs.

Every figure is a mean over prompts, each of its pairs' mean, with a 95% interval over prompts: pairs of one prompt are not
independent evidence, and a prompt with many pairs counts no more than another. A pair without a verdict of
both counts neither for nor against their agreement; on pairs with a known answer it is wrong, and a tie is half right.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from judges.audit.gold import prompt_of
from judges.build import Opener, build
from judges.llm.cache import AnswerCache
from judges.spec.base import JudgeSpec
from judges.verdicts import aggregate_verdicts, winner
from selfplay.engines import Engine
from selfplay.errors import ConfigError
from selfplay.records import Pair
from selfplay.stats.intervals import bootstrap_sums, clustered_interval, mean_interval, percentile_interval, sign_test

LABELS = ("first", "second", "tie")
RESAMPLES = 2000
SHOWN = 5
Array = np.ndarray[Any, np.dtype[np.float64]]


class Estimate(BaseModel):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


class Kappa(BaseModel):
    """Cohen's kappa with its 95% interval; no bounds where every resample gives the same value, which says nothing."""

    value: float
    low: float | None
    high: float | None


class JudgeFigures(BaseModel):
    """One of two judges: `accuracy` on the pairs with a known answer (null without any), and what its answers took. What was
    in its cache already took nothing."""

    judge: str
    model: str | None
    unscored: int
    accuracy: Estimate | None
    input_tokens: int
    output_tokens: int
    cost: float
    """Dollars."""
    seconds: float


class JudgeComparison(BaseModel):
    """What `judge compare` found, in means over prompts. `agreement` is the share of pairs with two verdicts on which both
    name the same winner, or both a tie; `difference` the accuracy of the first judge less that of the second,
    with the p-value of a sign test over
    prompts; null where there is nothing to measure."""

    first: JudgeFigures
    second: JudgeFigures
    pairs: int
    read_by_both: int
    agreement: Estimate | None
    kappa: Kappa | None
    known: int
    """Pairs with a known answer."""
    difference: Estimate | None
    p_value: float | None
    apart: list[str]
    """The ids of some pairs on which they name different winners."""

    @property
    def verdict(self) -> str:
        """Who is right more often, in a sentence."""
        if self.difference is None:
            return "no pair has a known answer, so nobody can say which of them is right"
        if self.difference.low <= 0 <= self.difference.high:
            return f"the difference is within chance on {self.known} pairs: neither is right more often"
        names = self.names if self.difference.value > 0 else self.names[::-1]
        return f"{names[0]} is right more often than {names[1]}"

    @property
    def names(self) -> tuple[str, str]:
        """Return what to call the two: the file's name with its model, and which of the two it is where those are the same."""
        first, second = (one.judge + (f" ({one.model})" if one.model else "") for one in (self.first, self.second))
        return (first, second) if first != second else (f"{first}, first", f"{second}, second")


def compare_judges(
    specs: tuple[JudgeSpec, JudgeSpec],
    pairs: Sequence[Pair],
    answers: Mapping[str, float],
    engines: tuple[Engine | Opener | None, Engine | Opener | None] = (None, None),
    cache: AnswerCache | None = None,
    *,
    seed: int = 0,
) -> JudgeComparison:
    """Ask both judges about `pairs`. `answers`: pair id -> 1 if its first response is the better one, 0 if its second.

    Raises ConfigError as `build` does, and for no pairs.
    """
    if not pairs:
        raise ConfigError("there are no pairs to compare judges on")
    kept = cache or AnswerCache()
    said, figures = [], []
    for spec, engine in zip(specs, engines, strict=True):
        before, started = kept.spent(), time.monotonic()
        verdicts = build(spec.lenient(), engine, kept, seed=seed).judge(pairs)
        spent = {name: value - before[name] for name, value in kept.spent().items()}
        winners = {name: winner(value) for name, value in aggregate_verdicts(verdicts, spec).items()}
        said.append([winners[pair.id] for pair in pairs])
        figures.append(
            JudgeFigures(
                judge=spec.name,
                model=getattr(spec, "model", None),
                unscored=said[-1].count(None),
                accuracy=None,
                input_tokens=int(spent["input_tokens"]),
                output_tokens=int(spent["output_tokens"]),
                cost=spent["cost"],
                seconds=time.monotonic() - started,
            )
        )
    return measure(figures[0], figures[1], pairs, said[0], said[1], answers)


def measure(
    first: JudgeFigures,
    second: JudgeFigures,
    pairs: Sequence[Pair],
    left: Sequence[str | None],
    right: Sequence[str | None],
    answers: Mapping[str, float],
) -> JudgeComparison:
    """Return the comparison from what each of two judges said of each pair: first, second, tie, or None."""
    both = [place for place in range(len(pairs)) if left[place] is not None and right[place] is not None]
    same = [left[place] == right[place] for place in both]
    known = [place for place, pair in enumerate(pairs) if pair.id in answers]
    truth = ["first" if answers[pairs[place].id] == 1 else "second" for place in known]
    points = [
        [points_of(said[place], right_one) for place, right_one in zip(known, truth, strict=True)]
        for said in (left, right)
    ]
    of_both, of_known = ([prompt_of(pairs[place]) for place in places] for places in (both, known))
    difference, p_value = None, None
    if known:
        apart = per_prompt(of_known, [(one - other + 1) / 2 for one, other in zip(*points, strict=True)])
        value, low, high = (2 * one - 1 for one in (float(apart.mean()), *mean_interval(apart, RESAMPLES, seed=0)))
        difference, p_value = Estimate(value=value, low=low, high=high), sign_test(apart)
    return JudgeComparison(
        first=first.model_copy(update={"accuracy": share(of_known, points[0])}),
        second=second.model_copy(update={"accuracy": share(of_known, points[1])}),
        pairs=len(pairs),
        read_by_both=len(both),
        agreement=share(of_both, [float(one) for one in same]),
        kappa=kappa(of_both, [str(left[place]) for place in both], [str(right[place]) for place in both]),
        known=len(known),
        difference=difference,
        p_value=p_value,
        apart=[pairs[place].id for place, agreed in zip(both, same, strict=True) if not agreed][:SHOWN],
    )


def points_of(said: str | None, right: str) -> float:
    """1 for the right winner, half for a tie, nothing for the wrong one or no verdict."""
    return 1.0 if said == right else 0.5 if said == "tie" else 0.0


def sums(prompts: Sequence[str], columns: Array) -> Array:
    """Return the sum of (n, c) `columns` over the pairs of each prompt: (prompts, c)."""
    names = {name: place for place, name in enumerate(dict.fromkeys(prompts))}
    total = np.zeros((len(names), columns.shape[1]))
    np.add.at(total, [names[name] for name in prompts], columns)
    return total


def per_prompt(prompts: Sequence[str], values: Sequence[float]) -> Array:
    """Return the mean of the values of each prompt's pairs."""
    added = sums(prompts, np.column_stack([values, np.ones(len(values))]))
    means: Array = added[:, 0] / added[:, 1]
    return means


def share(prompts: Sequence[str], values: Sequence[float]) -> Estimate | None:
    """Return the mean over prompts of values in [0, 1]; None without any."""
    if not values:
        return None
    means = per_prompt(prompts, values)
    low, high = clustered_interval(means.tolist(), [1.0] * len(means))
    return Estimate(value=float(means.mean()), low=low, high=high)


def kappa(prompts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> Kappa | None:
    """Cohen's kappa (1960) of the prompts' mean tables, with the percentile interval of resampled prompts; None where chance
    alone explains all."""
    if not prompts:
        return None
    cells = np.zeros((len(left), len(LABELS) ** 2))
    for place, (one, other) in enumerate(zip(left, right, strict=True)):
        cells[place, len(LABELS) * LABELS.index(one) + LABELS.index(other)] = 1
    added = sums(prompts, cells)
    means = added / added.sum(1, keepdims=True)
    value = float(beyond_chance(means.sum(0, keepdims=True))[0])
    if np.isnan(value):
        return None
    low, high = percentile_interval(beyond_chance(bootstrap_sums(means, RESAMPLES, seed=0)))
    degenerate = np.isclose(low, high)
    return Kappa(value=value, low=None if degenerate else float(low), high=None if degenerate else float(high))


def beyond_chance(cells: Array) -> Array:
    """Return Cohen's kappa of each table, (n, labels squared); nan where chance alone explains all."""
    tables = cells.reshape(-1, len(LABELS), len(LABELS))
    total = tables.sum((1, 2))
    agreed = np.trace(tables, axis1=1, axis2=2) / total
    expected = (tables.sum(2) * tables.sum(1)).sum(1) / total**2
    chance_alone = np.isclose(expected, 1.0)
    found: Array = np.where(chance_alone, np.nan, (agreed - expected) / np.where(chance_alone, 1.0, 1 - expected))
    return found
