"""Bytes per GPU (or per process on a CPU) of each stage of a recipe, by what they are for, and the settings that make it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import judges
from selfplay.algorithms import algorithm_of
from selfplay.config import Lora, Recipe
from selfplay.preflight import asking
from selfplay.sizing import memory
from selfplay.sizing.cards import Machine
from selfplay.sizing.memory import Precision
from selfplay.sizing.shapes import Shape, shape_of_bootstrap, shape_of_model

DEFAULT_TOKENS = {"cuda": 32768, "cpu": 2048}
"""Tokens of a micro-batch unless the recipe sets them (`selfplay.models.default_batch_tokens`)."""


@dataclass(frozen=True)
class StageMemory:
    """What one process holds at the fullest moment of a stage: part -> bytes."""

    stage: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Sizes:
    """A recipe's models and layout on a machine. `prompt` is the longest prompt's tokens, as four bytes a token."""

    recipe: Recipe
    machine: Machine
    policy: Shape
    backbone: Shape | None
    judges: tuple[Shape, ...]
    measuring: tuple[Shape, ...]
    prompt: int

    @property
    def device(self) -> str:
        """Return where it runs, by torch's name."""
        return "cpu" if self.machine.card is None else "cuda"

    @property
    def workers(self) -> int:
        """Return the processes that train."""
        launch = self.recipe.launch
        return 1 if launch is None else launch.size

    @property
    def capacity(self) -> int:
        """Return the bytes that one process may take."""
        if self.machine.card is not None:
            return self.machine.card.memory
        launch = self.recipe.launch
        return self.machine.memory // (1 if launch is None else launch.workers)

    @property
    def trained(self) -> int:
        """Return the policy's parameters that learn: all, or its adapters'."""
        lora = self.recipe.policy.lora
        return self.policy.total if lora is None else self.policy.adapter(lora.rank, lora.targets)

    @property
    def overhead(self) -> int:
        """Return what a process takes before it holds a model."""
        return memory.CUDA_CONTEXT if self.machine.card is not None else memory.LIBRARIES

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of a weight that generates."""
        return memory.BFLOAT16 if self.recipe.policy.dtype == "bfloat16" else memory.FLOAT32

    @property
    def sequence(self) -> int:
        """Return the tokens of the longest prompt with the longest answer."""
        return self.prompt + self.recipe.sampling.max_tokens


def sizes_of(recipe: Recipe, machine: Machine, prompt: int) -> Sizes | None:
    """Return the sizes of a recipe's models; None if there is no `config.json` at hand for its policy."""
    start = recipe.policy.bootstrap
    policy = shape_of_bootstrap(start) if start else shape_of_model(str(recipe.policy.model))
    if policy is None:
        return None
    kind = recipe.reward.backbone
    backbone = policy if kind in ("previous", "policy", "start") else shape_of_model(kind)
    labelling = judges.load_spec(recipe.judge.file, recipe.judge_model)
    measuring = judges.load_spec(recipe.evaluate.judge) if recipe.evaluate.judge else labelling
    made = policy if recipe.judge.bootstrap else None
    return Sizes(recipe, machine, policy, backbone, _models(labelling, made), _models(measuring, made), prompt)


def _models(spec: judges.JudgeSpec, made: Shape | None) -> tuple[Shape, ...]:
    """Return the sizes of a judge's own models that run here; `made` are those of a model that the run makes."""
    names = {str(part.model) for part in asking(spec) if part.endpoint is None and part.model not in (None, "policy")}
    found = (made or shape_of_model(name) for name in sorted(names))
    return tuple(one for one in found if one is not None)


def stages(sizes: Sizes) -> list[StageMemory]:
    """Return the stages that the recipe has, in order, each at its fullest moment; training and sampling apart."""
    needs = algorithm_of(sizes.recipe).needs(sizes.recipe)
    rows = [_supervised(sizes)] if _has_sft(sizes.recipe) else []
    if needs.pairs:
        rows += [StageMemory("generate", _engines(sizes)), StageMemory("label", _engines(sizes, *sizes.judges))]
    if needs.reward_model and sizes.backbone is not None:
        rows.append(_reward(sizes, sizes.backbone))
    if sizes.recipe.algorithm.episodes_per_step:
        state = _policy_state(sizes, needs)
        rows.append(StageMemory("policy: sampling", {**state, **_sampling_beside(sizes)}))
        rows.append(StageMemory("policy: update", {**state, **_update(sizes, needs)}))
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
        parts |= _engine(sizes, sizes.policy, "engine")
    return StageMemory("policy", {**parts, "logits": memory.whole_logits(sizes.policy, tokens)})


def _pairs_at_once(recipe: Recipe) -> Any:
    """Return the pairs in one forward pass of an algorithm that learns from pairs."""
    algorithm: Any = recipe.algorithm
    return getattr(algorithm, "micro_batch", None) or getattr(algorithm, "batch_size", None) or 32


def _trl_parts(sizes: Sizes, shape: Shape, trained: int, tokens: int) -> dict[str, int]:
    """Return the state of TRL's trainers, data-parallel: whole in each process, and gradients once more to exchange."""
    gpu = sizes.machine.card is not None
    precision = Precision(gpu)
    parts = {"libraries": sizes.overhead, **memory.training_state(trained)}
    parts["bf16 copies"] = memory.casts(shape, 1, precision)
    if sizes.workers > 1:
        parts["gradients to exchange"] = memory.GRADIENT * trained
    return {**parts, "activations": memory.activations(shape, tokens, precision, checkpointing=gpu)}


