"""Bytes per GPU (or per process on a CPU) of each stage of a recipe, by what they are for, at its fullest moment."""

from dataclasses import dataclass
from typing import Any

from selfplay.algorithms import algorithm_of
from selfplay.config import Recipe
from selfplay.sizing import memory, ppo
from selfplay.sizing.engines import engine_parts, engines
from selfplay.sizing.shapes import Shape
from selfplay.sizing.sizes import Sizes

UNCERTAIN = ("activations", "logits", ": cache", "libraries")
"""Ends of the names of parts that may turn out smaller: by shorter prompts and answers, or because processes share them."""


@dataclass(frozen=True)
class StageMemory:
    """What one process holds at the fullest moment of a stage, part -> bytes, and the bytes that it may take."""

    stage: str
    parts: dict[str, int]
    room: int

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.parts.values())

    @property
    def excess(self) -> int:
        """Return the bytes by which it is too large."""
        return max(0, self.total - self.room)

    @property
    def least(self) -> int:
        """Return the bytes of the parts that do not depend on the lengths of prompts and answers, or on who shares them."""
        return sum(size for name, size in self.parts.items() if not name.endswith(UNCERTAIN))


def stages(sizes: Sizes) -> list[StageMemory]:
    """Return the stages that the recipe has, in order, each at its fullest moment; training and sampling apart.

    What an algorithm of the user's own takes is not known: it has none.
    """
    needs, room = algorithm_of(sizes.recipe).needs(sizes.recipe), sizes.room(sizes.workers)
    rows = {"start": _supervised(sizes)} if _has_sft(sizes.recipe) else {}
    if needs.pairs:
        rows |= {"generate": engines(sizes), "label": engines(sizes, *sizes.judges)}
    if needs.reward_model and sizes.backbone is not None:
        rows["reward"] = _reward(sizes, sizes.backbone)
    learning = LEARNING.get(sizes.recipe.algorithm.kind, _none)(sizes, needs)
    evaluating = {"evaluate": _evaluate(sizes, needs.reward_model)}
    return [
        *(StageMemory(stage, parts, room) for stage, parts in rows.items()),
        *(StageMemory(stage, parts, sizes.room(sizes.learners)) for stage, parts in learning.items()),
        *(StageMemory(stage, parts, room) for stage, parts in evaluating.items()),
    ]


def _has_sft(recipe: Recipe) -> bool:
    return recipe.policy.sft is not None or recipe.policy.bootstrap is not None


def _supervised(sizes: Sizes) -> dict[str, int]:
    """Return the fullest of pretraining and fine-tuning, by TRL: whole float32 logits of the batch."""
    made, policy = sizes.recipe.policy.bootstrap, sizes.recipe.policy
    trainings = [made.pretrain] if made else []
    sft = made.sft if made else policy.sft
    trainings += [sft.training] if sft else []
    context = made.architecture.context if made else sizes.sequence
    tokens = max(training.batch_size for training in trainings) * context // sizes.workers
    parts = _trl_parts(sizes, sizes.policy, sizes.policy.total, tokens, sizes.workers)
    return {**parts, "logits": memory.whole_logits(sizes.policy, tokens)}


