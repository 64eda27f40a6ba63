"""The schema that editors get for judge files: it accepts what the loader accepts, and documents every setting."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from judging import spec

from judges import shipped
from judges.audit.inspect import schema
from selfplay.config import parse_yaml
from selfplay.errors import ConfigError

ROOT = Path(__file__).parents[3]
SCHEMA = schema()
PAGE = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
DOCUMENTED = [text for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "mode:" in text]
ASKING = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ prompt }} {{ responses[0] }} {{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
"""


def as_json(text: str) -> Any:
    """A YAML file as an editor sees it: keys are texts."""
    return json.loads(json.dumps(parse_yaml(text)))


def complaints(text: str) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(as_json(text))]


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_judge_fits(name: str) -> None:
    text = shipped()[name].read_text(encoding="utf-8")
    assert complaints(text) == [] and complaints(text.replace(f"name: {name}\n", "", 1)) == []


@pytest.mark.parametrize("text", DOCUMENTED)
def test_every_documented_judge_fits(text: str) -> None:
    assert complaints(text) == []


def test_there_are_documented_judges() -> None:
    assert len(DOCUMENTED) >= 4


@pytest.mark.parametrize(
    "text",
    [
        ASKING,
        ASKING.replace('content: "{{ prompt }} {{ responses[0] }} {{ responses[1] }}"', "file: ask.j2"),
        ASKING.replace("{A: 1, B: 0}", "{true: 1, false: 0}"),
        "mode: rubric\nmodel: m\ncriteria: answer",
        "mode: rubric\nmodel: m\ncriteria: [{name: x, text: 'Is it?', choices: {1: 0, 2: 1}}]",
        "mode: rules\ncriteria: ./mine.yaml",
        "mode: python\npython: './own.py:Mine'\noptions: {words: 5}",
        "mode: jury\nmembers: [{judge: stories}, {judge: ./mine.yaml, weight: 2}]",
        ASKING + "tests: [{outputs: ['[[A]]', '[[B]]'], expect: 1.0}, {outputs: [{A: 0.5}], expect: tie}]",
    ],
)
def test_what_the_loader_accepts_is_accepted(text: str, tmp_path: Path) -> None:
    (tmp_path / "ask.j2").write_text("{{ prompt }} {{ responses[0] }} {{ responses[1] }}")
    (tmp_path / "mine.yaml").write_text("mode: rules\ncriteria: [{name: x, python: './own.py:f'}]")
    (tmp_path / "own.py").write_text("")
    spec(text, tmp_path)
    assert complaints(text) == []


@pytest.mark.parametrize(
    "text",
    [
        ASKING + "ordr: both",
        ASKING + "order: forward",
        ASKING.replace("content:", "text:"),
        ASKING.replace("role: user", "role: user, file: x.j2"),
        "mode: rules\ncriteria: 3",
        "mode: rules\ncriteria: []",
        "mode: rulez",
        "criteria: answer",
    ],
)
def test_what_the_loader_refuses_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        spec(text)
    assert complaints(text)


def test_every_setting_is_documented() -> None:
    settings = {
        f"{kind}.{name}": setting.get("description", "")
        for kind, definition in SCHEMA["$defs"].items()
        for name, setting in definition.get("properties", {}).items()
    }
    assert len(settings) > 100 and [name for name, text in settings.items() if len(text) < 10] == []
