"""The answers of a step: prompts chosen, a group of completions to each asked from the engine, and scored.

Left out: tensors, which are made of them in `rollouts`.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from time import perf_counter
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfplay.config import PPO, SamplingParams
from selfplay.distributed.collectives import all_gather, rank, world_size
from selfplay.distributed.sharding import copy_whole, home, skeleton
from selfplay.engines import Engine
from selfplay.engines.hf import TransformersEngine
from selfplay.lora import merged, unwrap_peft
from selfplay.objects import scores_of
from selfplay.records import Completion, Prompt
from selfplay.rewards.sources import Reward, spreads
from selfplay.rl.batching import minibatches, prompt_order
from selfplay.storage.files import derived_seed
from selfplay.weights.half import PRODUCTS, HalfWeights


@runtime_checkable
class Sleeper(Protocol):
    """An engine that can give its memory to the trainer until it gets weights again."""

    def sleep(self) -> None:
        """Do so."""
        ...


@runtime_checkable
class Receiver(Protocol):
    """An engine that copies the weights of a policy as it is: with adapters, or spread over the processes.

    All processes call it together. `ranks` of them in a row share an engine, which the first of them holds.
    """

    ranks: int

    def receive(self, policy: Any) -> None:
        """Do so."""
        ...


T = TypeVar("T")
Answers = list[tuple[int, Completion]]
"""Numbers of prompts, each with its completion."""
Scored = list[tuple[int, Completion, float]]
"""The same with their scores, NaN where there is none."""


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
        self.ranks = engine.ranks if isinstance(engine, Receiver) else 1
        if world_size() > 1 and not isinstance(engine, Receiver):  # it needs whole weights of a policy spread out
            inner, given = unwrap_peft(policy), getattr(engine, "model", None)
            own = given if isinstance(engine, TransformersEngine) and given is not inner else None
            dtype = torch.promote_types(inner.dtype, torch.float32)
            self.snapshot = own or skeleton(policy, dtype, home(policy))
        self.engine = engine or TransformersEngine(self.snapshot or unwrap_peft(policy), tokenizer)
        self.shares_weights = isinstance(self.engine, TransformersEngine)
        self.policy, self.prompts, self.config, self.sampling, self.seed = policy, prompts, config, sampling, seed
        self.thread: ThreadPoolExecutor | None = None
        self.ahead: Future[Answers] | None = None

    @property
    def _own_engine(self) -> TransformersEngine | None:
        """The transformers engine, if it samples on a CPU with the very weights that learn, in float32, and no mask."""
        inner, engine = unwrap_peft(self.policy), self.engine
        if type(engine) is not TransformersEngine or engine.model is not inner or engine.mask is not None:
            return None  # a subclass may draw otherwise
        return engine if inner.device.type == "cpu" and inner.dtype == torch.float32 else None

    @property
    def samples_as_trained(self) -> bool:
        """Whether the engine's log-probs are the trainer's but for float32's rounding: the very weights in the same precision.

        On a GPU products may be rounded further (TF32), and a pass costs little: there the trainer computes its own. So it does
        where rotations depend on the longest sequence, and what a cache holds was rotated for a shorter one.
        """
        engine = self._own_engine
        if engine is None or not engine.products == self.config.precision == "float32":
            return False
        rotations = str(getattr(engine.model.config.get_text_config(), "rope_parameters", None))
        return "dynamic" not in rotations and "longrope" not in rotations

    @contextmanager
    def _as_trained(self) -> Iterator[None]:
        """On a CPU, let a policy that learns in bfloat16 sample in it too, with weights rounded once, not for every token.

        Products in float32 would differ from the trainer's as much, and take longer. Adapters' weights stay as they are.
        """
        engine = self._own_engine
        if engine is None or self.config.precision != "bfloat16" or unwrap_peft(self.policy) is not self.policy:
            yield
            return
        before, engine.products = engine.products, "bfloat16"
        try:
            with HalfWeights(self.policy, [self.policy.get_output_embeddings()], PRODUCTS).in_use():
                yield
        finally:
            engine.products = before

    def answers(self, step: int) -> Answers:
        """Return this process's share of the step's prompts, answered."""
        ready = None if self.ahead is None else self.ahead.result()
        self._send_weights()
        answers = self.sample(step, self.order(step)) if ready is None else self._deal(ready)
        if self.config.async_rollouts and step + 1 < self.config.steps:
            self.thread = self.thread or ThreadPoolExecutor(max_workers=1)
            self.ahead = self.thread.submit(self._draw, step + 1, self.order(step + 1))
        elif not self.config.resample:
            self.rest()
        return answers

    def rest(self) -> None:
        """Let the engine give its memory to the trainer, if it can: all of a step is sampled."""
        if isinstance(self.engine, Sleeper):
            self.engine.sleep()

    def _send_weights(self) -> None:
        """Bring the engine up to date: with the policy itself, or with a copy if it will change meanwhile or is spread out."""
        if isinstance(self.engine, Receiver):
            self.engine.receive(self.policy)
        elif world_size() > 1:
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

    def untried(self, step: int, tried: Collection[int]) -> list[int]:
        """Return the numbers of all prompts that a step has not tried, in an order of its own."""
        shuffled = minibatches(len(self.prompts), 1, derived_seed(self.seed, "resample", step))[0]
        return [number for number in shuffled if number not in tried]

    def order(self, step: int) -> list[int]:
        """Return the numbers of the prompts that a step begins with, one for each group."""
        return prompt_order(step, self.config.prompts_per_step, len(self.prompts), self.seed)

    def sample(self, step: int, numbers: Sequence[int]) -> Answers:
        """Return this process's share of a group of completions to each of the prompts `numbers`."""
        return self._deal(self._draw(step, numbers))

    def _deal(self, drawn: Answers) -> Answers:
        """Return this process's share of what the engines made: that of its own, or a part of that of a shared one."""
        return drawn if self.ranks == 1 else self._every(drawn)[rank() :: world_size()]

    def _every(self, drawn: Answers) -> Answers:
        """Return what all engines made, in the order of the prompts."""
        return interleave(all_gather(drawn)[:: self.ranks])

    @property
    def _of_this_engine(self) -> slice:
        """Return which of a step's answers this process's engine makes; none where another process holds it."""
        return slice(0) if rank() % self.ranks else slice(rank() // self.ranks, None, world_size() // self.ranks)

    def _draw(self, step: int, numbers: Sequence[int]) -> Answers:
        """Return this engine's share of a group of completions to each of the prompts.

        A prompt that comes up again goes by another id, so that its answers differ.
        """
        order = [number for number in numbers for _ in range(self.config.group_size)]
        asked, seen = [], dict.fromkeys(order, 0)
        for number in order:
            prompt, repeat = self.prompts[number], seen[number]
            asked.append(prompt.model_copy(update={"id": f"{prompt.id}#{repeat}"}) if repeat else prompt)
            seen[number] += 1
        mine = self._of_this_engine
        drawn = self.sampling.model_copy(update={"n": 1, "seed": derived_seed(self.seed, "sampling", step)})
        with self._as_trained():
            answers = [group[0] for group in self.engine.generate(asked[mine], drawn)] if asked[mine] else []
        return [
            (number, answer.model_copy(update={"prompt_id": self.prompts[number].id}))
            for number, answer in zip(order[mine], answers, strict=True)
        ]

    def state(self) -> list[tuple[int, dict[str, Any]]] | None:
        """Return what was sampled ahead, by all processes, for a checkpoint; waits for it."""
        if self.ahead is None:
            return None
        return [(number, answer.model_dump(mode="json")) for number, answer in self._every(self.ahead.result())]

    def restore(self, state: list[tuple[int, dict[str, Any]]] | None) -> None:
        """Put back what `state` gave."""
        self.ahead = None
        if state is not None:
            self.ahead = Future()
            mine = state[self._of_this_engine]
            self.ahead.set_result([(number, Completion.model_validate(answer)) for number, answer in mine])

    def close(self) -> None:
        """End the thread; the engine is the caller's."""
        if self.thread is not None:
            self.thread.shutdown(wait=True, cancel_futures=True)
            self.thread = None


def interleave(shards: Sequence[Sequence[T]]) -> list[T]:
    """Undo the division of a list over processes, in which each took every n-th item."""
    return [shards[place % len(shards)][place // len(shards)] for place in range(sum(len(hand) for hand in shards))]


def score(answers: Answers, prompts: Sequence[Prompt], reward: Reward) -> Scored:
    """Return the answers of all processes with their scores. Raises ConfigError unless each gets a number or NaN."""
    asked, said = [prompts[number] for number, _ in answers], [answer for _, answer in answers]
    given = reward.score(asked, said) if answers or spreads(reward) else []
    scores = scores_of(f"the reward {type(reward).__qualname__}", given, asked, said)
    share = [(number, answer, value) for (number, answer), value in zip(answers, scores, strict=True)]
    return interleave(all_gather(share))


def without_signal(rows: Scored) -> set[int]:
    """Return the prompts whose groups say nothing of what is better: all scores are equal, or fewer than two are there."""
    scores: dict[int, set[float]] = {}
    for number, answer, value in rows:
        scores.setdefault(number, set()).update([value] if usable(answer, value) else [])
    return {number for number, values in scores.items() if len(values) < 2}


def usable(answer: Completion, value: float) -> bool:
    """Return whether an answer can be learned from: it has a score and a token."""
    return math.isfinite(value) and len(answer.token_ids) > 0


def collect(sampler: Sampler, step: int, reward: Reward) -> tuple[Scored, float, int]:
    """Sample and score a step. Return its rows, the seconds of sampling, and how many groups were replaced.

    Groups without signal make room for those of fresh prompts, as often as `resample` says; the rest of them stays.
    """
    begun = perf_counter()
    answers = sampler.answers(step)
    seconds, replaced = perf_counter() - begun, 0
    rows = score(answers, sampler.prompts, reward)
    if not sampler.config.resample:
        return rows, seconds, replaced
    tried = set(sampler.order(step))
    for _ in range(sampler.config.resample):
        spare = sorted(without_signal(rows))
        begun = perf_counter()
        fresh = sampler.untried(step, tried)[: len(spare)]
        if not fresh:
            break
        answers = sampler.sample(step, fresh)
        seconds += perf_counter() - begun
        dropped = set(spare[: len(fresh)])
        rows = [row for row in rows if row[0] not in dropped] + score(answers, sampler.prompts, reward)
        tried |= set(fresh)
        replaced += len(fresh)
    sampler.rest()
    return rows, seconds, replaced