def _reward(sizes: Sizes, shape: Shape) -> dict[str, int]:
    config = sizes.recipe.reward
    each = 2 if config.loss == "pairwise" else sizes.recipe.generate.completions
    tokens = each * -(-config.batch_size // sizes.workers) * sizes.sequence
    others = {"other members": (config.ensemble - 1) * memory.FLOAT32 * shape.body} if config.ensemble > 1 else {}
    return {**_trl_parts(sizes, shape, shape.body, tokens, sizes.workers), **others, **_engine_beside(sizes)}


def _ppo(sizes: Sizes, needs: Any) -> dict[str, dict[str, int]]:
    state = ppo.policy_state(sizes, needs)
    loading = {"policy: loading": ppo.loading(sizes, state)} if ppo.halves_frozen(sizes) else {}
    return {
        **loading,
        "policy: sampling": {**state, **ppo.sampling(sizes)},
        "policy: update": {**state, **ppo.update(sizes, needs)},
    }


def _dpo(sizes: Sizes, needs: Any) -> dict[str, dict[str, int]]:
    """Return training on pairs by TRL, with whole logits; the reference has given its log-probabilities before, and is gone."""
    algorithm: Any = sizes.recipe.algorithm
    each = algorithm.micro_batch or algorithm.batch_size
    return {"policy": _fine_tuning(sizes, 2 * -(-each // sizes.learners) * sizes.sequence)}


def _rejection(sizes: Sizes, needs: Any) -> dict[str, dict[str, int]]:
    """Return a round: engines and the reward model side by side, and fine-tuning by TRL on a batch of answers."""
    algorithm: Any = sizes.recipe.algorithm
    scorer = ppo.scorer_of(sizes)
    scoring = memory.frozen(scorer, sizes.products(scorer), 1, head=False) if needs.reward_model else 0
    sampling = {**engines(sizes), "reward model": sizes.recipe.reward.ensemble * scoring}
    return {"policy: sampling": sampling, "policy: update": _fine_tuning(sizes, algorithm.batch_size * sizes.sequence)}


def _ilql(sizes: Sizes, needs: Any) -> dict[str, dict[str, int]]:
    """Return the policy and two Q heads that learn, a copy of each head, and a micro-batch; logits are made in chunks."""
    algorithm: Any = sizes.recipe.algorithm
    shape, precision = sizes.policy, sizes.precision
    inner = 2 * shape.hidden if algorithm.heads == "mlp" else shape.hidden
    heads = 2 * (shape.vocabulary * inner + (inner * shape.hidden if algorithm.heads == "mlp" else 0))
    budget = algorithm.micro_batch_tokens or sizes.training_tokens
    tokens = max(min(budget, algorithm.batch_size * sizes.sequence), sizes.sequence)
    return {
        "policy": {
            "libraries": sizes.overhead,
            **memory.training_state(shape.total + heads),
            "copies of the heads": memory.FLOAT32 * heads,
            "bf16 copies": memory.casts(shape, 1, precision),
            **_engine_beside(sizes),
            "activations": memory.activations(shape, tokens, precision, algorithm.gradient_checkpointing),
            "logits": memory.logits_in_chunks(shape, sizes.device, head_learns=True),
        }
    }


def _none(sizes: Sizes, needs: Any) -> dict[str, dict[str, int]]:
    return {}


LEARNING = {"ppo": _ppo, "dpo": _dpo, "rejection": _rejection, "ilql": _ilql}
"""`algorithm.kind` -> the rows of the stage `policy`."""


def _fine_tuning(sizes: Sizes, tokens: int) -> dict[str, int]:
    """Return the policy as TRL trains it, with so many tokens in a pass: whole logits, and the engine that waits beside it."""
    parts = _trl_parts(sizes, sizes.policy, sizes.trained, tokens, sizes.learners)
    if sizes.recipe.policy.lora is not None:
        parts["frozen weights"] = memory.FLOAT32 * sizes.policy.total
    return {**parts, **_engine_beside(sizes), "logits": memory.whole_logits(sizes.policy, tokens)}


def _engine_beside(sizes: Sizes) -> dict[str, int]:
    """Return the vLLM that stays open in a single process while others learn; engines that open in a moment are closed."""
    engine = sizes.recipe.engine
    if engine.kind != "vllm" or sizes.recipe.launch is not None:
        return {}
    return engine_parts(sizes, sizes.policy, "engine", engine.batch_size)


def _trl_parts(sizes: Sizes, shape: Shape, trained: int, tokens: int, processes: int) -> dict[str, int]:
    """Return the state of TRL's trainers, data-parallel: whole in each process, and gradients once more to exchange."""
    gpu = sizes.machine.card is not None
    precision = sizes.products(shape)
    parts = {"libraries": sizes.overhead, **memory.training_state(trained)}
    parts["bf16 copies"] = memory.casts(shape, 1, precision)
    if processes > 1:
        parts["gradients to exchange"] = memory.GRADIENT * trained
    return {**parts, "activations": memory.activations(shape, tokens, precision, checkpointing=gpu)}


def _evaluate(sizes: Sizes, scored: bool) -> dict[str, int]:
    """Return the engines with the reward model, or with one policy whose log-probabilities the KL needs, a block at a time."""
    scorer = ppo.scorer_of(sizes)
    scoring = memory.frozen(scorer, sizes.products(scorer), 1, head=False) if scored else 0
    policy = sizes.policy
    streamed = memory.FLOAT32 * (policy.total - (policy.layers - 1) * policy.block)
    kept = 0 if sizes.machine.card is not None else sizes.weight_bytes * policy.layers * policy.block
    parts = {**engines(sizes, *sizes.measuring), "scoring and KL": max(scoring, streamed + kept)}
    return {**parts, "logits": memory.logits_in_chunks(policy, sizes.device, head_learns=False)}
