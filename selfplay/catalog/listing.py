"""`selfplay runs`: all runs of a folder at a glance.

Reads what is on disk and changes nothing. A run that cannot be read is listed as damaged, or as unreadable where the disk or
its permissions refuse, with the reason.
"""

import contextlib
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from selfplay.config import Recipe
from selfplay.errors import ConfigError
from selfplay.formatting import duration, rate_text
from selfplay.guard.selection import assess
from selfplay.records import Comparison
from selfplay.results.notes import read_notes
from selfplay.rundir import RunDirectory
from selfplay.storage.checksums import read_sealed
from selfplay.storage.files import read_json


@dataclass(frozen=True)
class Listing:
    """One run; sizes in bytes, age and time left in seconds.

    `state` is running, stopped, finished, damaged, unreadable, or unknown: stopped or running, which only who may write to
    the run's `.lock` can tell.
    """

    path: str
    name: str
    state: str
    detail: str
    iterations: int | None
    wanted: int | None
    best: int | None
    win_rate: dict[str, Any] | None
    measured_by: str
    age: float
    left: float | None
    bytes: int
    tags: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)


def list_runs(folder: Path) -> list[Listing]:
    """Return the runs in a folder, the newest first; a run itself is a list of one. Raises ConfigError if there is none."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(folder)!r}; name one that holds runs")
    own = (folder / "config.yaml").is_file()
    paths = [folder] if own else [path for path in folder.iterdir() if _is_run(path)]
    return sorted(map(_listing, paths), key=lambda one: (one.age, one.path))


def _is_run(path: Path) -> bool:
    """Return whether a folder holds a run; one that may not be looked into may hold one."""
    try:
        return path.is_dir() and ((path / "config.yaml").is_file() or (path / "provenance.json").is_file())
    except PermissionError:
        return True


def _listing(path: Path) -> Listing:
    """Return one run, readable or not."""
    files = RunDirectory(path)
    size, age = _bytes(path), 0.0
    try:
        born = [file.stat().st_mtime for file in (path / "provenance.json", path / "config.yaml") if file.is_file()]
        age = max(0.0, time.time() - min(born, default=time.time()))
        recipe = files.recipe()
        measured = recipe.prompts.heldout is not None
        last = "evaluate" if measured else "policy"
        done = [number for number in files.iterations() if number and files.finished(number, last)]
        tags = tuple(read_notes(path)["tags"])
        state, detail, left = _state(files, recipe, len(done))
        found = assess(path)
        best = found.best_iteration if done else None
        rate = start_rate(files, best) if best and measured else None
    except (ConfigError, OSError) as error:
        state = "damaged" if isinstance(error, ConfigError) else "unreadable"
        detail = str(error) if isinstance(error, ConfigError) else f"{error.filename}: {error.strerror}"
        return Listing(str(path), path.name, state, detail, None, None, None, None, "", age, None, size, ())
    judge = (recipe.evaluate.judge or recipe.judge.file) if measured else ""
    said = rate.model_dump() if rate else None
    return Listing(
        str(path), recipe.name, state, detail, len(done), recipe.iterations, best, said, judge, age, left, size, tags
    )


def _bytes(path: Path) -> int:
    """Return the size of a folder's files. Those that a process removes meanwhile, or that are hidden, count nothing."""
    size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            status = file.lstat()
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return size


def _state(files: RunDirectory, recipe: Recipe, done: int) -> tuple[str, str, float | None]:
    """Return what a run is doing, its stage or why it ended, and the seconds left of a running one where they can be told."""
    if (files.path / "outcome.json").is_file() and not _is_locked(files.path):
        stopped = read_sealed(files.path / "outcome.json").get("stopped")
        return "finished", f"early: {stopped}" if stopped else "", None
    number, stage = _under_way(files)
    place = f"iteration {number}, {stage}" if stage else "between two stages"
    locked = _is_locked(files.path)
    if not locked:
        return ("stopped" if locked is not None else "unknown"), place, None
    before = files.seconds(number - 1) if number > 1 else {}
    if not before:
        return "running", place, None
    left = sum(before.values()) * (recipe.iterations - done) - sum(files.seconds(number).values())
    return "running", place, max(left, 0.0)


def _is_locked(path: Path) -> bool | None:
    """Return whether a process works on a run; None where this user may not open its lock, and so cannot tell."""
    if not (path / ".lock").exists():
        return False
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return None
    lock.release()
    return False


def _under_way(files: RunDirectory) -> tuple[int, str]:
    """Return the iteration and the name of the stage that is not finished; no name between two stages."""
    partial = [
        path for number in files.numbers() for path in files.iteration(number).glob("*.partial") if path.is_dir()
    ]
    if partial:
        newest = max(partial, key=lambda path: path.stat().st_mtime)
        return int(newest.parent.name.rpartition("-")[2]), newest.name.removesuffix(".partial")
    return (files.numbers() or [0])[-1], ""


def table_of(found: list[Listing]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return titles and rows for the terminal."""
    titles = (
        "run",
        "state",
        "iterations",
        "best",
        "beats the start",
        "measured by",
        "recipe",
        "age",
        "size",
        "left",
        "tags",
    )
    rows: list[tuple[str, ...]] = []
    for one in found:
        rate = rate_text(Comparison.model_validate(one.win_rate)) if one.win_rate else "-"
        rows.append(
            (
                one.path,
                one.state,
                "-" if one.iterations is None else f"{one.iterations} of {one.wanted}",
                "-" if one.best is None else str(one.best or "start"),
                rate,
                Path(one.measured_by).stem or "-",
                one.name,
                _age(one.age),
                size_text(one.bytes),
                "-" if one.left is None else duration(one.left),
                " ".join(one.tags) or "-",
            )
        )
    return titles, rows


def _age(seconds: float) -> str:
    return f"{seconds / 86400:.0f} d" if seconds > 2 * 86400 else duration(seconds)


def size_text(size: int) -> str:
    """Return bytes as `312 kB`, `4.6 MB` or `1.2 GB`."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size} B"


def start_rate(files: RunDirectory, number: int) -> Comparison | None:
    """Return the win rate of an iteration against the start, as evaluated."""
    found = read_json(files.stage(number, "evaluate") / "evaluation.json").get("win_rate_vs_start")
    return None if found is None else Comparison.model_validate(found)
