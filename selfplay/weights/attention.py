"""Attention of models on a CPU: in float32 whatever products run in, and of one new token without copies of the cache.

    keys, values = behind(prefix, keys, values)    # what a cache hands to `float32_attention`

Left out: GPUs, whose own kernels are faster, and attention that is not transformers' `sdpa`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

FLOAT32_ATTENTION = "sdpa_float32"
"""Name under which transformers knows `float32_attention`."""


def behind(prefix: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, H, T, D) keys and values marked as standing behind those of a (1, H, P, D) prefix, which all rows share."""
    for tensor, shared in zip((key, value), prefix, strict=True):
        tensor.prefix = shared  # type: ignore[attr-defined]
    return key, value


def float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Any:
    """Return transformers' attention, computed in float32 whatever autocast says; in float64 where a model was made so.

    Of one new token, the heads that share keys and values are attended as if they were places of one head: the cache is read
    once, where transformers first copies it for each of them. So are all rows at once to a prefix that they share (`behind`).
    """
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    prefix = [tensor.prefix.to(precise) for tensor in (key, value) if hasattr(tensor, "prefix")]
    query, key, value = (one.to(precise) for one in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        rows, heads, places, size = query.shape
        plain = key.shape[1] == heads and not prefix
        if places > 1 or plain or options.get("dropout") or "position_bias" in options:
            if prefix:
                key, value = (
                    torch.cat([shared.expand(rows, -1, -1, -1), own], dim=2)
                    for shared, own in zip(prefix, (key, value), strict=True)
                )
            return sdpa_attention_forward(module, query, key, value, mask, **options)
        grouped, scale = query.reshape(rows, key.shape[1], heads // key.shape[1], size), options.get("scaling")
        if prefix:
            out = _attend_behind(prefix[0][0], prefix[1][0], grouped * (scale or size**-0.5), key, value, mask)
        else:
            out = nn.functional.scaled_dot_product_attention(grouped, key, value, mask, scale=scale)
        return out.reshape(rows, 1, heads, out.shape[-1]), None


def _attend_behind(
    first_keys: Tensor, first_values: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """Return (B, H, G, D) attention of scaled queries to P shared places, (H, P, D), and to T of each row, (B, H, T, D).

    `mask` is (B, 1, 1, P + T), and True on all shared places. One softmax runs over both.
    """
    rows, heads, groups, size = query.shape
    shared = len(first_keys[0])
    together = query.transpose(0, 1).reshape(heads, rows * groups, size)
    to_first = (together @ first_keys.transpose(1, 2)).view(heads, rows, groups, shared).transpose(0, 1)
    to_own = query @ key.transpose(2, 3)
    if mask is not None:
        to_own = to_own.masked_fill(~mask[..., shared:], -torch.inf)
    weights = torch.softmax(torch.cat([to_first, to_own], dim=-1), dim=-1)
    of_first = weights[..., :shared].transpose(0, 1).reshape(heads, rows * groups, shared) @ first_values
    return weights[..., shared:] @ value + of_first.view(heads, rows, groups, -1).transpose(0, 1)
