"""The tests in a judge's file, run without its model: what the model says is written in the test."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

from judges.build import build
from judges.modes.jury import JuryJudge
from judges.modes.scoring import ScoringJudge
from judges.spec.base import JudgeSpec, ModelSpec
from judges.spec.modes import JurySpec
from judges.spec.sections import JudgeTest, Said
from judges.verdicts import aggregate_verdicts, winner
from selfplay.config import SamplingParams
from selfplay.errors import ConfigError, SelfplayError
from selfplay.records import Completion, Pair, Prompt, Verdict

CLOSE = 1e-9
SHOWN = 120
"""Characters of an answer that a failing test shows."""


class Script:
    """An engine that says what is written, call by call."""

    def __init__(self, outputs: Sequence[Said]) -> None:
        self.left: Iterator[Said] = iter(outputs)
        self.problem = ""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """Return the next texts."""
        return [
            [
                Completion(
                    id=prompt.id, prompt_id=prompt.id, text=self._next(str, ""), finish_reason="stop", policy="script"
                )
            ]
            for prompt in prompts
        ]

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """Return the next probabilities, as nats; a choice that is not written has none."""
        rows = [self._next(dict, {}) for _ in prompts]
        return [[math.log(row[choice]) if row.get(choice) else -math.inf for choice in choices] for row in rows]

    def _next(self, kind: type, otherwise: Any) -> Any:
        said = next(self.left, None)
        if said is None:
            self.problem = "the judge asks its model more often than the test has outputs"
        elif not isinstance(said, kind):
            self.problem = f"this judge does not read outputs such as {said!r}"
        return said if isinstance(said, kind) else otherwise

    def update_weights(self, model: object) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing to give back."""


def run_tests(spec: JudgeSpec) -> list[str]:
    """Return one sentence for each test in the file that does not come out as expected."""
    return [f"{number}: {problem}" for number, test in enumerate(spec.tests, 1) if (problem := _run(spec, test))]


def case_of(test: JudgeTest) -> tuple[Prompt, list[Completion]]:
    """Return the prompt and the responses of a test."""
    return Prompt.plain("test", test.prompt, **test.meta), [
        Completion(id=f"test/{place}", prompt_id="test", text=text, finish_reason="stop", policy="test")
        for place, text in enumerate(test.responses)
    ]


def _run(spec: JudgeSpec, test: JudgeTest) -> str:
    """Return what is wrong with the outcome of one test, or nothing."""
    prompt, made = case_of(test)
    why = ""
    try:
        judge, scripts = rehearse(spec, test.outputs)
        if len(made) == 1 and not spec.scores:
            return "it has one response, but this judge compares two"
        if len(made) == 1:
            found, why = score_of(judge, prompt, made[0])
        else:
            verdicts = judge.judge([Pair(id="test", prompt=prompt, first=made[0], second=made[1])])
            found, why = aggregate_verdicts(verdicts, spec)["test"], reasons(verdicts)
    except SelfplayError as error:
        return str(error)
    problem = next((script.problem for script in scripts if script.problem), "")
    leftover = next((said for script in scripts for said in script.left), None)
    if leftover is not None and not problem:
        return f"the judge never read the output {leftover!r}"
    return problem or (
        "" if as_expected(found, test.expect) else f"expected {test.expect}, got {in_words(found)}{why and f': {why}'}"
    )


def score_of(judge: Any, prompt: Prompt, completion: Completion) -> tuple[float | None, str]:
    """Return the score of one response, and why there is none."""
    if isinstance(judge, ScoringJudge):
        [found] = judge.assess([prompt], [completion])
        return found.score, with_answer(found.error, found.raw)
    return judge.score([prompt], [completion])[0], ""


def reasons(verdicts: Sequence[Verdict]) -> str:
    """Return why verdicts could not be read, each reason once, with what the judge said."""
    return "; ".join(dict.fromkeys(with_answer(one.error, one.raw) for one in verdicts if one.preference is None))


def with_answer(error: str, raw: str) -> str:
    """Return an error with the answer that it is about."""
    return f"{error}, in {raw[:SHOWN]!r}" if error and raw else error


def rehearse(spec: JudgeSpec, outputs: Sequence[Said]) -> tuple[Any, list[Script]]:
    """Return the judge over a model that says `outputs`, and the script of that model; in a jury, of each member's model.

    Raises ConfigError if the outputs of a jury are not one list for each member; none at all are none for each.
    """
    if not isinstance(spec, JurySpec):
        script = Script(outputs)
        return build(for_tests(spec), (lambda part: script) if spec.needs_model else None), [script]
    each = [said for said in outputs or [[]] * len(spec.members) if isinstance(said, list)]
    if not len(each) == len(outputs or each) == len(spec.members):
        raise ConfigError(
            f"the outputs of a jury are one list for each of its {len(spec.members)} members, not {list(outputs)!r}"
        )
    parts = [rehearse(member.spec, said) for member, said in zip(spec.members, each, strict=True)]
    return (
        JuryJudge(cast(JurySpec, for_tests(spec)), [judge for judge, _ in parts]),
        [script for _, scripts in parts for script in scripts],
    )


def for_tests(spec: JudgeSpec) -> JudgeSpec:
    """Return the judge, with one call for each output that is written and no limit on failures."""
    changes: dict[str, Any] = {}
    if isinstance(spec, ModelSpec):
        changes = {"sampling": spec.sampling.model_copy(update={"n": 1}), "model": spec.model or "test"}
    return spec.lenient(retries=0).model_copy(update=changes)


def as_expected(found: float | None, expected: str | float) -> bool:
    """Return whether a preference or score is the expected one."""
    if isinstance(expected, str):
        return (winner(found) or "unscored") == expected
    return found is not None and abs(found - expected) <= CLOSE


def in_words(found: float | None) -> str:
    """Return a preference or score with the winner it names."""
    return "unscored" if found is None else f"{found:.4g} ({winner(found)})"
