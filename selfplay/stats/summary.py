"""All statistics of a table of votes in one result: what `selfplay compare` prints, in a table or as JSON.

Every interval comes from the same resampled prompts. Left out on purpose: a winner. The table says which checkpoints
differ significantly, and how many prompts it would take where they do not.
"""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from selfplay.records import Comparison, Record
from selfplay.stats.intervals import (
    Array,
    bootstrap_sums,
    constant_interval,
    holm,
    percentile_interval,
    prompts_needed,
    sign_test,
)
from selfplay.stats.length_control import LengthControlled, length_controlled
from selfplay.stats.ratings import Cycle, Rating, cycles, ratings
from selfplay.stats.votes import VoteTable

LEVEL = 0.05
"""Chance of any false alarm among the pairs of one summary, after Holm's correction."""


class PairSummary(Record):
    """One pair of models: the win rate of `a` over `b` and what is known about it.

    `standard_error` is over prompts; `p_value` of the sign test, `p_adjusted` by Holm over all pairs of the summary;
    `significant` if the adjusted p is under 0.05 and the interval leaves out one half. `prompts_needed` to tell them
    apart in 80% of tries, were the difference seen the true one. `extra_length` is the mean length of a less that of b.
    """

    comparison: Comparison
    standard_error: float | None
    p_value: float
    p_adjusted: float
    significant: bool
    prompts_needed: int | None
    extra_length: float | None
    length_controlled: LengthControlled | None


class Difference(Record):
    """How much more often `a` beats the baseline than `b` does, on the same prompts, with a 95% interval.

    `unpaired_error` is the standard error that forgetting the pairing would give.
    """

    a: str
    b: str
    baseline: str
    difference: float
    low: float
    high: float
    standard_error: float
    unpaired_error: float
    n: int


class Category(Record):
    """Win rates on the prompts with one value of a column, for every pair of the table."""

    value: str
    prompts: int
    pairs: list[Comparison]


class Summary(Record):
    """The statistics of one table of votes.

    Every pair speaks of `a` against `b`: the newer against the older, any model against the baseline. `ratings` is `None`
    where there can be none; `ratings_note` says why. `groups` holds the largest runs of neighbours in the order of the
    ratings of which no two differ significantly, best first; a model may be in several.
    """

    models: list[str]
    prompts: int
    baseline: str
    pairs: list[PairSummary]
    differences: list[Difference]
    ratings: list[Rating] | None
    ratings_note: str
    cycles: list[Cycle]
    groups: list[list[str]]

    def matrix(self) -> list[list[float | None]]:
        """Win rates of each row's model over each column's, in the order of `models`; `None` where they never met."""
        position = {name: index for index, name in enumerate(self.models)}
        rates: list[list[float | None]] = [[None] * len(self.models) for _ in self.models]
        for pair in self.pairs:
            one = pair.comparison
            if one.win_rate is not None:
                rates[position[one.a]][position[one.b]] = one.win_rate
                rates[position[one.b]][position[one.a]] = 1 - one.win_rate
        return rates


