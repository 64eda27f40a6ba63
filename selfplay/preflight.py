"""Before anything is loaded: is the recipe possible? Imports no torch."""

import importlib.util
import inspect
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import judges
from judges.audit.cautions import cautions
from judges.distill import RuleTeacher
from judges.spec.load import reward_judge
from prompts.preferences import load_preferences
from prompts.sources import load_prompts
from selfplay.algorithms import Needs, algorithm_of
from selfplay.compare.best_of import check_choice
from selfplay.config import DPO, HeldoutSet, Recipe
from selfplay.engines.endpoint_keys import Secrets
from selfplay.errors import ConfigError
from selfplay.objects import load_object
from selfplay.progress import log
from selfplay.records import Message, Prompt
from selfplay.rewards.metrics import MetricReward, references_of
from selfplay.rewards.python import build_python_loss, build_python_reward
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json
from selfplay.tracking import check_trackers
from selfplay.weights.gguf import check_gguf, is_gguf


class PromptSets:
    """A recipe's prompts. Each set is read when it is first asked for, once; raises ConfigError for what cannot be read."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @cached_property
    def train(self) -> list[Prompt]:
        """Return the training prompts."""
        return load_prompts(self.recipe.prompts.train, self.recipe.seed)

    @cached_property
    def heldout(self) -> list[Prompt]:
        """Return the prompts to measure on; none where the recipe measures nothing."""
        return heldout_prompts(self.recipe)

    @cached_property
    def also(self) -> list[tuple[HeldoutSet, list[Prompt]]]:
        """Return the further held-out sets, each with its prompts."""
        return [(one, load_prompts(one.prompts, self.recipe.seed)) for one in self.recipe.evaluate.also]


def check(recipe: Recipe, sets: PromptSets | None = None) -> tuple[list[Prompt], list[Prompt]]:
    """Return the training and the held-out prompts, those of `sets` where they are given.

    Raises ConfigError for stages that contradict each other or their files.
    """
    sets = sets or PromptSets(recipe)
    check_packages(recipe)
    algorithm = algorithm_of(recipe)
    needs = algorithm.needs(recipe)
    algorithm.settings()  # which reads the files that it learns from
    train, heldout = sets.train, sets.heldout
    texts = {tuple(prompt.messages) for prompt in train}
    shared = [prompt for prompt in heldout if tuple(prompt.messages) in texts]
    if shared:
        raise ConfigError(
            f"{len(shared)} of {len(heldout)} held-out prompts are training prompts too, such as "
            f"{shared[0].text[:60]!r}: take them out of one of prompts.train and prompts.heldout"
        )
    asked = {
        "algorithm.prompts": getattr(recipe.algorithm, "prompts", 0),
        "generate.prompts": recipe.generate.prompts if needs.pairs else 0,
    }
    for name, count in asked.items():
        if count > len(train):
            raise ConfigError(
                f"{name} is {count}, but there are {len(train)} training prompts: lower it, or give more prompts"
            )
    labelling = judges.load_spec(recipe.judge.file, recipe.judge_model)
    check_judge(recipe, labelling)
    if recipe.judge.bootstrap:
        also = [judges.load_spec(name) for name in recipe.judge.bootstrap.also]
        RuleTeacher(judges.load_spec(recipe.judge.bootstrap.rules), [labelling, *also])
    if recipe.evaluate.judge:
        check_judge(recipe, judges.load_spec(recipe.evaluate.judge))
    for one, prompts in sets.also:
        check_further_set(recipe, one, prompts, texts)
    check_rewards(recipe, train)
    check_preferences(recipe, needs)
    if recipe.evaluate.best_of is not None:
        check_choice(recipe, judges.load_spec(recipe.evaluate.judge) if recipe.evaluate.judge else labelling)
    beware = [caution for spec, asked in judges_of(recipe, sets) for caution in cautions(spec, asked)]
    for caution in dict.fromkeys(beware):
        log(f"  caution: {caution}")
    check_models(recipe)
    check_launch(recipe)
    check_trackers(recipe.report_to)
    return train, heldout


def check_further_set(
    recipe: Recipe, one: HeldoutSet, prompts: Sequence[Prompt], trained: set[tuple[Message, ...]]
) -> None:
    """Raise ConfigError for a further held-out set that is trained on, or whose judge scores no single response."""
    shared = [prompt for prompt in prompts if tuple(prompt.messages) in trained]
    if shared:
        raise ConfigError(
            f"{len(shared)} prompts of the held-out set {one.name!r} are training prompts too, such as "
            f"{shared[0].text[:60]!r}: take them out of prompts.train or of evaluate.also"
        )
    spec = judges.load_spec(one.judge)
    if not spec.scores:
        raise ConfigError(
            f"evaluate.also: judge {spec.name!r} of the set {one.name!r} compares two responses and scores none by itself: "
            "name a pointwise, rubric or rules judge"
        )
    check_judge(recipe, spec)


def heldout_prompts(recipe: Recipe) -> list[Prompt]:
    """Return the prompts to measure on; none where the recipe measures nothing."""
    return [] if recipe.prompts.heldout is None else load_prompts(recipe.prompts.heldout, recipe.seed)


def judges_of(recipe: Recipe, sets: PromptSets) -> list[tuple[judges.JudgeSpec, Sequence[Prompt]]]:
    """Return the judges that label, measure and reward, with all prompts, and those of further sets, each with its own."""
    specs = [judges.load_spec(recipe.judge.file, recipe.judge_model)]
    specs += [judges.load_spec(recipe.evaluate.judge)] if recipe.evaluate.judge else []
    specs += [reward_judge(recipe, part) for part in recipe.rewards if part.kind == "judge"]
    prompts = (*sets.train, *sets.heldout)
    return [*((spec, prompts) for spec in specs), *((judges.load_spec(one.judge), asked) for one, asked in sets.also)]


def check_rewards(recipe: Recipe, train: Sequence[Prompt]) -> None:
    """Raise ConfigError for a reward function or loss that is not there, or a judge that cannot be asked about one response."""
    if recipe.reward.loss == "python":
        build_python_loss(recipe.reward)
    for part in recipe.rewards:
        if part.function is not None:
            check_function(part.function)
        if part.kind == "python":
            build_python_reward(part)
        if part.metric is not None and (metric := MetricReward(part.metric, part.reference)).compare:
            for prompt in train:
                references_of(prompt, metric.reference)
        if part.kind == "judge":
            spec = reward_judge(recipe, part)
            check_judge(recipe, spec)
            if spec.mode == "listwise":
                raise ConfigError(
                    f"judge {spec.name!r} ranks several answers to one prompt, and PPO samples one: use a "
                    "pairwise, pointwise, rubric or rules judge as the reward, or reward.kind model"
                )


def check_preferences(recipe: Recipe, needs: Needs) -> None:
    """Raise ConfigError for preferences that cannot be read, or for one prompt, where a reward model needs another to be
    measured on."""
    source = recipe.reward.data
    given = {prompt.id for prompt, _, _ in load_preferences(source)[0]} if source is not None else None
    count = recipe.generate.prompts if given is None else len(given)
    if needs.reward_model and count < 2:
        what, way_out = (
            ("generate.prompts is 1", "raise it to 2 at least")
            if given is None
            else (f"all pairs of reward.data {source!r} have one prompt", "give pairs of more prompts")
        )
        raise ConfigError(f"{what}, and a reward model is measured on prompts that it does not learn from: {way_out}")


def check_function(reference: str) -> None:
    """Raise ConfigError for a reward function that is not there, or that cannot be called with three lists."""
    function = load_object(reference)
    try:
        inspect.signature(function).bind([], [], [])
    except TypeError as error:
        raise ConfigError(
            f"the reward function {reference} cannot be called with (prompts, responses, meta): {error}"
        ) from None
    except ValueError:  # built in, and says nothing of its arguments
        pass


def check_packages(recipe: Recipe) -> None:
    """Raise ConfigError for an optional package that the recipe needs and that is not installed."""
    for wanted, package, way_out in (
        (recipe.engine.kind == "vllm", "vllm", "see `selfplay doctor`, or set engine.kind to transformers"),
        (recipe.policy.lora is not None, "peft", "pip install 'selfplay-loop[lora]', or leave policy.lora out"),
        (recipe.launch is not None, "ray", "pip install 'selfplay-loop[ray]', or leave launch out"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(f"the recipe needs the package {package}, which is not installed: {way_out}")


def check_judge(recipe: Recipe, spec: judges.JudgeSpec) -> None:
    """Raise ConfigError for a judge that has no model, whose model, key or Python is not there, or who ranks fewer answers."""
    if not spec.needs_model:
        judges.build(spec)
    for part in asking(spec):
        if part.model is None:
            raise ConfigError(
                f"judge {part.name!r} asks a language model, but names none: set judge.model to a checkpoint, a hub "
                "id, or `policy` to let the policy judge itself, or set `model` in the judge's file"
            )
        if part.endpoint is not None:
            Secrets.read(part.endpoint)
        elif part.model not in ("policy", recipe.judge.bootstrap and recipe.judge_model):
            check_checkpoint(f"the model of judge {part.name!r}", part.model)
        if recipe.generate.completions > getattr(part, "largest", math.inf):
            raise ConfigError(
                f"judge {part.name!r} ranks at most {part.largest} answers, but generate.completions is "
                f"{recipe.generate.completions}: raise `largest` in the judge's file, or lower it"
            )


def asking(spec: judges.JudgeSpec) -> list[Any]:
    """Return the parts of a judge that ask a language model: the judge itself, or members of a jury."""
    return [part for part in spec.parts if part.needs_model and part.mode != "jury"]


def check_models(recipe: Recipe) -> None:
    """Raise ConfigError for a path that looks local and is not there, or a policy with no room for an answer."""
    if is_gguf(recipe.policy.model):
        check_gguf("policy.model", str(recipe.policy.model))
    elif recipe.policy.model:
        check_checkpoint("policy.model", recipe.policy.model)
    if recipe.reward.backbone not in ("previous", "policy", "start"):
        check_checkpoint("reward.backbone", recipe.reward.backbone)
    context, where = None, f"the context of {recipe.policy.model!r},"
    if recipe.policy.bootstrap:
        context, where = recipe.policy.bootstrap.architecture.context, "policy.bootstrap.architecture.context"
    else:
        context = context_of(Path(str(recipe.policy.model)))
    if context is not None and recipe.sampling.max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens is {recipe.sampling.max_tokens}, which leaves no room for a prompt in "
            f"{where} {context}: shorten the answers, or take a longer context"
        )


def context_of(checkpoint: Path) -> int | None:
    """Return the most tokens that a checkpoint's positions are for; None if its config does not say so, or is not there."""
    config = checkpoint / "config.json"
    known: int | None = read_json(config).get("max_position_embeddings") if config.is_file() else None
    return known


