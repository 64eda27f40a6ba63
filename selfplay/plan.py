"""Before anything is loaded: is the recipe possible, and how much work is it? Imports no torch."""

from pathlib import Path
from typing import Any

import judges
from prompts.sources import load_prompts
from selfplay.config import ConfigError, Recipe
from selfplay.records import Prompt

BYTES_PER_WEIGHT = 4
BYTES_PER_TOKEN = 8


def check(recipe: Recipe) -> tuple[list[Prompt], list[Prompt]]:
    """The training and the held-out prompts. Raises ConfigError for stages that contradict each other or their files."""
    train = load_prompts(recipe.prompts.train, recipe.seed)
    heldout = load_prompts(recipe.prompts.heldout, recipe.seed)
    texts = {tuple(prompt.messages) for prompt in train}
    shared = [prompt for prompt in heldout if tuple(prompt.messages) in texts]
    if shared:
        raise ConfigError(f"{len(shared)} of {len(heldout)} held-out prompts are training prompts too, such as "
                          f"{shared[0].text[:60]!r}: take them out of one of prompts.train and prompts.heldout")
    if recipe.generate.prompts > len(train):
        raise ConfigError(
            f"generate.prompts is {recipe.generate.prompts}, but there are {len(train)} training prompts: "
            f"lower it, or give more prompts"
        )
    if recipe.algorithm.episodes > len(train):
        raise ConfigError(
            f"algorithm.episodes is {recipe.algorithm.episodes}, but there are {len(train)} training prompts: "
            "lower it, or give more prompts"
        )
    for file in {recipe.judge.file, recipe.evaluate.judge or recipe.judge.file}:
        check_judge(recipe, file)
    check_models(recipe)
    return train, heldout


def check_judge(recipe: Recipe, file: str) -> None:
    """Raise ConfigError for a judge file that cannot be read, that has no model, or whose Python is not there."""
    spec = judges.load_spec(file)
    if not spec.needs_model:
        judges.build(spec)
    elif recipe.judge.model is None and getattr(spec, "model", "of its members") is None:
        raise ConfigError(
            f"judge {spec.name!r} asks a language model, but names none: set judge.model to a checkpoint, a hub "
            "id, or `policy` to let the policy judge itself"
        )


def check_models(recipe: Recipe) -> None:
    """Raise ConfigError for a path that looks local and is not there, or a shape that the engine cannot run."""
    named = {"policy.model": recipe.policy.model, "judge.model": recipe.judge.model}
    if recipe.reward.backbone not in ("previous", "policy", "start"):
        named["reward.backbone"] = recipe.reward.backbone
    for key, value in named.items():
        if value and value.startswith((".", "/", "~")) and not (Path(value).expanduser() / "config.json").is_file():
            raise ConfigError(f"{key} is {value!r}, which is no checkpoint: there is no {value}/config.json")
    bootstrap = recipe.policy.bootstrap
    if bootstrap and recipe.sampling.max_tokens >= bootstrap.architecture.context:
        raise ConfigError(
            f"sampling.max_tokens is {recipe.sampling.max_tokens}, which leaves no room for a prompt in "
            f"policy.bootstrap.architecture.context {bootstrap.architecture.context}: shorten one, or lengthen the other"
        )


def work(recipe: Recipe) -> dict[str, Any]:
    """How much there is to do over all iterations: counts of completions, judge calls, episodes; tokens and bytes at most."""
    spec = judges.load_spec(recipe.judge.file)
    own = recipe.generate.completions
    pairs_per_prompt = own * (own - 1) // 2 if recipe.generate.opponent == "self" else (own - own // 2) * (own // 2)
    heldout = len(load_prompts(recipe.prompts.heldout, recipe.seed))
    pairs = recipe.iterations * recipe.generate.prompts * pairs_per_prompt
    matches = heldout * (2 * recipe.iterations - 1)
    completions = recipe.iterations * recipe.generate.prompts * own + heldout * (recipe.iterations + 1)
    episodes = recipe.iterations * recipe.algorithm.steps * recipe.algorithm.episodes
    tokens = (completions + episodes) * recipe.sampling.max_tokens
    return {
        "iterations": recipe.iterations, "completions": completions, "pairs": pairs,
        "judge_calls": (pairs + matches) * (2 if spec.both_orders else 1) if spec.needs_model else 0,
        "episodes": episodes, "sampled_tokens_at_most": tokens,
        "disk_bytes_about": disk(recipe, completions),
    }


def disk(recipe: Recipe, completions: int) -> int | None:
    """Checkpoints of policies and reward models, and the texts; None if the policy's size is not known without loading it."""
    text = completions * recipe.sampling.max_tokens * BYTES_PER_TOKEN
    if recipe.policy.bootstrap:
        shape = recipe.policy.bootstrap.architecture
        per_layer = 4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
        embeddings = recipe.policy.bootstrap.vocabulary * shape.hidden_size * (1 if shape.tie_embeddings else 2)
        weights = (shape.layers * per_layer + embeddings) * BYTES_PER_WEIGHT
    else:
        files = list(Path(str(recipe.policy.model)).glob("*.safetensors"))
        if not files:
            return None
        weights = sum(file.stat().st_size for file in files)
    return weights * (2 * recipe.iterations + 1) + text
