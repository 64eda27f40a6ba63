"""Run a stage here, or on workers: one process for each GPU of a machine or a cluster, started and watched by Ray.

The stages that train run on all workers, and each reads RANK and WORLD_SIZE only, so that torchrun around
`selfplay policy RUN -i N` does the same without Ray. A lost worker costs the steps since the last checkpoint: all are started
again, `launch.restarts` times. What each says goes to `logs/` in the run; the first one's lines are shown. Left out: stages
that ask engines and judges.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from selfplay import errors, stopping
from selfplay.algorithms import algorithm_of
from selfplay.config import Recipe
from selfplay.context import RunContext
from selfplay.distributed.cluster import started_by_launcher
from selfplay.errors import ConfigError, WorkersFailed, first_line
from selfplay.progress import log
from selfplay.rundir import RunDirectory, iteration_name
from selfplay.storage import durable

TRAINING = ("bootstrap", "judge_model", "reward_model")
"""Modules of the stages that run on all workers, beside `policy` by an algorithm that spreads."""
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_LEAVE = 600
"""For workers to save the step under way after a Ctrl-C, which takes minutes with a large model; another one ends at once."""
OURS = re.compile(r"  (?!File )\S")
"""A line of ours among what a worker says, and not a library's or a traceback's."""
STOP = "stop"
"""File among the logs that asks the workers to stop."""


def run_on_workers(run: RunContext, iteration: int, name: str, stage: ModuleType, *extra: int) -> None:
    """Run a stage: here, or on all workers if the recipe launches some and the stage trains.

    Raises what a worker raised, if it is an error with a way out, and WorkersFailed if they fail more often than they may be
    restarted.
    """
    launch = run.recipe.launch
    if launch is None or started_by_launcher() or not spreads(run.recipe, stage):
        stage.run(run, iteration, *extra)
        return
    run.close()  # the engine, whose GPUs the workers need
    task: dict[str, Any] = {
        "recipe": run.recipe.model_dump(mode="json") | {"output": str(run.files.path.absolute())},
        "stage": stage.__name__,
        "iteration": iteration,
        "extra": extra,
        "folder": os.getcwd(),
    }
    lost = None
    for attempt in range(launch.restarts + 1):
        if attempt:
            log(f"  {lost}; restart {attempt} of {launch.restarts}, from the last checkpoint")
        logs = (
            run.files.path.absolute() / "logs" / f"{iteration_name(iteration)}-{name}{f'-{attempt}' if attempt else ''}"
        )
        durable.remove_tree(logs)
        logs.mkdir(parents=True)
        with _followed(logs):
            lost = _fit(task | {"logs": str(logs)}, launch.size)
        if lost is None:
            return
        _raise_error_of(logs)
        stopping.check()  # a signal may have ended the workers too
        lost = _first_failure(logs) or lost
    raise WorkersFailed(
        f"{lost}, after {launch.restarts} restarts; what each worker said is in {logs}. What is finished is saved: give the "
        "same command again to go on"
    )


def decided_by_first(decide: Callable[[], bool]) -> bool:
    """Return what `decide` says, on the first process alone if several work on a stage: it may change the run's directory."""
    if not started_by_launcher():
        return decide()
    from selfplay.distributed.collectives import from_first, init_process_group

    init_process_group()
    return from_first(decide)


def spreads(recipe: Recipe, stage: ModuleType) -> bool:
    """Return whether a stage is work for all workers."""
    name = stage.__name__.rpartition(".")[2]
    return name in TRAINING or (name == "policy" and getattr(algorithm_of(recipe), "spreads", False))


def refuse_many(recipe: Recipe, name: str, stage: ModuleType) -> None:
    """Raise ConfigError if several processes are to run a stage that is one process's work."""
    if started_by_launcher() and not spreads(recipe, stage):
        raise ConfigError(
            f"the stage {name!r} is the work of one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}: give the command "
            "without torchrun (srun: with --ntasks=1)"
        )


