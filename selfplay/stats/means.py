"""Mean scores with intervals over prompts, and paired differences of two checkpoints' scores."""

from collections.abc import Sequence

import numpy as np

from selfplay.records import Record
from selfplay.stats.intervals import bootstrap_sums, mean_interval, percentile_interval


class Mean(Record):
    """The mean over n prompts, with its 95% interval; `unscored` prompts count nowhere else. None without a score."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


def mean_of(scores: Sequence[float | None], resamples: int = 2000) -> Mean:
    """Return the mean of scores in [0, 1], one per prompt, with a percentile bootstrap over prompts."""
    known = np.array([one for one in scores if one is not None], dtype=np.float64)
    if not known.size:
        return Mean(mean=None, low=None, high=None, n=0, unscored=len(scores))
    low, high = mean_interval(known, resamples, 0)
    return Mean(mean=float(known.mean()), low=low, high=high, n=len(known), unscored=len(scores) - len(known))


def difference_of(scores: Sequence[float | None], before: Sequence[float | None], resamples: int = 2000) -> Mean:
    """Return the mean difference on the prompts that both were scored on, each prompt's two scores resampled together."""
    both = [a - b for a, b in zip(scores, before, strict=True) if a is not None and b is not None]
    missing = len(scores) - len(both)
    if not both:
        return Mean(mean=None, low=None, high=None, n=0, unscored=missing)
    values = np.array(both, dtype=np.float64)
    low, high = percentile_interval(bootstrap_sums(values[:, None], resamples, 0)[:, 0] / len(values))
    return Mean(mean=float(values.mean()), low=float(low), high=float(high), n=len(values), unscored=missing)
