"""Episodes: answered and scored prompts as tensors, and what the networks say of them.

The one forward pass here gives old log-probs, reference log-probs and values together, unless the engine's log-probs serve as
the old ones; no other code computes them again.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from selfplay.config import PPO
from selfplay.distributed.collectives import all_reduce
from selfplay.errors import ConfigError
from selfplay.lora import unwrap_peft
from selfplay.models import default_batch_tokens
from selfplay.objects import shown
from selfplay.records import Completion, Prompt
from selfplay.rewards.sources import Reward
from selfplay.rl.batching import MicroBatch, collate, micro_batches
from selfplay.rl.networks import PolicyNetwork, packs, precision
from selfplay.rl.sampler import Scored, usable


@dataclass(frozen=True)
class Episodes:
    """B answered prompts. L is the longest prompt + response, T the longest response, in tokens.

    `tokens` (B, L): prompt and response, right-padded. `prompt_lengths`, `response_lengths` (B,). `truncated` (B,):
    cut off at max_tokens. `engine_logprobs` (B, T): what the engine said when sampling, NaN where it said nothing.
    `scores` (B,): as the reward gave them.
    """

    prompts: list[Prompt]
    completions: list[Completion]
    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    truncated: Tensor
    engine_logprobs: Tensor
    scores: Tensor

    @property
    def groups(self) -> Tensor:
        """(B,) a number for each prompt, which all its completions share."""
        numbers: dict[str, int] = {}
        numbered = [numbers.setdefault(prompt.id, len(numbers)) for prompt in self.prompts]
        return torch.tensor(numbered, device=self.tokens.device)

    @cached_property
    def mask(self) -> Tensor:
        """(B, T), true on response tokens: up to and with the first stop token."""
        width = int(self.response_lengths.max())
        return torch.arange(width, device=self.tokens.device) < self.response_lengths[:, None]

    @cached_property
    def _counts(self) -> tuple[Tensor, Tensor]:
        """The lengths of prompts and responses, in the machine's memory."""
        return self.prompt_lengths.cpu(), self.response_lengths.cpu()

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of prompt and response together."""
        prompts, responses = self._counts
        return list((prompts + responses).tolist())

    def response_tokens(self, rows: Sequence[int]) -> int:
        """Return the tokens of some responses together."""
        return int(self._counts[1][torch.as_tensor(rows)].sum())

    def batch(self, rows: Sequence[int], packed: bool) -> MicroBatch:
        """Return the tensors of one forward pass."""
        return collate(self.tokens, *self._counts, rows, packed)


@dataclass(frozen=True)
class Estimates:
    """What the networks said before the update: all (B, T), 0 off the mask, but `final_values` (B,)."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    final_values: Tensor
    unmasked: Tensor | None = None
    """The policy's log-probs among all tokens, where `logprobs` are among those that a mask allows."""

    @property
    def whole_logprobs(self) -> Tensor:
        """The policy's log-probs among all tokens, for the KL."""
        return self.logprobs if self.unmasked is None else self.unmasked


def build_episodes(
    rows: Scored,
    prompts: Sequence[Prompt],
    encoded: Sequence[Sequence[int]],
    reward: Reward,
    where: torch.device,
    pad: int,
) -> tuple[Episodes, int]:
    """Return the episodes of a step, and how many rows were left out (score NaN, or no token).

    Raises ConfigError if none is left.
    """
    kept = [row for row in rows if usable(row[1], row[2])]
    if not kept:
        unscored = [(prompts[number].id, answer.text) for number, answer, value in rows if math.isnan(value)]
        example = f", such as {shown(unscored[0][1])} to prompt {unscored[0][0]!r}" if unscored else ""
        raise ConfigError(
            f"none of the {len(rows)} responses of this step can be learned from: the reward "
            f"{type(reward).__qualname__} gave NaN for {len(unscored)}{example}; the others hold no token"
        )
    return _episodes(kept, prompts, encoded, where, pad), len(rows) - len(kept)


def _episodes(
    rows: Scored,
    prompts: Sequence[Prompt],
    encoded: Sequence[Sequence[int]],
    where: torch.device,
    pad: int,
) -> Episodes:
    """Return the rows as tensors."""
    sequences = [[*encoded[number], *answer.token_ids] for number, answer, _ in rows]
    longest, widest = max(map(len, sequences)), max(len(answer.token_ids) for _, answer, _ in rows)
    said = [
        list(answer.logprobs) if answer.logprobs is not None else [math.nan] * len(answer.token_ids)
        for _, answer, _ in rows
    ]
    return Episodes(
        prompts=[prompts[number] for number, _, _ in rows],
        completions=[answer for _, answer, _ in rows],
        tokens=torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sequences], device=where),
        prompt_lengths=torch.tensor([len(encoded[number]) for number, _, _ in rows], device=where),
        response_lengths=torch.tensor([len(answer.token_ids) for _, answer, _ in rows], device=where),
        truncated=torch.tensor([answer.finish_reason == "length" for _, answer, _ in rows], device=where),
        engine_logprobs=torch.tensor([row + [math.nan] * (widest - len(row)) for row in said], device=where),
        scores=torch.tensor([value for _, _, value in rows], device=where),
    )


def estimate(
    episodes: Episodes,
    policy: PolicyNetwork,
    reference: PolicyNetwork | None,
    critic: Callable[[MicroBatch], tuple[Tensor, Tensor]] | None,
    config: PPO,
    as_sampled: bool = False,
) -> Estimates:
    """Return one pass of all networks over the episodes, divided over the processes.

    `reference` None: the adapters off. `critic` None: values 0. Each network's weights are rounded for its own pass alone.
    `as_sampled` takes the engine's log-probs as the policy's, where it gave all of them, and spares the policy its pass.
    """
    mask = episodes.mask
    as_sampled = as_sampled and policy.mask is None and not bool(episodes.engine_logprobs[mask].isnan().any())
    dtype = torch.promote_types(unwrap_peft(policy.model).dtype, torch.float32)
    logprobs, reference_logprobs, values = (torch.zeros(mask.shape, dtype=dtype, device=mask.device) for _ in range(3))
    final_values = torch.zeros(len(mask), dtype=dtype, device=mask.device)
    unmasked = None if policy.mask is None else torch.zeros_like(logprobs)
    budget = config.micro_batch_tokens or default_batch_tokens(mask.device)
    rounded = partial(precision, config.precision, mask.device)
    with torch.no_grad():
        for rows in micro_batches(range(len(mask)), episodes.lengths, budget):
            batch = episodes.batch(rows, packs(policy.model))
            into = batch.places
            if as_sampled:
                logprobs[into] = episodes.engine_logprobs[into].to(dtype)
            else:
                with rounded():
                    logprobs[into] = policy.logprobs(batch)
                    if unmasked is not None:
                        unmasked[into] = policy.unmasked_logprobs(batch)
            with rounded(), nullcontext() if reference is not None else policy.model.disable_adapter():
                reference_logprobs[into] = (reference or policy).logprobs(batch)
            if critic is not None:
                with rounded():
                    new_values, ends = critic(batch)
                values[into], final_values[batch.rows] = new_values.to(dtype), ends.to(dtype)
    results = [logprobs, reference_logprobs, values, final_values, *([] if unmasked is None else [unmasked])]
    all_reduce(results)
    return Estimates(*results)
