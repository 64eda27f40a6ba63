"""Episodes: prompts sampled, answered by the engine, scored, and put into tensors; then what the networks say of them.

The one forward pass here gives old log-probs, reference log-probs and values together; no other code
computes them again.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfplay.config import PPO, SamplingParams
from selfplay.distributed.collectives import all_gather, all_reduce, rank, world_size
from selfplay.distributed.sharding import copy_whole, home, skeleton
from selfplay.engines import Engine
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.lora import merged, unwrap_peft
from selfplay.models import default_batch_tokens
from selfplay.objects import scores_of, shown
from selfplay.records import Completion, Prompt
from selfplay.rewards.sources import Reward
from selfplay.rl.batching import MicroBatch, collate, derive_seed, micro_batches, prompt_order
from selfplay.rl.networks import PolicyNetwork, packs, precision


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
    def mask(self) -> Tensor:
        """(B, T), true on response tokens: up to and with the first stop token."""
        width = int(self.response_lengths.max())
        return torch.arange(width, device=self.tokens.device) < self.response_lengths[:, None]

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and response together."""
        return (self.prompt_lengths + self.response_lengths).tolist()

    def batch(self, rows: Sequence[int], packed: bool) -> MicroBatch:
        """Return the tensors of one forward pass."""
        return collate(self.tokens, self.prompt_lengths, self.response_lengths, rows, packed)


@dataclass(frozen=True)
class Estimates:
    """What the networks said before the update: all (B, T), 0 off the mask, but `final_values` (B,)."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    final_values: Tensor


@runtime_checkable
class Sleeper(Protocol):
    """An engine that can give its memory to the trainer until it gets weights again."""

    def sleep(self) -> None:
        """Do so."""
        ...


T = TypeVar("T")
Answers = list[tuple[int, Completion]]
"""Numbers of prompts, each with its completion."""


class Sampler:
    """Answers for each step from an engine that is given the policy's weights first; one step ahead if so configured.

    Ahead means: while step s learns, a thread samples for step s + 1 with the weights that step s began with.
    """

    def __init__(
        self,
        engine: Engine | None,
        policy: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        config: PPO,
        sampling: SamplingParams,
        seed: int,
    ) -> None:
        self.snapshot: PreTrainedModel | None = None
        if world_size() > 1:  # the policy is spread over the processes, and an engine needs whole weights
            inner, given = unwrap_peft(policy), getattr(engine, "model", None)
            own = given if isinstance(engine, TransformersEngine) and given is not inner else None
            dtype = torch.promote_types(inner.dtype, torch.float32)
            self.snapshot = own or skeleton(policy, dtype, home(policy))
        self.engine = engine or TransformersEngine(self.snapshot or unwrap_peft(policy), tokenizer)
        self.shares_weights = isinstance(self.engine, TransformersEngine)
        self.policy, self.prompts, self.config, self.sampling, self.seed = policy, prompts, config, sampling, seed
        self.thread: ThreadPoolExecutor | None = None
        self.ahead: Future[Answers] | None = None

    def answers(self, step: int) -> Answers:
        """Return this process's share of the step's prompts, answered."""
        ready = None if self.ahead is None else self.ahead.result()
        self._send_weights()
        answers = self._sample(step) if ready is None else ready
        if self.config.async_rollouts and step + 1 < self.config.steps:
            self.thread = self.thread or ThreadPoolExecutor(max_workers=1)
            self.ahead = self.thread.submit(self._sample, step + 1)
        elif isinstance(self.engine, Sleeper):
            self.engine.sleep()
        return answers

    def _send_weights(self) -> None:
        """Bring the engine up to date: with the policy itself, or with a copy if it will change meanwhile or is spread out."""
        if world_size() > 1:
            assert self.snapshot is not None
            copy_whole(self.policy, self.snapshot)
            self.engine.update_weights(self.snapshot)
        elif not self.config.async_rollouts:
            self.engine.update_weights(unwrap_peft(self.policy) if self.shares_weights else merged(self.policy))
        elif unwrap_peft(self.policy) is self.policy and self.snapshot is not None:
            self.snapshot.load_state_dict(self.policy.state_dict())
            self.engine.update_weights(self.snapshot)
        else:
            self.snapshot = deepcopy(merged(self.policy))
            self.engine.update_weights(self.snapshot)

    def _sample(self, step: int) -> Answers:
        """Ask the engine. A prompt that comes up again in a step goes by another id, so that its answers differ."""
        order = prompt_order(step, self.config.episodes, len(self.prompts), self.seed)
        asked, seen = [], dict.fromkeys(order, 0)
        for number in order:
            prompt, repeat = self.prompts[number], seen[number]
            asked.append(prompt.model_copy(update={"id": f"{prompt.id}#{repeat}"}) if repeat else prompt)
            seen[number] += 1
        mine = slice(rank(), None, world_size())
        drawn = self.sampling.model_copy(update={"n": 1, "seed": derive_seed(self.seed, "sampling", step)})
        answers = [group[0] for group in self.engine.generate(asked[mine], drawn)]
        return [
            (number, answer.model_copy(update={"prompt_id": self.prompts[number].id}))
            for number, answer in zip(order[mine], answers, strict=True)
        ]

    def state(self) -> list[tuple[int, dict[str, Any]]] | None:
        """Return what was sampled ahead, by all processes, for a checkpoint; waits for it."""
        if self.ahead is None:
            return None
        return [
            (number, answer.model_dump(mode="json")) for number, answer in interleave(all_gather(self.ahead.result()))
        ]

    def restore(self, state: list[tuple[int, dict[str, Any]]] | None) -> None:
        """Put back what `state` gave."""
        self.ahead = None
        if state is not None:
            self.ahead = Future()
            mine = state[rank() :: world_size()]
            self.ahead.set_result([(number, Completion.model_validate(answer)) for number, answer in mine])

    def close(self) -> None:
        """End the thread; the engine is the caller's."""
        if self.thread is not None:
            self.thread.shutdown(wait=True, cancel_futures=True)
            self.thread = None