def summarise(
    table: VoteTable,
    *,
    baseline: str | None = None,
    difficulty: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Return all statistics of a table. `baseline` (default: the first model) is what the others are measured against.

    `difficulty` (P,) of the prompts makes rates at equal length exact. Raises ConfigError for a baseline that is not in
    the table.
    """
    if baseline is not None:
        table = table.against(baseline)
    rated, note = ratings(table, resamples=resamples, seed=seed)
    pairs = _pairs(table, difficulty, resamples, seed)
    return Summary(
        models=list(table.models),
        prompts=len(table.prompts),
        baseline=table.models[0],
        pairs=pairs,
        differences=_differences(table, 0, resamples, seed),
        ratings=rated,
        ratings_note=note,
        cycles=cycles(table),
        groups=groups([one.model for one in rated or []], pairs),
    )


def groups(order: list[str], pairs: list[PairSummary]) -> list[list[str]]:
    """Return the largest runs of neighbours in an order of models of which no two differ significantly, in that order."""
    apart = {frozenset((pair.comparison.a, pair.comparison.b)) for pair in pairs if pair.significant}
    found: list[list[str]] = []
    end = 0
    for begin in range(len(order)):
        while end < len(order) and not any(frozenset((order[end], one)) in apart for one in order[begin:end]):
            end += 1
        if end - begin > 1 and (not found or found[-1][-1] != order[end - 1]):
            found.append(order[begin:end])
    return found


def _pairs(table: VoteTable, difficulty: Array | None, resamples: int, seed: int) -> list[PairSummary]:
    """Return the summary of every pair, in the table's order."""
    means, width = table.mean(), len(table.pairs)
    p_values = [sign_test(means[:, k]) for k in range(width)]
    adjusted = holm(p_values)
    controlled = length_controlled(table, difficulty, resamples=resamples, seed=seed)
    sums = bootstrap_sums(np.hstack([table.score, table.count]), resamples, seed)
    with np.errstate(invalid="ignore"):
        samples = sums[:, :width] / sums[:, width:]
    found = []
    for k in range(width):
        one, length = _comparison(table, k, samples[:, k]), table.length[:, k]
        clear = one.low is not None and one.high is not None and not one.low <= 0.5 <= one.high
        found.append(
            PairSummary(
                comparison=one,
                standard_error=ratio_error(table.score[:, k], table.count[:, k]),
                p_value=p_values[k],
                p_adjusted=adjusted[k],
                significant=clear and adjusted[k] < LEVEL,
                prompts_needed=_needed(means[:, k]),
                extra_length=None if np.isnan(length).all() else float(np.nanmean(length)),
                length_controlled=controlled[k],
            )
        )
    return found


def _comparison(table: VoteTable, k: int, samples: Array) -> Comparison:
    """Win rate of pair k over all its votes; prompts are counted, not votes."""
    mean = table.mean()[:, k]
    seen = mean[~np.isnan(mean)]
    rate, low, high = None, None, None
    if seen.size:
        rate = float(table.score[:, k].sum() / table.count[:, k].sum())
        low, high = (
            constant_interval(rate, seen.size) if np.ptp(seen) == 0 else map(float, percentile_interval(samples))
        )
    return Comparison(
        a=table.models[table.pairs[k, 0]],
        b=table.models[table.pairs[k, 1]],
        win_rate=rate,
        low=low,
        high=high,
        n=int(seen.size),
        ties=int(np.sum(seen == 0.5)),
        unscored=int(np.sum((table.unscored[:, k] > 0) & np.isnan(mean))),
    )


def breakdown(table: VoteTable, values: Mapping[str, str], *, resamples: int = 2000, seed: int = 0) -> list[Category]:
    """Win rates by the prompts' values (prompt -> value), the most frequent first; prompts without one are left out."""
    found = []
    for value, _ in Counter(values[prompt] for prompt in table.prompts if prompt in values).most_common():
        part = table.where(np.array([values.get(prompt) == value for prompt in table.prompts]))
        sums = bootstrap_sums(np.hstack([part.score, part.count]), resamples, seed)
        with np.errstate(invalid="ignore"):
            samples = sums[:, : len(part.pairs)] / sums[:, len(part.pairs) :]
        pairs = [_comparison(part, k, samples[:, k]) for k in range(len(part.pairs))]
        found.append(Category(value=value, prompts=len(part.prompts), pairs=pairs))
    return found


def ratio_error(score: Array, count: Array) -> float | None:
    """Return standard error of sum(score) / sum(count) over prompts (Cochran 1977, section 6.4); `None` below two prompts.

    With one vote per prompt this is the standard error of the mean.
    """
    rows = count > 0
    n = int(rows.sum())
    if n < 2:
        return None
    residual = score[rows] - score[rows].sum() / count[rows].sum() * count[rows]
    return float(math.sqrt(n / (n - 1) * np.sum(residual**2)) / count[rows].sum())


def _needed(mean: Array) -> int | None:
    """Prompts needed to tell a pair apart at the difference and spread seen."""
    seen = mean[~np.isnan(mean)]
    return prompts_needed(float(seen.mean()) - 0.5, float(seen.std(ddof=1))) if seen.size > 1 else None


def _differences(table: VoteTable, baseline: int, resamples: int, seed: int) -> list[Difference]:
    """Paired differences between all models that met the baseline, on the prompts that both were scored on."""
    against = {
        model: values
        for model in range(len(table.models))
        if model != baseline and (values := table.towards(model, baseline)) is not None
    }
    jobs = [(a, b, against[a] - against[b]) for b, a in combinations(against, 2)]
    jobs = [job for job in jobs if np.sum(~np.isnan(job[2])) > 1]
    if not jobs:
        return []
    columns = np.stack([job[2] for job in jobs], axis=1)
    shared = ~np.isnan(columns)
    sums = bootstrap_sums(np.hstack([np.where(shared, columns, 0), shared]), resamples, seed)
    with np.errstate(invalid="ignore"):
        low, high = percentile_interval(sums[:, : len(jobs)] / sums[:, len(jobs) :])
    found = []
    for k, (a, b, values) in enumerate(jobs):
        rows = shared[:, k]
        n = int(rows.sum())
        variances = [against[model][rows].var(ddof=1) for model in (a, b)]
        found.append(
            Difference(
                a=table.models[a],
                b=table.models[b],
                baseline=table.models[baseline],
                difference=float(values[rows].mean()),
                low=float(low[k]),
                high=float(high[k]),
                standard_error=float(values[rows].std(ddof=1) / math.sqrt(n)),
                unpaired_error=float(math.sqrt(sum(variances) / n)),
                n=n,
            )
        )
    return found
