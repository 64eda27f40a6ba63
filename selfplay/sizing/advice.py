"""What to change in a recipe that does not fit its machine: settings that the loader takes, cheapest in speed first."""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from selfplay.config import FREE_SETTINGS, Recipe, validate
from selfplay.errors import ConfigError
from selfplay.preflight import check_launch
from selfplay.sizing.cards import GB
from selfplay.sizing.engines import least_share
from selfplay.sizing.sizes import Sizes, sizes_of
from selfplay.sizing.stages import StageMemory, stages


class Setting(NamedTuple):
    """A setting by its name, such as `engine.sleep`, with another value."""

    name: str
    value: Any

    def __str__(self) -> str:
        """Return it as it is given on the command line."""
        if isinstance(self.value, dict):
            return f"{self.name}={{{', '.join(f'{key}: {value}' for key, value in self.value.items())}}}"
        return f"{self.name}={str(self.value).lower() if isinstance(self.value, bool) else self.value}"


def advice(sizes: Sizes, rows: Sequence[StageMemory]) -> list[str]:
    """Return sentences on cards that stay idle, cards that are missing, and stages that do not fit."""
    found = [sentence] if (sentence := placement(sizes)) else []
    if (needed := least_share(sizes)) is not None:
        found.append(
            f"engine.gpu_memory {sizes.recipe.engine.gpu_memory:g} leaves vLLM no room for its weights and one sequence: set "
            f"engine.gpu_memory={needed:.2f} or more, or a larger engine.tensor_parallel"
            if needed <= 1
            else f"one GPU has no room for vLLM's weights and one sequence, {needed:.1f} times its memory: set "
            "engine.tensor_parallel, so that several share them"
        )
    too_much = [row for row in rows if row.excess]
    if not too_much:
        return found
    names = ", ".join(f"{row.stage} by {row.excess / GB:.1f} GB" for row in too_much)
    return [*found, f"does not fit: {names}. {way_out(sizes)}"]


def placement(sizes: Sizes) -> str:
    """Return a sentence if the workers do not lie on the machine's cards, one each; empty if they do."""
    machine, launch = sizes.machine, sizes.recipe.launch
    if machine.card is None:
        return ""
    nodes, each = (1, 1) if launch is None else (launch.nodes, launch.workers)
    there, here = machine.nodes, machine.cards_of_node
    if (nodes, each) == (there, here) or (there == 1 and nodes * each == here):  # `--gpu 64xH100` says nothing of nodes
        return ""
    wanted = f"{{workers: {here}}}" if there == 1 else f"{{nodes: {there}, workers: {here}, address: auto}}"
    problem = "workers that have none would not start" if nodes > there or each > here else "GPUs would stay idle"
    return (
        f"the recipe has {nodes} x {each} worker(s), and there are {there} x {here} GPU(s) (nodes x each): {problem}; set "
        f"launch={wanted}"
    )


def way_out(sizes: Sizes) -> str:
    """Return the first settings, added one after another, with which all stages fit, or what is missing with all of them."""
    tried: dict[str, Setting] = {}
    changed, begun = sizes, (sizes.recipe.directory / "config.yaml").is_file()
    for setting in fixes(sizes):
        if begun and setting.name not in FREE_SETTINGS:
            continue
        try:
            attempt = with_setting(changed, setting)
        except ConfigError:  # it does not go with the rest of the recipe
            continue
        if excess(attempt) >= excess(changed) or least_share(attempt) is not None:
            continue
        tried[setting.name], changed = setting, attempt
        if not excess(changed):
            return f"It fits with {' '.join(map(str, tried.values()))}"
    short = max(stages(changed), key=lambda row: row.excess)
    begin = f"With {' '.join(map(str, tried.values()))} it" if tried else "It"
    return f"{begin} is {short.excess / GB:.1f} GB short: it takes {_missing(sizes, short)}"


def _missing(sizes: Sizes, short: StageMemory) -> str:
    """Return what a stage takes that no setting makes fit: what it holds whole on each worker, more workers do not make less."""
    smaller = "a smaller reward.backbone" if short.stage == "reward" else "a smaller model"
    if sizes.machine.card is None:
        return smaller
    shared = short.stage.startswith("policy") and sizes.recipe.algorithm.kind == "ppo"
    return f"more launch.workers (now {sizes.workers}) or larger cards" if shared else f"larger cards or {smaller}"


def with_setting(sizes: Sizes, setting: Setting) -> Sizes:
    """Return the sizes of the same recipe with another setting. Raises ConfigError if it would be refused."""
    tree = sizes.recipe.model_dump(mode="json")
    *sections, key = setting.name.split(".")
    reduce(getitem, sections, tree)[key] = setting.value
    recipe = validate(Recipe, tree, "the recipe")
    check_launch(recipe)
    made = sizes_of(recipe, sizes.machine, sizes.prompt)
    assert made is not None
    return made


def excess(sizes: Sizes) -> int:
    """Return the bytes by which the stages are too large, all together."""
    return sum(row.excess for row in stages(sizes))


def fixes(sizes: Sizes) -> Iterator[Setting]:
    """Yield settings that take less memory, cheapest in speed first; some may not go with the rest of the recipe."""
    recipe, card = sizes.recipe, sizes.machine.card is not None
    algorithm: Any = recipe.algorithm
    vllm = recipe.engine.kind == "vllm" and card
    if vllm and not recipe.engine.sleep:
        yield Setting("engine.sleep", True)
    if getattr(algorithm, "precision", None) == "float32" and card:
        yield Setting("algorithm.precision", "bfloat16")
    if getattr(algorithm, "gradient_checkpointing", None) is False:
        yield Setting("algorithm.gradient_checkpointing", True)
    if hasattr(algorithm, "micro_batch_tokens"):
        tokens = algorithm.micro_batch_tokens or sizes.training_tokens
        while (tokens := tokens // 2) >= sizes.sequence:
            yield Setting("algorithm.micro_batch_tokens", tokens)
    if getattr(algorithm, "offload_optimizer", None) is False and card:
        yield Setting("algorithm.offload_optimizer", True)
    if hasattr(algorithm, "micro_batch"):
        at_once, workers = algorithm.micro_batch or algorithm.batch_size, sizes.learners
        smaller = [size for size in range(workers, at_once, workers) if algorithm.batch_size % size == 0]
        yield from (Setting("algorithm.micro_batch", size) for size in reversed(smaller))
    elif hasattr(algorithm, "batch_size") and algorithm.batch_size > 8:
        yield Setting("algorithm.batch_size", 8)
    few = -(-8 // sizes.workers) * sizes.workers
    batches = {"reward.batch_size": recipe.reward.batch_size}
    for name, made in (("policy.bootstrap.sft", recipe.policy.bootstrap), ("policy.sft", recipe.policy)):
        if made is not None and made.sft is not None:
            batches[f"{name}.training.batch_size"] = made.sft.training.batch_size
    if recipe.policy.bootstrap is not None:
        batches["policy.bootstrap.pretrain.batch_size"] = recipe.policy.bootstrap.pretrain.batch_size
    yield from (Setting(name, few) for name, size in batches.items() if size > few)
    if vllm and recipe.engine.gpu_memory > 0.3:
        yield Setting("engine.gpu_memory", 0.3)
    if recipe.engine.kind == "transformers" and recipe.engine.batch_size > 32:
        yield Setting("engine.batch_size", 32)
    if recipe.policy.lora is None:
        yield Setting("policy.lora", {"rank": 16})
