"""Bradley-Terry ratings of several models with intervals, the matrix behind them, and where they cannot be trusted.

P(i beats j) = s_i / (s_i + s_j) (Bradley and Terry 1952), a tie being half a win for each. evalica finds the ratings;
the thousands of bootstrap tables are fitted at once, by Newton's method. One number per model cannot show a cycle, so
`cycles` names the triples in which each beats the next.
"""

import math

import evalica
import numpy as np
from numpy.typing import NDArray

from selfplay.records import Record
from selfplay.stats.intervals import Array, bootstrap_sums, percentile_interval
from selfplay.stats.votes import VoteTable

POINTS = 400 / math.log(10)
"""Rating points per unit of log strength: 400 points are odds of ten to one, as in chess (Elo 1978)."""
STEPS = 100
"""Most Newton steps; five to eight are usual."""


class Rating(Record):
    """A model's Bradley-Terry rating in points (mean 0; 400 points are odds of 10 : 1) with its 95% interval.

    `high` is `None` for a model that the others never beat, `low` for one that never beat them: there is no bound.
    """

    model: str
    rating: float
    low: float | None
    high: float | None


class Cycle(Record):
    """Three models of which each beats the next, with the three win rates."""

    models: tuple[str, str, str]
    win_rates: tuple[float, float, float]


def win_matrix(table: VoteTable, score: Array | None = None, count: Array | None = None) -> Array:
    """Wins (..., M, M) of the row's model over the column's; sums of votes (..., K), by default those of the table."""
    score = table.score.sum(axis=0) if score is None else score
    count = table.count.sum(axis=0) if count is None else count
    a, b = table.pairs.T
    wins = np.zeros((*score.shape[:-1], len(table.models), len(table.models)))
    wins[..., a, b] = score
    wins[..., b, a] = count - score
    return wins


def strengths(wins: Array) -> Array:
    """Log strengths (M,), mean 0, of a table of wins (M, M), by evalica."""
    rows, columns = np.nonzero(wins)
    result = evalica.bradley_terry(
        rows.tolist(),
        columns.tolist(),
        [evalica.Winner.X] * len(rows),
        weights=wins[rows, columns].tolist(),
        tolerance=1e-12,
        limit=100_000,
    )
    logarithms = np.log(result.scores.loc[range(len(wins))].to_numpy())
    return logarithms - logarithms.mean()


def newton_strengths(wins: Array) -> Array:
    """Return the same for many tables (R, M, M) at once: (R, M). Every table must be `connected`."""
    games = wins + wins.swapaxes(-1, -2)
    theta = np.zeros(wins.shape[:-1])
    models = wins.shape[-1]
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))  # (R, M, M): P(row beats column)
        gradient = (wins - games * chance).sum(axis=-1)
        curvature = games * chance * (1 - chance)
        information = -curvature + 1 / models  # the constant fixes the mean, along which nothing changes
        information[:, range(models), range(models)] += curvature.sum(axis=-1)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        theta = theta + np.clip(step, -1, 1)
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return theta - theta.mean(axis=-1, keepdims=True)


def connected(wins: Array) -> NDArray[np.bool_]:
    """Return whether every model has beaten every other one through some chain of wins, for each of (..., M, M).

    Only then is there a finite rating for all (Ford 1957).
    """
    return np.asarray(reachable(wins).all(axis=(-1, -2)))


def reachable(wins: Array) -> NDArray[np.bool_]:
    """Return whether the row's model beat the column's through some chain of wins (or is the same), for each of (..., M, M)."""
    reach = (wins > 0) | np.eye(wins.shape[-1], dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(wins.shape[-1])))):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    return np.asarray(reach)


def steadied(wins: Array) -> Array:
    """Half a win each way added to every pair that met, in those tables (..., M, M) that have no finite ratings."""
    met = (wins + wins.swapaxes(-1, -2)) > 0
    return np.where(connected(wins)[..., None, None], wins, wins + 0.5 * met)


def ratings(table: VoteTable, *, resamples: int = 2000, seed: int = 0) -> tuple[list[Rating] | None, str]:
    """Ratings with 95% intervals from resampled prompts, best first, and a sentence on what they rest on ("" if sound).

    Where a model never won or never lost, half a win each way is added to every pair so that ratings stay finite.
    `None` if no chain of matches links all models.
    """
    wins = win_matrix(table)
    if len(table.models) < 2 or not connected(wins + wins.T):
        return None, "no chain of scored matches links all models, so they have no common rating"
    note = (
        ""
        if connected(wins)
        else (
            "one model won or lost all its matches, so half a win each way was added to "
            "every pair: its true rating may lie further out"
        )
    )
    point = strengths(steadied(wins)) * POINTS
    samples = win_matrix(table, *_resampled(table, resamples, seed))
    linked = connected(samples + samples.swapaxes(-1, -2))
    low, high = percentile_interval(newton_strengths(steadied(samples[linked]))) * POINTS
    reach = reachable(wins)
    beaten, winning = (np.any(one & ~one.T, axis=1) for one in (reach.T, reach))  # by, and against, who cannot answer
    found = [
        Rating(
            model=name,
            rating=float(point[i]),
            low=float(min(low[i], point[i])) if note == "" or winning[i] else None,
            high=float(max(high[i], point[i])) if note == "" or beaten[i] else None,
        )
        for i, name in enumerate(table.models)
    ]
    return sorted(found, key=lambda one: -one.rating), note


def _resampled(table: VoteTable, resamples: int, seed: int) -> tuple[Array, Array]:
    """Return sums of scores and counts of each pair (R, K) over resampled prompts.

    Where all n prompts of a pair agree, resampling them would give no spread at all; a share q of prompts that were never
    seen is added instead, with P(q > x) = (1 - x)^n, so that one pair alone has the bounds of `constant_interval`.
    """
    pairs = len(table.pairs)
    sums = bootstrap_sums(np.hstack([table.score, table.count]), resamples, seed)
    score, count = sums[:, :pairs], sums[:, pairs:]
    generator = np.random.default_rng(seed)
    for k in range(pairs):
        met = table.count[:, k] > 0
        rate = table.score[met, k] / table.count[met, k]
        if rate.size and np.ptp(rate) == 0:
            evenly = (generator.permutation(resamples) + 0.5) / resamples
            unseen = 1 - evenly ** (1 / rate.size)
            other = rate[0] == 0 if rate[0] in (0, 1) else generator.random(resamples) < 0.5
            score[:, k] = count[:, k] * (rate[0] * (1 - unseen) + unseen * other)
    return score, count


def cycles(table: VoteTable) -> list[Cycle]:
    """Triples in which each model beats the next one more than half of the time: what no rating can show."""
    wins = win_matrix(table)
    with np.errstate(invalid="ignore"):
        rate = wins / (wins + wins.T)
    beats = rate > 0.5
    found = []
    for i, j in zip(*np.nonzero(beats), strict=True):
        for k in np.nonzero(beats[j] & beats[:, i])[0]:
            if i < j and i < k:  # each cycle once, from its first model
                names = (table.models[i], table.models[j], table.models[k])
                found.append(Cycle(models=names, win_rates=(float(rate[i, j]), float(rate[j, k]), float(rate[k, i]))))
    return found
