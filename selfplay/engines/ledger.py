"""Dollars spent on endpoints: one append-only file per run, which every judge of the run shares and a restart reads.

Before a call, the most that it can cost is written down; after it, what it did cost. A call whose end was never
written, because the process died, counts in full. The file is a journal, whose lines carry checksums and that of the line
before (`after`), and its count of lines and dollars is sealed in a file beside it: lines that go missing are noticed. Without
a path the ledger is in memory. Safe under several threads and processes. What a run says at its limit is in `endpoint_client`.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from selfplay.storage import durable
from selfplay.storage.checksums import Damaged, read_sealed, write_sealed
from selfplay.storage.journal import entries, entry_of, line_of

LEDGER, TOTAL = "spending.jsonl", "spending_total.json"
"""Names of a run's ledger, and of the file beside it with its sealed `lines` and `total`."""


@dataclass
class Chain:
    """Where a reader of a ledger is: how many lines it took, and the checksum of the last. Lines of old are not chained."""

    lines: int = 0
    last: str = ""
    chained: bool = False

    def follow(self, line: bytes) -> dict[str, Any]:
        """Take a whole line and return its call and row. Raises ValueError that says what is wrong with it."""
        entry = entry_of(line)
        if entry is None:
            raise ValueError(f"line {self.lines + 1} does not have the checksum that it was written with")
        after = entry.get("after", None if self.chained else self.last)
        if after != self.last:
            raise ValueError(f"line {self.lines + 1} does not follow the line before it: lines are missing")
        self.lines, self.last, self.chained = self.lines + 1, checksum_of(line), "after" in entry
        return entry


def checksum_of(line: bytes) -> str:
    """Return the checksum with which a line begins."""
    return line.partition(b" ")[0].decode(errors="replace")


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
        self._chain, self._read_up_to = Chain(), 0
        self._lock = threading.Lock()
        self._file_lock = None if self.path is None else FileLock(self.path.with_name(f".{self.path.stem}.lock"))
        if self.path is not None:
            durable.make_folder(self.path.parent)
            with self._exclusive():
                self._compare_with_total()

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
        line = line_of(call, [row], after=self._chain.last)
        if self.path is not None:
            durable.append(self.path, line)
            self._read_up_to += len(line.encode())
        self._chain.follow(line.encode())
        self._count(call, row)
        self._write_total()

    def _count(self, call: str, row: dict[str, Any]) -> None:
        if "worst" in row:
            self.under_way[call] = row["worst"]
        else:
            self.under_way.pop(call, None)
            self.spent += row["cost"]

    def _catch_up(self) -> None:
        """Read what was added to the file. A last line that a kill cut short is taken out: its call was never made."""
        if self.path is None:
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._read_up_to:
            raise damaged(self.path, f"it has {size:,} bytes, and {self._read_up_to:,} were read from it before")
        if not size:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_up_to)
            added = file.readlines()
        for line in added:
            if not line.endswith(b"\n"):
                durable.truncate(self.path, self._read_up_to)
                break
            try:
                entry = self._chain.follow(line)
            except ValueError as error:
                raise damaged(self.path, str(error)) from None
            self._read_up_to += len(line)
            self._count(entry["key"], entry["rows"][0])

    def _compare_with_total(self) -> None:
        """Raise Damaged if the file has fewer lines than were written; where a kill came before the count, write it."""
        assert self.path is not None
        written = sealed_total(self.path)["lines"]
        if self._chain.lines < written:
            raise damaged(self.path, f"it has {self._chain.lines:,} lines, and {written:,} were written")
        if self._chain.lines > written:
            self._write_total()

    def _write_total(self) -> None:
        if self.path is not None:
            write_sealed(self.path.with_name(TOTAL), {"lines": self._chain.lines, "total": self.total})


def sealed_total(path: Path) -> dict[str, Any]:
    """Return how many `lines` a ledger was written with, and their `total`; none where that is not known. Raises Damaged."""
    file = path.with_name(TOTAL)
    way_out = f"put it back from a copy, or delete it: whether {path.name!r} was cut is then not known"
    return {"lines": 0, "total": 0.0, **(read_sealed(file, way_out) if file.is_file() else {})}


def damaged(path: Path, problem: str) -> Damaged:
    """Return the error for a ledger that is not what was written."""
    known = f", let `selfplay verify {path.parent} --repair` keep what is known of it" * (
        path.with_name("provenance.json").is_file()
    )
    return Damaged(
        path,
        f"{problem}, so that what was spent is not known",
        f"put it back from a copy{known}, or delete it and {TOTAL!r} to count from $0 again",
    )


def problem_with(path: Path) -> str:
    """Return what is wrong with a ledger, which is not changed; empty if nothing is. Raises Damaged for its sealed total."""
    chain, lines = Chain(), entries(path)
    for line, _ in lines if not lines or lines[-1][0].endswith(b"\n") else lines[:-1]:
        try:
            chain.follow(line)
        except ValueError as error:
            return str(error)
    written = sealed_total(path)["lines"]
    return "" if chain.lines >= written else f"it has {chain.lines:,} lines, and {written:,} were written"


def mend(path: Path) -> None:
    """Write a damaged ledger anew: the lines that can be read, and as one more what they lack of the sealed total."""
    known, chain, text = Ledger(), Chain(), ""
    rows = [(entry["key"], entry["rows"][0]) for _, entry in entries(path) if entry is not None]
    for call, row in rows:
        known._count(call, row)
    with contextlib.suppress(Damaged):
        missing = sealed_total(path)["total"] - known.total
        if missing > 0:
            rows.append((uuid.uuid4().hex[:16], {"cost": missing, "for": "lines that are lost"}))
            known.spent += missing
    for call, row in rows:
        line = line_of(call, [row], after=chain.last)
        chain.follow(line.encode())
        text += line
    durable.write(path, text)
    write_sealed(path.with_name(TOTAL), {"lines": chain.lines, "total": known.total})
