"""Win rates with honest intervals: resampling prompts, sign tests, Holm's correction, the sample size.

Everything here takes one value per prompt, P(a is better) in [0, 1] with `None` (or NaN) for a prompt that could not
be scored, because prompts are what was sampled: votes on the same prompt are not independent, and resampling rows
makes intervals too narrow. Left out on purpose: tables of many checkpoints (`votes`, `ratings`, `summary`).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

from selfplay.records import Comparison
from selfplay.stats.agreement import wilson

Array = NDArray[np.float64]

LEVEL = 0.95
"""Confidence level of every interval."""
CHUNK = 4_000_000
"""Most drawn indices held at once: 32 MB."""


def as_array(preferences: Sequence[float | None] | Array) -> Array:
    """float64 array (n,) with NaN for `None`. Raises ValueError for a value outside [0, 1]."""
    values = np.array([math.nan if value is None else value for value in preferences], dtype=np.float64)
    wrong = values[(values < 0) | (values > 1)]
    if wrong.size:
        raise ValueError(f"a preference is a number in [0, 1] or None, not {wrong[0]}")
    return values


def resample_counts(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each of `n` prompts occurs in each bootstrap sample: chunks (r, n) whose r sum to `resamples`."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // max(n, 1))
    for begin in range(0, resamples, rows):
        size = min(rows, resamples - begin)
        drawn = generator.integers(0, n, size=(size, n))
        drawn += np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def bootstrap_sums(columns: Array, resamples: int, seed: int) -> Array:
    """Return sums of each column of (n, c) over `resamples` samples of n rows drawn with replacement: (resamples, c).

    Ratios of these sums are the bootstrap distribution of any mean over prompts (Efron 1979); columns that are summed
    together are resampled together, so differences between them are paired.
    """
    n, width = columns.shape
    if n == 0:
        return np.zeros((resamples, width))
    return np.concatenate([counts @ columns for counts in resample_counts(n, resamples, seed)])


def percentile_interval(samples: Array, axis: int = 0) -> Array:
    """Return the 2.5% and the 97.5% quantile along `axis`, stacked in front; NaN samples are left out."""
    tail = (1 - LEVEL) / 2
    return np.nanquantile(samples, [tail, 1 - tail], axis=axis)


def constant_interval(value: float, n: int) -> tuple[float, float]:
    """95% bounds for a mean in [0, 1] when all n values seen are the same, where a bootstrap would give width zero.

    Values never seen in n prompts may still occur with a probability up to q = 1 - 0.025^(1/n) (Clopper and Pearson
    1934), so the mean lies between value (1 - q) and value (1 - q) + q. Ten wins in ten give [0.69, 1].
    """
    unseen = 1 - ((1 - LEVEL) / 2) ** (1 / n)
    return value * (1 - unseen), value * (1 - unseen) + unseen


def mean_interval(values: Array, resamples: int, seed: int) -> tuple[float, float]:
    """95% percentile bootstrap interval for the mean of values (n,) in [0, 1]; NaN counts nowhere, and one at least is none."""
    known = ~np.isnan(values)
    if np.ptp(values[known]) == 0:
        return constant_interval(float(values[known][0]), int(known.sum()))
    sums = bootstrap_sums(np.stack([np.where(known, values, 0), known], axis=1), resamples, seed)
    with np.errstate(invalid="ignore"):  # a sample that drew none of the known ones
        low, high = percentile_interval(sums[:, 0] / sums[:, 1])
    return float(low), float(high)


def between_runs(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one number of several runs of a recipe, and its 95% bounds: mean -+ t s / sqrt(n), n - 1 degrees of freedom.

    s is the deviation between the runs, with n - 1 (Student 1908). Raises ValueError for fewer than two.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.size < 2:
        raise ValueError(f"an interval between runs needs two at least, not {found.size}")
    mean, half = float(found.mean()), float(found.std(ddof=1)) / math.sqrt(found.size)
    half *= float(t.ppf(1 - (1 - LEVEL) / 2, found.size - 1))
    return mean, mean - half, mean + half


def clustered_interval(hits: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """95% Wilson interval for sum(hits) / sum(counts), where the `counts[i]` tries on prompt i are not independent.

    Wilson's formula with the effective number of tries, share (1 - share) / V, where V is the cluster-robust variance of
    the share (Kish 1965; for Wilson's interval Franco et al. 2019). It is never above the number of tries, and where V is
    0, for all hit or all missed, it is the number of prompts. Raises ValueError without a try.
    """
    hit, tried = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    total, prompts = float(tried.sum()), int(np.count_nonzero(tried))
    if prompts == 0:
        raise ValueError("a share of no tries has no interval")
    share = float(hit.sum()) / total
    variance = float(np.square(hit - share * tried).sum()) / total**2 * prompts / max(prompts - 1, 1)
    n = min(share * (1 - share) / variance, total) if variance > 0 else float(prompts)
    return wilson(share, n)


def win_rate(
    a: str, b: str, preferences: Sequence[float | None] | Array, *, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Return how often `a` beats `b`, with a 95% percentile bootstrap interval over prompts.

    One value per prompt: P(a is better) in [0, 1]; exactly 0.5 is a tie and counts one half; `None` is unscored, and
    counts nowhere but in `unscored`. Raises ValueError for a value outside [0, 1].
    """
    values = as_array(preferences)
    scored = values[~np.isnan(values)]
    rate, low, high = None, None, None
    if scored.size:
        rate = float(scored.mean())
        low, high = mean_interval(values, resamples, seed)
    return Comparison(
        a=a,
        b=b,
        win_rate=rate,
        low=low,
        high=high,
        n=int(scored.size),
        ties=int(np.sum(scored == 0.5)),
        unscored=int(values.size - scored.size),
    )


def standard_error(preferences: Sequence[float | None] | Array) -> float | None:
    """Return standard error of the mean over scored prompts, s / sqrt(n) with n - 1 in s; `None` below two prompts."""
    values = as_array(preferences)
    scored = values[~np.isnan(values)]
    return float(scored.std(ddof=1) / math.sqrt(scored.size)) if scored.size > 1 else None


def sign_test(preferences: Sequence[float | None] | Array) -> float:
    """Exact two-sided p-value that a and b win equally often, ties dropped (Dixon and Mood 1946); 1 if none is left."""
    values = as_array(preferences)
    wins, losses = int(np.sum(values > 0.5)), int(np.sum(values < 0.5))
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that the chance of any false alarm keeps its level (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(order) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return [float(value) for value in adjusted]


def prompts_needed(difference: float, deviation: float, *, power: float = 0.8) -> int | None:
    """Prompts with which a win rate of 1/2 + `difference` is told from 1/2 at the 5% level, `power` of the time.

    `deviation` is the standard deviation of one prompt's preference (0.5 without ties). Normal approximation, with
    Fleiss's correction for a discrete test (Fleiss, Levin and Paik 2003, section 4.4); `None` for no difference.
    """
    size = abs(difference)
    if size == 0:
        return None
    quantiles = float(norm.ppf(1 - (1 - LEVEL) / 2) + norm.ppf(power))
    plain = max((quantiles * deviation / size) ** 2, 1.0)
    return math.ceil(plain / 4 * (1 + math.sqrt(1 + 2 / (plain * size))) ** 2)
