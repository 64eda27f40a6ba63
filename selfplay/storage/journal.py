"""Rows of a stage that is under way: appended batch by batch, each with its checksum, read back after a kill.

Which stages of a run are done, and what of an unfinished one is taken up again, is `selfplay.rundir`'s part of resuming.
"""

import json
import re
from pathlib import Path
from typing import Any

import xxhash

from selfplay import stopping
from selfplay.storage import durable
from selfplay.storage.checksums import Damaged

NAMES = re.compile(r"journal.*\.jsonl|opponents\.jsonl|own\.jsonl|scores\.jsonl|[0-9a-f]{24}\.(?:jsonl|all|scores)")
"""What journals are called, and nothing else in a run is: `selfplay verify` knows them by it."""


def is_journal(path: Path) -> bool:
    """Return whether a file of a run is a journal, by its name."""
    return NAMES.fullmatch(path.name) is not None


class Journal:
    """Batches of rows under keys. A batch is one line, there whole or not at all: its hash, and JSON.

    A last line that a kill cut short is dropped. Raises Damaged for any other line that is not what was written, and
    ValueError for a name that is not a journal's, under which `selfplay verify` would not find it.
    """

    def __init__(self, path: Path) -> None:
        if not is_journal(path):
            raise ValueError(f"{path.name!r} is not in selfplay.storage.journal.NAMES")
        self.path = path
        self.batches: dict[str, list[Any]] = {}
        if not path.exists():
            return
        whole = 0
        for number, (line, entry) in enumerate(entries(path), start=1):
            if entry is None and not line.endswith(b"\n"):
                durable.truncate(path, whole)
            elif entry is None:
                raise Damaged(path, f"line {number} does not have the checksum that it was written with")
            else:
                self.batches[entry["key"]] = entry["rows"]
                whole += len(line)

    def append(self, key: str, rows: list[Any]) -> None:
        """Add a batch and force it to disk. Raises NotWritten, and Stopped behind it if a signal asked to stop."""
        durable.append(self.path, line_of(key, rows))
        self.batches[key] = rows
        stopping.check()


def line_of(key: str, rows: list[Any], **more: Any) -> str:
    """Return a batch as a line of a journal."""
    text = json.dumps({"key": key, "rows": rows, **more}, ensure_ascii=False)
    return f"{xxhash.xxh3_64_hexdigest(text.encode())} {text}\n"


def entries(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Return each line of a journal with its key and rows, or with None if it is damaged or cut short."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:  # whose lines end at a line feed and nowhere else
        return [(line, entry_of(line)) for line in file]


def entry_of(line: bytes) -> dict[str, Any] | None:
    """Return key and rows of a line of a journal, or None if it is damaged or cut short."""
    check, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or xxhash.xxh3_64_hexdigest(text[:-1]).encode() != check:
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry
