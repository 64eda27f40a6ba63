"""Bytes per GPU (or per process on a CPU) of each stage of a recipe, by what they are for, and the settings that make it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from selfplay.algorithms import algorithm_of
from selfplay.config import Lora, Recipe
from selfplay.sizing import memory, ppo
from selfplay.sizing.engines import engine_parts, engines
from selfplay.sizing.shapes import Shape
from selfplay.sizing.sizes import DEFAULT_TOKENS, Sizes


@dataclass(frozen=True)
class StageMemory:
    """What one process holds at the fullest moment of a stage: part -> bytes."""

    stage: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.parts.values())


def stages(sizes: Sizes) -> list[StageMemory]:
    """Return the stages that the recipe has, in order, each at its fullest moment; training and sampling apart."""
    needs = algorithm_of(sizes.recipe).needs(sizes.recipe)
    rows = [_supervised(sizes)] if _has_sft(sizes.recipe) else []
    if needs.pairs:
        rows += [StageMemory("generate", engines(sizes)), StageMemory("label", engines(sizes, *sizes.judges))]
    if needs.reward_model and sizes.backbone is not None:
        rows.append(_reward(sizes, sizes.backbone))
    if sizes.recipe.algorithm.episodes_per_step:
        state = ppo.policy_state(sizes, needs)
        rows.append(StageMemory("policy: sampling", {**state, **ppo.sampling(sizes)}))
        rows.append(StageMemory("policy: update", {**state, **ppo.update(sizes, needs)}))
    else:
        rows.append(_on_pairs(sizes))
    rows.append(_evaluate(sizes, needs.reward_model))
    return rows


def _has_sft(recipe: Recipe) -> bool:
    return recipe.policy.sft is not None or recipe.policy.bootstrap is not None


def _supervised(sizes: Sizes) -> StageMemory:
    """Return the fullest of pretraining and fine-tuning, by TRL: whole float32 logits of the batch."""
    made, policy = sizes.recipe.policy.bootstrap, sizes.recipe.policy
    trainings = [made.pretrain] if made else []
    sft = made.sft if made else policy.sft
    trainings += [sft.training] if sft else []
    context = made.architecture.context if made else sizes.sequence
    tokens = max(training.batch_size for training in trainings) * context // sizes.workers
    parts = _trl_parts(sizes, sizes.policy, sizes.policy.total, tokens)
    return StageMemory("start", {**parts, "logits": memory.whole_logits(sizes.policy, tokens)})


def _reward(sizes: Sizes, shape: Shape) -> StageMemory:
    config = sizes.recipe.reward
    each = 2 if config.loss == "pairwise" else sizes.recipe.generate.completions
    tokens = each * -(-config.batch_size // sizes.workers) * sizes.sequence
    others = {"other members": (config.ensemble - 1) * memory.FLOAT32 * shape.body} if config.ensemble > 1 else {}
    return StageMemory("reward", {**_trl_parts(sizes, shape, shape.body, tokens), **others})


def _on_pairs(sizes: Sizes) -> StageMemory:
    """Return training on pairs or examples by TRL, with a float32 reference and whole logits."""
    recipe = sizes.recipe
    each = _pairs_at_once(recipe)
    tokens = 2 * -(-each // sizes.workers) * sizes.sequence
    parts = _trl_parts(sizes, sizes.policy, sizes.trained, tokens)
    if recipe.policy.lora is not None:
        parts["frozen weights"] = memory.FLOAT32 * sizes.policy.total
    else:
        parts["reference"] = memory.FLOAT32 * sizes.policy.total
    if recipe.engine.kind == "vllm" and recipe.launch is None:
        parts |= engine_parts(sizes, sizes.policy, "engine", recipe.engine.batch_size)
    return StageMemory("policy", {**parts, "logits": memory.whole_logits(sizes.policy, tokens)})


def _pairs_at_once(recipe: Recipe) -> Any:
    """Return the pairs in one forward pass of an algorithm that learns from pairs."""
    algorithm: Any = recipe.algorithm
    return getattr(algorithm, "micro_batch", None) or getattr(algorithm, "batch_size", None) or 32


def _trl_parts(sizes: Sizes, shape: Shape, trained: int, tokens: int) -> dict[str, int]:
    """Return the state of TRL's trainers, data-parallel: whole in each process, and gradients once more to exchange."""
    gpu = sizes.machine.card is not None
    precision = sizes.products(shape)
    parts = {"libraries": sizes.overhead, **memory.training_state(trained)}
    parts["bf16 copies"] = memory.casts(shape, 1, precision)
    if sizes.workers > 1:
        parts["gradients to exchange"] = memory.GRADIENT * trained
    return {**parts, "activations": memory.activations(shape, tokens, precision, checkpointing=gpu)}


def _evaluate(sizes: Sizes, scored: bool) -> StageMemory:
    """Return the engines with the reward model, or with one policy whose log-probabilities the KL needs, a block at a time."""
    scorer = ppo.scorer_of(sizes)
    scoring = memory.frozen(scorer, sizes.products(scorer), 1, head=False) if scored else 0
    policy = sizes.policy
    streamed = memory.FLOAT32 * (policy.total - (policy.layers - 1) * policy.block)
    kept = 0 if sizes.machine.card is not None else sizes.weight_bytes * policy.layers * policy.block
    parts = {**engines(sizes, *sizes.measuring), "scoring and KL": max(scoring, streamed + kept)}
    parts["logits"] = 3 * memory.LOGITS_AT_ONCE[sizes.device]
    return StageMemory("evaluate", parts)


def fixes(sizes: Sizes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield settings that take less memory, cheapest in speed first, as (words, overrides of the recipe)."""
    recipe = sizes.recipe
    algorithm, vllm = recipe.algorithm, recipe.engine.kind == "vllm" and sizes.machine.card is not None
    if vllm and not recipe.engine.sleep:
        yield "engine.sleep=true", {"engine": {"sleep": True}}
    if getattr(algorithm, "precision", None) == "float32" and sizes.machine.card is not None:
        yield "algorithm.precision=bfloat16", {"algorithm": {"precision": "bfloat16"}}
    if getattr(algorithm, "gradient_checkpointing", None) is False:
        yield "algorithm.gradient_checkpointing=true", {"algorithm": {"gradient_checkpointing": True}}
    if hasattr(algorithm, "micro_batch_tokens"):
        tokens = algorithm.micro_batch_tokens or DEFAULT_TOKENS[sizes.device]
        while (tokens := tokens // 2) >= sizes.sequence:
            yield f"algorithm.micro_batch_tokens={tokens}", {"algorithm": {"micro_batch_tokens": tokens}}
    if getattr(algorithm, "offload_optimizer", None) is False and sizes.machine.card is not None:
        yield "algorithm.offload_optimizer=true", {"algorithm": {"offload_optimizer": True}}
    if not algorithm.episodes_per_step and _pairs_at_once(recipe) > 2:
        yield "algorithm.micro_batch=2", {"algorithm": {"micro_batch": 2}}
    if recipe.reward.batch_size > 8:
        yield "reward.batch_size=8", {"reward": {"batch_size": 8}}
    if vllm and recipe.engine.gpu_memory > 0.3:
        yield "engine.gpu_memory=0.3", {"engine": {"gpu_memory": 0.3}}
    if recipe.engine.kind != "vllm" and recipe.engine.batch_size > 32:
        yield "engine.batch_size=32", {"engine": {"batch_size": 32}}
    if recipe.policy.lora is None:
        yield "policy.lora={rank: 16}", {"policy": {"lora": Lora()}}
