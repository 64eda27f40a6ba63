"""Bytes that a run keeps on disk, and what PPO's checkpoints take beside it. Pure arithmetic; imports no torch."""

from typing import Any

from selfplay.algorithms import algorithm_of
from selfplay.config import Recipe
from selfplay.sizing import memory
from selfplay.sizing.ppo import scorer_of
from selfplay.sizing.shapes import config_of_model
from selfplay.sizing.sizes import Sizes

LEARNING = memory.FLOAT32 + memory.MOMENTS
"""Bytes of a number that learns in a checkpoint: itself, and Adam's two moments."""
TEXT_PER_TOKEN = 8
"""Bytes of a token of an answer in a run's files: its number, and its text."""


def disk(sizes: Sizes, work: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of a finished run, and the most while it works; `work` is that of `sizing.work`.

    Policies keep the precision of the checkpoint that they come from, reward models are float32. A checkpoint of PPO's
    training is written before the one before it is removed, and the last goes when the iteration's policy is there.
    """
    recipe = sizes.recipe
    needs = algorithm_of(recipe).needs(recipe)
    kept = kept_models(sizes) + work["completions"] * recipe.sampling.max_tokens * TEXT_PER_TOKEN
    learning = sizes.learned(sizes.policy) + (sizes.learned(scorer_of(sizes)) if needs.critic else 0)
    average = memory.FLOAT32 * sizes.trained if getattr(recipe.algorithm, "ema", None) is not None else 0
    checkpoint = LEARNING * learning + average if recipe.algorithm.episodes_per_step else 0
    steps, every = recipe.algorithm.steps_per_iteration, getattr(recipe.algorithm, "checkpoint_every", 1)
    return {"kept": kept, "at most": kept + checkpoint * (2 if steps > every else 1)}


def kept_models(sizes: Sizes) -> int:
    """Return the bytes of a finished run's policies and reward models; one on a file of preferences is trained once."""
    recipe = sizes.recipe
    config, policy = recipe.reward, stored_bytes(recipe) * sizes.policy.total
    trained = 1 if config.data is not None and config.backbone == "previous" else recipe.iterations
    needed = algorithm_of(recipe).needs(recipe).reward_model
    rewards = trained * config.ensemble * memory.FLOAT32 * scorer_of(sizes).body if needed else 0
    return policy * (1 + recipe.iterations) + rewards


def stored_bytes(recipe: Recipe) -> int:
    """Return the bytes of a weight in a policy's checkpoint, by the `config.json` of the model that it begins as."""
    config = {} if recipe.policy.bootstrap else config_of_model(str(recipe.policy.model))
    half = (config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16")
    return memory.BFLOAT16 if half else memory.FLOAT32
