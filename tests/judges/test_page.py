"""docs/judges.md does what it says: a judge of one's own from an empty folder to a run that uses it."""

import re
from pathlib import Path

import pytest
from tiny_run import tiny_recipe
from typer.testing import CliRunner

from judges import load_spec
from judges.audit.file_tests import run_tests
from judges.audit.gold import load_gold
from judges.spec.modes import MODES
from selfplay.cli import app
from selfplay.config import load_recipe
from selfplay.loop import run
from selfplay.storage.files import read_rows

PAGE = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    """The n-th code block in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[number]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a newcomer has after copying the page's first two files."""
    (tmp_path / "my_rules.py").write_text(block("python"))
    (tmp_path / "my_judge.yaml").write_text(block("yaml"))
    return tmp_path


def test_the_judge_of_the_page_passes_its_check(folder: Path) -> None:
    found = CliRunner().invoke(app, ["judge", "check", str(folder / "my_judge.yaml")])
    assert found.exit_code == 0, found.output


def test_a_wrong_expectation_is_exit_code_1(folder: Path) -> None:
    (folder / "my_judge.yaml").write_text(block("yaml").replace("expect: first", "expect: second"))
    found = CliRunner().invoke(app, ["judge", "check", str(folder / "my_judge.yaml")])
    assert found.exit_code == 1 and "expected second, got 1 (first)" in " ".join(found.output.split())


def test_a_run_is_labelled_by_it(folder: Path, tiny_run: Path) -> None:
    (folder / "tiny.yaml").write_text(tiny_recipe(folder / "my_judge.yaml"))
    start = ["policy.bootstrap=null", f"policy.model={tiny_run / 'iteration-000' / 'policy'}"]
    directory = run(
        load_recipe(folder / "tiny.yaml", [*start, f"output={folder / 'run'}", "iterations=1", "algorithm.steps=1"])
    )
    rows = read_rows(directory / "iteration-001" / "label" / "verdicts.parquet")
    assert rows and {row["judge"] for row in rows} == {"my_judge"}
    assert any(re.match(r"score \d\.\d\d [<>] \d\.\d\d: .*(?:place|brief)", row["reason"]) for row in rows)


def test_the_language_model_judge_of_the_page_passes_its_tests(tmp_path: Path) -> None:
    (tmp_path / "kind.yaml").write_text(block("yaml", 1))
    spec = load_spec(tmp_path / "kind.yaml")
    assert spec.needs_model and run_tests(spec) == []


def test_the_page_names_every_mode_and_the_size_of_the_gold_set() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(MODES)
    built_in = Path(__file__).parents[2] / "prompts" / "tasks" / "gold.jsonl"
    assert f"about {len(load_gold(built_in))} pairs" in PAGE