def interleave(shards: Sequence[Sequence[T]]) -> list[T]:
    """Undo the division of a list over processes, in which each took every n-th item."""
    return [shards[place % len(shards)][place // len(shards)] for place in range(sum(len(hand) for hand in shards))]


def score(
    answers: Answers,
    prompts: Sequence[Prompt],
    encoded: Sequence[Sequence[int]],
    reward: Reward,
    where: torch.device,
    pad: int,
) -> tuple[Episodes, int]:
    """Return the episodes of all processes with their scores, and how many were left out (score NaN, or no token).

    Raises ConfigError if none is left, and for a reward that does not give a number per response.
    """
    asked, said = [prompts[number] for number, _ in answers], [answer for _, answer in answers]
    name = f"the reward {type(reward).__qualname__}"
    scores = scores_of(name, reward.score(asked, said), asked, said)
    share = [(number, answer, value) for (number, answer), value in zip(answers, scores, strict=True)]
    everything = interleave(all_gather(share))
    kept = [row for row in everything if math.isfinite(row[2]) and row[1].token_ids]
    if not kept:
        unscored = [(prompts[number].id, answer.text) for number, answer, value in everything if math.isnan(value)]
        example = f", such as {shown(unscored[0][1])} to prompt {unscored[0][0]!r}" if unscored else ""
        raise ConfigError(
            f"none of the {len(everything)} responses of this step can be learned from: {name} gave NaN for "
            f"{len(unscored)}{example}; the others hold no token"
        )
    return _episodes(kept, prompts, encoded, where, pad), len(everything) - len(kept)


def _episodes(
    rows: Sequence[tuple[int, Completion, float]],
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
    critic: Callable[[MicroBatch], tuple[Tensor, Tensor]],
    config: PPO,
) -> Estimates:
    """Return one pass of all networks over the episodes, divided over the processes. `reference` None: the adapters off."""
    mask = episodes.mask
    dtype = torch.promote_types(unwrap_peft(policy.model).dtype, torch.float32)
    logprobs, reference_logprobs, values = (torch.zeros(mask.shape, dtype=dtype, device=mask.device) for _ in range(3))
    final_values = torch.zeros(len(mask), dtype=dtype, device=mask.device)
    budget = config.micro_batch_tokens or default_batch_tokens(mask.device)
    with torch.no_grad(), precision(config.precision, mask.device):
        for rows in micro_batches(range(len(mask)), episodes.lengths, budget):
            batch = episodes.batch(rows, packs(policy.model))
            into = token_places(batch.rows, mask)
            logprobs[into] = policy.logprobs(batch)
            with nullcontext() if reference is not None else policy.model.disable_adapter():
                reference_logprobs[into] = (reference or policy).logprobs(batch)
            new_values, ends = critic(batch)
            values[into], final_values[batch.rows] = new_values.to(dtype), ends.to(dtype)
    results = (logprobs, reference_logprobs, values, final_values)
    all_reduce(results)
    return Estimates(*results)


def token_places(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every response token of some rows, in the order in which a micro-batch lists them."""
    row, column = mask[rows].nonzero(as_tuple=True)
    return rows[row], column
