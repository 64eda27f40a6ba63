"""Votes shaped like AlpacaEval's with known truth: is a rate at equal length right, and does company change it?

    python tests/bench/length_control.py [--simulations 500]

805 prompts of different difficulty, a board of models whose answers differ in quality, length and how much the judge
minds it. Difficulty is fitted once on eight models and kept; then new models are measured. Reports, for each, the
coverage of the 95% interval of its rate at equal length, the bias, and how far its rate moves when nine more models join
the table. Keeps results/length_control.json.
"""

import argparse
from typing import Any

import numpy as np
from measuring import publish

from selfplay.stats.length_control import fit_difficulty, length_controlled, sigmoid
from selfplay.stats.votes import VoteTable

PROMPTS, SPREAD = 805, 1.2
NEWCOMERS = {  # quality, taste for length, weight of difficulty, mean difference in characters
    "short and good": (0.8, 0.8, 1.0, -150.0),
    "long and weak": (-1.0, 0.8, 0.9, 200.0),
    "very long": (0.3, 1.2, 1.1, 400.0),
}
Array = np.ndarray[Any, np.dtype[np.float64]]


def votes(generator: np.random.Generator, hard: Array, models: list[tuple[float, float, float, float]]) -> VoteTable:
    """A table of models against one baseline, one vote per prompt."""
    theta, taste, weight, shift = np.array(models).T
    length = generator.normal(0, 300, (len(hard), len(models))) + shift
    chance = sigmoid(theta + np.outer(hard, weight) + taste * np.tanh(length / length.std(axis=0)))
    score = (generator.random(length.shape) < chance).astype(np.float64)
    names = [f"m{k}" for k in range(len(models))]
    pairs = np.array([[k + 1, 0] for k in range(len(models))])
    ids = tuple(map(str, range(len(hard))))
    return VoteTable(ids, ("baseline", *names), pairs, score, np.ones_like(score), np.zeros_like(score), length)


def simulate(seed: int, resamples: int) -> list[tuple[float, float, float, float]]:
    """For each newcomer its rate, the bounds, and the largest change of it when nine models join; all in points."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(0, SPREAD, PROMPTS)
    board = [(quality, 0.8, 1.0, 60 * k - 200.0) for k, quality in enumerate(np.linspace(-2, 1, 8))]
    difficulty = fit_difficulty(votes(generator, hard, board), 0)
    joined = votes(generator, hard, [*NEWCOMERS.values(), *board, board[0]])
    alone = joined.pairs[: len(NEWCOMERS)]
    few = VoteTable(
        joined.prompts,
        joined.models[: len(NEWCOMERS) + 1],
        alone,
        *(part[:, : len(alone)] for part in (joined.score, joined.count, joined.unscored, joined.length)),
    )
    first = length_controlled(few, difficulty, resamples=resamples, seed=seed)
    after = length_controlled(joined, difficulty, resamples=resamples, seed=seed)
    found = []
    for one, other in zip(first, after, strict=False):
        assert one is not None and other is not None
        moved = max(abs(getattr(one, key) - getattr(other, key)) for key in ("win_rate", "low", "high"))
        found.append((100 * one.win_rate, 100 * one.low, 100 * one.high, 100 * moved))
    return found


def measure(simulations: int, resamples: int = 1000) -> list[dict[str, Any]]:
    """One row per newcomer: truth, mean, coverage in percent, largest move in points."""
    runs = np.array([simulate(seed, resamples) for seed in range(simulations)])  # (S, newcomers, 4)
    any_prompt = np.random.default_rng(7).normal(0, SPREAD, 1_000_000)
    rows = []
    for place, (name, (theta, _, weight, _)) in enumerate(NEWCOMERS.items()):
        truth = 100 * float(sigmoid(theta + weight * any_prompt).mean())
        rate, low, high, moved = runs[:, place].T
        rows.append(
            {
                "model": name,
                "truth": round(truth, 2),
                "mean_rate": round(float(rate.mean()), 2),
                "coverage": round(100 * float(((low <= truth) & (truth <= high)).mean()), 1),
                "largest_move": float(moved.max()),
                "simulations": simulations,
            }
        )
    return rows


def main() -> None:
    """Simulate and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=500)
    publish("length_control", measure(parser.parse_args().simulations))


if __name__ == "__main__":
    main()
