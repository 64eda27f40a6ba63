"""The kinds of fault: each takes a fresh folder and random numbers, and tells how the run came out of it."""

import errno
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running import DIED, PAIRS_IN_A_BATCH, SENTENCE, End, at_call, copy_project, differences, result, start
from tiny_project import write_project

from selfplay.results import verify
from selfplay.storage import durable

EXACT, REFUSED, OTHER = "resumed exactly", "refused with a sentence", "other"


@dataclass
class Known:
    """What all cases are measured by: what a run without faults leaves, its calls of the file layer, its seconds."""

    home: Path
    once: dict[str, Any]
    twice: dict[str, Any]
    """The same for two iterations."""
    served: dict[str, Any]
    """The same where a server answers for the judge that labels."""
    calls: list[str]
    seconds: float
    stopped: list[Path] = field(default_factory=list)
    """Projects whose run was killed at some call."""
    finished: Path = Path()
    """A project whose run has ended."""


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    kind: str
    detail: str
    came: str
    note: str = ""


Case = Callable[[Path, Known, int, random.Random], Outcome]


def settle(
    kind: str, detail: str, project: Path, first: End, wanted: dict[str, Any], *overrides: str, faults: int = 1
) -> Outcome:
    """Go on after a fault, and compare. A refusal must be one sentence, and what it names must help."""
    if first.code not in (0, DIED, SENTENCE, 130) and first.code >= 0:
        return Outcome(kind, detail, OTHER, f"the fault ended in exit code {first.code}: {first.said[-1500:]}")
    if first.code == SENTENCE and not first.sentence:
        return Outcome(kind, detail, OTHER, f"not a sentence: {first.said[-1500:]}")
    end = start(project, None, *overrides)
    came, said = EXACT, ""
    if end.sentence:
        came, said = REFUSED, end.sentence
        done = verify.repair(project / "run")
        end = start(project, None, *overrides)
        faults = 1000 if done else 0
    if end.code != 0:
        return Outcome(kind, detail, OTHER, f"{said}\nexit code {end.code}: {end.said[-1500:]}")
    different = differences(result(project), wanted, again=faults * PAIRS_IN_A_BATCH)
    if different:
        return Outcome(kind, detail, OTHER, f"{said}\nthese differ: {', '.join(different[:8])}")
    return Outcome(kind, detail, came, said)


def die(call: str, path: Path) -> None:
    """Die as by a signal that cannot be caught."""
    os._exit(DIED)


