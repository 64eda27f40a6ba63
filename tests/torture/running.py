"""Runs the tiny project in a process forked from this one, which has imported everything, with a fault in it."""

import contextlib
import gc
import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_project import asked

from selfplay.config import load_recipe
from selfplay.errors import SelfplayError
from selfplay.rundir import RunDirectory
from selfplay.storage import durable
from selfplay.storage.files import read_json, read_json_lines

DIED, TRACEBACK, SENTENCE = 9, 1, 2
PAIRS_IN_A_BATCH = 4
LONGEST_RUN = 300.0
CLOCK = ("time", "seconds", "runtime", "per_second", "started", "created")


@dataclass
class End:
    """How a process ended: exit code (negative: the signal), and what it said."""

    code: int
    said: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The one sentence of an error, or nothing."""
        errors = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return errors[-1] if self.code == SENTENCE and errors and "Traceback" not in self.said else ""


def warm_up() -> None:
    """Import all that a run needs, compute nothing with it (threads do not survive a fork), and set the tiny sizes."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    import selfplay.loop  # noqa: F401
    from selfplay.stages import bootstrap, evaluate, generate, judge_model, label, policy, reward_model  # noqa: F401

    label.BATCH = PAIRS_IN_A_BATCH
    reward_model.above_chance = lambda run, iteration, extra: True


def import_what_a_run_imports(project: Path) -> End:
    """Run the project once in a forked process, and import here what that one imported on its way."""
    names = project / "modules.txt"

    def note() -> None:
        at_exit = durable.hook

        def hook(call: str, path: Path) -> None:
            at_exit(call, path)
            if call == "link":  # `best`, which is the last but the report
                names.write_text("\n".join(sys.modules))

        durable.hook = hook

    end = start(project, note)
    for name in names.read_text().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")  # kept
    gc.freeze()  # else each collection in a forked process walks, and copies, all that was imported
    return end


def start(
    project: Path, fault: Callable[[], None] | None = None, *overrides: str, kill: tuple[int, float] | None = None
) -> End:
    """Run the project's recipe in its folder; `fault` prepares the process, `kill` is a signal after so many seconds."""
    log = project / "said.txt"
    sys.stdout.flush()
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(project, log, fault, overrides)
    limit = began + (LONGEST_RUN if kill is None else min(kill[1], LONGEST_RUN))
    status = _wait(process, limit)
    if status is None:
        os.kill(process, signal.SIGKILL if kill is None else kill[0])
        status = _wait(process, time.monotonic() + LONGEST_RUN)
        if kill is None or status is None:
            os.kill(process, signal.SIGKILL) if status is None else None
            return End(TRACEBACK, "the run hangs", time.monotonic() - began)
    return End(
        os.waitstatus_to_exitcode(status),
        log.read_text(errors="replace") if log.is_file() else "",
        time.monotonic() - began,
    )


def _wait(process: int, limit: float) -> int | None:
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > limit:
            return None
        time.sleep(0.002)


def _child(project: Path, log: Path, fault: Callable[[], None] | None, overrides: tuple[str, ...]) -> None:
    """What the forked process does; never returns."""
    code = TRACEBACK
    try:
        descriptor = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(project)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from selfplay.loop import run

        if fault is not None:
            fault()
        run(load_recipe(Path("tiny.yaml"), ["output=run", *overrides]))
        code = 0
    except SelfplayError as error:
        os.write(2, f"error: {error}\n".encode())
        code = SENTENCE
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def timeless(value: Any) -> Any:
    """A value without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if not any(part in str(key) for part in CLOCK)}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def result(project: Path) -> dict[str, Any]:
    """All that a run left, for comparing: hashes of files, values of JSON without times, and which files there are."""
    files = RunDirectory(project / "run")
    found: dict[str, Any] = {"rows": timeless(files.metrics())}
    for number in files.numbers():
        for name in files.stages(number):
            folder = files.stage(number, name)
            for file, digest in files.manifest(number, name)["outputs"].items():
                place = f"{number}/{name}/{file}"
                if file.endswith(".jsonl"):
                    found[place] = timeless(read_json_lines(folder / file))
                elif file.endswith(".json"):
                    found[place] = timeless(read_json(folder / file))
                else:
                    found[place] = digest
    found["files"] = sorted(
        str(path.relative_to(files.path)) for path in files.path.rglob("*") if path.is_file() and path.name != ".lock"
    )
    found["asked"] = asked(project)
    return found


def differences(one: dict[str, Any], other: dict[str, Any], again: int = 0) -> list[str]:
    """What differs between two results; the judge may have been asked `again` more in the first."""
    names = sorted({*one, *other} - {"asked"})
    found = [name for name in names if one.get(name) != other.get(name)]
    if not other["asked"] <= one["asked"] <= other["asked"] + again:
        found.append(f"asked {one['asked']} instead of {other['asked']}")
    return found


def copy_project(source: Path, target: Path) -> Path:
    """A copy of a project with its run."""
    shutil.copytree(source, target, symlinks=True)
    return target


def at_call(number: int, action: Callable[[str, Path], None], only: tuple[str, ...] = ()) -> Callable[[], None]:
    """A fault: do something at the nth call of the file layer, or of those of its calls that `only` names."""

    def prepare() -> None:
        calls = 0

        def hook(call: str, path: Path) -> None:
            nonlocal calls
            if not only or call in only:
                calls += 1
                if calls == number:
                    action(call, path)

        durable.hook = hook

    return prepare
