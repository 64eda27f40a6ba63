"""How far the judge that a run made agrees with the rules that taught it, through the real engine, in each format.

    .venv/bin/python tests/bench/judge_agreement.py runs/quickstart-llm-judge
    .venv/bin/python tests/bench/judge_agreement.py runs/quickstart-llm-judge --engine transformers --pairs 200

On pairs of held-out stories, and on pairs of answers sampled from each of the run's policies to held-out instructions,
which is what the judge meets in the run. Pairs that the rules tie are left out. Prints a table and writes JSON.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import publish

import judges
from judges.distill import agreement
from prompts import stories
from selfplay.config import Engine, Recipe
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.open import open_engine
from selfplay.models import load_policy, load_tokenizer
from selfplay.records import Pair
from selfplay.rundir import RunDirectory
from selfplay.stages.judge_model import pairs


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--pairs", type=int, default=1300)
    given = parser.parse_args()
    files = RunDirectory(given.run)
    recipe = files.recipe()
    sources = {"held-out stories": list(islice(pairs("heldout", recipe.seed + 1), given.pairs))}
    sources |= {f"policy {number}": sampled(files, recipe, number, given.pairs) for number in files.iterations()}
    engine = open_engine(Engine(kind=given.engine), files.stage(0, "judge"), "judge")
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


if __name__ == "__main__":
    main()
