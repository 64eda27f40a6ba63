"""Ray, where the recipe has a `launch` section: started on this machine or joined, for as long as a run is open.

Without that section Ray is never imported. Under torchrun there are workers already, and `launch` does not count. Left out:
what runs on the cluster (`selfplay.stages.launch`).
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from selfplay.config import Launch
from selfplay.errors import ConfigError, EngineFailed, WorkersFailed, first_line
from selfplay.progress import log
from selfplay.stopping import GO_ON

STARTS = 3
"""Attempts to start Ray on this machine."""
TOOK_TOO_LONG = re.compile("timed out", re.IGNORECASE)
"""What Ray says where it took too long to start."""
RAYS = re.compile(r"raylet|gcs_server|/ray/(core|_private|dashboard)/")
"""What the command of a process of Ray's own has in it."""


def started_by_launcher() -> bool:
    """Return whether this process is one of several that torchrun or Ray Train started, which tell it so by WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_shared(cards: int) -> None:
    """Raise ConfigError if the workers, or those of this machine, do not divide into groups of so many cards for an engine."""
    if not started_by_launcher():
        return
    for variable in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        count = int(os.environ.get(variable, str(cards)))
        if count % cards:
            raise ConfigError(
                f"{variable} is {count}, and engines of engine.tensor_parallel {cards} take so many workers of one machine each: "
                f"start a multiple of {cards} workers on each machine, or lower engine.tensor_parallel"
            )


@contextlib.contextmanager
def connected(launch: Launch | None) -> Iterator[None]:
    """Be connected to Ray in the block, if there is anything to launch; a Ray that was started for it ends with it.

    Workers import what this process can import. What Ray itself wrote down is kept only where workers failed. Raises
    ConfigError if there is no cluster at the address, or one that wants a token that is not there.
    """
    if launch is None or started_by_launcher():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default from now on, which it says at length
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # 15 otherwise: last of all on a machine that does something else too
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "workers need the package ray, which is not installed: pip install 'selfplay-loop[ray]', or leave them out"
        ) from None

    if ray.is_initialized():  # by the caller, whose it stays
        yield
        return
    session = _connect(launch)
    try:
        yield
    except (EngineFailed, WorkersFailed):
        session = None
        raise
    finally:
        ray.shutdown()
        if session is not None:
            shutil.rmtree(session, ignore_errors=True)


def _connect(launch: Launch) -> Path | None:
    """Join a cluster, or start Ray here; return the folder of its own sockets and logs in that case."""
    import ray

    local, on_term = launch.address is None, signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # SLURM's warning would end Ray's own processes
    try:
        _knock(launch.address or "auto")
        begun: Any = _start(launch) if local else _init(address=launch.address)
    except ray.exceptions.AuthenticationError:
        raise ConfigError(
            f"the Ray cluster at launch.address {launch.address!r} wants its token: copy ~/.ray/auth_token from its head to this "
            "machine, and set RAY_AUTH_MODE=token in the environment, here and before each `ray start`"
        ) from None
    except Exception as error:  # Ray raises a plain one where it takes too long to start
        ray.shutdown()
        said = first_line(error)
        if local:
            raise WorkersFailed(f"Ray did not start on this machine: {said}; {GO_ON}") from None
        raise ConfigError(f"no Ray cluster at launch.address {launch.address!r}: {said}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # which Ray took: a run stops where all is saved
    return Path(begun.address_info["session_dir"]) if local else None


def _start(launch: Launch) -> Any:
    """Start Ray on this machine, again where it takes longer than the 30 seconds that Ray has for it: a busy machine may.

    What a start that failed has left is ended; its logs are kept where Ray's error, which may point to them, is raised.
    """
    import ray

    before, folders, left = _own_processes(), _sessions(), STARTS
    while True:
        try:
            cores = max(os.cpu_count() or 1, launch.size + 1)
            return _init(address="local", num_cpus=cores, include_dashboard=False)
        except BaseException as error:  # Ray's are plain; nor does an interrupted start leave anything
            ray.shutdown()
            _kill(_own_processes() - before)
            left -= 1
            again = left > 0 and TOOK_TOO_LONG.search(str(error))
            for folder in _sessions() - folders if again or not isinstance(error, Exception) else ():
                shutil.rmtree(folder, ignore_errors=True)
            if not again:
                raise
        log("  Ray did not start in time, and is started once more")


def _own_processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _kill(processes: set[psutil.Process]) -> None:
    """Kill those of some processes that are Ray's own."""
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it is gone, or not ours to look at
            if RAYS.search(" ".join(process.cmdline())):
                process.kill()


def _sessions() -> set[Path]:
    """Return the folders of sockets and logs that Ray made for this process, which end in its number."""
    from ray._common.utils import get_default_ray_temp_dir

    return set(Path(get_default_ray_temp_dir()).glob(f"session_*_{os.getpid()}"))


def _init(**options: Any) -> Any:
    """Connect to Ray, whose workers import what this process can import."""
    import ray

    return ray.init(
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        log_to_driver=False,
        logging_level=logging.ERROR,
        **options,
    )


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at a cluster's HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
