"""`init` writes a recipe that says everything and runs as it is."""

import itertools
from pathlib import Path

import pytest
import yaml

from selfplay.config import AdaptiveKL, Lora, Pretraining, Recipe, load_recipe, parse_yaml, validate
from selfplay.config.template import commented_recipe, scalar, write_recipe
from selfplay.errors import ConfigError
from selfplay.preflight import check


def leaves(tree: dict[str, object], prefix: str = "") -> set[str]:
    """Dotted names of all settings and sections."""
    found = set()
    for key, value in tree.items():
        found.add(prefix + key)
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
    return found


def test_what_is_written_is_the_defaults_and_passes_every_check(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mine.yaml")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe == validate(Recipe, {"name": "mine", "policy": {"bootstrap": {}}}, "defaults")
    check(recipe)


def test_every_setting_is_there(tmp_path: Path) -> None:
    text = commented_recipe()
    recipe = validate(Recipe, {"name": "recipe", "policy": {"bootstrap": {}}}, "defaults")
    assert leaves(parse_yaml(text)) == leaves(recipe.model_dump(mode="json"))
    assert leaves(yaml.safe_load(text)) == leaves(parse_yaml(text)), "other readers of YAML see the same"


def test_every_setting_has_a_comment_above_it() -> None:
    lines = commented_recipe().split("\n")
    settings = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    assert len(settings) > 100
    for number in settings:
        indent = len(lines[number]) - len(lines[number].lstrip())
        assert lines[number - 1].startswith(" " * indent + "# "), lines[number]
    assert max(map(len, lines)) <= 120


def test_sections_that_are_null_show_what_they_would_hold() -> None:
    """Taken out of their comments, they are the section's defaults."""
    lines = commented_recipe().split("\n")
    for name, defaults in (("lora", Lora()), ("adaptive_kl", AdaptiveKL()), ("pretraining", Pretraining())):
        place = next(number for number, line in enumerate(lines) if line.strip() == f"# or {name}:")
        behind = itertools.takewhile(lambda line: line.lstrip().startswith("#    "), lines[place + 1 :])
        text = "\n".join(line.lstrip()[1:] for line in behind)
        assert validate(type(defaults), parse_yaml(text), name) == defaults
        assert "# " in text, "with their documentation"


@pytest.mark.parametrize(
    "value", ["yes", "", "a: b", "# no comment", "é", None, True, 0.0003, 1e-05, 2, ("a", "b'c"), ()]
)
def test_any_value_is_read_back(value: object) -> None:
    found = parse_yaml(f"key: {scalar(value)}")["key"]
    assert (tuple(found) if isinstance(found, list) else found) == value


def test_a_file_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="mine.yaml' is there already; give another name, or --force to replace it"):
        write_recipe(file)
    assert file.read_text() == "precious"
    write_recipe(file, force=True)
    assert load_recipe(file).name == "mine"


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder .*none'; make it first"):
        write_recipe(tmp_path / "none" / "mine.yaml")
    for force in (False, True):
        with pytest.raises(ConfigError, match="is there already"):
            write_recipe(tmp_path, force)
    with pytest.raises(ConfigError, match=r"my recipe.yaml: name = 'my recipe': string should match pattern"):
        write_recipe(tmp_path / "my recipe.yaml")
    assert list(tmp_path.iterdir()) == []
