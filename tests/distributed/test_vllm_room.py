"""What happens around a transfer of weights on a GPU, with the GPU's part replaced by a list of what was called."""

import gc
from typing import Any

import pytest
import torch

from selfplay.config import Engine
from selfplay.engines import vllm, vllm_weights
from selfplay.engines.open import follower
from selfplay.engines.vllm import VllmEngine
from selfplay.engines.vllm_weights import Follower
from selfplay.errors import ConfigError


class AsleepLLM:
    """Notes what vLLM is told."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {tags[0]}")

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")


class DirectWatchdog:
    """Calls in this thread."""

    def call(self, what: str, action: Any) -> Any:
        return action()


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of what is called, on what looks like a GPU."""
    calls: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(vllm_weights, "barrier", lambda: calls.append("barrier"))
    for module in (vllm, vllm_weights):
        monkeypatch.setattr(module, "home", lambda policy: torch.device("cuda"))
        monkeypatch.setattr(module, "send_over_ipc", lambda *_: calls.append("send"))
    return calls


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_allocator_gives_its_memory_up_before_vllm_wakes(called: list[str], ranks: int) -> None:
    engine: Any = object.__new__(VllmEngine)
    engine.__dict__ |= {"on_gpu": True, "tensor_parallel": ranks, "ranks": ranks, "asleep": True}
    engine.__dict__ |= {"dtype": torch.bfloat16, "llm": AsleepLLM(called), "watchdog": DirectWatchdog()}
    engine.receive(None)
    waits = ["barrier"] if ranks > 1 else []
    assert called == ["collect", "empty", *waits, "wake weights", "send", "wake kv_cache", "reset"]


def test_a_worker_that_shares_the_engine_gives_its_memory_up_too(called: list[str]) -> None:
    Follower(2, torch.bfloat16).receive(None)
    assert called == ["collect", "empty", "barrier", "send"]


@pytest.mark.parametrize(
    ("world", "local", "refused"),
    [("6", "3", "LOCAL_WORLD_SIZE is 3"), ("5", None, "WORLD_SIZE is 5"), ("4", "2", None), ("4", None, None)],
)
def test_workers_that_cannot_share_engines(
    monkeypatch: pytest.MonkeyPatch, world: str, local: str | None, refused: str | None
) -> None:
    config = Engine(kind="vllm", tensor_parallel=2)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    if refused is None:
        assert follower(config, "float32") is None
        return
    for begin in (lambda: follower(config, "float32"), lambda: VllmEngine("no/such/model", config)):
        with pytest.raises(
            ConfigError, match=f"{refused}, and engines of engine.tensor_parallel 2 take so many workers"
        ):
            begin()
