"""Bytes that engines take: weights and cache of each, and the least share of a GPU with which vLLM can start."""

from selfplay.sizing import memory
from selfplay.sizing.shapes import Shape
from selfplay.sizing.sizes import Sizes


def engine_parts(sizes: Sizes, shape: Shape, name: str, rows: int, weights: bool = True) -> dict[str, int]:
    """Return an engine's weights and its cache for `rows` answers at most, in bytes; without `weights` a trainer's serve.

    Nothing for an engine of the user's own, of which nothing is known.
    """
    engine, card = sizes.recipe.engine, sizes.machine.card
    if engine.kind == "python":
        return {}
    each = sizes.weight_bytes if weights else memory.FLOAT32
    held = each * shape.total
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
    cache = memory.sampling_without_vllm(shape, min(rows, engine.batch_size), sizes.sequence, each)
    return ({f"{name}: weights": held} if weights else {}) | {f"{name}: cache": cache}


def engines(sizes: Sizes, *others: Shape) -> dict[str, int]:
    """Return the engines that sample and judge side by side: each a vLLM with its share, or weights and a cache."""
    parts = {"libraries": sizes.overhead}
    for name, shape in (("policy", sizes.policy), *((f"judge {number}", one) for number, one in enumerate(others, 1))):
        parts |= engine_parts(sizes, shape, name, sizes.recipe.engine.batch_size)
    return parts


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