def death(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """Death just before one of the file layer's calls."""
    number = number % len(known.calls) + 1
    project = write_project(folder).parent
    first = start(project, at_call(number, die))
    detail = f"call {number}, {known.calls[number - 1]}"
    return settle("death at a call", detail, project, first, known.once)


def power_cut(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """The power goes before a file was forced to disk, and only a part of it is there."""
    number = draw.randrange(known.calls.count("fsync")) + 1
    share = draw.random()

    def cut(call: str, path: Path) -> None:
        if path.is_file():
            os.truncate(path, int(path.stat().st_size * share))
        os._exit(DIED)

    project = write_project(folder).parent
    first = start(project, at_call(number, cut, ("fsync",)))
    return settle("power cut", f"fsync {number}, {share:.0%} written", project, first, known.once)


def full_disk(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """The disk is full from one call on, until someone makes room."""
    number = draw.randrange(len(known.calls)) + 1

    def full(call: str, path: Path) -> None:
        def refuse(call: str, path: Path) -> None:
            if call not in ("remove", "truncate", "rename"):
                raise OSError(errno.ENOSPC, "No space left on device")

        durable.hook = refuse
        refuse(call, path)

    project = write_project(folder).parent
    first = start(project, at_call(number, full))
    return settle("full disk", f"from call {number}", project, first, known.once)


def file_size_limit(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """The system refuses to make files larger than so many bytes: libraries that write by themselves meet it too."""
    limit = draw.choice((100, 1000, 5000, 20_000, 40_000, 80_000))

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    project = write_project(folder).parent
    first = start(project, prepare)
    return settle("disk refuses large files", f"{limit} bytes", project, first, known.once)


def refused_call(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """The disk refuses one call, as a network drive does now and then."""
    number = draw.randrange(len(known.calls)) + 1

    def refuse(call: str, path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    project = write_project(folder).parent
    first = start(project, at_call(number, refuse))
    return settle("disk refuses a call", f"call {number}", project, first, known.once)


def failing_rename(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """A rename is refused."""
    number = draw.randrange(known.calls.count("rename")) + 1

    def refuse(call: str, path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    project = write_project(folder).parent
    first = start(project, at_call(number, refuse, ("rename",)))
    return settle("failing rename", f"rename {number}", project, first, known.once)


def signalled(name: str) -> Case:
    """A signal at some moment."""

    def case(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
        after = draw.uniform(0, known.seconds)
        project = write_project(folder).parent
        first = start(project, kill=(getattr(signal, name), after))
        return settle(name, f"after {after:.2f} s", project, first, known.once)

    return case


def three_kills(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """SIGKILL three times, each a while after the start before."""
    project = write_project(folder).parent
    after = [draw.uniform(0, known.seconds / 2) for _ in range(3)]
    ends = [start(project, kill=(signal.SIGKILL, one)) for one in after]
    bad = next((end for end in ends if end.code == 1), ends[-1])
    return settle("three kills", " ".join(f"{one:.2f} s" for one in after), project, bad, known.once, faults=3)


def damaged(kind: str, change: Callable[[Path, random.Random], str]) -> Case:
    """A file of a run that was killed, or that has ended and gets another iteration, is not what was written."""

    def case(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
        ended = number % 2 == 0
        project = copy_project(known.finished if ended else draw.choice(known.stopped), folder)
        files = sorted(path for path in (project / "run").rglob("*") if path.is_file() and path.stat().st_size)
        path = draw.choice(files)
        detail = f"{path.relative_to(project)}, {change(path, draw)}"
        wanted, more = (known.twice, ["iterations=2"]) if ended else (known.once, [])
        return settle(kind, detail, project, End(0, "", 0.0), wanted, *more, faults=2)

    return case


def flip(path: Path, draw: random.Random) -> str:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    data[place] ^= draw.randrange(1, 256)
    path.write_bytes(data)
    return f"byte {place}"


def cut(path: Path, draw: random.Random) -> str:
    """Cut the file short, often to nothing."""
    size = draw.choice((0, draw.randrange(path.stat().st_size)))
    os.truncate(path, size)
    return f"cut to {size} bytes"


def delete(path: Path, draw: random.Random) -> str:
    """Remove the file."""
    path.unlink()
    return "deleted"


def moved(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """The project is renamed between a kill and the next start."""
    project = copy_project(draw.choice(known.stopped), folder)
    return settle("project moved", "", project, End(0, "", 0.0), known.once, faults=2)


def handled(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """People make copies in a run, put their own files there, and a folder named `best`."""
    project = copy_project(known.finished, folder)
    run = project / "run"
    copies = [
        run / "iteration-001-backup",
        run / "iteration-001" / "policy (copy)",
        run / "iteration-000" / "policy.bak",
    ]
    for copy in copies:
        shutil.copytree(copy.with_name("iteration-001" if copy.parent == run else "policy"), copy)
    (run / "best").unlink()
    (run / "best").mkdir()
    (run / "best" / "notes.txt").write_text("years of work")
    (run / "iteration-001" / "my.partial").mkdir()
    before = sorted(path for path in run.rglob("*") if any(copy in path.parents for copy in (*copies, run / "best")))
    end = start(project, None, "iterations=2")
    kept = all(path.exists() for path in before) and (run / "iteration-001" / "my.partial").is_dir()
    if end.code != 0 or not kept:
        return Outcome(
            "copies and own files", "", OTHER, end.said[-1500:] if kept else "something of the user's is gone"
        )
    for copy in copies:
        shutil.rmtree(copy)
    (run / "best" / "notes.txt").unlink()
    different = differences(result(project), known.twice)
    return Outcome("copies and own files", "", OTHER if different else EXACT, ", ".join(different))
