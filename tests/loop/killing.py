"""Runs a recipe in a process of its own that dies by SIGKILL at a chosen moment: the nth call of a named function."""

import importlib
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

HEAVY = ["selfplay.loop", "selfplay.stages.bootstrap", "selfplay.stages.policy", "selfplay.stages.evaluate"]


class Moment(NamedTuple):
    """Just before the `call`-th call of `module`.`name`, a function or a method such as "Journal.append"."""

    module: str
    name: str
    call: int


def kill_at(moment: Moment) -> None:
    """Replace the function by one that counts its calls and kills this process."""
    owner: Any = importlib.import_module(moment.module)
    *path, leaf = moment.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, leaf), 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, leaf, counting)


def work(recipe: Path, overrides: list[str], moment: Moment | None) -> None:
    """What the process does."""
    from selfplay.config import load_recipe
    from selfplay.loop import run

    if moment is not None:
        kill_at(moment)
    run(load_recipe(recipe, overrides))


def run_in_process(recipe: Path, overrides: list[str], moment: Moment | None = None) -> int:
    """Exit code of a run: 0, or -9 if it was killed. Processes are forked from a server that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    process = context.Process(target=work, args=(recipe, overrides, moment))
    process.start()
    process.join(timeout=540)  # the longest took 307 s on one core
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the run hangs")
    return process.exitcode
