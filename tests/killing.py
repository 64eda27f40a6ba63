"""Runs a function in a process of its own that gets a signal at a chosen moment: the nth call of a named function.

And finds what is left in shared memory.
"""

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from selfplay.errors import SelfplayError

HEAVY = [
    "selfplay.loop",
    "selfplay.stages.bootstrap",
    "selfplay.stages.reward_model",
    "selfplay.stages.policy",
    "selfplay.stages.evaluate",
]


class Moment(NamedTuple):
    """Just before the `call`-th call of `module`.`name`, a function or a method such as "Journal.append".

    The process gets `signal` there (as often as `times` says), or with `full` can write no file of more than 500 bytes
    from there on.
    """

    module: str
    name: str
    call: int
    full: bool = False
    signal: int = signal.SIGKILL
    times: int = 1


def end_at(moment: Moment) -> None:
    """Replace the function by one that counts its calls and ends this process at the moment's."""
    owner: Any = importlib.import_module(moment.module)
    *path, leaf = moment.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, leaf), 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment.call and moment.full:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        elif calls == moment.call:
            for _ in range(moment.times):
                os.kill(os.getpid(), moment.signal)
        return original(*arguments, **options)

    setattr(owner, leaf, counting)


def work(moment: Moment | None, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What the process does."""
    if moment is not None:
        end_at(moment)
    try:
        function(*arguments)
    except SelfplayError:  # as the command line does
        sys.exit(2)


def in_process(function: Callable[..., Any], *arguments: Any, moment: Moment | None = None) -> int:
    """Exit code of a call: 0, -9 if it was killed, 2 if it ended with a sentence, 1 for a traceback.

    Processes are forked from a server that has imported torch.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    process = context.Process(target=work, args=(moment, function, arguments))
    process.start()
    process.join(timeout=540)  # the longest took 307 s on one core
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the process hangs")
    return process.exitcode


def run_recipe(recipe: Path, overrides: list[str], only_start: bool = False) -> None:
    """Run a recipe, or its start."""
    from selfplay.config import load_recipe
    from selfplay.loop import run

    run(load_recipe(recipe, overrides), only_start)


def run_in_process(recipe: Path, overrides: list[str], moment: Moment | None = None, only_start: bool = False) -> int:
    """Exit code of a run in a process of its own."""
    return in_process(run_recipe, recipe, overrides, only_start, moment=moment)


def selfplay(*words: object) -> None:
    """Give a command to `selfplay`, which leaves with its exit code."""
    from selfplay.cli import main

    sys.argv = ["selfplay", *map(str, words)]
    main()


def shared_memory() -> set[int]:
    """Inodes of the files in /dev/shm, whether or not anyone still uses them."""
    found: set[int] = set()
    for entry in Path("/dev/shm").iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            found.add(entry.stat().st_ino)
    return found


def in_use() -> set[int]:
    """Inodes in /dev/shm that some process has mapped or open, under whatever name; others run their own on this machine."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            for line in (process / "maps").read_text().splitlines():
                if " /dev/shm/" in line:
                    found.add(int(line.split()[4]))
            for file in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(file).startswith("/dev/shm/"):
                        found.add(file.stat().st_ino)
    return found
