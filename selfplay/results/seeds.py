"""Runs that differ in nothing but their seed, which `selfplay run --seeds` makes of one recipe: RUN-seed0, RUN-seed1, ...

Within a run, intervals are over prompts: they say how well its policies were measured. Between seeds they say how well the
recipe does, and that is what a recipe is judged by. Left out: ratings, and seeds of runs whose recipes differ.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfplay.errors import ConfigError
from selfplay.formatting import display_name
from selfplay.progress import log_once
from selfplay.records import Comparison
from selfplay.rundir import RunDirectory, iteration_name
from selfplay.stats.intervals import between_runs
from selfplay.storage.files import read_json

NAME = re.compile(r"(.+)-seed(\d+)")


@dataclass(frozen=True)
class BetweenSeeds:
    """One win rate, measured with several seeds: that of each, in [0, 1], in the order of the seeds."""

    a: str
    b: str
    rates: tuple[float, ...]

    def comparison(self) -> Comparison:
        """Return their mean with its 95% interval between seeds; `n` counts seeds."""
        mean, low, high = between_runs(self.rates)
        found: dict[str, Any] = {"win_rate": mean, "low": max(low, 0.0), "high": min(high, 1.0)}
        return Comparison(a=self.a, b=self.b, n=len(self.rates), ties=0, unscored=0, **found)

    def json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {**self.comparison().model_dump(), "rates": list(self.rates)}


def folder_of_seed(directory: Path, seed: int) -> Path:
    """Return where a recipe's run with a seed is kept. Raises ConfigError for a directory without a name of its own."""
    if not directory.name.strip("."):
        raise ConfigError(
            f"output {str(directory)!r} has no name to put -seed{seed} behind: give one, such as output=runs/mine"
        )
    return directory.with_name(f"{directory.name}-seed{seed}")


def seed_runs(directory: Path) -> list[Path]:
    """Return the runs of a recipe's seeds, by seed; none if the directory is a run itself, or there are none.

    A folder whose recipe is of another name or seed than the folder says, such as a copy, is left out, with a line that says so.
    """
    if (directory / "config.yaml").is_file() or not directory.parent.is_dir():
        return []
    found: dict[int, Path] = {}
    for path in sorted(directory.parent.iterdir()):
        match = NAME.fullmatch(path.name)
        if match and match[1] == directory.name and (path / "config.yaml").is_file():
            found.setdefault(int(match[2]), path)
    kept: dict[int, str] = {}
    for seed in sorted(found):
        try:
            recipe = RunDirectory(found[seed]).recipe()
        except ConfigError as error:
            log_once(f"  {found[seed]} is left out of the seeds: {error}")
            continue
        name = recipe.name.removesuffix(f"-seed{recipe.seed}")
        if recipe.seed == seed and name == next(iter(kept.values()), name):
            kept[seed] = name
        else:
            log_once(
                f"  {found[seed]} is left out of the seeds: it is a run of the recipe {recipe.name!r} with seed {recipe.seed}"
            )
    return [found[seed] for seed in kept]


def siblings(run: Path) -> list[Path]:
    """Return the runs of all seeds of a run's recipe, itself among them; none if it was not made with `--seeds`."""
    match = NAME.fullmatch(run.name)
    return [] if match is None else seed_runs(run.with_name(match[1]))


def by_iteration(runs: Sequence[Path]) -> list[BetweenSeeds]:
    """Return the win rates of each iteration against the start and the one before, where two runs at least have them."""
    rates: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        files = RunDirectory(run)
        for number in files.iterations():
            file = files.stage(number, "evaluate") / "evaluation.json"
            evaluation = read_json(file) if number and file.is_file() else {}
            for key, other in (("win_rate_vs_start", 0), ("win_rate_vs_previous", number - 1)):
                rate = (evaluation.get(key) or {}).get("win_rate")
                if rate is not None and not (key == "win_rate_vs_previous" and other == 0):
                    rates.setdefault((iteration_name(number), iteration_name(other)), []).append(rate)
    several = {pair: tuple(found) for pair, found in rates.items() if len(found) > 1}
    return [BetweenSeeds(display_name(a), display_name(b), found) for (a, b), found in several.items()]
