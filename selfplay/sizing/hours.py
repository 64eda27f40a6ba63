"""Hours per stage: on a card from counted operations and bytes moved, on this machine's processor from what it was timed at.

A forward pass takes 2 operations per weight and token, a backward pass 4, recomputation of the blocks 2 more (Kaplan et al.
2020). Looking up an input embedding takes none; the output embedding, tied or not, counts for the tokens that get logits alone. A
step of decoding reads all weights and the whole cache once, and costs a fixed time on top. What the rates rest on stands beside
them; an earlier run on the same machine is the better guide, and replaces them where there is one (`measured`).
On a processor, PPO's sampling is counted in float32 and each step with a pass of the policy for its old log-probs, also where it
takes less.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from selfplay.algorithms import algorithm_of
from selfplay.sizing.calibrate import measured_seconds
from selfplay.sizing.cards import Card
from selfplay.sizing.ppo import scorer_of
from selfplay.sizing.shapes import Shape
from selfplay.sizing.sizes import Sizes

LARGE = 2 * 10**9
UTILISATION = {"large": 0.35, "small": 0.24}
"""Share of the card's bfloat16 rate in training: of models under 2B weights 0.24 was measured (0.5B on an H200, without
`compile`); of larger ones 0.35 is assumed."""
FORWARD_UTILISATION = 0.4
"""The same for passes without a backward pass; assumed."""
BANDWIDTH_SHARE = 0.6
"""Share of the memory's bandwidth that decoding reaches; assumed."""
STEP_SECONDS = {"vllm": 0.008, "transformers": 0.024}
"""Seconds of a decoding step beside its reads: measured with 0.5B and 128 rows on an H200 (2.22 and 6.17 s for 256 steps)."""
ROWS_OF_VLLM = 256
JUDGE_PROMPT, JUDGE_ANSWER = 300, 128
"""Tokens that a judge's template adds to two answers, and that it writes unless it is read by log-probabilities; assumed."""


@dataclass(frozen=True)
class Work:
    """How much a recipe does in an iteration. Lengths are in tokens, answers of full length.

    Of the episodes of a step, `learned` are learned from at most.
    """

    prompt: int
    answer: int
    generated: int
    pairs: int
    judge_calls: int
    episodes: int
    learned: int
    epochs: int
    heldout: int


class Rates(Protocol):
    """Seconds of a process's work on a model of some shape; logits are made of `head` of the tokens."""

    def decoding(self, shape: Shape, rows: int, prompt: int, answer: int, each: int = 1) -> float:
        """Return those in which one engine makes so many answers, `each` to a prompt, which is computed once for them."""
        ...

    def forward(self, shape: Shape, tokens: int, head: int = 0) -> float:
        """Return those of passes over so many tokens that keep nothing."""
        ...

    def training(self, shape: Shape, tokens: int, recompute: bool, head: int = 0) -> float:
        """Return those of forward and backward passes, with recomputation if asked."""
        ...

    def update(self, weights: int) -> float:
        """Return those of an optimizer step on so many weights."""
        ...


