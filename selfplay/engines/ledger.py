"""Dollars spent on endpoints: one append-only file per run, which every judge of the run shares and a restart reads.

Before a call, the most that it can cost is written down; after it, what it did cost. A call whose end was never
written, because the process died, counts in full. The file is a journal, whose lines carry checksums; without a path the
ledger is in memory. Safe under several threads and processes. What a run says when it stops at its limit is in `endpoint_client`.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from selfplay.storage import durable
from selfplay.storage.checksums import Damaged
from selfplay.storage.journal import entry_of, line_of


class Ledger:
    """Counts dollars. `total` is what was spent, calls under way at the most that they can cost."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Raise Damaged for a file that is."""
        self.path = None if path is None else Path(path)
        self.spent = 0.0
        self.under_way: dict[str, float] = {}
        """Call -> the most that it can cost, those of other processes and of killed ones included."""
        self.own: set[str] = set()
        """The calls of this process that have not ended."""
        self._read_up_to = self._lines = 0
        self._lock = threading.Lock()
        self._file_lock = None if self.path is None else FileLock(self.path.with_name(f".{self.path.stem}.lock"))
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                pass

    @property
    def total(self) -> float:
        """Dollars, calls under way in full."""
        return self.spent + sum(self.under_way.values())

    def reserve(self, worst: float, limit: float | None = None, **about: Any) -> str | None:
        """Set `worst` dollars aside for a call and give its name; None if that could pass `limit`.

        `about` is written beside it, for people. Raises NotWritten if it cannot be written down.
        """
        with self._lock, self._exclusive():
            if limit is not None and self.total + worst > limit:
                return None
            call = uuid.uuid4().hex[:16]
            self._append(call, {"worst": worst, "time": round(time.time(), 3), **about})
            self.own.add(call)
            return call

    def settle(self, call: str, cost: float, **about: Any) -> None:
        """Write down what a call did cost. Raises NotWritten if it cannot be; it then counts in full."""
        with self._lock:
            self.own.discard(call)
            with self._exclusive():
                self._append(call, {"cost": cost, **about})

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the file against other processes, knowing what they wrote, while a line is decided on and written."""
        with self._file_lock or nullcontext():
            self._catch_up()
            yield

    def _append(self, call: str, row: dict[str, Any]) -> None:
        line = line_of(call, [row])
        if self.path is not None:
            durable.append(self.path, line)
            self._read_up_to += len(line.encode())
            self._lines += 1
        self._count(call, row)

    def _count(self, call: str, row: dict[str, Any]) -> None:
        if "worst" in row:
            self.under_way[call] = row["worst"]
        else:
            self.under_way.pop(call, None)
            self.spent += row["cost"]

    def _catch_up(self) -> None:
        """Read what was added to the file. A last line that a kill cut short is taken out: its call was never made."""
        if self.path is None or not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_up_to)
            added = file.readlines()
        for line in added:
            if not line.endswith(b"\n"):
                durable.truncate(self.path, self._read_up_to)
                break
            self._lines += 1
            entry = entry_of(line)
            if entry is None:
                raise Damaged(
                    self.path,
                    f"line {self._lines} does not have the checksum that it was written with, so that what the run has "
                    "spent is not known",
                    "put it back from a copy, or delete it to count from $0 again",
                )
            self._read_up_to += len(line)
            self._count(entry["key"], entry["rows"][0])
