"""Networks spread over all processes with FSDP2: each holds its share of weights, gradients and optimizer states.

    network = shard(PolicyNetwork(...), ("logprobs",))   # above one process; a single one changes nothing
    for name, tensor in whole_tensors(policy): ...        # whole again, one tensor at a time, on every process

Weights come from the first process, which alone needs to have loaded them (`load_on_first`): the others build the same network
without memory. Every process must call a sharded network equally often, or all wait forever. Left out: tensor and expert
parallelism.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfplay.distributed.collectives import broadcast, rank, world_size
from selfplay.lora import low_rank, merged, unwrap_peft
from selfplay.models import device, save

M = TypeVar("M", bound=nn.Module)


def load_on_first(load: Callable[..., PreTrainedModel], path: str | Path) -> PreTrainedModel:
    """Return `load(path)`; above one process, on the CPU in the checkpoint's precision, and with weights on the first only.

    `load` is `load_policy` or `load_scalar_model`. `shard` brings the weights to the others.
    """
    return load(path) if world_size() == 1 else load(path, where="cpu" if rank() == 0 else "meta")


def home(model: Any) -> torch.device:
    """Return the device on which a model computes, also while it has no weights yet."""
    return unwrap_peft(model).device if world_size() == 1 else device()


def shard(
    network: M,
    methods: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    computes_in: torch.dtype | None = None,
    apart: Sequence[nn.Module] = (),
) -> M:
    """Spread a network over all processes in place, and return it; each block is gathered while it is computed.

    `methods` gather weights as `forward` does. Floating-point weights are stored in `dtype` and computed with in
    `computes_in`, but for modules in `apart`, and gradients are summed in `dtype`; None leaves what is there.
    The weights are those of the first process, whatever the others hold. Does nothing in a single process.
    """
    if world_size() == 1:
        return network
    source, ties = _take_weights(network, dtype)
    where = device()
    mesh = init_device_mesh(where.type, (world_size(),))
    precision = MixedPrecisionPolicy(param_dtype=computes_in, reduce_dtype=dtype if computes_in is not None else None)
    for one in apart:
        fully_shard(one, mesh=mesh)
    gathered: list[nn.Module] = [*blocks(network), network]
    for module in gathered:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
    for module in network.modules():
        if isinstance(module, FSDPModule):  # gradients are summed, not averaged: each process has its part of the loss
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for method in methods:
        register_fsdp_forward_method(network, method)
    network.to_empty(device=where)
    for (first, name), *others in ties:
        for module, other in others:
            module._parameters[other] = first._parameters[name]
    _fill(network, source, mesh)
    return network


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers says are to be kept whole: the blocks of a decoder, also once they are sharded."""
    names = {
        name
        for module in network.modules()
        if isinstance(module, PreTrainedModel)
        for name in module._no_split_modules or ()
    }
    return [module for module in network.modules() if names & {kind.__name__ for kind in type(module).__mro__}]


Place = tuple[nn.Module, str]


def _take_weights(network: nn.Module, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], list[list[Place]]]:
    """Leave a network without memory for weights and buffers; return what it held, by name, and the places of tied weights."""
    held: dict[str, Tensor] = {}
    empty: dict[int, Tensor] = {}
    places: dict[int, list[Place]] = {}
    for prefix, module in network.named_modules():
        for here in (module._parameters, module._buffers):
            for name, tensor in list(here.items()):
                if tensor is None:
                    continue
                if id(tensor) not in empty:
                    held[f"{prefix}.{name}".lstrip(".")] = tensor
                    trained = isinstance(tensor, nn.Parameter)
                    hollow = torch.empty_like(tensor, device="meta", dtype=dtype if trained else tensor.dtype)
                    empty[id(tensor)] = nn.Parameter(hollow, tensor.requires_grad) if trained else hollow
                here[name] = empty[id(tensor)]
                places.setdefault(id(tensor), []).append((module, name))
    return {name: one.detach() for name, one in held.items()}, [one for one in places.values() if len(one) > 1]


@torch.no_grad()
def _fill(network: nn.Module, source: dict[str, Tensor], mesh: Any) -> None:
    """Give every process its part of each tensor of the first one's `source`, which is emptied on the way."""
    for name, parameter in network.named_parameters():
        assert isinstance(parameter, DTensor)
        given, local = source.pop(name), parameter.to_local()
        whole = given.to(local) if rank() == 0 else torch.empty(given.shape, dtype=local.dtype, device=local.device)
        local.copy_(distribute_tensor(whole, mesh, parameter.placements).to_local())
    for name, buffer in network.named_buffers():
        if rank() == 0:
            buffer.copy_(source[name])
        broadcast([buffer])


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that every process holds a part of as a whole, on every process; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that is spread over processes; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole_tensors(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of each weight of a policy, adapters folded in, as a plain checkpoint has them.

    One of several that are tied comes alone. Every process must walk to the end.
    """
    inner = unwrap_peft(policy)
    for name, tensor in _stored(inner):
        value = whole(tensor)
        if name.endswith(".base_layer.weight"):
            value = value + _delta(inner.get_submodule(name.removesuffix(".base_layer.weight")))
        yield _plain(name), value


def plain_tensors(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the same names with the tensors as they are stored, for their shapes: nothing is gathered or folded in."""
    for name, tensor in _stored(unwrap_peft(policy)):
        yield _plain(name), tensor


def _stored(inner: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of weights and kept buffers, adapters left out."""
    buffers = {name for name, _ in inner.named_buffers()} & set(inner.state_dict())
    for name, tensor in (*inner.named_parameters(), *((name, inner.get_buffer(name)) for name in sorted(buffers))):
        if ".lora_" not in name:
            yield name, tensor


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _delta(layer: Any) -> Tensor:
    """Return what the adapters of a linear layer add to its weight."""
    parts = [replace(one, b=whole(one.b), a=whole(one.a)).delta() for one in low_rank(layer)]
    added: Tensor = sum(parts[1:], parts[0])
    return added


def skeleton(policy: Any, dtype: torch.dtype, where: str | torch.device) -> PreTrainedModel:
    """Return a plain model of a policy's architecture whose weights mean nothing yet; on `meta` it takes no memory."""
    inner = unwrap_peft(policy)
    with torch.device(where):
        made: PreTrainedModel = type(inner)._from_config(inner.config, dtype=dtype)
    made.generation_config = inner.generation_config
    made.checkpoint_dtype = getattr(inner, "checkpoint_dtype", None)  # in which `save` writes it
    return made.eval()


@torch.no_grad()
def copy_whole(policy: Any, into: PreTrainedModel) -> None:
    """Copy a policy's weights into a plain model of the same architecture, on every process, a tensor at a time."""
    places = into.state_dict()
    for name, tensor in whole_tensors(policy):
        places[name].copy_(tensor)


def save_whole(policy: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a policy, adapters folded in, as a plain checkpoint. The first process gathers it on the CPU and writes it."""
    if world_size() == 1:
        save(merged(policy), tokenizer, directory)
        return
    gathered: dict[str, Tensor] = {}
    for name, tensor in whole_tensors(policy):
        if rank() == 0:
            gathered[name] = tensor.cpu()
    if rank() == 0:
        plain = skeleton(policy, next(iter(gathered.values())).dtype, "meta")
        save(plain, tokenizer, directory, gathered)
