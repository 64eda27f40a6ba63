"""Calls an engine: one answer per call, as they come, and a refused prompt costs no other its answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfplay.config import SamplingParams
from selfplay.engines import Answer, Engine
from selfplay.errors import ConfigError
from selfplay.records import Message, Prompt, TemplatedPrompt


@dataclass(frozen=True)
class Call:
    """One call of the model: for text, or with `choices` for log-probabilities. `key` names all that it depends on."""

    key: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    choices: tuple[str, ...] | None
    options: dict[str, Any] = field(default_factory=dict)
    """For the model's chat template."""

    @property
    def prompt(self) -> Prompt:
        """The prompt that an engine gets."""
        if not self.options:
            return Prompt(id=self.key[:16], messages=self.messages)
        return TemplatedPrompt(id=self.key[:16], messages=self.messages, options=self.options)


Outcome = tuple[int, Answer | None, str]
"""Place of a call, its answer or None, error."""


def make_calls(engine: Engine, calls: Sequence[Call]) -> Iterator[list[Outcome]]:
    """Yield what came of `calls`, in the portions in which it comes. All calls have one sampling and the same choices.

    An engine with `stream` gives each answer when it is there; others give all at once.
    """
    prompts = [call.prompt for call in calls]
    if hasattr(engine, "stream"):
        yield from ([outcome] for outcome in engine.stream(prompts, calls[0].sampling, calls[0].choices))
    else:
        yield answers_or_refusals(engine, prompts, calls[0].sampling, calls[0].choices)


def answers_or_refusals(
    engine: Engine, prompts: Sequence[Prompt], sampling: SamplingParams, choices: Sequence[str] | None
) -> list[Outcome]:
    """Return what came of prompts put to an engine that answers all at once.

    If it refuses the lot, such as for one prompt beyond the model's context, halves are tried, so that only the prompts
    it refuses go without an answer.
    """
    try:
        answers = answer_all(engine, prompts, sampling, choices)
    except ConfigError as error:
        if len(prompts) == 1:
            return [(0, None, str(error))]
        middle = len(prompts) // 2
        later = answers_or_refusals(engine, prompts[middle:], sampling, choices)
        return [
            *answers_or_refusals(engine, prompts[:middle], sampling, choices),
            *((middle + place, answer, problem) for place, answer, problem in later),
        ]
    return [(place, answer, "") for place, answer in enumerate(answers)]


def answer_all(
    engine: Engine, prompts: Sequence[Prompt], sampling: SamplingParams, choices: Sequence[str] | None
) -> list[Answer]:
    """Return the engine's texts, or the log-probabilities of `choices`, one answer per prompt."""
    if choices is not None:
        return [
            Answer(logprobs=dict(zip(choices, row, strict=True))) for row in engine.choice_logprobs(prompts, choices)
        ]
    return [
        Answer(
            tuple(one.text for one in made),
            tuple(one.finish_reason for one in made),
            output_tokens=sum(len(one.token_ids) for one in made),
        )
        for made in engine.generate(prompts, sampling)
    ]
