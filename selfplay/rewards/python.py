"""A reward of the user's own: a class with `score`, held to what every reward promises. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from selfplay.config import AddedReward
from selfplay.config import Reward as RewardConfig
from selfplay.errors import ConfigError
from selfplay.objects import call, load_object, scores_of
from selfplay.records import Completion, Prompt


class PythonReward:
    """What a user's class scores; `reference` names it in messages."""

    def __init__(self, scorer: Any, reference: str) -> None:
        self.scorer, self.reference = scorer, reference

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return one number per response, NaN where there is none to give. Raises ConfigError for anything else."""
        name = f"the reward {self.reference}"
        return scores_of(name, call(name, self.scorer.score, list(prompts), list(responses)), prompts, responses)


def build_python_reward(config: RewardConfig | AddedReward) -> PythonReward:
    """Build the reward that `python` names. Raises ConfigError if its class is not there, or has no `score`."""
    reference = str(config.python)
    scorer = call(f"the reward {reference}", load_object(reference), **config.options)
    if not callable(getattr(scorer, "score", None)):
        raise ConfigError(
            f"the reward {reference} is a {type(scorer).__name__} without `score`: give it a method "
            "score(prompts, completions) that returns one number per completion"
        )
    return PythonReward(scorer, reference)