def check_launch(recipe: Recipe) -> None:
    """Raise ConfigError for a batch of a supervised training that the workers cannot share evenly."""
    if recipe.launch is None:
        return
    begun = RunDirectory(recipe.directory).finished(0, "policy")
    policy, judge = recipe.policy, recipe.judge.bootstrap
    batches = {"reward.batch_size": recipe.reward.batch_size} if algorithm_of(recipe).needs(recipe).reward_model else {}
    if isinstance(recipe.algorithm, DPO):
        key = "batch_size" if recipe.algorithm.micro_batch is None else "micro_batch"
        batches[f"algorithm.{key}"] = recipe.algorithm.micro_batch or recipe.algorithm.batch_size
    for key, training in (
        ("policy.sft", policy.sft and policy.sft.training),
        ("policy.bootstrap.pretrain", policy.bootstrap and policy.bootstrap.pretrain),
        ("policy.bootstrap.sft", policy.bootstrap and policy.bootstrap.sft and policy.bootstrap.sft.training),
        ("judge.bootstrap", judge and judge.training),
    ):
        batches |= {f"{key}.batch_size": training.batch_size} if training and not begun else {}
    for key, size in batches.items():
        if size % recipe.launch.size:
            raise ConfigError(
                f"{key} is {size}, which {recipe.launch.size} workers cannot share evenly: make it a multiple of that, or change "
                "launch"
            )


