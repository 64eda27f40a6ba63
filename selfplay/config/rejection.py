"""The settings of rejection sampling: sample, score, keep the best, fine-tune on it."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfplay.config.base import AlgorithmSection, Count, Positive
from selfplay.config.models import Passes


class Rejection(Passes, AlgorithmSection):
    """Rejection sampling, or expert iteration (Anthony et al. 2017; RAFT, Dong et al. 2023; Llama 2): fine-tune on the best
    of n answers."""

    kind: Literal["rejection"]
    """Rejection sampling: sample n answers per prompt, keep the best by the recipe's reward, fine-tune on them."""
    rounds: Count = 1
    """Rounds of sampling and fine-tuning in an iteration; each samples from the policy that the round before made."""
    prompts: Count = 256
    """Prompts of a round, without repeats until all were used."""
    completions: Count = 8
    """Answers per prompt."""
    keep: Literal["best", "top", "above"] = "best"
    """The best answer of each prompt, unless all score the same; or of all answers of the round the `top` share, or those
    that score at least `threshold`. What cannot be scored is never kept."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """keep top: share of the scored answers that is kept."""
    threshold: float | None = None
    """keep above: lowest score that is kept."""
    truncated: bool = False
    """Whether answers that were cut off at max_tokens may be kept: they do not teach to end."""
    batch_size: Count = 16
    """Answers per optimiser step."""
    learning_rate: Positive = 3e-4
    """Peak learning rate of a round. Models of a billion weights want 1e-6 to 2e-5, adapters ten times that."""

    @property
    def steps_per_iteration(self) -> int:
        """Return the rounds."""
        return self.rounds

    @property
    def episodes_per_step(self) -> int:
        """Return the answers of a round."""
        return self.prompts * self.completions

    @property
    def group_size(self) -> int:
        """Return the answers to a prompt."""
        return self.completions

    @property
    def learned_per_step(self) -> int:
        """Return how many answers of a round are kept at most; above a threshold, that may be all."""
        share = {"best": 1 / self.completions, "top": self.share, "above": 1.0}[self.keep]
        return math.ceil(share * self.episodes_per_step)

    @property
    def updates_per_epoch(self) -> int:
        """Return the batches of what is kept."""
        return math.ceil(self.learned_per_step / self.batch_size)

    @property
    def estimates_logprobs(self) -> bool:
        """Return that a round asks nobody."""
        return False

    @property
    def summary(self) -> str:
        """Return rounds, answers and what is kept."""
        kept = {
            "best": "the best of each",
            "top": f"the top {self.share:.0%}",
            "above": f"scores from {self.threshold}",
        }
        rounds = f"{self.rounds} round{'s' * (self.rounds > 1)}"
        return (
            f"Rejection sampling: {rounds} of {self.prompts} prompts x {self.completions} answers an iteration, "
            f"fine-tuned on {kept[self.keep]}"
        )

    @model_validator(mode="after")
    def _check(self) -> "Rejection":
        if self.keep == "best" and self.completions == 1:
            raise ValueError("keep best needs completions of at least 2: one answer has nothing to be better than")
        if (self.keep == "above") != (self.threshold is not None):
            raise ValueError(
                "`threshold` is the lowest score that keep above keeps, and only that: set both or neither"
            )
        return self
