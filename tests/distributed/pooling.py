"""What tests of a pool share: a run that has its start, its journal, and its rows."""

from pathlib import Path

from selfplay.config import load_recipe
from selfplay.loop import run
from selfplay.storage.files import read_rows

ROOT = Path(__file__).parents[2]
BATCHES = 24
"""Of `generate` in the recipe `pooled_recipe`."""


def begun(recipe: Path, output: Path, *overrides: str) -> Path:
    """A run that has its start and no more."""
    return run(load_recipe(recipe, [f"output={output}", *overrides]), only_start=True)


def rows(directory: Path, stage: str, table: str) -> list[dict]:
    return read_rows(directory / "iteration-001" / stage / f"{table}.parquet")


def journal_lines(directory: Path) -> int:
    file = directory / "iteration-001" / "generate.partial" / "work" / "journal.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0
