"""What the user sees while a stage works: a bar with rate and time left on a terminal, plain lines elsewhere.

Of several processes that work together (torchrun and Ray Train number them in RANK) the first alone speaks.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


def is_first() -> bool:
    """Return whether this process is the first of those that work together, or the only one."""
    return os.environ.get("RANK", "0") == "0"


LINE_EVERY_SECONDS = 15.0
SAID: set[str] = set()
"""Lines of `log_once` that this process has written."""


class Meter:
    """Counts units of work done; prints a line now and then where there is no bar."""

    def __init__(self, label: str, total: int, unit: str, bar: Progress | None) -> None:
        self.label, self.total, self.unit, self.bar = label, total, unit, bar
        self.done, self.started = 0, time.time()
        self.printed = self.started
        self.task = bar.add_task(label, total=total, note="") if bar else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more units are done; `note` is shown behind the rate."""
        self.done += count
        rate = self.done / max(time.time() - self.started, 1e-9)
        text = f"{rate:.3g} {self.unit}/s {note}".rstrip()
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, note=text)
        elif time.time() - self.printed >= LINE_EVERY_SECONDS and 0 < self.done < self.total:
            self.printed = time.time()
            left = (self.total - self.done) / rate
            log(f"  {self.label}: {self.done}/{self.total}, {text}, {left:.0f} s left")


@contextmanager
def meter(label: str, total: int, unit: str) -> Iterator[Meter]:
    """Open a meter for `total` units of work, closed with one line that says what was done and how long it took."""
    if console.is_terminal and is_first():
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            current = Meter(label, total, unit, bar)
            yield current
    else:
        current = Meter(label, total, unit, None)
        yield current
    log(f"  {label}: {current.done} {unit} in {time.time() - current.started:.1f} s")


def log(text: str) -> None:
    """Write one line to the user, on standard error: standard output is for results."""
    if is_first():
        console.print(text, markup=False, soft_wrap=True)
        sys.stderr.flush()


def log_once(text: str) -> None:
    """Write a line to the user unless this process has written the very same before."""
    if text not in SAID:
        SAID.add(text)
        log(text)
