"""How a policy's weights get into vLLM: in the engine's precision, one tensor after another, so that no second copy is whole.

On a GPU they go over CUDA IPC, packed into a buffer; on a CPU as a checkpoint on disk. A policy that is spread over processes is
gathered on the way by all of them together; of those that share an engine, the first hands the weights over (`Follower`).
"""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from selfplay.config import SamplingParams
from selfplay.distributed.collectives import barrier
from selfplay.distributed.sharding import home, plain_tensors, skeleton, whole_tensors
from selfplay.records import Completion, Prompt

BUFFER_BYTES = 2**28
"""Of the buffer on the GPU that weights are packed into, unless one tensor alone is larger."""


def make_room(ranks: int) -> None:
    """Give the card back what torch's allocator keeps of an update, before vLLM wakes up on it, on each of `ranks`."""
    gc.collect()
    torch.cuda.empty_cache()
    if ranks > 1:
        barrier()


def write_checkpoint(policy: Any, dtype: torch.dtype, directory: Path) -> None:
    """Write a policy's weights in `dtype` as vLLM reloads them, adapters folded in; every process gathers and writes its own."""
    weights = {name: tensor.to("cpu", dtype) for name, tensor in whole_tensors(policy)}
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        skeleton(policy, dtype, "meta").save_pretrained(directory, state_dict=weights)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def send_over_ipc(llm: Any, policy: Any, dtype: torch.dtype) -> None:
    """Hand a policy's weights to the vLLM on the same GPUs; without an `llm`, as one of those that share another's."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    largest = max(dtype.itemsize * tensor.numel() for _, tensor in plain_tensors(policy))
    info = IPCTrainerInitInfo(
        rank=1 if llm is None else 0, packed=True, packed_buffer_size_bytes=max(BUFFER_BYTES, largest)
    )
    with torch.cuda.device(home(policy)):
        sender = WeightTransferTrainerFactory.trainer_init(info, client=_Receiver(llm), source=_source(policy, dtype))
        sender.send_weights()


def _source(policy: Any, dtype: torch.dtype) -> Any:
    """Return what vLLM's weight transfer reads a policy from."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, dtype, tuple(tensor.shape)) for name, tensor in plain_tensors(policy)]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return ((name, tensor.to(dtype)) for name, tensor in whole_tensors(policy))

    return Source()


class _Receiver:
    """What vLLM's weight transfer calls its client, for an LLM held by this process."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


class Follower:
    """Stands, on a worker, for the engine that another worker holds for `ranks` of them: helps to move weights, makes no text."""

    def __init__(self, ranks: int, dtype: torch.dtype) -> None:
        self.ranks, self.dtype = ranks, dtype

    def receive(self, policy: Any) -> None:
        """Take part in gathering a policy and, on a GPU, in handing its weights to the part of the engine that is there."""
        if home(policy).type == "cuda":
            make_room(self.ranks)
            send_over_ipc(None, policy, self.dtype)
        else:
            for _ in whole_tensors(policy):
                pass

    def update_weights(self, model: Any) -> None:
        """Do the same."""
        self.receive(model)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """Return nothing; nothing is asked of it."""
        assert not prompts, "the engine of these workers is another worker's"
        return []

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """Return nothing; nothing is asked of it."""
        assert not prompts, "the engine of these workers is another worker's"
        return []

    def close(self) -> None:
        """Nothing to give back."""
