"""Rules: weighted Python functions on each response, no model. Also what a rubric makes of its criteria's values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from judges.modes.scoring import Assessment, ScoringJudge
from judges.spec.modes import RulesSpec
from judges.spec.sections import Criterion
from selfplay.objects import failure, load_object, number, shown
from selfplay.records import Completion, Prompt

Function = Callable[[Prompt, str], Any]


class Unscorable(Exception):
    """A criterion gave no number in [0, 1]; the message says which and why."""


class RulesJudge(ScoringJudge):
    """Scores a response by the criteria of a judge file of mode rules."""

    spec: RulesSpec

    def __init__(self, spec: RulesSpec) -> None:
        super().__init__(spec)
        self.functions: dict[str, Function] = {
            criterion.name: load_object(criterion.python or "") for criterion in spec.criteria
        }

    def assess(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Assessment]:
        """Apply every function to every response."""
        return [self._assess(prompt, completion.text) for prompt, completion in zip(prompts, completions, strict=True)]

    def _assess(self, prompt: Prompt, response: str) -> Assessment:
        try:
            values = {name: apply(function, name, prompt, response) for name, function in self.functions.items()}
        except Unscorable as problem:
            return Assessment(None, error=str(problem))
        return Assessment(aggregate(self.spec.criteria, values, self.spec.aggregation), tuple(values.items()))


def apply(function: Function, name: str, prompt: Prompt, response: str) -> float:
    """Return the function's value; raises Unscorable if it raises, or if that is not a number in [0, 1]."""
    try:
        value = function(prompt, response)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Unscorable(f"criterion {name!r} {failure(error)}") from error
    found = number(value)
    if found is None or not 0 <= found <= 1:
        raise Unscorable(f"criterion {name!r} returned {shown(value)}, not a number in [0, 1]")
    return found


def aggregate(criteria: Sequence[Criterion], values: Mapping[str, float], how: str = "mean") -> float:
    """Return one score in [0, 1] from the criteria's values.

    A negative criterion counts as 1 - value. A gate at 0 makes the score 0 and otherwise has no say. The rest give
    their weighted mean, or with `how` "minimum" the smallest.
    """
    met = {
        criterion.name: 1 - values[criterion.name] if criterion.negative else values[criterion.name]
        for criterion in criteria
    }
    if any(criterion.gate and met[criterion.name] == 0 for criterion in criteria):
        return 0.0
    weighed = [criterion for criterion in criteria if not criterion.gate]
    if how == "minimum":
        return min(met[criterion.name] for criterion in weighed)
    total = sum(criterion.weight for criterion in weighed)
    return min(1.0, sum(criterion.weight * met[criterion.name] for criterion in weighed) / total)