def _fit(task: dict[str, Any], size: int) -> str | None:
    """Run a stage on `size` workers; return None, or what Ray says of the loss of one. Raises ConfigError if they do not fit."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from selfplay.distributed.collectives import BACKEND, PATIENCE

    there = ray.cluster_resources()
    kind = "GPU" if there.get("GPU") else "CPU"
    if there.get(kind, 0) < size:
        raise ConfigError(
            f"launch asks for {size} workers with a {kind} each, and Ray has {there.get(kind, 0):g}: lower launch.workers or "
            "launch.nodes, or add machines"
        )
    trainer = TorchTrainer(
        work,
        train_loop_config=task,
        torch_config=TorchConfig(backend=BACKEND if kind == "GPU" else "gloo", timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=size, use_gpu=kind == "GPU", resources_per_worker={kind: 1}),
        run_config=RunConfig(storage_path=task["logs"], name="ray"),
    )
    return _wait_for(trainer.fit, Path(task["logs"]), size)


def _wait_for(fit: Callable[[], object], logs: Path, size: int) -> str | None:
    """Return None once `fit` is done, or what was said of the loss of a worker, which it raises, also without a word.

    It is not waited for where a signal asked to stop and all workers have failed.
    """
    lost: str | None = "the workers did not finish"
    done = threading.Event()  # a Ctrl-C while a thread is joined makes Python take it for ended (bpo-45274)

    def call() -> None:
        nonlocal lost
        try:
            fit()
            lost = None
        except BaseException as error:  # of many classes of Ray's: a worker's own is in its log
            lost = f"a worker was lost ({first_line(error)[:200]})"
        finally:
            done.set()

    # In the main thread Ray Train would take Ctrl-C for itself, end with exit code 0, and leave its handler behind.
    threading.Thread(target=call, daemon=True).start()
    try:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            if stopping.requested() and len(_failures(logs)) == size:
                break
    except KeyboardInterrupt:  # Ray ends this process with code 1 if it is left while the thread still asks it
        _ask_to_stop(logs, "SIGINT")
        done.wait(SECONDS_TO_LEAVE)
        raise
    finally:
        shutil.rmtree(logs / "ray", ignore_errors=True)
    return lost


def work(task: dict[str, Any]) -> None:
    """Be one of the workers: run the stage with what is in the run's directory, and say all that there is to say into a file."""
    rank, logs = os.environ["RANK"], Path(task["logs"])
    os.chdir(task["folder"])
    with open(logs / f"rank-{rank}.txt", "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = open(file.fileno(), "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
        try:
            _run_stage(task, logs)
        except BaseException as error:
            traceback.print_exc()
            kind, code = type(error).__name__, getattr(error, "exit_code", None)
            told = {"time": time.time(), "rank": int(rank), "kind": kind, "message": str(error), "exit_code": code}
            with contextlib.suppress(OSError):  # a full disk, which may be what ended the stage
                (logs / f"rank-{rank}.error").write_text(json.dumps(told))
            raise


def _run_stage(task: dict[str, Any], logs: Path) -> None:
    """Run the stage that the driver named, until it is done or the driver asks to stop."""
    import importlib

    from prompts.sources import load_prompts
    from selfplay.config import validate
    from selfplay.preflight import heldout_prompts
    from selfplay.stages.beforehand import fit_prompts
    from selfplay.weights.precision import kept_in

    recipe = validate(Recipe, task["recipe"], "the recipe")
    settle_libraries(recipe.threads)

    def listen() -> None:
        while not (logs / STOP).exists():
            time.sleep(SECONDS_BETWEEN_LOOKS)
        stopping.ask((logs / STOP).read_text() or "SIGTERM")

    threading.Thread(target=listen, daemon=True).start()
    train = load_prompts(recipe.prompts.train, recipe.seed)
    alone = recipe.model_copy(update={"launch": None})  # a worker launches none, also where it is the only one
    run = RunContext(alone, RunDirectory(recipe.directory), train, heldout_prompts(recipe))
    fit_prompts(run)  # as the driver did
    with kept_in(run.files.path / "precision.json"), contextlib.closing(run):  # the same choice on all workers
        importlib.import_module(task["stage"]).run(run, task["iteration"], *task["extra"])


@contextmanager
def _followed(logs: Path) -> Iterator[None]:
    """Show in the block what the first worker says, and tell the workers of a signal that asks to stop."""
    done, shown = threading.Event(), 0

    def look() -> None:
        nonlocal shown
        file = logs / "rank-0.txt"
        text = b""
        if file.is_file():
            with open(file, "rb") as opened:
                opened.seek(shown)
                text = opened.read()
        whole = text[: text.rfind(b"\n") + 1]
        shown += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if OURS.match(line):
                log(line)
        if stopping.requested() and not (logs / STOP).exists():
            _ask_to_stop(logs, "SIGTERM")

    def follow() -> None:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()


def _ask_to_stop(logs: Path, signal: str) -> None:
    """Ask the workers to stop, as a signal would; on a full disk the file is empty, and says as much."""
    with contextlib.suppress(OSError):
        (logs / STOP).write_text(signal)


def _failures(logs: Path) -> list[dict[str, Any]]:
    """Return what the workers that failed left, the first one first: the others fail because it does not answer."""
    return sorted(map(_failure, logs.glob("rank-*.error")), key=lambda one: float(one["time"]))


def _failure(file: Path) -> dict[str, Any]:
    """Return what a worker left, or a failure without words if its file is empty or cut, as on a full disk."""
    wordless = {
        "time": file.stat().st_mtime,
        "rank": file.stem.partition("-")[2],
        "kind": "an error",
        "exit_code": None,
    }
    try:
        found = json.loads(file.read_text(errors="replace"))
    except ValueError:
        found = None
    return {**wordless, "message": "", **(found if isinstance(found, dict) else {})}


def _raise_error_of(logs: Path) -> None:
    """Raise what a worker raised, if it is an error that a user can do something about; a restart would meet it again."""
    for one in _failures(logs):
        if one["exit_code"] is not None:
            raise errors.as_told(one["kind"], one["message"], one["exit_code"])


def _first_failure(logs: Path) -> str:
    """Return a phrase for the worker that failed first, with its error; empty if none could say anything."""
    found = _failures(logs)
    if not found:
        return ""
    one = found[0]
    said = [*one["message"].strip().splitlines(), "no message"][0][:200]
    return f"worker {one['rank']} failed with {one['kind']}: {said} (its log has the traceback)"


def settle_libraries(threads: int | None) -> None:
    """Threads, determinism, and no chatter: what matters is said by us."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    import torch
    import transformers

    if threads:
        torch.set_num_threads(threads)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "accelerate", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
