"""Keys and values of a batch: a cache that grows in place, and prompts computed once however many rows share them.

What all prompts of a batch begin with is computed once, then the rest of each distinct one, and every row goes on with a copy of
its own; of the common beginning too, unless the model's attention is ours, which reads one copy of that for all rows.
Left out: sharing between batches, which vLLM does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from selfplay.models import logit_scale
from selfplay.weights.attention import FLOAT32_ATTENTION, behind
from selfplay.weights.precision import products_in

LEAST_SHARED = 16
"""Tokens that all prompts must begin with before a pass of their own over these saves more than it costs."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in one buffer of fixed capacity; each step writes into it and copies nothing else."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.capacity, self.length = capacity, 0
        self.prefix: tuple[Tensor, Tensor] | None = None
        """(1, H, P, D) keys and values that all rows have before their own."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) keys and values; gives all of them so far, marked with the prefix if they stand behind one."""
        if not self.is_initialized:
            rows, heads, _, size = key_states.shape
            self.dtype, self.device = torch.promote_types(key_states.dtype, value_states.dtype), key_states.device
            self.key_buffer = key_states.new_empty(rows, heads, self.capacity, size, dtype=self.dtype)
            self.value_buffer = self.key_buffer.new_empty(rows, heads, self.capacity, value_states.shape[-1])
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[2]
        self.key_buffer[:, :, start : self.length] = key_states
        self.value_buffer[:, :, start : self.length] = value_states
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]
        return (self.keys, self.values) if self.prefix is None else behind(self.prefix, self.keys, self.values)

    def get_seq_length(self) -> int:
        """Positions written so far."""
        return self.length + (0 if self.prefix is None else self.prefix[0].shape[2])

    def share(self) -> None:
        """Make what is written so far, by a batch of one row, the prefix of all rows that follow."""
        self.prefix = self.keys.contiguous(), self.values.contiguous()
        self.capacity, self.length, self.is_initialized = self.capacity - self.length, 0, False

    def keep(self, rows: Tensor) -> None:
        """Make the batch of these of its rows, in this order; one may be named several times."""
        self.key_buffer, self.value_buffer = self._rows(self.key_buffer, rows), self._rows(self.value_buffer, rows)

    def _rows(self, buffer: Tensor, rows: Tensor) -> Tensor:
        """Copy rows of a buffer as far as it is written."""
        copied = buffer.new_empty(len(rows), *buffer.shape[1:])
        copied[:, :, : self.length] = buffer[rows, :, : self.length]
        return copied


@dataclass(frozen=True)
class SharedPrompts:
    """Prompts of a batch of B rows: P tokens that all share, the rests of the D distinct ones, and which of them each row has."""

    prefix: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], share_prefix: bool = True) -> "SharedPrompts":
        """Find what B prompts share. Every rest has a token, from which the next one is predicted."""
        numbers: dict[tuple[int, ...], int] = {}
        places = tuple(numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts)
        distinct = list(numbers)
        shared = shared_length([prompt[:-1] for prompt in distinct]) if len(distinct) > 1 else 0
        if not share_prefix or shared < LEAST_SHARED:
            shared = 0
        return cls(distinct[0][:shared], tuple(prompt[shared:] for prompt in distinct), places)

    @property
    def width(self) -> int:
        """Places that the prompts take in the cache: P and the longest rest."""
        return len(self.prefix) + max(map(len, self.rests))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row's prompt."""
        return [len(self.prefix) + len(self.rests[place]) for place in self.places]


def shared_length(sequences: Sequence[tuple[int, ...]] | Sequence[list[int]]) -> int:
    """Return how many tokens all sequences begin with: those of the first and the last of them in order."""
    first, last = min(sequences), max(sequences)
    shortest = min(len(first), len(last))
    return next((place for place in range(shortest) if first[place] != last[place]), shortest)


def left_pad(sequences: Sequence[Sequence[int]], pad: int, where: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of token ids as (B, T) ids, a (B, T) mask that is 1 on tokens, and (B, T) positions that count them."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[pad] * (width - len(sequence)) + list(sequence) for sequence in sequences], device=where)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=where)
    mask = (torch.arange(width, device=where) >= width - lengths[:, None]).long()
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def can_share_prefix(model: PreTrainedModel, longest: int) -> bool:
    """Return whether padding may stand between a prefix and a rest: not where a window or chunk counts places of the cache.

    Its longest sequence has `longest` tokens. Within one window or chunk, all places of a prefix are seen by what follows.
    """
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return all(limit is None or longest <= limit for limit in limits)


def next_logits(model: PreTrainedModel, products: str, **inputs: Any) -> Tensor:
    """Return the (B, V) logits of the token behind (B, T) inputs, with the blocks' products in a precision.

    Other than in float32, the output embedding is applied by itself in the precision of its weights, as PPO does to learn.
    """
    if products == "float32":
        logits: Tensor = model(**inputs, logits_to_keep=1).logits[:, -1]
        return logits
    head: Any = model.get_output_embeddings()
    with products_in(products, model.device):
        states = model.base_model(**inputs).last_hidden_state[:, -1]
    return head(states.to(head.weight.dtype)) * logit_scale(model.config)


def read_prompts(
    model: PreTrainedModel, prompts: SharedPrompts, pad: int, room: int, products: str = "float32"
) -> tuple[Tensor, Cache, Tensor]:
    """Compute prompts. Return the (B, V) logits of the next token, the cache with room for more, and its (B, width) mask.

    `room` is the number of tokens that will follow; 0 gives the cache of the distinct prompts, which nothing can follow.
    """
    where, shared = model.device, len(prompts.prefix)
    cache = Cache(layers=[GrowingLayer(prompts.width + room) for _ in range(depth_of(model))])
    ids, mask, positions = left_pad(prompts.rests, pad, where)
    options: dict[str, Any] = {"use_cache": bool(shared or room)}
    if options["use_cache"]:
        options["past_key_values"] = cache
    if shared:
        next_logits(model, products, input_ids=torch.tensor([prompts.prefix], device=where), **options)
        if model.config._attn_implementation == FLOAT32_ATTENTION:
            for layer in cache.layers:
                layer.share()
        else:
            keep_rows(cache, torch.zeros(len(ids), dtype=torch.long, device=where))
    mask = torch.cat([mask.new_ones(len(ids), shared), mask], dim=1)
    positions = positions + shared
    logits = next_logits(model, products, input_ids=ids, attention_mask=mask, position_ids=positions, **options)
    places = torch.tensor(prompts.places, device=where)
    if room and len(places) > len(ids):
        keep_rows(cache, places)
    return logits[places], cache, mask[places]


def keep_rows(cache: Cache, rows: Tensor) -> None:
    """Make every layer's batch of these of its rows."""
    for layer in cache.layers:
        layer.keep(rows)


def depth_of(model: PreTrainedModel) -> int:
    """Return how many layers of keys and values a model has."""
    return int(model.config.num_hidden_layers)
