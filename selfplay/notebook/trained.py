"""What `selfplay.train` leaves: a run's directory, with ways into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selfplay.config import Recipe, SamplingParams, validate
from selfplay.loop import outcome
from selfplay.records import Prompt
from selfplay.rundir import RunDirectory


@dataclass(frozen=True)
class Trained:
    """What `train` leaves: a run's directory, and ways into it."""

    directory: Path

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the call became."""
        return RunDirectory(self.directory).recipe()

    @property
    def policy(self) -> Path:
        """The best checkpoint, as `from_pretrained` loads it: by win rate, or the last where nothing is measured."""
        return RunDirectory(self.directory).policy(outcome(self.directory)["best"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl of the training, oldest first; docs/algorithms.md defines each number."""
        return [row for row in RunDirectory(self.directory).metrics() if row["stage"] == "policy"]

    def sample(self, prompts: Sequence[str], n: int = 1, seed: int = 0, **sampling: Any) -> list[list[str]]:
        """Return `n` responses of the best checkpoint to each prompt; `sampling` changes the run's, such as temperature=0."""
        from selfplay.engines.open import open_engine

        asked = [Prompt.plain(str(place), text) for place, text in enumerate(prompts)]
        common = self.recipe.sampling.model_dump()
        how = validate(SamplingParams, {**common, **sampling, "n": n, "seed": seed}, "sample")
        engine = open_engine(self.recipe.engine, self.policy, "policy", dtype=self.recipe.policy.dtype)
        try:
            return [[one.text for one in group] for group in engine.generate(asked, how)]
        finally:
            engine.close()
