"""Micro-batches: which episodes share a forward pass, and the tensors of one.

A sequence is prompt and response without padding between them, padded on the right if at all; so positions count from
0, causal attention needs no mask, and no result depends on padding. With an attention that knows sequence boundaries
(flash, flex) the sequences are packed into one row instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfplay.distributed.collectives import rank, world_size
from selfplay.models import split_by_tokens
from selfplay.storage.files import derived_seed

PACKING_ATTENTION = ("flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True)
class MicroBatch:
    """Episodes for one forward pass. b rows of l places, N response tokens, k episodes (k = b unless packed).

    `rows` (k,) are the episodes' numbers; `input_ids` (b, l); `position_ids` (1, l) if packed, else None; `states` (N,)
    index, in the flattened (b l) places, the state before each response token, episode by episode; `tokens` (N,) are
    those response tokens; `ends` (k,) index the place of each episode's last token. `places` are row and column of each response
    token, (N,) each, in tensors (B, T) of all episodes.
    """

    rows: Tensor
    input_ids: Tensor
    position_ids: Tensor | None
    states: Tensor
    tokens: Tensor
    ends: Tensor
    places: tuple[Tensor, Tensor]


def collate(
    tokens: Tensor, prompt_lengths: Tensor, response_lengths: Tensor, rows: Sequence[int], packed: bool = False
) -> MicroBatch:
    """Return the micro-batch of some `rows` of right-padded `tokens` (B, L) with lengths (B,), on the tokens' device.

    Lengths that lie in the machine's memory spare a GPU: it goes on with what it has to do, and nobody waits for it. Without
    rows, it is one token of which nothing is asked: a forward pass whose gradients are 0.
    """
    where = tokens.device
    if not rows:
        none = torch.empty(0, dtype=torch.long, device=where)
        return MicroBatch(
            none, tokens[:1, :1], none.new_zeros(1, 1) if packed else None, none, none, none, (none, none)
        )
    chosen = torch.as_tensor(rows)
    prompts, responses = prompt_lengths.cpu()[chosen], response_lengths.cpu()[chosen]
    lengths = prompts + responses
    width = int(lengths.max())
    place = torch.arange(width)
    real = place < lengths[:, None]
    before = (place >= prompts[:, None] - 1) & (place < lengths[:, None] - 1)
    behind = (place >= prompts[:, None]) & real
    last = place == lengths[:, None] - 1
    row, column = behind.nonzero(as_tuple=True)
    kept = real if packed else torch.ones_like(real)
    numbers = _to(chosen, where)
    ids = tokens[numbers, :width]
    flat = ids.flatten()
    return MicroBatch(
        numbers,
        flat[_indices(real.flatten(), where)][None] if packed else ids,
        _to(place.expand_as(real)[real], where)[None] if packed else None,
        _indices(before[kept], where),
        flat[_indices(behind.flatten(), where)],
        _indices(last[kept], where),
        (numbers.repeat_interleave(_to(responses, where), output_size=len(row)), _to(column - prompts[row], where)),
    )


def _indices(mask: Tensor, where: torch.device) -> Tensor:
    """Return where a mask in the machine's memory is true, on a device."""
    return _to(mask.nonzero().squeeze(1), where)


def _to(tensor: Tensor, where: torch.device) -> Tensor:
    """Return a tensor of the machine's memory on a device, without waiting for what the device does."""
    return tensor.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else tensor


def shard_by_tokens(rows: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Rows dealt to `count` processes with nearly equal tokens: longest first, each to whom has least."""
    shards: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        least = loads.index(min(loads))
        shards[least].append(row)
        loads[least] += lengths[row]
    return shards


def micro_batches(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return this process's rows, in batches of at most `budget` tokens as `split_by_tokens` makes them.

    Every process gets as many batches, the last ones of some empty: a network that is spread over processes must be called
    equally often on all.
    """
    parts = [split_by_tokens(shard, lengths, budget) for shard in shard_by_tokens(rows, lengths, world_size())]
    mine = parts[rank()]
    return mine + [[] for _ in range(max(map(len, parts)) - len(mine))]


def minibatches(count: int, parts: int, seed: int) -> list[list[int]]:
    """Return the numbers below `count` in an order that depends on `seed` alone, cut into `parts` of nearly equal size."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [part.tolist() for part in order.tensor_split(parts) if len(part)]


def prompt_order(step: int, episodes: int, count: int, seed: int) -> list[int]:
    """Return which of `count` prompts step `step` samples: one endless stream of fresh shuffles, so nothing needs a cursor."""
    order: list[int] = []
    shuffles: dict[int, list[int]] = {}
    for place in range(step * episodes, (step + 1) * episodes):
        turn, offset = divmod(place, count)
        if turn not in shuffles:
            generator = torch.Generator().manual_seed(derived_seed(seed, "prompts", turn))
            shuffles[turn] = torch.randperm(count, generator=generator).tolist()
        order.append(shuffles[turn][offset])
    return order
