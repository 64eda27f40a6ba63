"""Bytes that PPO takes on one process: what is held between passes, what sampling adds, and what each network's update adds."""

from typing import Any

from selfplay.algorithms.ppo import halves_base
from selfplay.config import PPO
from selfplay.sizing import memory
from selfplay.sizing.engines import engine_parts
from selfplay.sizing.shapes import Shape
from selfplay.sizing.sizes import Sizes


def scorer_of(sizes: Sizes) -> Shape:
    """Return the reward model, which the critic begins as."""
    return sizes.backbone or sizes.policy


def policy_state(sizes: Sizes, needs: Any) -> dict[str, int]:
    """Return what the trainer of the policy holds between passes."""
    recipe, shards = sizes.recipe, sizes.learners
    adapted, scorer = recipe.policy.lora is not None, scorer_of(sizes)
    policy = memory.FLOAT32 * sizes.policy.total // shards
    if halves_frozen(sizes):
        policy = memory.frozen(sizes.policy, sizes.precision)
    parts = {"libraries": sizes.overhead, "policy": policy}
    parts |= _optimizer("policy", sizes, sizes.policy) | _copies("policy", sizes, sizes.policy, head=True)
    if getattr(recipe.algorithm, "nlpo", None) is not None:
        parts["policy of the mask"] = memory.FLOAT32 * sizes.policy.total
    if getattr(recipe.algorithm, "ema", None) is not None:
        parts["policy: average"] = memory.training_state(sizes.trained, shards)["weights"]
    if needs.critic:
        if not shares_body(sizes, needs):
            halved = halves_frozen(sizes)
            parts["critic"] = (
                memory.frozen(scorer, sizes.precision, head=False) if halved else memory.FLOAT32 * scorer.body // shards
            )
        parts |= _optimizer("critic", sizes, scorer) | _copies("critic", sizes, scorer, head=False)
    if not (adapted and getattr(recipe.algorithm, "reference", "previous") == "previous"):
        parts["reference"] = (
            memory.BFLOAT16 * sizes.policy.total
            if computes_in_half(sizes)
            else memory.frozen(sizes.policy, sizes.precision, shards, spread_in_half=True)
        )
    if needs.reward_model and needs.reward:
        precision = sizes.products(scorer)
        parts["reward model"] = recipe.reward.ensemble * memory.frozen(scorer, precision, shards, head=False)
    return parts


def computes_in_half(sizes: Sizes) -> bool:
    """Return whether policy and critic compute with bfloat16 copies of their weights (`selfplay.weights.half`)."""
    alone = sizes.machine.card is not None and sizes.learners == 1
    return alone and sizes.precision.bf16 and getattr(sizes.recipe.algorithm, "nlpo", None) is None


def _copies(name: str, sizes: Sizes, shape: Shape, head: bool) -> dict[str, int]:
    """Return those copies: of all weights, or of those that adapters leave in float32."""
    if not computes_in_half(sizes):
        return {}
    weights = shape.total if head else shape.body
    held = memory.frozen(shape, sizes.precision, head=head) if halves_frozen(sizes) else memory.FLOAT32 * weights
    return {f"{name}: in bfloat16": held - memory.BFLOAT16 * weights}


def halves_frozen(sizes: Sizes) -> bool:
    """Return whether weights that adapters keep frozen lie in bfloat16, where products run in it."""
    config = sizes.recipe.algorithm
    return isinstance(config, PPO) and halves_base(config, sizes.recipe, sizes.learners) and sizes.precision.bf16


def loading(sizes: Sizes, state: dict[str, int]) -> dict[str, int]:
    """Return the policy as it is read, in float32, beside what stands already; on a CPU its file is held until all is rounded."""
    read = {"policy": memory.FLOAT32 * sizes.policy.total}
    rounded = {} if sizes.machine.card is not None else {"policy: rounded": state["policy"]}
    return {name: state[name] for name in ("libraries", "reward model") if name in state} | read | rounded


def shares_body(sizes: Sizes, needs: Any) -> bool:
    """Return whether the critic learns by adapters on the very weights of the reward model that scores."""
    recipe = sizes.recipe
    auto = getattr(recipe.algorithm, "precision", None) == "auto" and sizes.learners == 1
    alike = auto and sizes.products(scorer_of(sizes)) == sizes.precision
    return bool(
        alike and recipe.policy.lora is not None and needs.reward_model and needs.reward and recipe.reward.ensemble == 1
    )


