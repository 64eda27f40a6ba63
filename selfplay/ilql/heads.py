"""Twin Q heads with their targets and a value head on a policy's hidden states; and how sampling follows them.

A Q head gives a number for every token of the vocabulary. In sampling, log p + beta (Q - V) is normalised again, where V,
which is the same for all tokens, drops out. A head of one matrix is as the output embedding is, so beta times the
mean of the two adds to it. Heads of two layers stay beside it (`selfplay.models.PerturbedHead`).
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from selfplay.models import PerturbedHead, logit_scale
from selfplay.rl.logprobs import token_logprobs


class Head(nn.Module):
    """From hidden states (N, H) to (N, outputs): one matrix, or a layer of 2 H with a ReLU before it.

    Drawn with deviation 1 / sqrt(inputs + 1).
    """

    def __init__(self, width: int, outputs: int, mlp: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Linear(width, 2 * width) if mlp else None
        inner = 2 * width if mlp else width
        if self.first is not None:
            with torch.no_grad():
                self.first.weight.copy_(torch.randn(inner, width, generator=generator) / (width + 1) ** 0.5)
                self.first.bias.zero_()
        self.weight = nn.Parameter(torch.randn(outputs, inner, generator=generator) / (inner + 1) ** 0.5)

    def features(self, hidden: Tensor) -> Tensor:
        """Return what the last matrix multiplies."""
        hidden = hidden.to(self.weight.dtype)
        return hidden if self.first is None else torch.relu(self.first(hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return all outputs."""
        return self.features(hidden) @ self.weight.t()

    def of_tokens(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the outputs (N,) of one token per state."""
        return (self.features(hidden) * self.weight[tokens]).sum(-1)

    def cross_entropy(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the cross-entropy (N,) of the outputs with one token per state, in nats."""
        return -token_logprobs(self.features(hidden), self.weight, None, tokens, entropy=False)[0]


class ILQLHeads(nn.Module):
    """Two Q heads, a frozen target of each, and a value head."""

    def __init__(self, width: int, vocabulary: int, mlp: bool = False, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = (Head(width, vocabulary, mlp, generator) for _ in range(2))
        self.first_target, self.second_target = (deepcopy(head).requires_grad_(False) for head in self.q)
        self.value = Head(width, 1, mlp, generator)

    @property
    def q(self) -> tuple[Head, Head]:
        """The two heads that learn."""
        return self.first, self.second

    @property
    def targets(self) -> tuple[Head, Head]:
        """Their targets."""
        return self.first_target, self.second_target

    @torch.no_grad()
    def move_targets(self, polyak: float) -> None:
        """target = polyak q + (1 - polyak) target."""
        for target, head in zip(self.targets, self.q, strict=True):
            for old, new in zip(target.parameters(), head.parameters(), strict=True):
                old.lerp_(new, polyak)


@torch.no_grad()
def put_in(model: Any, heads: ILQLHeads, beta: float) -> None:
    """Let a model sample by its heads, in place: fold those of one matrix, and put those of two layers beside its embedding."""
    if heads.value.first is None:
        fold(model, heads, beta)
        return
    scale = beta / logit_scale(model.config) / len(heads.targets)
    layers = [
        (head.first.weight, head.first.bias, scale * head.weight) for head in heads.targets if head.first is not None
    ]
    model.set_output_embeddings(PerturbedHead(model.get_output_embeddings(), layers))


@torch.no_grad()
def fold(model: Any, heads: ILQLHeads, beta: float) -> None:
    """Add beta times the mean of linear target Q heads to a model's output embedding, in place, untied from the input's.

    A model that multiplies its logits by a constant gets the heads divided by it.
    """
    old = model.get_output_embeddings()
    weight = (
        old.weight + beta / logit_scale(model.config) * (heads.first_target.weight + heads.second_target.weight) / 2
    )
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=getattr(old, "bias", None) is not None, device=weight.device)
    new.weight = nn.Parameter(weight.to(old.weight.dtype))
    if new.bias is not None:
        new.bias = nn.Parameter(old.bias.detach().clone())
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(new)
