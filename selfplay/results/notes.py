"""Tags and notes on a run, in its notes.json: what people want to remember of it. Nothing of a run depends on them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfplay.config.load import check_text
from selfplay.errors import ConfigError
from selfplay.rundir import RunDirectory
from selfplay.storage.checksums import Damaged
from selfplay.storage.files import read_json, write_json

FILE = "notes.json"
WAY_OUT = "mend it with an editor, put it back from a copy, or delete it: the run does not need it"


def read_notes(run: Path) -> dict[str, Any]:
    """Return `tags`, a list of words, and `notes`, a list of {time, text}; both empty if there are none. Raises Damaged."""
    file = run / FILE
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise Damaged(file, "it holds no JSON object", WAY_OUT)
    tags, notes = found.get("tags") or [], found.get("notes") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise Damaged(file, "its tags are not a list of words", WAY_OUT)
    if not isinstance(notes, list) or not all(isinstance(one, dict) and _is_note(one) for one in notes):
        raise Damaged(file, "its notes are not a list of objects with `time` and `text`", WAY_OUT)
    return {"tags": tags, "notes": notes}


def _is_note(one: dict[str, Any]) -> bool:
    return isinstance(one.get("time"), str) and isinstance(one.get("text"), str)


def add_note(run: Path, text: str = "", tags: Sequence[str] = (), untags: Sequence[str] = ()) -> dict[str, Any]:
    """Add a note and tags to a run, take tags away, and return what it has now. Raises ConfigError if there is
    no run, for a tag that is not one word, and for what is not text."""
    RunDirectory(run).config_text()
    found = read_notes(run)
    for words in (text, *tags):
        check_text("the note or tag", words)
    for tag in tags:
        if not tag or any(letter.isspace() for letter in tag):
            raise ConfigError(f"a tag is one word, and {tag!r} is not: join its words with a hyphen")
    unknown = [tag for tag in untags if tag not in found["tags"]]
    if unknown:
        raise ConfigError(f"{str(run)!r} has no tag {unknown[0]!r}; it has: {', '.join(found['tags']) or 'none'}")
    found["tags"] = sorted({*found["tags"], *tags} - set(untags))
    if text.strip():
        found["notes"].append({"time": time.strftime("%Y-%m-%d %H:%M"), "text": text.strip()})
    if text.strip() or tags or untags:
        write_json(run / FILE, found)
    return found
