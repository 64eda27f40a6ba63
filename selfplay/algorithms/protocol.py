"""What the loop asks of an algorithm, and what an algorithm gets. How to add one: `selfplay/algorithms/__init__.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selfplay.config import Recipe
from selfplay.context import RunContext

if TYPE_CHECKING:
    from selfplay.rewards.sources import Reward


@dataclass(frozen=True)
class Needs:
    """What has to be there before an iteration of the algorithm can train."""

    pairs: bool
    """Pairs of completions, judged: the stages `generate` and `label`."""
    reward_model: bool
    """A reward model trained on those pairs: the stage `reward`. It needs pairs."""
    reward: bool
    """A reward that scores what the policy samples while it trains."""
    critic: bool
    """A value network, which begins as a copy of the reward model where there is one."""


@dataclass(frozen=True)
class Inputs:
    """One iteration, as an algorithm gets it."""

    run: RunContext
    """Recipe, directory, training prompts, trackers, seeds, and the engine."""
    iteration: int
    folder: Path
    """Where the new policy goes, as a plain `save_pretrained` directory, with metrics.jsonl (a row per step)."""
    work: Path
    """Where checkpoints go that a killed run resumes from; removed when the stage is done."""
    reward: "Reward | None"
    """The recipe's reward, if the algorithm needs one."""
    reward_model: Path | None
    """The checkpoint of the reward model, if the recipe trains one."""
    preferences: tuple[Path, ...]
    """The preferences.parquet of each round of this iteration, if the algorithm needs pairs; read them with
    `selfplay.training.pairs.read_preferences`."""


class Algorithm(Protocol):
    """Trains the policy of one iteration; built with the recipe's `algorithm` section (or with a user's `options`).

    One with the attribute `spreads` = True is called in each worker where the recipe has a `launch` section, or under torchrun
    (see `selfplay.distributed`), and only the first may write to the folder; others train in one process.
    """

    def needs(self, recipe: Recipe) -> Needs:
        """Return what must be there before `train`."""
        ...

    def settings(self) -> Any:
        """Return what of its settings the new policy follows from, as JSON: a stage is redone if this changes."""
        ...

    def train(self, inputs: Inputs) -> None:
        """Write the new policy of `inputs.iteration` to `inputs.folder`; resume from `inputs.work` after a kill."""
        ...