@dataclass(frozen=True)
class CardRates:
    """A GPU's, from its data sheet and the shares of it that are reached."""

    card: Card
    sizes: Sizes

    def decoding(self, shape: Shape, rows: int, prompt: int, answer: int, each: int = 1) -> float:
        """Return the seconds, on `tensor_parallel` cards if it is vLLM: weights and cache are read in each step."""
        engine, width = self.sizes.recipe.engine, self.sizes.weight_bytes
        vllm = engine.kind == "vllm"
        most = ROWS_OF_VLLM if vllm else engine.batch_size
        waves, together = -(-rows // most), min(rows, most)
        read = shape.total * width + together * (prompt + answer // 2) * shape.cache_per_token(width)
        step = read / engine.gpus_each / (self.card.bandwidth * BANDWIDTH_SHARE)
        step += STEP_SECONDS.get(engine.kind, STEP_SECONDS["vllm"])
        prompts = self.forward(shape, _prompt_tokens(rows, prompt, each), head=rows)
        return waves * answer * step + prompts / engine.gpus_each

    def forward(self, shape: Shape, tokens: int, head: int = 0) -> float:
        """Return 2 operations per weight and token."""
        return 2 * _products(shape, tokens, head) / (self.card.flops * FORWARD_UTILISATION)

    def training(self, shape: Shape, tokens: int, recompute: bool, head: int = 0) -> float:
        """Return 6 operations per weight and token, and 2 more for recomputation."""
        rate = self.card.flops * UTILISATION["large" if shape.body >= LARGE else "small"]
        repeated = 2 * shape.layers * shape.block * tokens if recompute else 0
        return (6 * _products(shape, tokens, head) + repeated) / rate

    def update(self, weights: int) -> float:
        """Return nothing: memory is read and written once, which hides behind what is assumed."""
        return 0.0


@dataclass(frozen=True)
class ProcessorRates:
    """This machine's processor's, from what `calibrate` measured at the policy's widths."""

    sizes: Sizes
    seconds: dict[str, float]

    @classmethod
    def measured(cls, sizes: Sizes, work: Work) -> "ProcessorRates":
        """Measure them, for a second or so, unless they are known."""
        rows = max(work.generated, work.episodes, work.heldout)
        task = {
            "shape": asdict(sizes.policy),
            "bf16": sizes.products(sizes.policy).bf16,
            "rows": max(1, min(rows, sizes.recipe.engine.batch_size)),
            "context": max(1, work.prompt + work.answer // 2),
            "threads": sizes.recipe.threads,
        }
        return cls(sizes, measured_seconds(task))

    def decoding(self, shape: Shape, rows: int, prompt: int, answer: int, each: int = 1) -> float:
        """Return steps of whole batches, with a fixed part and one for each row, after a pass over the prompts."""
        waves, rest = divmod(rows, self.sizes.recipe.engine.batch_size)
        batches = [self.sizes.recipe.engine.batch_size] * waves + ([rest] if rest else [])
        like = shape.total / self.sizes.policy.total
        step = sum(self.seconds["decoding step"] + count * self.seconds["decoding of a row"] for count in batches)
        return answer * step * like + self.forward(shape, _prompt_tokens(rows, prompt, each))

    def forward(self, shape: Shape, tokens: int, head: int = 0) -> float:
        """Return those of its blocks, and of its head."""
        return self._pass("forward", shape, tokens, head)

    def training(self, shape: Shape, tokens: int, recompute: bool, head: int = 0) -> float:
        """Return the same of training."""
        return self._pass("training", shape, tokens, head) + (self.forward(shape, tokens) if recompute else 0.0)

    def update(self, weights: int) -> float:
        """Return those of Adam, which reads and writes all that there is of each weight."""
        return weights * self.seconds["update of a weight"]

    def _pass(self, kind: str, shape: Shape, tokens: int, head: int) -> float:
        policy = self.sizes.policy
        blocks = shape.layers * shape.block / policy.block * self.seconds[f"{kind} of a block"]
        return tokens * blocks + head * shape.embedding / policy.embedding * self.seconds[f"{kind} of the head"]


def _prompt_tokens(rows: int, prompt: int, each: int) -> int:
    """Return the tokens of the prompts of so many answers, `each` to a prompt."""
    return -(-rows // each) * prompt


def _products(shape: Shape, tokens: int, head: int) -> int:
    """Return weights times tokens: a block's for all of them, the output embedding's for `head` of them."""
    return shape.layers * shape.block * tokens + shape.embedding * head


def hours(sizes: Sizes, work: Work, rates: Rates) -> dict[str, float]:
    """Return stage -> hours per iteration on the machine, all workers busy. Rules, functions and files take no time."""
    recipe, workers = sizes.recipe, sizes.workers
    engines = max(1, workers // recipe.engine.gpus_each)
    needs = algorithm_of(recipe).needs(recipe)
    whole, scorer = work.prompt + work.answer, scorer_of(sizes)
    judging, measuring = (
        sum(_judge_seconds(rates, shape, work, work.judge_calls // engines) for shape in shapes)
        for shapes in (sizes.judges, sizes.measuring)
    )
    found: dict[str, float] = {}
    if needs.pairs:
        rivals = 1 if recipe.generate.opponent == "self" else 2  # each computes the prompts for its half of the answers
        rows, each = -(-work.generated // engines), max(1, recipe.generate.completions // rivals)
        found["generate"] = rates.decoding(sizes.policy, rows, work.prompt, work.answer, each)
        found["label"] = judging
    if needs.reward_model:
        forwarded = 2 * work.pairs if recipe.reward.loss == "pairwise" else work.generated
        tokens = forwarded * whole * recipe.reward.epochs * recipe.reward.ensemble // workers
        found["reward"] = rates.training(scorer, tokens, recompute=sizes.machine.card is not None)
        updates = recipe.reward.epochs * recipe.reward.ensemble * work.pairs // recipe.reward.batch_size
        found["reward"] += updates * rates.update(scorer.body)
    found["policy"] = policy_seconds(rates, sizes, work, needs, engines)
    found["evaluate"] = rates.decoding(sizes.policy, -(-work.heldout // engines), work.prompt, work.answer)
    found["evaluate"] += measuring * work.heldout / max(work.pairs, 1)
    if sizes.machine.card is None:  # of which a GPU's would vanish beside the answers
        scored = rates.forward(scorer, work.heldout * whole) if needs.reward_model else 0.0
        found["evaluate"] += (
            2 * rates.forward(sizes.policy, work.heldout * whole, head=work.heldout * work.answer) + scored
        )
    return {stage: seconds / 3600 for stage, seconds in found.items()}


def policy_seconds(rates: Rates, sizes: Sizes, work: Work, needs: Any, engines: int) -> float:
    """Return the seconds of an iteration's steps: sample, score, estimate, update."""
    algorithm, workers = sizes.recipe.algorithm, sizes.learners
    each = algorithm.group_size
    if algorithm.kind == "ppo":  # each learner samples, and a group is dealt to the engines in turn
        engines = min(engines, workers)
        each = max(1, each // engines)
    whole, scorer, policy = work.prompt + work.answer, scorer_of(sizes), sizes.policy
    if not work.episodes:
        tokens = 2 * work.pairs * whole // workers
        return 2 * rates.training(policy, tokens, recompute=True, head=tokens)
    tokens, answered = work.episodes * whole // workers, work.episodes * work.answer // workers
    rollout = rates.decoding(policy, -(-work.episodes // engines), work.prompt, work.answer, each)
    estimate = 2 * rates.forward(policy, tokens, head=answered) if algorithm.estimates_logprobs else 0.0
    estimate += sizes.recipe.reward.ensemble * rates.forward(scorer, tokens) if needs.reward_model else 0.0
    estimate += rates.forward(scorer, tokens) if needs.critic else 0.0
    recompute = bool(getattr(algorithm, "gradient_checkpointing", False))
    passes = work.learned * work.epochs // workers
    update = rates.training(policy, passes * whole, recompute, head=passes * work.answer)
    updates = work.epochs * algorithm.updates_per_epoch
    update += updates * rates.update(sizes.learned(policy) // workers)
    if needs.critic:
        update += rates.training(scorer, tokens * work.epochs, recompute)
        update += updates * rates.update(sizes.learned(scorer) // workers)
    return (rollout + estimate + update) * algorithm.steps_per_iteration


def _judge_seconds(rates: Rates, shape: Shape, work: Work, calls: int) -> float:
    if not calls:
        return 0.0
    return rates.decoding(shape, calls, work.prompt + 2 * work.answer + JUDGE_PROMPT, JUDGE_ANSWER)