def _engines(sizes: Sizes, *others: Shape) -> dict[str, int]:
    """Return the engines that sample and judge side by side: each a vLLM with its share, or weights and a cache."""
    parts = {"libraries": sizes.overhead}
    for name, shape in (("policy", sizes.policy), *((f"judge {number}", one) for number, one in enumerate(others, 1))):
        parts |= _engine(sizes, shape, name)
    return parts


def _engine(sizes: Sizes, shape: Shape, name: str, weights: bool = True) -> dict[str, int]:
    """Return an engine's weights and cache, in bytes; without `weights` those of a trainer serve."""
    engine, card = sizes.recipe.engine, sizes.machine.card
    held = sizes.weight_bytes * shape.total
    if engine.kind == "vllm":
        held //= engine.tensor_parallel if card is not None else 1
        if card is not None:
            share = int(engine.gpu_memory * card.memory)
            rest = share - held - memory.VLLM_OVERHEAD
            return {
                f"{name}: vLLM weights": held,
                f"{name}: vLLM cache": max(rest, shape.cache_per_token(memory.BFLOAT16) * sizes.sequence),
                f"{name}: vLLM overhead": memory.VLLM_OVERHEAD,
            }
        return {f"{name}: vLLM weights": held, f"{name}: vLLM cache": engine.cpu_cache_gib * 2**30}
    rows = engine.batch_size
    cache = memory.sampling_without_vllm(shape, rows, sizes.sequence, sizes.weight_bytes)
    return ({f"{name}: weights": held} if weights else {}) | {f"{name}: cache": cache}


def least_share(sizes: Sizes) -> float | None:
    """Return the least engine.gpu_memory with which vLLM holds each model and one sequence; None if the recipe's is enough."""
    engine, card = sizes.recipe.engine, sizes.machine.card
    if engine.kind != "vllm" or card is None:
        return None
    needed = max(
        sizes.weight_bytes * shape.total // engine.tensor_parallel
        + shape.cache_per_token(memory.BFLOAT16) * sizes.sequence
        + memory.VLLM_OVERHEAD
        for shape in (sizes.policy, *sizes.judges, *sizes.measuring)
    )
    share = -(-100 * needed // card.memory) / 100
    return share if share > engine.gpu_memory else None


def _policy_state(sizes: Sizes, needs: Any) -> dict[str, int]:
    """Return what the trainer of the policy holds between passes."""
    recipe, shards = sizes.recipe, sizes.workers
    adapted = recipe.policy.lora is not None
    state = memory.training_state(sizes.trained, shards)
    parts = {"libraries": sizes.overhead, "policy": memory.FLOAT32 * sizes.policy.total // shards}
    parts["policy: optimizer"] = state["optimizer"] + (state["weights"] if adapted else 0)
    if getattr(recipe.algorithm, "ema", None) is not None:
        parts["policy: average"] = state["weights"]
    if needs.critic:
        critic = memory.training_state(_scorer(sizes).body, shards)
        parts |= {"critic": critic["weights"], "critic: optimizer": critic["optimizer"]}
    if not (adapted and getattr(recipe.algorithm, "reference", "previous") == "previous"):
        half = shards > 1 and _precision(recipe).bf16
        parts["reference"] = (memory.BFLOAT16 if half else memory.FLOAT32) * sizes.policy.total // shards
    if needs.reward_model and needs.reward:
        members = recipe.reward.ensemble
        parts["reward model"] = members * memory.FLOAT32 * _scorer(sizes).body // shards
    return parts


def _precision(recipe: Recipe) -> Precision:
    return Precision(getattr(recipe.algorithm, "precision", "float32") == "bfloat16")


def _scorer(sizes: Sizes) -> Shape:
    """Return the reward model, which the critic begins as."""
    return sizes.backbone or sizes.policy


def _sampling_beside(sizes: Sizes) -> dict[str, int]:
    """Return the engine while it samples beside the trainer, whose weights the transformers engine shares."""
    return _engine(sizes, sizes.policy, "engine", weights=sizes.recipe.engine.kind != "transformers")


def _update(sizes: Sizes, needs: Any) -> dict[str, int]:
    """Return gradients, gathered layers, activations and logits of the larger of the two networks' passes, and what stays."""
    recipe, shards, algorithm = sizes.recipe, sizes.workers, sizes.recipe.algorithm
    precision = _precision(recipe)
    checkpointing = getattr(algorithm, "gradient_checkpointing", False)
    tokens = max(getattr(algorithm, "micro_batch_tokens", None) or DEFAULT_TOKENS[sizes.device], sizes.sequence)
    parts = {"policy: gradients": memory.training_state(sizes.trained, shards)["gradients"]}
    if needs.critic:
        parts["critic: gradients"] = memory.training_state(_scorer(sizes).body, shards)["gradients"]
    parts["gathered"] = memory.gathered(sizes.policy, shards, precision)
    parts["bf16 copies"] = memory.casts(sizes.policy, shards, precision)
    parts["activations"] = memory.activations(sizes.policy, tokens, precision, checkpointing)
    parts["logits"] = memory.logits_in_chunks(sizes.policy, sizes.device, shards)
    if recipe.engine.kind == "vllm" and not (recipe.engine.sleep and sizes.machine.card is not None):
        parts |= _engine(sizes, sizes.policy, "engine")
    return {name: size for name, size in parts.items() if size}


def _evaluate(sizes: Sizes, scored: bool) -> StageMemory:
    """Return the engines with the reward model, or with one policy in float32 whose log-probabilities the KL needs."""
    scorer = _scorer(sizes).body if scored else 0
    passes = memory.FLOAT32 * max(scorer, sizes.policy.total)
    parts = {**_engines(sizes, *sizes.measuring), "scoring and KL": passes}
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
