"""What PPO follows, from the recipe: the reward model, a judge asked directly, a Python function, or a sum of them.

A judge that scores single responses scores them. One that compares is shown, beside each response, what the policy of
the iteration before answered to the same prompt, so its score is the probability of having become better.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judges
from judges.audit.check import enforce_thresholds, measure_health
from judges.spec.load import reward_judge
from selfplay.context import RunContext, sample
from selfplay.distributed.collectives import first_process_first
from selfplay.objects import source_hash
from selfplay.progress import is_first, meter
from selfplay.records import Completion
from selfplay.rewards.ensemble import load_reward_model
from selfplay.rewards.sources import WITHOUT_A_RUN, JudgeReward, Reward, ScoringReward, WeightedSum
from selfplay.rundir import WORK
from selfplay.stages.label import known_judge, open_judge
from selfplay.storage.files import write_json
from selfplay.storage.journal import Journal


def folder_of_model(run: RunContext, iteration: int) -> Path | None:
    """Return the newest reward model of an iteration; None if it has none."""
    rounds = run.files.rounds(iteration, "reward")
    return rounds[-1] if rounds else None


def settings(run: RunContext) -> list[Any]:
    """Return what scores follow from besides the reward model: weights, judges and the source of Python, for a fingerprint."""
    found: list[Any] = []
    for part in run.recipe.rewards:
        if part.kind == "judge":
            own = getattr(part, "judge", None)
            found.append([part.weight, judges.digest(judges.load_spec(own) if own else known_judge(run))])
        elif part.kind in ("function", "python"):
            reference = str(part.function or part.python)
            found.append([part.weight, reference, source_hash(reference), *([part.options] if part.options else [])])
        elif part.kind == "metric":
            found.append([part.weight, part.metric, part.reference])
        else:
            found.append([part.weight])
    return found


@dataclass
class Asked:
    """For whom a reward is built. `engines` closes the engines of judges; `folder` is the stage's."""

    run: RunContext
    iteration: int
    folder: Path
    engines: ExitStack
    health: dict[str, Any]
    """Name of each judge that is asked -> its figures on its gold set."""


def _model_reward(asked: Asked, part: Any) -> Reward:
    model = folder_of_model(asked.run, asked.iteration)
    assert model is not None
    return load_reward_model(model, spread=True)


def _judge_reward(asked: Asked, part: Any) -> Reward:
    spec = reward_judge(asked.run.recipe, part)
    judge: Any = open_judge(asked.run, spec, asked.iteration - 1, asked.engines, own_engine=True)
    with first_process_first():  # the others find its answers in the cache and in the journal
        asked.health[spec.name] = measure_health(judge, [], [])
        enforce_thresholds(spec, asked.health[spec.name])
        if spec.scores:
            return ScoringReward(judge)
        return JudgeReward(judge, opponents(asked.run, asked.iteration, asked.folder))


REWARDS: dict[str, Callable[[Asked, Any], Reward]] = {
    "model": _model_reward,
    "judge": _judge_reward,
    **{kind: lambda asked, part: WITHOUT_A_RUN[part.kind](part) for kind in WITHOUT_A_RUN},
}
"""`reward.kind` -> how a reward is built. A new one is a class behind `selfplay.rewards.sources.Reward` and an entry here."""


def build_reward(run: RunContext, iteration: int, folder: Path, engines: ExitStack) -> Reward:
    """Build the recipe's reward for an iteration's training.

    Writes `judge_health.json` with each judge's figures on its gold set. Raises JudgeStopped for a judge that fails the
    thresholds of its file there.
    """
    asked = Asked(run, iteration, folder, engines, {})
    built = [(part.weight, REWARDS[part.kind](asked, part)) for part in run.recipe.rewards]
    if asked.health and is_first():
        write_json(folder / "judge_health.json", asked.health)
    return built[0][1] if len(built) == 1 and built[0][0] == 1.0 else WeightedSum(built)


def opponents(run: RunContext, iteration: int, folder: Path) -> dict[str, Completion]:
    """Return the answer of the policy before to each training prompt, by prompt id."""
    journal = Journal(folder / WORK / "opponents.jsonl")
    with meter("opponents", len(run.train), "completions") as bar:
        groups = sample(run, iteration - 1, run.train, 1, "opponents", journal, bar)
    return {prompt.id: group[0] for prompt, group in zip(run.train, groups, strict=True)}
