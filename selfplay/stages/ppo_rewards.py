"""What PPO follows, from the recipe: the reward model, a judge asked directly, a Python function, or a sum of them.

A judge that scores single responses scores them. One that compares is shown, beside each response, what the policy of
the iteration before answered to the same prompt, so its score is the probability of having become better.
"""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import judges
from judges.audit.check import enforce_thresholds, measure_health
from judges.spec.load import reward_judge
from selfplay.objects import load_object, source_of
from selfplay.progress import meter
from selfplay.records import Completion
from selfplay.rewards.reward_model import RewardModel
from selfplay.rewards.sources import FunctionReward, JudgeReward, Reward, ScoringReward, WeightedSum
from selfplay.rundir import WORK
from selfplay.stages import RunContext
from selfplay.stages.generate import sample, stage_name
from selfplay.stages.label import known_judge, open_judge
from selfplay.stages.reward_model import newest_round
from selfplay.storage.files import write_json
from selfplay.storage.journal import Journal


def folder_of_model(run: RunContext, iteration: int) -> Path | None:
    """Return the reward model of an iteration; None if the recipe trains none."""
    if run.recipe.reward.kind != "model":
        return None
    return run.files.stage(iteration, stage_name("reward", newest_round(run, iteration)))


def settings(run: RunContext) -> list[Any]:
    """Return what scores follow from besides the reward model: weights, judges and the source of functions, for a fingerprint."""
    found: list[Any] = []
    for part in run.recipe.rewards:
        if part.kind == "judge":
            own = getattr(part, "judge", None)
            found.append([part.weight, judges.digest(judges.load_spec(own) if own else known_judge(run))])
        elif part.function is not None:
            found.append([part.weight, part.function, hashlib.sha256(source_of(part.function)).hexdigest()])
        else:
            found.append([part.weight])
    return found


def build_reward(run: RunContext, iteration: int, folder: Path, engines: ExitStack) -> Reward:
    """Return the recipe's reward for an iteration's PPO. `engines` closes the engines of judges; `folder` is the stage's.

    Writes `judge_health.json` with each judge's figures on its gold set. Raises JudgeStopped for a judge that fails the
    thresholds of its file there.
    """
    built: list[tuple[float, Reward]] = []
    health: dict[str, Any] = {}
    for part in run.recipe.rewards:
        if part.kind == "model":
            model = folder_of_model(run, iteration)
            assert model is not None
            built.append((part.weight, RewardModel.load(model)))
        elif part.kind == "function":
            built.append((part.weight, FunctionReward(load_object(str(part.function)))))
        else:
            spec = reward_judge(run.recipe, part)
            judge: Any = open_judge(run, spec, iteration - 1, engines, own_engine=True)
            health[spec.name] = measure_health(judge, [], [])
            enforce_thresholds(spec, health[spec.name])
            asked = ScoringReward(judge) if spec.scores else JudgeReward(judge, opponents(run, iteration, folder))
            built.append((part.weight, asked))
    if health:
        write_json(folder / "judge_health.json", health)
    return built[0][1] if len(built) == 1 and built[0][0] == 1.0 else WeightedSum(built)


def opponents(run: RunContext, iteration: int, folder: Path) -> dict[str, Completion]:
    """Return the answer of the policy before to each training prompt, by prompt id."""
    journal = Journal(folder / WORK / "opponents.jsonl")
    with meter("opponents", len(run.train), "completions") as bar:
        groups = sample(run, iteration - 1, run.train, 1, "opponents", journal, bar)
    return {prompt.id: group[0] for prompt, group in zip(run.train, groups, strict=True)}
