"""A target that can only be a run or a folder here, and is not there, is refused before the hub is asked."""

import re
from pathlib import Path

import pytest

from selfplay.compare.targets import contestants, resolve
from selfplay.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with runs/stories and an exported checkpoint."""
    monkeypatch.chdir(tmp_path)
    for file in ("runs/stories/config.yaml", "exported/config.json"):
        Path(file).parent.mkdir(parents=True)
        Path(file).write_text("{}")


HUB = " (a hub id is one only where there is no folder 'runs')"
LIST = "; `selfplay runs` lists the runs in a folder"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("runs/storys", f"'runs/storys'{HUB}, did you mean 'runs/stories'?"),
        ("runs/nope", f"'runs/nope'{HUB}{LIST}"),
        ("runs/storys@2", f"'runs/storys'{HUB}, did you mean 'runs/stories'?"),
        ("runs/storys@best*16", f"'runs/storys'{HUB}, did you mean 'runs/stories'?"),
        ("stories@start", "'stories', did you mean 'runs/stories'?"),
        ("./exportd", "'./exportd', did you mean 'exported'?"),
        ("/nowhere/at/all", f"'/nowhere/at/all'{LIST}"),
        ("elsewhere/nope@all", f"'elsewhere/nope'{LIST}"),
    ],
)
def test_what_is_not_there_is_said_with_what_is_near(target: str, sentence: str) -> None:
    for find in (resolve, lambda one: contestants(["org/model", one])):
        with pytest.raises(ConfigError, match=f"^{re.escape(f'there is no run or checkpoint {sentence}')}$"):
            find(target)


def test_a_folder_that_is_no_run_is_said_so() -> None:
    for target in ("runs", "runs@1"):
        with pytest.raises(ConfigError, match="^'runs' is neither a run"):
            resolve(target)


@pytest.mark.parametrize(("target", "revision"), [("gpt2", None), ("org/model", None), ("org/model@main", "main")])
def test_a_hub_id_is_left_to_the_hub(target: str, revision: str | None) -> None:
    found = resolve(target)
    assert (found.checkpoint, found.revision) == (target.partition("@")[0], revision)
