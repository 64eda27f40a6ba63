"""Rewards and reward-model losses of the user's own, held to what every such thing promises. Imports no torch."""

from collections.abc import Callable, Sequence
from typing import Any

from selfplay.config import AddedReward
from selfplay.config import Reward as RewardConfig
from selfplay.errors import ConfigError
from selfplay.objects import call, load_object, scores_of, shown
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


class PythonLoss:
    """A loss of the user's own; `reference` names it in messages."""

    def __init__(self, loss: Callable[[Any, Any], Any], reference: str) -> None:
        self.loss, self.reference = loss, reference

    def __call__(self, scores: Any, verdicts: Any) -> Any:
        """Return the loss of a group. Raises ConfigError if it is not a scalar tensor that the scores led to."""
        name = f"the loss {self.reference}"
        found = call(name, self.loss, scores, verdicts)
        if tuple(getattr(found, "shape", (0,))) != () or not getattr(found, "requires_grad", False):
            raise ConfigError(
                f"{name} returned {shown(found)} for {len(scores)} scores; it must return a tensor without dimensions that "
                "is computed from the scores, such as a mean"
            )
        return found


def build_python_loss(config: RewardConfig) -> PythonLoss:
    """Build the loss that `python` names: a class, built with the options, whose objects can be called, or a function.

    Raises ConfigError if it is not there, refuses the options, or cannot be called.
    """
    reference = str(config.python)
    made = load_object(reference)
    if isinstance(made, type):
        made = call(f"the loss {reference}", made, **config.options)
    elif config.options:
        raise ConfigError(f"the loss {reference} is a function, which takes no `options`: remove them, or name a class")
    if not callable(made):
        raise ConfigError(
            f"the loss {reference} is a {type(made).__name__} without `__call__`: give it a method "
            "__call__(scores, verdicts) that returns a scalar tensor"
        )
    return PythonLoss(made, reference)
