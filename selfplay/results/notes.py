"""Tags and notes on a run, in its notes.json: what people want to remember of it. Nothing of a run depends on them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfplay.errors import ConfigError
from selfplay.rundir import RunDirectory
from selfplay.storage.checksums import Damaged
from selfplay.storage.files import read_json, write_json

FILE = "notes.json"


def read_notes(run: Path) -> dict[str, Any]:
    """Return `tags`, a list of words, and `notes`, a list of {time, text}; both empty if there are none. Raises Damaged."""
    file = run / FILE
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise Damaged(file, "it holds no JSON object")
    return {"tags": list(found.get("tags") or []), "notes": list(found.get("notes") or [])}


def add_note(run: Path, text: str = "", tags: Sequence[str] = (), untags: Sequence[str] = ()) -> dict[str, Any]:
    """Add a note and tags to a run, take tags away, and return what it has now. Raises ConfigError if there is
    no run, and for a tag that is not one word."""
    RunDirectory(run).config_text()
    found = read_notes(run)
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