def _optimizer(name: str, sizes: Sizes, shape: Shape) -> dict[str, int]:
    """Return Adam's moments of what a network learns by, and the adapters themselves, which come on top of its weights."""
    state = memory.training_state(sizes.learned(shape), sizes.learners)
    moments = state["optimizer"]
    if getattr(sizes.recipe.algorithm, "offload_optimizer", False) and sizes.machine.card is not None:
        largest = 0 if sizes.recipe.policy.lora is not None else memory.MOMENTS * shape.largest_matrix
        moments = min(moments, max(memory.OFFLOADED_AT_ONCE, largest) // sizes.learners)
    return {f"{name}: optimizer": moments + (state["weights"] if sizes.recipe.policy.lora is not None else 0)}


def sampling(sizes: Sizes) -> dict[str, int]:
    """Return the engine while it samples beside the trainer, and what moves the weights to it.

    In one process the transformers engine shares the trainer's weights. On several each has whole ones of its own; vLLM gets
    them through a buffer, and the largest tensor is whole in float32 meanwhile.
    """
    rows = -(-sizes.recipe.algorithm.episodes_per_step // sizes.learners)
    parts = engine_parts(sizes, sizes.policy, "engine", rows, weights=not _shares_weights(sizes))
    if _samples_in_half(sizes):
        parts["engine: bf16 copies"] = memory.casts(sizes.policy, 1, sizes.precision)
    if sizes.recipe.engine.kind == "vllm":
        largest = sizes.policy.embedding
        buffer = max(memory.WEIGHTS_BUFFER, sizes.weight_bytes * largest)
        gathered = (memory.FLOAT32 + sizes.weight_bytes) * largest
        parts["weights on their way"] = gathered + (
            buffer if sizes.machine.card is not None else sizes.weight_bytes * sizes.policy.total
        )
    return parts


def _shares_weights(sizes: Sizes) -> bool:
    return sizes.recipe.engine.kind == "transformers" and sizes.learners == 1


def _samples_in_half(sizes: Sizes) -> bool:
    """Whether the engine has copies of its own of weights that learn, in bfloat16 (`selfplay.rl.sampler`)."""
    algorithm = sizes.recipe.algorithm
    if not isinstance(algorithm, PPO) or algorithm.async_rollouts or algorithm.nlpo is not None:
        return False
    return _shares_weights(sizes) and sizes.recipe.policy.lora is None and sizes.machine.card is None


def update(sizes: Sizes, needs: Any) -> dict[str, int]:
    """Return gradients, gathered layers, activations and logits of the larger of the two networks' passes, and what stays.

    The policy's gradients are applied and dropped before the critic's are made.
    """
    recipe, shards = sizes.recipe, sizes.learners
    halved = halves_frozen(sizes)
    parts = _pass(sizes, "policy", sizes.policy, half_already=halved)
    parts["logits"] = memory.logits_in_chunks(
        sizes.policy, sizes.device, head_learns=shards == 1 and recipe.policy.lora is None
    )
    if needs.critic:
        other = _pass(sizes, "critic", scorer_of(sizes), half_already=halved or shares_body(sizes, needs))
        parts = max(parts, other, key=lambda found: sum(found.values()))
    if recipe.engine.kind == "transformers" and shards > 1:
        parts["engine: weights"] = sizes.weight_bytes * sizes.policy.total
    if recipe.engine.kind == "vllm" and not (recipe.engine.sleep and sizes.machine.card is not None):
        parts |= engine_parts(sizes, sizes.policy, "engine", recipe.engine.batch_size)
    return {name: size for name, size in parts.items() if size}


def _pass(sizes: Sizes, name: str, shape: Shape, half_already: bool = False) -> dict[str, int]:
    """Return what a forward and backward pass of a micro-batch adds; weights that are bfloat16 already need no copies."""
    shards, precision = sizes.learners, sizes.precision
    checkpointing = getattr(sizes.recipe.algorithm, "gradient_checkpointing", False)
    return {
        f"{name}: gradients": memory.training_state(sizes.learned(shape), shards)["gradients"],
        "gathered": memory.gathered(shape, shards, precision),
        "bf16 copies": 0 if half_already or computes_in_half(sizes) else memory.casts(shape, shards, precision),
        "activations": memory.activations(shape, micro_batch(sizes), precision, checkpointing),
    }


def micro_batch(sizes: Sizes) -> int:
    """Return the tokens of the largest micro-batch: the budget or one sequence, and no more than a minibatch has."""
    algorithm: Any = sizes.recipe.algorithm
    budget = getattr(algorithm, "micro_batch_tokens", None) or sizes.training_tokens
    episodes = -(-algorithm.episodes_per_step // getattr(algorithm, "minibatches", 1))
    return max(min(budget, -(-episodes // sizes.learners) * sizes.sequence), sizes.sequence)
