"""Where scores come from: a reward model, a judge, any Python function, or a weighted sum of them.

A score is a float, higher is better. NaN says that a response could not be scored: the trainer leaves that episode out
and counts it. Left out: rewards per token or per step of reasoning.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from selfplay.errors import ConfigError
from selfplay.models import weights_digest
from selfplay.objects import call, load_object, scores_of
from selfplay.records import Completion, Pair, Prompt, Verdict, mean_preference
from selfplay.rewards.ensemble import RewardEnsemble
from selfplay.rewards.metrics import MetricReward
from selfplay.rewards.python import build_python_reward
from selfplay.rewards.reward_model import RewardModel
from selfplay.storage.files import hash_of


class Reward(Protocol):
    """Scores responses to prompts."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return one score per response; `prompts[i]` is what `responses[i]` answers."""
        ...


def identity(reward: Reward) -> str:
    """Return what tells one reward from another, for a checkpoint: types, weights, a function's source, a model's weights.

    Of a judge, and of a reward of the user's own, it knows the type alone.
    """
    if isinstance(reward, WeightedSum):
        return " + ".join(f"{weight} x {identity(part)}" for weight, part in reward.parts)
    if isinstance(reward, FunctionReward):
        try:
            source = inspect.getsource(reward.function)
        except (OSError, TypeError):  # typed into an interpreter, or an object that is called
            source = ""
        return f"{getattr(reward.function, '__qualname__', type(reward.function).__qualname__)} {hash_of(source)}"
    if isinstance(reward, RewardModel):
        return f"model {reward.digest or weights_digest(reward.model)}"
    if isinstance(reward, RewardEnsemble):
        return f"{reward.how} {reward.uncertainty} of " + ", ".join(map(identity, reward.members))
    if isinstance(reward, MetricReward):
        return f"{reward.metric} {reward.reference}"
    return type(reward).__qualname__


def digest_of_critic(critic: Any, reward: Reward) -> str | None:
    """Return the hash of the weights that a critic begins as, before any rounding: it may be the model that scores."""
    if isinstance(reward, RewardModel) and critic is reward.model and reward.digest is not None:
        return reward.digest
    return None if critic is None else weights_digest(critic)


def disagreement(reward: Reward) -> dict[str, float]:
    """Return `objective/disagreement`, of the responses scored last, where a reward is or holds an ensemble; else nothing."""
    if isinstance(reward, WeightedSum):
        return {key: value for _, part in reward.parts for key, value in disagreement(part).items()}
    return {"objective/disagreement": reward.disagreement} if isinstance(reward, RewardEnsemble) else {}


def spreads(reward: Reward) -> bool:
    """Return whether a reward model is spread over processes, all of which must score whenever one does."""
    if isinstance(reward, WeightedSum):
        return any(spreads(part) for _, part in reward.parts)
    members = reward.members if isinstance(reward, RewardEnsemble) else [reward]
    return any(isinstance(one, RewardModel) and one.spread for one in members)


class PairJudge(Protocol):
    """What of a judge is needed here; every judge of the package `judges` has it."""

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one or more verdicts per pair."""
        ...


class FunctionReward:
    """Any function of (prompts, responses, meta): two lists of text and one of the prompts' meta dicts."""

    def __init__(self, function: Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]) -> None:
        self.function = function

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return the function's numbers, NaN where it has none to give. Raises ConfigError for anything else."""
        name = f"the reward function {getattr(self.function, '__qualname__', type(self.function).__qualname__)}"
        scores = call(
            name,
            self.function,
            [prompt.text for prompt in prompts],
            [response.text for response in responses],
            [prompt.meta for prompt in prompts],
        )
        return scores_of(name, scores, prompts, responses)


class JudgeReward:
    """A judge, asked how far each response is better than an opponent's response to the same prompt: in [0, 1].

    `opponents` maps a prompt's id to the completion to beat, such as the start's. Pairs whose verdict could not be
    read score NaN.
    """

    def __init__(self, judge: PairJudge, opponents: Mapping[str, Completion]) -> None:
        self.judge, self.opponents = judge, opponents

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Mean preference of each response over its opponent; raises ConfigError for a prompt without an opponent."""
        pairs = []
        for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if prompt.id not in self.opponents:
                raise ConfigError(
                    f"there is no opponent's completion for prompt {prompt.id!r}, so the judge has "
                    "nothing to compare with: generate one for every training prompt"
                )
            pairs.append(
                Pair(id=f"{place}/{response.id}", prompt=prompt, first=response, second=self.opponents[prompt.id])
            )
        verdicts: dict[str, list[Verdict]] = {pair.id: [] for pair in pairs}
        for verdict in self.judge.judge(pairs):
            verdicts[verdict.pair_id].append(verdict)
        preferences = [mean_preference(verdicts[pair.id]) for pair in pairs]
        return [math.nan if preference is None else preference for preference in preferences]


class ScoringJudge(Protocol):
    """What of a judge is needed here, if it scores single responses."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Sequence[float | None]:
        """Return a score in [0, 1] for each completion, None where there is none."""
        ...


class ScoringReward:
    """A judge that scores each response by itself, in [0, 1]; NaN where it could not be read."""

    def __init__(self, judge: ScoringJudge) -> None:
        self.judge = judge

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return the judge's scores."""
        return [math.nan if score is None else score for score in self.judge.score(prompts, responses)]


class WeightedSum:
    """Several rewards at once: the sum of weight times score. NaN if one of them is."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]) -> None:
        if not parts:
            raise ConfigError("a weighted sum of rewards needs at least one reward")
        self.parts = parts

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return the weighted sum for each response."""
        asked = [(weight, reward) for weight, reward in self.parts if prompts or spreads(reward)]
        columns = [[weight * score for score in reward.score(prompts, responses)] for weight, reward in asked]
        return [sum(row) for row in zip(*columns, strict=True)]


WITHOUT_A_RUN: dict[str, Callable[[Any], Reward]] = {
    "function": lambda part: FunctionReward(load_object(str(part.function))),
    "python": build_python_reward,
    "metric": lambda part: MetricReward(part.metric, part.reference),
}
"""`reward.kind` -> how a reward is built from its part of a recipe alone, with nothing that a run made."""
