"""The parts of the site that are made and not written, and the check that its pages load nothing from the network."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from selfplay.config import Count, Recipe, Unit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import notebook  # noqa: E402
import recipe_reference  # noqa: E402
import remote  # noqa: E402

PAGE = recipe_reference.recipe_page()


def test_the_reference_has_every_setting_once_with_its_documentation() -> None:
    ids = re.findall(r'<span id="([^"]+)">', PAGE)
    assert sorted(set(ids)) == sorted(set(recipe_reference.setting_names()))
    assert {"seed", "algorithm.kl_coefficient", "policy.bootstrap.sft.count", "judge.bootstrap.rules"} <= set(ids)
    empty = [row for row in PAGE.splitlines() if row.startswith("| <span") and row.endswith("|  |")]
    assert not empty, "a setting without a docstring beneath its field"


def test_the_reference_tells_types_and_defaults_as_the_recipe_has_them() -> None:
    rows = dict(re.findall(r'^\| <span id="([^"]+)">`\w+`</span> \| (.*)$', PAGE, re.MULTILINE))
    assert rows["iterations"].startswith("integer, at least 1 | `2` | Rounds of")
    assert rows["threads"].startswith("integer, at least 1 or `null` | `null` |")
    assert rows["guard.action"].startswith("`warn`, `stop` or `keep-best` | `keep-best` |")
    assert rows["guard.unscored"].startswith("number, at least 0 and at most 1 | `0.05` |")
    default = Recipe.model_fields["seed"].default
    assert rows["seed"].startswith(f"integer | `{default}` |")


def test_types_are_said_in_words() -> None:
    class Inner(BaseModel):
        x: int = 0

    assert recipe_reference.type_text(tuple[Inner, ...]) == "list of section"
    assert recipe_reference.type_text(Unit | None) == "number, at least 0 and at most 1 or `null`"
    assert recipe_reference.type_text(Annotated[tuple[str, ...], Field(strict=False)]) == "list of text"
    assert recipe_reference.type_text(dict[str, Count]) == "mapping of text to integer, at least 1"
    assert recipe_reference.type_text(Literal["a"]) == "`a`"


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('<script src="https://unpkg.com/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ('<link href="https://fonts.gstatic.com" rel="preconnect">', True),
        ('<img alt="a" src=http://example.org/a.png>', True),
        ('<a href="https://example.org">a link is followed by people</a>', False),
        ('<script src="assets/x.js"></script><img src="data:image/png;base64,//8=">', False),
        ('<link rel="canonical" href="https://example.org/">', False),
    ],
)
def test_a_page_that_loads_from_elsewhere_is_found(text: str, loads: bool, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(text)
    assert bool(remote.remote_assets(tmp_path)) == loads


def test_a_style_that_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text(
        "@import url(https://fonts.example/css);\nb { background: url('https://x.example/y') }"
    )
    (tmp_path / "b.css").write_text("b { background: url(images/y.png) }")
    assert [line.partition(":")[0] for line in remote.remote_assets(tmp_path)] == ["a.css", "a.css"]


def test_the_notebook_becomes_a_page_with_its_outputs() -> None:
    page = notebook.page(ROOT / "docs" / "tour.ipynb")
    assert page.startswith("# A tour of a run\n") and page.count("```python\n") >= 7
    assert page.count('<img class="figure"') == 4 and '<pre class="output">' in page
    assert "Warning" not in page


def test_every_page_of_the_navigation_exists() -> None:
    class Loader(yaml.SafeLoader):
        """mkdocs.yml may name Python objects, which are no matter here."""

    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    pages = set(re.findall(r"[\w/-]+\.md", str(navigation)))
    made = {"reference/recipe.md", "tour.md"}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert made <= pages <= written | made  # others that are written stand under More


def test_sections_that_may_be_of_several_kinds_say_which() -> None:
    """`algorithm` is a union on `kind`: each of its classes has a heading that names the kind."""
    assert "## `algorithm`, kind `ppo` { #algorithm-ppo }\n" in PAGE
    assert "## `algorithm`, kind `python` {" in PAGE and "## `engine` {" in PAGE
