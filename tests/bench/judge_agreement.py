"""How far the judge that a run made agrees with the rules that taught it, through the real engine, in each format.

    .venv/bin/python tests/bench/judge_agreement.py runs/quickstart-llm-judge
    .venv/bin/python tests/bench/judge_agreement.py runs/quickstart-llm-judge --engine transformers --pairs 200
    .venv/bin/python tests/bench/judge_agreement.py runs/quickstart-llm-judge --calibrate
    .venv/bin/python tests/bench/judge_agreement.py --small FOLDER --calibrate --engine transformers --pairs 800

On pairs of held-out stories, and on pairs of answers sampled from each of the run's policies to held-out instructions,
which is what the judge meets in the run. Pairs that the rules tie are left out. Prints a table and writes JSON. `--calibrate`
prints instead what `judge calibrate` says of the file that labels, on held-out stories with the rules as gold. `--small` makes
the run first, in a new folder: its judge learns one rule, whether a story ends with "The end.", in 60 steps, which takes a
minute of one core.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "loop"))

from measuring import publish
from taught_judge import write_files

import judges
from judges.audit.calibration import Calibration, calibrate
from judges.distill import agreement, decided_by
from prompts import stories
from selfplay.config import Engine, Recipe, load_recipe
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.open import open_engine
from selfplay.loop import run
from selfplay.models import load_policy, load_tokenizer
from selfplay.records import Pair
from selfplay.rundir import RunDirectory
from selfplay.stages.judge_model import pairs

SMALL = (
    "judge.precheck=false",
    "judge.bootstrap.also=[]",
    "judge.bootstrap.training.steps=60",
    "judge.bootstrap.heldout=32",
)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--small", type=Path, help="A new folder for a small run, instead of a run.")
    parser.add_argument("--seed", type=int, default=0, help="Of the small run.")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--pairs", type=int, default=1300)
    given = parser.parse_args()
    if (given.run is None) == (given.small is None):
        parser.error("name a run, or a new folder with --small")
    files = RunDirectory(given.run or small_run(given.small, given.seed))
    recipe = files.recipe()
    sources = {"held-out stories": list(islice(pairs("heldout", recipe.seed + 1), given.pairs))}
    engine = open_engine(Engine(kind=given.engine), files.stage(0, "judge"), "judge")
    if given.calibrate:
        print("\n".join(calibrated(recipe, engine, sources["held-out stories"]).lines()))
        engine.close()
        return
    sources |= {f"policy {number}": sampled(files, recipe, number, given.pairs) for number in files.iterations()}
    rows = list(measure(recipe, engine, sources))
    engine.close()
    publish("judge_agreement", rows, engine=given.engine)


def sampled(files: RunDirectory, recipe: Recipe, iteration: int, count: int) -> list[Pair]:
    """Two answers of an iteration's policy to each of `count` held-out instructions, leaving out equal ones."""
    checkpoint = files.policy(iteration)
    engine = TransformersEngine(load_policy(checkpoint), load_tokenizer(checkpoint))
    drawn = recipe.sampling.model_copy(update={"n": 2, "seed": recipe.seed + 17})
    asked = stories.prompts("heldout", count, recipe.seed + 5)
    return [
        Pair(id=prompt.id, prompt=prompt, first=first, second=second)
        for prompt, (first, second) in zip(asked, engine.generate(asked, drawn), strict=True)
        if first.text != second.text
    ]


def measure(recipe: Recipe, engine: Any, sources: dict[str, list[Pair]]) -> Iterator[dict[str, Any]]:
    """One row for each source of pairs and judge file."""
    assert recipe.judge.bootstrap is not None
    rules = judges.load_spec(recipe.judge.bootstrap.rules)
    for source, asked in sources.items():
        for name in (recipe.judge.file, *recipe.judge.bootstrap.also):
            judge = judges.build(judges.load_spec(name, "made"), engine)
            began = time.perf_counter()
            found = agreement(rules, judge, asked)
            yield {"source": source, "judge": judge.spec.name, **found, "seconds": time.perf_counter() - began}


def small_run(folder: Path, seed: int) -> Path:
    """Make the start of a run whose judge had few lessons; gives its directory."""
    folder.mkdir(parents=True)
    recipe = write_files(folder.resolve())
    return run(load_recipe(recipe, [f"output={folder / 'run'}", f"seed={seed}", *SMALL]), only_start=True)


def calibrated(recipe: Recipe, engine: Any, asked: list[Pair]) -> Calibration:
    """What `judge calibrate` finds for the file that labels, on the pairs that the rules decide."""
    assert recipe.judge.bootstrap is not None
    gold = decided_by(judges.build(judges.load_spec(recipe.judge.bootstrap.rules)), asked)
    return calibrate(judges.load_spec(recipe.judge.file, "made"), gold, engine)


if __name__ == "__main__":
    main()
