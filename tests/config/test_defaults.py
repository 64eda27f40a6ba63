"""A setting's default stays whole: naming one of its keys, in the file or on the command line, changes no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from judges.spec.modes import RubricSpec
from selfplay.config import Recipe, load_recipe, validate
from selfplay.config.template import held_section

TEXT = """\
policy: {bootstrap: {}}
judge: {file: stories, bootstrap: {rules: stories}}
"""


def of(folder: Path, *overrides: str) -> dict[str, Any]:
    """What a recipe says after overrides, section by section."""
    (folder / "r.yaml").write_text(TEXT)
    return load_recipe(folder / "r.yaml", overrides).model_dump(mode="json")


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("policy.bootstrap.sft.training.batch_size=8", {"steps": 200, "learning_rate": 2e-3, "batch_size": 8}),
        ("judge.bootstrap.training.steps=60", {"steps": 60, "batch_size": 16, "learning_rate": 3e-3}),
        ("judge.bootstrap.architecture.layers=2", {"layers": 2, "context": 768}),
        ("prompts.heldout.limit=64", {"source": "stories", "split": "heldout", "limit": 64}),
    ],
)
def test_an_override_of_one_key_keeps_the_others(tmp_path: Path, override: str, kept: dict[str, Any]) -> None:
    found = of(tmp_path, override)
    for name in override.partition("=")[0].split(".")[:-1]:
        found = found[name]
    assert {key: found[key] for key in kept} == kept


def test_a_fine_tuning_that_an_override_begins_has_the_defaults_that_init_writes(tmp_path: Path) -> None:
    found = of(tmp_path, "policy.bootstrap=null", "policy.model=some/model", "policy.sft.training.batch_size=8")
    assert found["policy"]["sft"]["training"]["steps"] == 200


def test_prompts_of_another_source_have_none_of_the_built_in_ones_settings(tmp_path: Path) -> None:
    found = of(tmp_path, "prompts.heldout.source=mine.jsonl")["prompts"]["heldout"]
    assert (found["split"], found["limit"]) == ("train", None)


def test_the_settings_of_one_kind_are_not_those_of_another() -> None:
    given = {"kind": "logprob", "labels": {"yes": 1.0, "no": 0.0}}
    spec = {"name": "j", "mode": "rubric", "model": "m", "criteria": [{"name": "c", "text": "?"}], "output": given}
    messages = [{"role": "user", "content": "{{ response }} {{ criterion }}"}]
    assert RubricSpec.model_fields["output"].default.pattern, "of its kind regex"
    assert RubricSpec.model_validate({**spec, "messages": messages}).output.pattern is None


def leaves(kind: type[BaseModel], tree: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a recipe by its dotted name, with its value, but for those of sections that are null or several."""
    for name, field in kind.model_fields.items():
        held = held_section(field.annotation)
        if held is not None and isinstance(tree[name], dict):
            yield from leaves(held, tree[name], f"{place}{name}.")
        elif not isinstance(tree[name], dict | list):
            yield f"{place}{name}", tree[name]


def test_no_setting_said_to_be_what_it_is_changes_another() -> None:
    """One after another, all settings of a recipe whose file names none of their sections."""
    short = {"name": "r", "policy": {"bootstrap": {}}, "judge": {"bootstrap": {"rules": "stories"}}}
    whole = validate(Recipe, short, "r").model_dump(mode="json")
    names = dict(leaves(Recipe, whole))
    assert len(names) > 100 and "judge.bootstrap.training.warmup" in names
    for name, value in names.items():
        tree: dict[str, Any] = {**short, "policy": {"bootstrap": {}}, "judge": {"bootstrap": {"rules": "stories"}}}
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
        if not name.endswith(".source"):
            assert validate(Recipe, tree, name).model_dump(mode="json") == whole, name
