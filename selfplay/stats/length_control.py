"""Win rates at equal length: what would be left if neither model wrote longer answers than the other.

After AlpacaEval 2 (Dubois et al. 2024, 2404.04475): logit P(a beats b) = theta + psi difficulty + phi tanh(d / sd),
with d the difference in length and `difficulty` one number per prompt, fitted first on the other comparisons with the
baseline; the rate is the mean prediction at d = 0. Where too few other comparisons exist, length alone is used, and
the result is marked approximate. A model of the judge's taste, not a correction of fact: quality that needs words is
taken away as well.
"""

import numpy as np

from selfplay.records import Record
from selfplay.stats.intervals import Array, bootstrap_sums, constant_interval, percentile_interval
from selfplay.stats.votes import VoteTable

RIDGE = 1.0
"""Precision of the normal prior on psi, phi and each prompt's difficulty; theta has none."""
ENOUGH = 2
"""Other comparisons with the baseline from which difficulty can be told; with fewer, the rate is approximate."""


class LengthControlled(Record):
    """Win rate at equal length with a 95% interval; `approximate` if prompt difficulty could not be accounted for."""

    win_rate: float
    low: float
    high: float
    approximate: bool


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(x / 2))


def scaled_length(length: Array, scored: Array) -> Array:
    """tanh(d / sd) of a column of differences in length, 0 where unscored or all the same."""
    known = length[scored]
    spread = known.std() if known.size else 0.0
    return np.where(scored, np.tanh(np.nan_to_num(length) / spread), 0.0) if spread > 0 else np.zeros(len(length))


def fit_logistic(x: Array, y: Array, penalty: Array, offset: Array | float = 0.0) -> Array:
    """Coefficients (c,) of logit y = offset + x beta, y (n,) in [0, 1], x (n, c), ridge `penalty` (c,); by Newton."""
    beta = np.zeros(x.shape[1])
    for _ in range(100):
        mean = sigmoid(offset + x @ beta)
        gradient = x.T @ (y - mean) - penalty * beta
        information = (x * (mean * (1 - mean))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = np.clip(np.linalg.solve(information, gradient), -2, 2)
        beta += step
        if np.abs(step).max() < 1e-9:
            break
    return beta


def prompt_difficulty(y: Array, length: Array) -> Array:
    """Difficulty (P,) of prompts, from the preferences y (P, C) for C models over one baseline, NaN where unscored.

    logit y = theta_c + difficulty + phi_c length_c, the two parts fitted in turns; high where the baseline loses more
    often than elsewhere. `length` (P, C) is scaled.
    """
    scored = ~np.isnan(y)
    target = np.where(scored, y, 0.5)
    difficulty = np.zeros(len(y))
    for _ in range(25):
        before, offset = difficulty, np.zeros(y.shape)
        for column, rows in enumerate(scored.T):
            x = np.stack([np.ones(rows.sum()), length[rows, column]], axis=1)
            theta, phi = fit_logistic(x, y[rows, column], np.array([0, RIDGE]), difficulty[rows])
            offset[:, column] = theta + phi * length[:, column]
        for _ in range(3):
            mean = sigmoid(offset + difficulty[:, None])
            gradient = (scored * (target - mean)).sum(axis=1) - RIDGE * difficulty
            difficulty = difficulty + gradient / ((scored * mean * (1 - mean)).sum(axis=1) + RIDGE)
        if np.abs(difficulty - before).max() < 1e-6:
            break
    return difficulty


def length_controlled(
    table: VoteTable, baseline: int = 0, *, resamples: int = 2000, seed: int = 0
) -> list[LengthControlled | None]:
    """The win rate at equal length of each of the table's pairs; `None` where lengths or scores are missing.

    Difficulty comes from comparisons with the model `baseline`, never from the pair itself, and counts as known.
    Intervals resample prompts and take one Newton step from the fit for each sample (Moulton and Zeger 1991).
    """
    y = np.where(np.isnan(table.length), np.nan, table.mean())
    scored = ~np.isnan(y)
    length = np.stack([scaled_length(table.length[:, k], scored[:, k]) for k in range(len(table.pairs))], axis=1)
    sign = np.where(table.pairs[:, 1] == baseline, 1.0, -1.0)
    usable = np.any(table.pairs == baseline, axis=1) & (scored.sum(axis=0) > 1)
    against = np.where(sign > 0, y, 1 - y)
    fits: list[tuple[Array, Array, Array] | None] = []
    known = []
    for k in range(len(table.pairs)):
        others = [c for c in range(len(table.pairs)) if usable[c] and c != k]
        known.append(len(others) >= ENOUGH)
        difficulty = prompt_difficulty(against[:, others], (length * sign)[:, others]) if known[k] else np.zeros(len(y))
        fits.append(_fit(y[:, k], length[:, k], difficulty) if scored[:, k].sum() > 1 else None)
    columns = [_columns(y[:, k], scored[:, k], fit) for k, fit in enumerate(fits) if fit is not None]
    if not columns:
        return [None] * len(fits)
    sums = iter(np.split(bootstrap_sums(np.hstack(columns), resamples, seed), len(columns), axis=1))
    return [
        None if fit is None else _rate(y[:, k], scored[:, k], fit, next(sums), not known[k])
        for k, fit in enumerate(fits)
    ]


def _fit(y: Array, length: Array, difficulty: Array) -> tuple[Array, Array, Array]:
    """Coefficients (3,), the design x (P, 3) they belong to and the design at equal length."""
    x = np.stack([np.ones(len(y)), difficulty, length], axis=1)
    rows = ~np.isnan(y)
    return fit_logistic(x[rows], y[rows], np.array([0, RIDGE, RIDGE])), x, x * [1, 1, 0]


def _columns(y: Array, scored: Array, fit: tuple[Array, Array, Array]) -> Array:
    """Per prompt, what one Newton step and the mean prediction are sums of: (P, 17)."""
    beta, x, level = fit
    mean, even = sigmoid(x @ beta), sigmoid(level @ beta)
    score = x * (np.where(scored, y, mean) - mean)[:, None]
    information = (x[:, :, None] * x[:, None, :] * (mean * (1 - mean))[:, None, None]).reshape(-1, 9)
    slope = level * (even * (1 - even))[:, None]
    return np.hstack([score, information, even[:, None], slope, np.ones((len(y), 1))]) * scored[:, None]


def _rate(y: Array, scored: Array, fit: tuple[Array, Array, Array], sums: Array, approximate: bool) -> LengthControlled:
    """The mean prediction at equal length, and the quantiles of its resampled values from `sums` (R, 17)."""
    beta, _, level = fit
    penalty = np.array([0, RIDGE, RIDGE])
    information = sums[:, 3:12].reshape(-1, 3, 3) + np.diag(penalty + 1e-9)
    step = np.linalg.solve(information, (sums[:, :3] - penalty * beta)[..., None])[..., 0]
    with np.errstate(invalid="ignore"):
        samples = (sums[:, 12] + (sums[:, 13:16] * step).sum(axis=1)) / sums[:, 16]
    rate = float(sigmoid(level[scored] @ beta).mean())
    low, high = np.clip(percentile_interval(samples), 0, 1)
    if np.ptp(y[scored]) == 0:
        low, high = constant_interval(float(y[scored][0]), int(scored.sum()))
    return LengthControlled(
        win_rate=rate, low=float(min(low, rate)), high=float(max(high, rate)), approximate=approximate
    )