def check_engines(recipe: Recipe) -> None:
    """Raise ConfigError for engines that the workers cannot share, though a dry run may reckon with them."""
    launch, cards = recipe.launch, recipe.engine.gpus_each
    if launch is None or cards == 1:
        return
    if launch.workers % cards:
        raise ConfigError(
            f"engine.tensor_parallel is {cards}, and the {launch.workers} workers of a machine cannot share engines of so many "
            "cards: make launch.workers a multiple of it"
        )
    if recipe.algorithm.kind != "ppo":
        return
    specs = [reward_judge(recipe, part) for part in recipe.rewards if part.kind == "judge"]
    asked = [part.name for spec in specs for part in asking(spec) if part.endpoint is None]
    if asked:
        raise ConfigError(
            f"judge {asked[0]!r} rewards PPO and its model would be opened by each of {launch.size} workers on its own card, "
            f"but engine.tensor_parallel is {cards}: set it to 1, or reward by a reward model"
        )


def check_checkpoint(key: str, value: str) -> None:
    """Raise ConfigError for what can only be a path (a hub id is `name` or `owner/name`) and holds no checkpoint."""
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1 or Path(value).is_dir()
    if is_path and not (Path(value) / "config.json").is_file():
        raise ConfigError(f"{key} is {value!r}, which is not a checkpoint: there is no {value.rstrip('/')}/config.json")


def refuse_pruned(files: RunDirectory) -> None:
    """Raise ConfigError if weights of a run were pruned: going on needs them."""
    gone = [str(number or "start") for number in files.iterations() if files.pruned(number, "policy")]
    if gone:
        raise ConfigError(
            f"{str(files.path)!r} was pruned: the weights of iteration {', '.join(gone)} are gone, and going on needs them; "
            "begin another run with another `output`"
        )
