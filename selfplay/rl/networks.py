"""The two networks as PPO uses them: token log-probs of a causal language model, values of a critic.

Both are run body first (hidden states), so that the output embedding sees response positions only. Left out: models
whose head is more than one linear layer and a scale; `check_head` refuses them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfplay.distributed.sharding import blocks
from selfplay.engines.masking import TargetMask
from selfplay.errors import ConfigError
from selfplay.lora import adapted_like, merged, unwrap_peft
from selfplay.models import PerturbedHead, logit_scale
from selfplay.rewards.reward_model import score_shift_and_scale
from selfplay.rl.batching import PACKING_ATTENTION, MicroBatch
from selfplay.rl.logprobs import compiled_once, token_logprobs


def hidden_states(body: Callable[..., Any], batch: MicroBatch) -> Tensor:
    """(b l, H) last hidden states of a micro-batch."""
    output = body(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    return output.last_hidden_state.flatten(0, 1)


def packs(model: Any) -> bool:
    """Return whether the model's attention keeps packed sequences apart without a quadratic mask."""
    return unwrap_peft(model).config._attn_implementation in PACKING_ATTENTION


@contextmanager
def compiled_blocks(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Let the blocks of some networks run as torch.compile makes them: one block is compiled, and serves for all of its kind."""
    changed = [block for network in networks for block in blocks(network)]
    for block in changed:
        block.forward = MethodType(compiled_once(type(block).forward), block)
    try:
        yield
    finally:
        for block in changed:
            del block.forward


class PolicyNetwork(nn.Module):
    """Token log-probs and entropies of a causal language model (or a PEFT model around one) at one temperature."""

    METHODS = ("logprobs", "unmasked_logprobs", "sequence_loss")
    """What is called besides `forward`."""

    def __init__(self, model: Any, temperature: float, compiled: bool = False, mask: TargetMask | None = None) -> None:
        super().__init__()
        self.model, self.temperature, self.compiled, self.mask = model, temperature, compiled, mask
        inner = unwrap_peft(model)
        self.body = partial(inner.base_model)
        self.scale = logit_scale(inner.config)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probs (N,) and entropies (N,) of the response tokens, in nats; among what the mask allows, if there is one."""
        return self._tokens(batch, self.temperature)

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Log-probs (N,) of the response tokens alone, in nats; masked as in `forward`."""
        return self._tokens(batch, self.temperature, entropy=False)[0]

    def unmasked_logprobs(self, batch: MicroBatch) -> Tensor:
        """Log-probs (N,) of the response tokens among all tokens, in nats."""
        return self._tokens(batch, self.temperature, entropy=False, masked=False)[0]

    def sequence_loss(self, batch: MicroBatch) -> Tensor:
        """Negative log-likelihood (N,) of the response tokens at temperature 1, in nats: the loss of plain training."""
        return -self._tokens(batch, 1.0, entropy=False, masked=False)[0]

    def _tokens(
        self, batch: MicroBatch, temperature: float, entropy: bool = True, masked: bool = True
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden_states(self.body, batch)[batch.states]
        head = unwrap_peft(self.model).get_output_embeddings()
        if isinstance(head, PerturbedHead):
            return _by_logits(head(hidden) * self.scale / temperature, batch.tokens)
        if self.mask is not None and masked:
            with torch.no_grad():
                states = hidden_states(self.mask.model.base_model, batch)[batch.states]
                target = self.mask.model.get_output_embeddings()(states) * self.scale
            return _by_logits(
                self.mask.masked(head(hidden) * self.scale, target, batch.tokens) / temperature, batch.tokens
            )
        weight, bias = head.weight, getattr(head, "bias", None)
        if hidden.is_cuda and torch.is_autocast_enabled("cuda"):
            hidden, weight = hidden.to(torch.bfloat16), weight.to(torch.bfloat16)
        temperature /= self.scale
        return token_logprobs(hidden, weight, bias, batch.tokens, temperature, entropy=entropy, compiled=self.compiled)


def _by_logits(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs (N,) of tokens and entropies (N,) of logits (N, V), -inf where a token cannot be, all at once."""
    logprobs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    entropies = -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
    return logprobs.gather(1, tokens[:, None]).squeeze(1), entropies


class Critic(nn.Module):
    """A value for every place: a body of its own and a linear head with one output."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    @classmethod
    def from_policy(cls, policy: Any, seed: int) -> "Critic":
        """Return a copy of the policy's body and a new head, normal with deviation 1 / sqrt(H + 1) (N+ details 2024).

        Of a policy with adapters the body is merged, and learns by adapters of its own.
        """
        inner = merged(policy) if policy is not unwrap_peft(policy) else policy
        body = deepcopy(inner.base_model) if inner is policy else adapted_like(inner.base_model, policy, seed)
        width = inner.config.hidden_size
        head = nn.Linear(width, 1, bias=False, dtype=torch.promote_types(inner.dtype, torch.float32))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.copy_(torch.randn(1, width, generator=generator, dtype=torch.float64) / (width + 1) ** 0.5)
        return cls(body, head.to(inner.device))

    @classmethod
    def from_scalar_model(cls, model: Any, policy: Any = None, seed: int = 0) -> "Critic":
        """Return a copy of a reward model (or any sequence classifier with one label): its body and its `score` head.

        With a `policy` that has adapters, the body is not copied: it is frozen, and the critic learns by adapters on it. The
        shift and scale of a `selfplay.models.RewardModel` go into the head, so that values begin on the scale of
        the scores that they predict.
        """
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise ConfigError(
                f"the critic {type(model).__name__} has no linear `score` head with one output; use a "
                "sequence classifier with num_labels=1, such as a reward model"
            )
        mean, deviation = score_shift_and_scale(model.config)
        precise = torch.promote_types(head.weight.dtype, torch.float32)
        scaled = nn.Linear(head.in_features, 1, dtype=precise, device=head.weight.device)
        with torch.no_grad():
            scaled.weight.copy_(head.weight.to(precise) / deviation)
            scaled.bias.copy_(((0.0 if head.bias is None else head.bias.to(precise)) - mean) / deviation)
        if policy is None or policy is unwrap_peft(policy):
            return cls(deepcopy(model.base_model), scaled)
        return cls(adapted_like(model.base_model, policy, seed), scaled)

    def learns(self) -> "Critic":
        """Return the critic with everything trainable, or, on a body with adapters, these and the head."""
        adapted = any("lora_" in name for name, _ in self.body.named_parameters())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not adapted or "lora_" in name or name.startswith("head."))
        return self

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Values (N,) of the states before the response tokens, and (k,) of the states behind the last tokens."""
        hidden = hidden_states(self.body, batch)
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.head(hidden[torch.cat([batch.states, batch.ends])].to(self.head.weight.dtype)).squeeze(-1)
        return values[: len(batch.states)].clone(), values[len(batch.states) :].clone()  # FSDP2 bears no views


def prepare(model: nn.Module, gradient_checkpointing: bool = False) -> None:
    """Trainable as PPO needs it: no dropout, so that old and new log-probs agree, and checkpointing if wanted."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):  # dropout, attention_dropout, layerdrop, ...
                setattr(module, name, 0.0)
    model.train(gradient_checkpointing)  # Without dropout the two modes differ in nothing but this.
    if gradient_checkpointing:
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.gradient_checkpointing_enable({"use_reentrant": False})
                module.enable_input_require_grads()
                break


def precision(name: str, where: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(where.type, torch.bfloat16) if name == "bfloat16" else nullcontext()


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise ConfigError if the model's logits are not its output embedding times the last hidden state, scaled."""
    inner = unwrap_peft(model)
    head = inner.get_output_embeddings()
    if hasattr(head, "base_layer"):
        raise ConfigError(
            "the policy has an adapter on its output embedding, which PPO's chunked log-probs would pass "
            "by: leave it out of the adapter's target modules"
        )
    if isinstance(head, PerturbedHead):
        raise ConfigError(
            "the policy samples with heads of two layers beside its output embedding (ILQL, algorithm.heads mlp) and cannot "
            "be trained further: start from the checkpoint before, or train it with linear heads"
        )
    probe = torch.arange(4, device=inner.device)[None] % inner.config.vocab_size
    hidden = inner.base_model(input_ids=probe, use_cache=False).last_hidden_state
    expected = head(hidden) * logit_scale(inner.config)
    if not torch.allclose(inner(input_ids=probe, use_cache=False).logits, expected, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{type(inner).__name__} changes its logits after the output embedding (soft-capping?), "
            "which PPO's chunked log-probs do not know: use another architecture"
        )
