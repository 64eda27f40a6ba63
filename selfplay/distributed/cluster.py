"""Ray, where the recipe has a `launch` section: started on this machine or joined, for as long as a run is open.

Without that section Ray is never imported. Under torchrun there are workers already, and `launch` does not count. Left out:
what runs on the cluster (`selfplay.stages.launch`).
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from selfplay.config import Launch
from selfplay.errors import ConfigError


def started_by_launcher() -> bool:
    """Return whether this process is one of several that torchrun or Ray Train started, which tell it so by WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def connected(launch: Launch | None) -> Iterator[None]:
    """Be connected to Ray in the block, if there is anything to launch; a Ray that was started for it ends with it.

    Workers import what this process can import. Raises ConfigError if there is no cluster at the address.
    """
    if launch is None or started_by_launcher():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default from now on, which it says at length
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # 15 otherwise: last of all on a machine that does something else too
    import ray

    if ray.is_initialized():  # by the caller, whose it stays
        yield
        return
    local, on_term = launch.address is None, signal.getsignal(signal.SIGTERM)
    try:
        _knock(launch.address or "auto")
        ray.init(
            address="local" if local else launch.address,
            num_cpus=max(os.cpu_count() or 1, launch.size + 1) if local else None,
            include_dashboard=False if local else None,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at launch.address {launch.address!r}: {error}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # which Ray took: a run stops where all is saved
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at a cluster's HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
