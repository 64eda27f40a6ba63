"""Run a function in several processes that talk over gloo, as torchrun and Ray Train start them.

They are forked off a server that has imported torch once, so that starting some takes a moment and not ten seconds.
"""

import math
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "rl"))  # tiny_models
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["selfplay.rl", "selfplay.loop", "selfplay.stages.reward_model", "selfplay.stages.policy"]
)


def apart(one: Mapping[str, Any], other: Mapping[str, Any], start: Mapping[str, Any]) -> float:
    """Return how far the weights of two models are from each other, in parts of the way that the other took from their start.

    Over all tensors together: Adam moves a weight whose gradient is nothing but rounding as far as any other.
    """
    assert one.keys() == other.keys() == start.keys()
    between, way = (
        math.fsum(float((left[name] - right[name]).double().square().sum()) for name in start)
        for left, right in ((one, other), (other, start))
    )
    return math.sqrt(between / way)


def in_processes(
    count: int, function: Callable[..., Any], folder: Path, *arguments: Any, seconds: float = 450
) -> list[Any]:
    """Return what `function(*arguments)` gives in each of `count` processes; fails if one does, or takes too long."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        CONTEXT.Process(target=_child, args=(rank, count, port, folder, function, arguments), daemon=True)
        for rank in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(seconds)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    said = [(folder / f"error-{rank}").read_text() for rank in range(count) if (folder / f"error-{rank}").exists()]
    assert codes == [0] * count, f"exit codes {codes}\n" + "\n".join(said)
    return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(count)]


def _child(
    rank: int, count: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Be one of the processes."""
    names = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    try:
        torch.save(function(*arguments), folder / f"result-{rank}")
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)  # as a killed process would: no goodbye to the others
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
