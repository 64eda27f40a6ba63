"""Hours per stage on a card, from counted operations and bytes moved. Pure arithmetic; imports no torch.

A forward pass takes 2 operations per weight and token, a backward pass 4, recomputation 2 more (Kaplan et al. 2020). A step of
decoding reads all weights and the whole cache once, and costs a fixed time on top. What the rates rest on stands beside them;
an earlier run on the same machine is the better guide, and replaces them where there is one (`measured`).
"""

from dataclasses import dataclass
from typing import Any

from selfplay.algorithms import algorithm_of
from selfplay.sizing.cards import Card
from selfplay.sizing.shapes import Shape
from selfplay.sizing.stages import Sizes

LARGE = 2 * 10**9
UTILISATION = {"large": 0.35, "small": 0.14}
"""Share of the card's bfloat16 rate in training: of models under 2B weights 0.14 was measured (0.5B on an H200); of larger ones
0.35 is assumed."""
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
    """How much a recipe does in an iteration. Lengths are in tokens, answers of full length."""

    prompt: int
    answer: int
    generated: int
    pairs: int
    judge_calls: int
    episodes: int
    epochs: int
    heldout: int


def decode_seconds(card: Card, shape: Shape, work: Work, rows: int, sizes: Sizes) -> float:
    """Return the seconds in which one engine answers `rows` prompts, on `tensor_parallel` cards if it is vLLM."""
    engine = sizes.recipe.engine
    vllm = engine.kind == "vllm"
    spread = engine.tensor_parallel if vllm else 1
    most = ROWS_OF_VLLM if vllm else engine.batch_size
    waves, together = -(-rows // most), min(rows, most)
    read = shape.total * sizes.weight_bytes
    read += together * (work.prompt + work.answer // 2) * shape.cache_per_token(sizes.weight_bytes)
    step = read / spread / (card.bandwidth * BANDWIDTH_SHARE) + STEP_SECONDS.get(engine.kind, STEP_SECONDS["vllm"])
    prefill = forward_seconds(card, shape.total, rows * work.prompt) / spread
    return waves * work.answer * step + prefill


def forward_seconds(card: Card, weights: int, tokens: int) -> float:
    """Return the seconds of a forward pass of so many weights over so many tokens on one card."""
    return 2 * weights * tokens / (card.flops * FORWARD_UTILISATION)


def training_seconds(card: Card, weights: int, tokens: int, recompute: bool) -> float:
    """Return the seconds of forward and backward passes, with recomputation if asked, on one card."""
    rate = card.flops * UTILISATION["large" if weights >= LARGE else "small"]
    return (8 if recompute else 6) * weights * tokens / rate


def hours(sizes: Sizes, work: Work) -> dict[str, float]:
    """Return stage -> hours per iteration on the machine's cards, all workers busy."""
    card, recipe = sizes.machine.card, sizes.recipe
    assert card is not None
    workers = sizes.workers
    engines = max(1, workers // recipe.engine.tensor_parallel) if recipe.engine.kind == "vllm" else workers
    needs = algorithm_of(recipe).needs(recipe)
    whole, scorer = work.prompt + work.answer, (sizes.backbone or sizes.policy).body
    judging, measuring = (
        sum(_judge_seconds(card, shape, work, work.judge_calls // engines, sizes) for shape in shapes)
        for shapes in (sizes.judges, sizes.measuring)
    )
    found: dict[str, float] = {}
    if needs.pairs:
        found["generate"] = decode_seconds(card, sizes.policy, work, -(-work.generated // engines), sizes)
        found["label"] = judging
    if needs.reward_model:
        forwarded = 2 * work.pairs if recipe.reward.loss == "pairwise" else work.generated
        tokens = forwarded * whole * recipe.reward.epochs * recipe.reward.ensemble // workers
        found["reward"] = training_seconds(card, scorer, tokens, recompute=True)
    found["policy"] = policy_seconds(card, sizes, work, needs, engines)
    answers = decode_seconds(card, sizes.policy, work, -(-work.heldout // engines), sizes)
    found["evaluate"] = answers + measuring * work.heldout / max(work.pairs, 1)
    return {stage: seconds / 3600 for stage, seconds in found.items()}


def policy_seconds(card: Card, sizes: Sizes, work: Work, needs: Any, engines: int) -> float:
    """Return the seconds of an iteration's steps: sample, score, estimate, update."""
    algorithm, workers = sizes.recipe.algorithm, sizes.workers
    whole, scorer = work.prompt + work.answer, (sizes.backbone or sizes.policy).body
    if not work.episodes:
        tokens = 2 * work.pairs * whole // workers
        return 2 * training_seconds(card, sizes.policy.total, tokens, recompute=True)
    tokens = work.episodes * whole // workers
    rollout = decode_seconds(card, sizes.policy, work, -(-work.episodes // engines), sizes)
    scored = sizes.recipe.reward.ensemble * scorer if needs.reward_model else 0
    critic = scorer if needs.critic else 0
    estimate = forward_seconds(card, scored + 2 * sizes.policy.total + critic, tokens)
    recompute = bool(getattr(algorithm, "gradient_checkpointing", False))
    update = sum(
        training_seconds(card, weights, tokens * work.epochs, recompute)
        for weights in (sizes.policy.total, critic)
        if weights
    )
    return (rollout + estimate + update) * algorithm.steps_per_iteration


def _judge_seconds(card: Card, shape: Shape, work: Work, calls: int, sizes: Sizes) -> float:
    asked = Work(work.prompt + 2 * work.answer + JUDGE_PROMPT, JUDGE_ANSWER, 0, 0, 0, 0, 0, 0)
    return decode_seconds(card, shape, asked, calls, sizes) if calls else 0.0
