"""Log-probabilities and entropies from hidden states, a chunk of tokens at a time.

No tensor of size tokens x vocabulary exists, forward or backward: the backward pass recomputes each chunk's logits.
Logits are float32 at least, whatever the precision of the states. On a GPU torch.compile can make one kernel of what follows
a chunk's product: logits are then read twice, not ten times.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}
"""Most logits held at once, per device type: 4 MiB, which a cache holds, and 512 MiB; more where CHUNK_TOKENS have more."""
CHUNK_TOKENS = 128
"""Fewest tokens worked on at once, whatever the vocabulary: products of fewer rows run at a fraction of a processor's rate."""
LARGE = 2**20
"""Numbers of an output embedding from which oneDNN pays."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = True,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, both (N,), in nats, float32 (float64 if given it).

    Without `entropy` the second is empty, (0,), and costs nothing.

    `hidden` (N, H) are the states before the tokens (N,), `weight` (V, H) and `bias` (V,) the output embedding. The
    logits are divided by `temperature`. Both results carry gradients to hidden, weight and bias. `chunk` tokens are
    worked on at once (default by device and vocabulary). `compiled`: with kernels that torch.compile makes.
    """
    chunk = chunk or max(CHUNK_TOKENS, CHUNK_ELEMENTS.get(hidden.device.type, 2**24) // weight.shape[0])
    return _TokenLogprobs.apply(hidden, weight, bias, tokens, 1.0 / temperature, chunk, entropy, compiled)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """(n, V) scaled logits, accumulated and given in float32 or float64."""
    if hidden.dtype == weight.dtype and hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    else:
        precise = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        logits = _product(hidden.to(precise), weight.to(precise))
    if bias is not None:
        logits += bias
    return logits.mul_(scale) if scale != 1.0 else logits


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return hidden @ weight.T, of a large weight in float32 by oneDNN where torch would take MKL.

    MKL needs up to twice as long on an AMD; oneDNN keeps a kernel for each number of rows, which a small weight is not worth.
    """
    float32_on_cpu = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if float32_on_cpu and both and weight.numel() >= LARGE:
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")
    return hidden @ weight.t()


def _statistics(
    logits: Tensor, tokens: Tensor, entropies_of: Callable[[Tensor, Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return normalisers (n,), log-probs (n,) of tokens and, if wanted, entropies (n,) of logits (n, V)."""
    normalisers = logits.logsumexp(-1)
    logprobs = logits.gather(1, tokens[:, None]).squeeze(1) - normalisers
    return normalisers, logprobs, None if entropies_of is None else entropies_of(logits, normalisers)


def _entropies(logits: Tensor, normalisers: Tensor) -> Tensor:
    """Return entropies (n,)."""
    logits = logits - normalisers[:, None]
    return -(logits.exp() * logits).sum(-1)


def _entropies_in_place(logits: Tensor, normalisers: Tensor) -> Tensor:
    """Return the same, and use the logits up."""
    logits -= normalisers[:, None]
    return -torch.linalg.vecdot(logits.exp(), logits)


def _gradient(
    logits: Tensor,
    normalisers: Tensor,
    tokens: Tensor,
    entropies: Tensor,
    grad_logprobs: Tensor,
    grad_entropies: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the gradient (n, V) of logits in `dtype`, from those of their log-probs (n,) and entropies (n,).

    With p = softmax(logits): d logp / d logits = onehot - p, dH / d logits = -p (log p + H).
    """
    logits = logits - normalisers[:, None]
    inner = grad_logprobs[:, None]
    if grad_entropies is not None:
        inner = inner + grad_entropies[:, None] * (logits + entropies[:, None])
    hit = torch.arange(logits.shape[1], device=logits.device) == tokens[:, None]
    return (torch.where(hit, grad_logprobs[:, None], 0.0) - logits.exp() * inner).to(dtype)


def _gradient_in_place(
    logits: Tensor,
    normalisers: Tensor,
    tokens: Tensor,
    entropies: Tensor,
    grad_logprobs: Tensor,
    grad_entropies: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the same, and use the logits up."""
    logits -= normalisers[:, None]
    grad = logits.exp()
    if grad_entropies is None:
        grad.mul_(-grad_logprobs[:, None])
    else:
        inner = logits.add_(entropies[:, None]).mul_(grad_entropies[:, None]).add_(grad_logprobs[:, None])
        grad.mul_(inner).neg_()
    return grad.scatter_add_(1, tokens[:, None], grad_logprobs[:, None]).to(dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a float32 or float64 total in place: a product of its own is as large as the embedding."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


@cache
def compiled_once(function: Any) -> Any:
    """Return a function as torch.compile makes it for tensors of any size, the same one each time."""
    return torch.compile(function, dynamic=True)


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
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        count = hidden.shape[0]
        logprobs, normalisers = (hidden.new_empty(count, dtype=dtype) for _ in range(2))
        entropies = hidden.new_empty(count if entropy else 0, dtype=dtype)
        statistics = compiled_once(_statistics) if compiled else _statistics
        entropies_of = (_entropies if compiled else _entropies_in_place) if entropy else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                logits = _logits(hidden[part], weight, bias, scale)
                normalisers[part], logprobs[part], found = statistics(logits, tokens[part], entropies_of)
                if found is not None:
                    entropies[part] = found
        ctx.save_for_backward(hidden, weight, bias, tokens, normalisers, entropies)
        ctx.scale, ctx.chunk, ctx.compiled = scale, chunk, compiled
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias: linear in those that come in, which take the scale along."""
        hidden, weight, bias, tokens, normalisers, entropies = ctx.saved_tensors
        # On a GPU in half precision the two products below run in half precision as well, like any backward.
        products = hidden.dtype if hidden.is_cuda else normalisers.dtype
        gradient = compiled_once(_gradient) if ctx.compiled else _gradient_in_place
        grad_logprobs = torch.zeros_like(normalisers) if grad_logprobs is None else grad_logprobs * ctx.scale
        grad_entropies = None if grad_entropies is None else grad_entropies * ctx.scale
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normalisers.dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normalisers.dtype) if wants_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], ctx.chunk):
                part = slice(start, start + ctx.chunk)
                logits = _logits(hidden[part], weight, bias, ctx.scale)
                operand = gradient(
                    logits,
                    normalisers[part],
                    tokens[part],
                    entropies[part],
                    grad_logprobs[part],
                    None if grad_entropies is None else grad_entropies[part],
                    products,
                )
                if grad_hidden is not None:
                    grad_hidden[part] = (operand @ weight.to(operand.dtype)).to(hidden.dtype)
                if grad_weight is not None:
                    states = hidden[part].to(operand.dtype)
                    _add_product(grad_weight, operand.t(), states)
                if grad_bias is not None:
                    grad_bias += operand.sum(0, dtype=grad_bias.dtype)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 5,
        )
