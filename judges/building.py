"""From a judge file's spec to a judge that can be asked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from judges.rules import RulesJudge
from judges.spec import JudgeSpec, RulesSpec
from selfplay.config import ConfigError
from selfplay.engines import Engine
from selfplay.records import Pair, Verdict

Opener = Callable[[JudgeSpec], Engine]


class Judge(Protocol):
    """Says which response of a pair is better. Those whose spec `scores` also have
    `score(prompts, completions) -> list[float | None]`, in [0, 1]."""

    spec: JudgeSpec

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair and order, in the order of the pairs. Raises JudgeStopped above the file's failure rate."""
        ...


def build(spec: JudgeSpec, engine: Engine | Opener | None = None, cache: Path | None = None, *, seed: int = 0) -> Judge:
    """A judge as its file says.

    `engine` answers for the judge's model; a jury with several models takes a function from a member's spec to its
    engine. `cache` is a sqlite file that keeps every answer. `seed` draws orders and principles. Raises ConfigError if
    the judge needs a model and has none, or if Python that it names cannot be found.
    """
    if spec.needs_model and engine is None:
        raise ConfigError(f"judge {spec.name!r} asks a language model, but there is none: set judge.model in the recipe or "
                          "`model` in the judge's file")
    if isinstance(spec, RulesSpec):
        return RulesJudge(spec)
    raise ConfigError(f"mode {spec.mode}")
