"""docs/judges.md does what it says: a judge of one's own from an empty folder to a run that uses it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_recipe
from typer.testing import CliRunner

from judges import build, load_spec
from judges.audit.file_tests import run_tests
from judges.audit.gold import load_gold
from judges.audit.inspect import try_pair
from judges.spec.modes import MODES
from selfplay.cli import app
from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.records import Completion, Prompt, Verdict
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


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_judge_of_the_page_passes_its_tests_and_its_example_is_read(number: int, tmp_path: Path) -> None:
    (tmp_path / "nearer.py").write_text(block("python", 1))
    (tmp_path / "judge.yaml").write_text(block("yaml", number))
    spec = load_spec(tmp_path / "judge.yaml")
    assert spec.tests and run_tests(spec) == []


def test_the_class_of_the_page_scores_too(tmp_path: Path) -> None:
    (tmp_path / "nearer.py").write_text(block("python", 1))
    (tmp_path / "judge.yaml").write_text(block("yaml", 4))
    judge: Any = build(load_spec(tmp_path / "judge.yaml"))
    said = [
        Completion(id=text, prompt_id="p", text=text, finish_reason="stop", policy="t")
        for text in ("a b c", "a", "a b c d")
    ]
    assert judge.score([Prompt.plain("p", "?")] * 3, said) == [1.0, 1 / 3, 0.5]


def test_the_criteria_of_a_pairwise_judge_are_listed_to_its_model(tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(block("yaml", 2))
    exchange = try_pair(load_spec(tmp_path / "judge.yaml")).exchanges[0]
    assert "What counts:\n- Is everything that it says true? (weight 3.0)\n- Does it" in exchange.messages[0].content
    shared = re.sub(r"criteria:\n(?:  - .*\n)+", "criteria: answer\n", block("yaml", 2))
    (tmp_path / "shared.yaml").write_text(shared)
    exchange = try_pair(load_spec(tmp_path / "shared.yaml")).exchanges[0]
    assert "- Is this an answer to what was asked, rather" in exchange.messages[0].content
    assert exchange.messages[0].content.count("(weight ") == 4  # its fifth criterion is in Python
    (tmp_path / "hidden.yaml").write_text(block("yaml", 2).replace("in criteria", "in labels"))
    with pytest.raises(ConfigError, match="criteria: no message shows them"):
        load_spec(tmp_path / "hidden.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_files_are_read_as_windows_saves_them(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "rubric.yaml").write_text("criteria:\n  - {name: größer, text: 'Größer?'}\n", encoding=encoding)
    (tmp_path / "ask.j2").write_text("Ist „{{ response }}“ {{ criterion }}\r\n", encoding=encoding)
    gold = {"prompt": "¿?", "chosen": "sí", "rejected": "no"}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold, ensure_ascii=False), encoding=encoding)
    text = "mode: rubric\nmodel: m\ncriteria: ./rubric.yaml\ngold: gold.jsonl\nmessages: [{role: user, file: ask.j2}]\n"
    (tmp_path / "judge.yaml").write_text(text, encoding=encoding)
    spec: Any = load_spec(tmp_path / "judge.yaml")
    assert spec.criteria[0].name == "größer" and spec.messages[0].content == "Ist „{{ response }}“ {{ criterion }}\n"
    assert load_gold(Path(spec.gold))[0].pair.prompt.text == "¿?"
    (tmp_path / "judge.yaml").write_bytes(b"mode: rules\nname: \xe9")
    with pytest.raises(ConfigError, match="judge.yaml is not text in UTF-8 or UTF-16; save it as such"):
        load_spec(tmp_path / "judge.yaml")


def test_the_language_model_judge_of_the_page_passes_its_tests(tmp_path: Path) -> None:
    (tmp_path / "kind.yaml").write_text(block("yaml", 1))
    spec = load_spec(tmp_path / "kind.yaml")
    assert spec.needs_model and run_tests(spec) == []


def test_the_page_names_every_field_of_a_verdict() -> None:
    table = PAGE.partition("A `Verdict`:")[2].partition("\n\nA preference")[0]
    named = {
        name for names in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", names)
    }
    assert named == set(Verdict.model_fields)


def test_the_page_names_every_mode_and_the_size_of_the_gold_set() -> None:
    table = PAGE.partition("`mode` is one of")[2].partition("`model` is")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(MODES)
    built_in = Path(__file__).parents[2] / "prompts" / "tasks" / "gold.jsonl"
    assert f"about {len(load_gold(built_in))} pairs" in PAGE
