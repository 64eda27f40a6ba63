"""Shipped recipes at small size, all from one start: that of the tiny run."""

from pathlib import Path

from selfplay.config import load_recipe
from selfplay.loop import run
from selfplay.rundir import RunDirectory
from selfplay.storage.checksums import check_of_file

ROOT = Path(__file__).parents[2]
SMALL = (
    "policy.bootstrap=null",
    "threads=1",
    "sampling.max_tokens=32",
    "generate={prompts: 10, completions: 3}",
    "prompts.train.limit=64",
    "prompts.heldout.limit=16",
)


def small_run(name: str, tiny_run: Path, folder: Path, *overrides: str) -> Path:
    """Run `runs/NAME.yaml` with overrides from the tiny run's start, with its judge and its seed; gives the directory."""
    judge = f"judge.file={tiny_run.parent / 'tiny_judge.yaml'}"
    start = f"policy.model={tiny_run / 'iteration-000' / 'policy'}"
    seed = f"seed={RunDirectory(tiny_run).recipe().seed}"
    recipe = ROOT / "runs" / f"{name}.yaml"
    return run(load_recipe(recipe, [*SMALL, judge, start, seed, f"output={folder / 'run'}", *overrides]))


def checksums(folder: Path) -> dict[str, str]:
    """Name -> checksum of what a training has written."""
    return {file.name: check_of_file(file) for file in folder.iterdir() if file.is_file()}
