"""Log-probabilities and entropies from hidden states, a chunk of tokens at a time.

No tensor of size tokens x vocabulary exists, forward or backward: the backward pass recomputes each chunk's logits.
Logits are float32 at least, whatever the precision of the states. Left out: fused kernels (Liger has them for GPUs).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Most logits held at once, per device type: 4 MiB, which a cache holds, and 256 MiB."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, both (N,), in nats, float32 (float64 if given it).

    Without `entropy` the second is empty, (0,), and costs nothing.

    `hidden` (N, H) are the states before the tokens (N,), `weight` (V, H) and `bias` (V,) the output embedding. The
    logits are divided by `temperature`. Both results carry gradients to hidden, weight and bias. `chunk` tokens are
    worked on at once (default by device and vocabulary).
    """
    chunk = chunk or max(1, CHUNK_ELEMENTS.get(hidden.device.type, 2**24) // weight.shape[0])
    return _TokenLogprobs.apply(hidden, weight, bias, tokens, 1.0 / temperature, chunk, entropy)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """(n, V) scaled logits, accumulated and given in float32 or float64."""
    if hidden.dtype == weight.dtype and hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    else:
        precise = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        logits = hidden.to(precise) @ weight.to(precise).t()
    if bias is not None:
        logits += bias
    return logits.mul_(scale) if scale != 1.0 else logits


class _TokenLogprobs(torch.autograd.Function):
    """The forward keeps hidden states and one normaliser per token; the backward goes over the chunks again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        scale: float,
        chunk: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        count = hidden.shape[0]
        logprobs, normalisers = (hidden.new_empty(count, dtype=dtype) for _ in range(2))
        entropies = hidden.new_empty(count if entropy else 0, dtype=dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                logits = _logits(hidden[part], weight, bias, scale)
                normalisers[part] = logits.logsumexp(-1)
                logprobs[part] = logits.gather(1, tokens[part, None]).squeeze(1) - normalisers[part]
                if entropy:
                    logits -= normalisers[part, None]
                    entropies[part] = -torch.linalg.vecdot(logits.exp(), logits)
        ctx.save_for_backward(hidden, weight, bias, tokens, normalisers, entropies)
        ctx.scale, ctx.chunk = scale, chunk
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        """With z the scaled logits and p = softmax(z): d logp / dz = onehot - p, dH / dz = -p (log p + H)."""
        hidden, weight, bias, tokens, normalisers, entropies = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normalisers.dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normalisers.dtype) if wants_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], ctx.chunk):
                part = slice(start, start + ctx.chunk)
                log_distribution = _logits(hidden[part], weight, bias, ctx.scale).sub_(normalisers[part, None])
                grad = log_distribution.exp()
                if grad_entropies is not None:
                    inner = log_distribution.add_(entropies[part, None]).mul_(grad_entropies[part, None])
                    if grad_logprobs is not None:
                        inner += grad_logprobs[part, None]
                    grad.mul_(inner).neg_()
                elif grad_logprobs is not None:
                    grad.mul_(-grad_logprobs[part, None])
                if grad_logprobs is not None:
                    grad.scatter_add_(1, tokens[part, None], grad_logprobs[part, None])
                grad.mul_(ctx.scale)
                # On a GPU in half precision the two products below run in half precision as well, like any backward.
                operand = grad.to(hidden.dtype) if hidden.is_cuda else grad
                if grad_hidden is not None:
                    grad_hidden[part] = (operand @ weight.to(operand.dtype)).to(hidden.dtype)
                if grad_weight is not None:
                    states = hidden[part].to(operand.dtype)
                    if operand.dtype == grad_weight.dtype:
                        # Added up in place: a product of its own is as large as the embedding.
                        grad_weight.addmm_(operand.t(), states)
                    else:
                        grad_weight += operand.t() @ states
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )
