"""Judges that score each response by itself: the higher score wins. Base of rules, rubric and pointwise judges."""

from collections.abc import Sequence
from dataclasses import dataclass

from judges.spec.base import JudgeSpec
from judges.verdicts import logistic, stop_if_failing, stop_if_unscored
from selfplay.records import Completion, Pair, Prompt, Verdict

SAME = 1e-9
"""Scores this close differ by rounding only."""


@dataclass(frozen=True)
class Assessment:
    """What was made of one response: `score` in [0, 1] or None, and then `error`; the criteria's values by name."""

    score: float | None
    parts: tuple[tuple[str, float], ...] = ()
    reason: str = ""
    raw: str = ""
    error: str = ""


class ScoringJudge:
    """Compares by scores. A subclass says in `assess` how a response is scored."""

    def __init__(self, spec: JudgeSpec) -> None:
        self.spec = spec

    def assess(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Assessment]:
        """Return what to make of each completion of the prompt in the same place."""
        raise NotImplementedError

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        """Return a score in [0, 1] for each completion of the prompt in the same place; None where there is none.

        Raises JudgeStopped above `on_error.max_failure_rate`.
        """
        found = self.assess(prompts, completions)
        stop_if_unscored(self.spec, prompts, [one.error if one.score is None else "" for one in found])
        return [one.score for one in found]

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair, of order "none". Raises JudgeStopped above `on_error.max_failure_rate`.

        A completion that stands in several pairs is assessed once.
        """
        asked = {
            (pair.prompt.id, completion.id, completion.text): (pair.prompt, completion)
            for pair in pairs
            for completion in (pair.first, pair.second)
        }
        results = self.assess(
            [prompt for prompt, _ in asked.values()], [completion for _, completion in asked.values()]
        )
        found = dict(zip(asked, results, strict=True))
        verdicts = [
            self._compare(
                pair,
                *(found[pair.prompt.id, completion.id, completion.text] for completion in (pair.first, pair.second)),
            )
            for pair in pairs
        ]
        stop_if_failing(self.spec.name, verdicts, self.spec.on_error)
        return verdicts

    def _compare(self, pair: Pair, first: Assessment, second: Assessment) -> Verdict:
        raw = f"{first.raw}\n\n{second.raw}" if first.raw or second.raw else ""
        if first.score is None or second.score is None:
            error = "; ".join(
                f"{place}: {one.error}" for place, one in (("first", first), ("second", second)) if one.score is None
            )
            return Verdict(pair_id=pair.id, judge=self.spec.name, order="none", preference=None, raw=raw, error=error)
        difference = first.score - second.score
        preference, temperature = float(difference > 0), self.spec.verdict_temperature
        if abs(difference) <= self.spec.margin + SAME:
            preference = 0.5
        elif temperature is not None:
            preference = logistic(difference / temperature)
        return Verdict(
            pair_id=pair.id,
            judge=self.spec.name,
            order="none",
            preference=preference,
            reason=compare_in_words(first, second),
            raw=raw,
        )


def compare_in_words(first: Assessment, second: Assessment) -> str:
    """Return which response has the higher score and what made the difference, criterion by criterion."""
    assert first.score is not None and second.score is not None
    other = dict(second.parts)
    apart = [
        (name, value, other[name]) for name, value in first.parts if name in other and abs(value - other[name]) > SAME
    ]
    words = f"score {_side_by_side(first.score, second.score)}"
    if apart:
        words += ": " + ", ".join(f"{name} {_side_by_side(value, rest)}" for name, value, rest in apart)
    spoken = "; ".join(f"{place}: {one.reason}" for place, one in (("first", first), ("second", second)) if one.reason)
    return f"{words}. {spoken}" if spoken else words


def _side_by_side(left: float, right: float) -> str:
    """Return two scores with their order, in as many decimals as it takes to see that they differ: `0.943 < 0.944`."""
    if abs(left - right) <= SAME:
        return f"{left:.2f} = {right:.2f}"
    places = next((places for places in range(2, 9) if f"{left:.{places}f}" != f"{right:.{places}f}"), 9)
    return f"{left:.{places}f} {'>' if left > right else '<'} {right:.{places}f}"
