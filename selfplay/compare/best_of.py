"""Best of n as a contestant: of n answers to a prompt, the one that the run's own reward scores highest.

It shows what the reward is worth without any training. The judge that measures never chooses.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import judges
from judges.spec.load import reward_judge
from selfplay.algorithms import algorithm_of
from selfplay.compare.targets import Contestant, recipes
from selfplay.config import Recipe
from selfplay.context import score_in_batches
from selfplay.errors import ConfigError
from selfplay.objects import source_hash
from selfplay.records import Completion, Prompt
from selfplay.rundir import RunDirectory
from selfplay.storage.journal import Journal

if TYPE_CHECKING:
    from selfplay.rewards.sources import Reward


def kl_bound(n: int) -> float:
    """Return the most nats that best of n is away from the policy, log n - (n - 1) / n (Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n


def check_choice(recipe: Recipe, measuring: judges.JudgeSpec) -> None:
    """Raise ConfigError if a run has no reward that can choose among answers, or only the judge that measures."""
    if recipe.reward.kind == "model" and not algorithm_of(recipe).needs(recipe).reward_model:
        raise ConfigError(
            f"best of n is chosen by the run's own reward, and with algorithm.kind {recipe.algorithm.kind} it trains no reward "
            "model: set reward.kind to judge, function or python, or leave best of n out"
        )
    for part in recipe.rewards:
        if part.kind == "judge":
            spec = reward_judge(recipe, part)
            if not spec.scores:
                raise ConfigError(
                    f"best of n is chosen by the run's own reward, and its judge {spec.name!r} compares answers instead of "
                    "scoring them: take a pointwise, rubric or rules judge, or leave best of n out"
                )
            if judges.digest(spec) == judges.digest(measuring):
                raise ConfigError(
                    f"judge {spec.name!r} would choose the best of n and also measure it: name another judge that measures "
                    "(evaluate.judge, or --judge)"
                )


def choosing_reward(
    recipe: Recipe, files: RunDirectory, iteration: int, judge_of: Callable[[judges.JudgeSpec], Any]
) -> "Reward":
    """Return the reward that an iteration's policy was trained on; for the start, that of the first iteration.

    `judge_of` builds a judge from its file. Raises ConfigError if the reward model is not there.
    """
    from selfplay.rewards.ensemble import load_reward_model  # loads torch, which a dry run does not wait for
    from selfplay.rewards.sources import WITHOUT_A_RUN, ScoringReward, WeightedSum

    parts: list[tuple[float, Reward]] = []
    for part in recipe.rewards:
        if part.kind == "model":
            trained = files.rounds(max(iteration, 1), "reward")
            if not trained:
                raise ConfigError(
                    f"{str(files.path)!r} has no reward model of iteration {max(iteration, 1)} to choose by"
                )
            parts.append((part.weight, load_reward_model(trained[-1])))
        elif part.kind == "judge":
            parts.append((part.weight, ScoringReward(judge_of(reward_judge(recipe, part)))))
        else:
            parts.append((part.weight, WITHOUT_A_RUN[part.kind](part)))
    return WeightedSum(parts)


def best(groups: Sequence[Sequence[Completion]], scores: Sequence[Sequence[float]]) -> list[tuple[Completion, float]]:
    """Return of each group the first of its highest scored answers, with its score; the first where none has a score."""
    return [
        max(zip(group, values, strict=True), key=lambda one: -math.inf if math.isnan(one[1]) else one[1])
        for group, values in zip(groups, scores, strict=True)
    ]


def bounds_of_best(found: Sequence[Contestant], measuring: judges.JudgeSpec) -> dict[str, str]:
    """Return for each best of n how far it is from the policy at most. Raises ConfigError as `check_choice` does."""
    choosing = [one for one in found if one.best_of]
    for recipe in recipes(choosing):
        check_choice(recipe, measuring)
    return {f"KL of {one.name} at most": f"{kl_bound(one.best_of or 1):.2f} nats" for one in choosing}


def chosen_by(one: Contestant) -> list[Any]:
    """Return what the choice among a contestant's answers follows from, nothing for a single answer."""
    if one.best_of is None or one.run is None:
        return []
    files = RunDirectory(one.run)
    trained = files.rounds(max(one.number, 1), "reward")
    known = [files.manifest_hash(max(one.number, 1), folder.name) for folder in trained[-1:]]
    recipe = files.recipe()
    made_by = [
        judges.digest(reward_judge(recipe, part)) if part.kind == "judge" else source_hash(part.function or part.python)
        for part in recipe.rewards
    ]
    return [one.best_of, [part.model_dump(mode="json") for part in recipe.rewards], made_by, known]


def choose(
    one: Contestant,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    file: Path,
    judge_of: Callable[[judges.JudgeSpec], Any],
) -> list[Completion]:
    """Return the best of each group by the reward of the contestant's run; scores are kept beside `file`."""
    assert one.run is not None
    files = RunDirectory(one.run)
    recipe = files.recipe().model_copy(update={"output": str(one.run)})
    judging = [reward_judge(recipe, part) for part in recipe.rewards if part.kind == "judge"]
    if any(getattr(spec, "model", None) == "policy" for spec in judging):
        raise ConfigError(f"{one.name}: its run's reward is the policy itself, which cannot choose here")
    reward = choosing_reward(recipe, files, one.number, judge_of)
    scores = score_in_batches(
        reward, prompts, groups, Journal(file.with_suffix(".scores")), f"choose the best of {one.best_of}"
    )
    return [answer for answer, _ in best(groups, scores)]
