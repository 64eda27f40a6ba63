"""Win rates at equal length: what would be left if neither model wrote longer answers than the other.

After AlpacaEval 2 (Dubois et al. 2024, 2404.04475): logit P(a beats b) = theta + psi difficulty + phi tanh(d / sd),
with d the difference in length and `difficulty` one number per prompt; the rate is the mean prediction at d = 0. Each
pair is fitted on its own votes alone. Difficulty is given, fitted once (`fit_difficulty`) and kept, so no rate depends
on who else is compared; without it length alone is used, and the result is marked approximate. A model of the judge's
taste, not a correction of fact: quality that needs words is taken away as well.

Left out on purpose: AlpacaEval's choice of the penalty by cross-validation. In simulations it shrinks a weak taste for
length away and intervals then cover the truth in 80 to 95% of tries; a fixed weak ridge covers in 92 to 97%.
"""

import numpy as np

from selfplay.errors import ConfigError
from selfplay.records import Record
from selfplay.stats.intervals import Array, bootstrap_sums, constant_interval, percentile_interval
from selfplay.stats.votes import VoteTable

PENALTY = np.array([0.0, 0.1, 0.1])
"""Precision of the normal prior on theta (none), psi and phi: keeps them finite where votes are few or unanimous."""
RIDGE = 1.0
"""The same for each prompt's difficulty, and for phi while difficulty is fitted."""
ENOUGH = 3
"""Fewest models compared with the baseline from which difficulty can be fitted."""
TOGETHER = 32
"""Pairs that are resampled in one pass: 36 MB per 10,000 prompts."""
UPPER = np.triu_indices(3)
"""Places of the six different entries of a symmetric 3 x 3 matrix."""


class LengthControlled(Record):
    """Win rate at equal length with a 95% interval; `approximate` if the difficulty of prompts was not known."""

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


def fit_difficulty(table: VoteTable, baseline: int) -> Array:
    """Difficulty (P,) of the table's prompts, from all comparisons with the model `baseline`; 0 where there is none.

    logit P(m beats baseline) = theta_m + difficulty + phi_m length_m, the two parts fitted in turns; high where the
    baseline loses more often than elsewhere. Raises ConfigError below `ENOUGH` models compared with the baseline.
    """
    y = np.where(np.isnan(table.length), np.nan, table.mean())
    columns = [k for k, pair in enumerate(table.pairs) if baseline in pair and np.count_nonzero(~np.isnan(y[:, k])) > 1]
    if len(columns) < ENOUGH:
        raise ConfigError(
            f"the difficulty of prompts cannot be fitted: {len(columns)} models with known lengths were compared with "
            f"{table.models[baseline]!r}, and it takes {ENOUGH}; fit it on a table with more of them"
        )
    turn = table.pairs[columns, 0] == baseline
    target = np.where(turn, 1 - y[:, columns], y[:, columns])
    scored = ~np.isnan(target)
    signed = np.where(turn, -table.length[:, columns], table.length[:, columns])
    length = np.stack([scaled_length(*column) for column in zip(signed.T, scored.T, strict=True)], axis=1)
    return _alternate(np.where(scored, target, 0.5), scored, length)


def _alternate(target: Array, scored: Array, length: Array) -> Array:
    """Difficulty (P,) by turns with each column's theta and phi; all arguments are (P, C)."""
    difficulty = np.zeros(len(target))
    for _ in range(25):
        before, offset = difficulty, np.zeros(target.shape)
        for column, rows in enumerate(scored.T):
            x = np.stack([np.ones(rows.sum()), length[rows, column]], axis=1)
            theta, phi = fit_logistic(x, target[rows, column], np.array([0, RIDGE]), difficulty[rows])
            offset[:, column] = theta + phi * length[:, column]
        for _ in range(3):
            mean = sigmoid(offset + difficulty[:, None])
            gradient = (scored * (target - mean)).sum(axis=1) - RIDGE * difficulty
            difficulty = difficulty + gradient / ((scored * mean * (1 - mean)).sum(axis=1) + RIDGE)
        if np.abs(difficulty - before).max() < 1e-6:
            break
    return difficulty


def length_controlled(
    table: VoteTable, difficulty: Array | None = None, *, resamples: int = 2000, seed: int = 0
) -> list[LengthControlled | None]:
    """Return the win rate at equal length of each of the table's pairs; `None` where lengths or scores are missing.

    `difficulty` (P,) counts as known; without it the rates are approximate. Intervals resample prompts and take one
    Newton step from the fit for each sample (Moulton and Zeger 1991).
    """
    y = np.where(np.isnan(table.length), np.nan, table.mean())
    found: list[LengthControlled | None] = [None] * len(table.pairs)
    usable = [k for k in range(len(table.pairs)) if np.count_nonzero(~np.isnan(y[:, k])) > 1]
    hard = np.zeros(len(y)) if difficulty is None else difficulty
    for begin in range(0, len(usable), TOGETHER):
        chunk = usable[begin : begin + TOGETHER]
        fits = [_fit(y[:, k], scaled_length(table.length[:, k], ~np.isnan(y[:, k])), hard) for k in chunk]
        columns = np.hstack([_columns(y[:, k], *fit) for k, fit in zip(chunk, fits, strict=True)])
        sums = np.split(bootstrap_sums(columns, resamples, seed), len(chunk), axis=1)
        for k, fit, part in zip(chunk, fits, sums, strict=True):
            found[k] = _rate(y[:, k], *fit, part, approximate=difficulty is None)
    return found


def _fit(y: Array, length: Array, difficulty: Array) -> tuple[Array, Array]:
    """Coefficients (3,) and the design x (P, 3) that they belong to."""
    x = np.stack([np.ones(len(y)), difficulty, length], axis=1)
    rows = ~np.isnan(y)
    return fit_logistic(x[rows], y[rows], PENALTY), x


def _columns(y: Array, beta: Array, x: Array) -> Array:
    """Per prompt, what one Newton step and the mean prediction at equal length are sums of: (P, 14)."""
    scored, level = ~np.isnan(y), x * [1, 1, 0]
    mean, even = sigmoid(x @ beta), sigmoid(level @ beta)
    score = x * (np.where(scored, y, mean) - mean)[:, None]
    information = x[:, UPPER[0]] * x[:, UPPER[1]] * (mean * (1 - mean))[:, None]
    slope = level * (even * (1 - even))[:, None]
    return np.hstack([score, information, even[:, None], slope, np.ones((len(y), 1))]) * scored[:, None]


def _rate(y: Array, beta: Array, x: Array, sums: Array, *, approximate: bool) -> LengthControlled:
    """Return the mean prediction at equal length, and the quantiles of its resampled values from `sums` (R, 14)."""
    scored = ~np.isnan(y)
    information = np.zeros((len(sums), 3, 3))
    information[:, UPPER[0], UPPER[1]] = information[:, UPPER[1], UPPER[0]] = sums[:, 3:9]
    information += np.diag(PENALTY + 1e-9)
    step = np.linalg.solve(information, (sums[:, :3] - PENALTY * beta)[..., None])[..., 0]
    with np.errstate(invalid="ignore"):
        samples = (sums[:, 9] + (sums[:, 10:13] * step).sum(axis=1)) / sums[:, 13]
    rate = float(sigmoid((x[scored] * [1, 1, 0]) @ beta).mean())
    low, high = np.clip(percentile_interval(samples), 0, 1)
    if np.ptp(y[scored]) == 0:
        low, high = constant_interval(float(y[scored][0]), int(scored.sum()))
    return LengthControlled(
        win_rate=rate, low=float(min(low, rate)), high=float(max(high, rate)), approximate=approximate
    )
