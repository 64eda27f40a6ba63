"""Asks a language model, through the cache, and asks again where the answer cannot be read.

Every raw answer is cached as it comes, so that a kill or a new parser costs no calls. An unreadable answer in the cache
is not an answer: it is asked again, with the same seed, so that a resumed run ends as one that was never killed. A call
that failed on the way is not cached at all.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.llm.cache import AnswerCache, key_of
from judges.llm.calls import Call, make_calls
from judges.llm.parse import AnswerOptions, ParsedAnswer, answer_schema, average, read_logprobs
from judges.llm.thinking import answered, example, hear, with_thoughts
from judges.spec.base import ModelSpec
from prompts.cleaning import clean, joined
from selfplay.config import SamplingParams
from selfplay.engines import Answer, Engine, GuidedSampling
from selfplay.errors import JudgeStopped
from selfplay.records import Message

LEAST, MOST, SECONDS = 256, 8192, 30.0
"""An engine without `stream` gets as many calls at once as it answers in about 30 s: enough to keep it busy, and few
enough to lose when killed."""
FIRST = 32
"""Questions after which a judge of which no answer can be read is asked no more."""


@dataclass(frozen=True)
class Question:
    """Messages to the judge and what it may say."""

    messages: tuple[Message, ...]
    menu: AnswerOptions


@dataclass(frozen=True)
class Reply:
    """What came of a question: the reading and the raw answer behind it."""

    reading: ParsedAnswer
    raw: str = ""
    """What the model thought and said."""
    said: str = ""
    """What it said."""


class Asker:
    """Puts questions to the model of one judge file."""

    def __init__(
        self,
        spec: ModelSpec,
        engine: Engine,
        cache: AnswerCache,
        seed: int = 0,
        weights: str = "",
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.spec, self.engine, self.cache = spec, engine, cache
        self.seed, self.weights, self.advance = seed, weights, advance
        self.special = joined(getattr(engine, "special_tokens", ()), spec.untrusted.special_tokens)
        self.calls = self.tokens = 0
        self.proven = False
        """Whether an answer could be read."""

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return a reply to each question; one without a verdict says why in `reading.error`.

        Raises JudgeStopped beyond the file's limits, and ConfigError if the engine cannot go on; answers that came
        before are in the cache.
        """
        replies = {
            place: reply for place, question in enumerate(questions) if (reply := self._recall(question)) is not None
        }
        self.advance(len(replies))
        waiting = [place for place in range(len(questions)) if place not in replies]
        self.proven = self.proven or bool(replies)
        if not self.proven and len(waiting) > FIRST and self.spec.on_error.max_failure_rate < 1:
            self._put(questions, waiting[:FIRST], replies)
            self._stop_if_none_is_readable([replies[place] for place in waiting[:FIRST]])
            waiting = waiting[FIRST:]
        self._put(questions, waiting, replies)
        return [replies[place] for place in range(len(questions))]

    def _put(self, questions: Sequence[Question], waiting: Sequence[int], replies: dict[int, Reply]) -> None:
        """Put the questions at the places `waiting`, each again while it may be, and add to `replies`."""
        for attempt in range(self.attempts):
            calls = [self._call(questions[place], attempt, replies[place].said if attempt else "") for place in waiting]
            again = []
            for number, answer, error in self._answers(calls):
                place = waiting[number]
                reading = ParsedAnswer(None, error=error) if answer is None else self._read(questions[place], answer)
                replies[place] = Reply(reading) if answer is None else self._reply(reading, answer)
                if not reading.readable and answer is not None and attempt + 1 < self.attempts:
                    again.append(place)
                else:
                    self.advance(1)
            waiting = sorted(again)

    def _stop_if_none_is_readable(self, replies: Sequence[Reply]) -> None:
        """Raise JudgeStopped where not one of the first replies can be read, with an example and what may fix it."""
        self.proven = any(reply.reading.readable for reply in replies)
        if not self.proven:
            raise JudgeStopped(
                f"judge {self.spec.name!r}: none of its first {len(replies)} answers can be read, so it is asked no more: "
                + example([(reply.reading.error, reply.raw) for reply in replies])
            )

    @property
    def attempts(self) -> int:
        """Most calls per question. Log-probabilities are the same each time."""
        return 1 if self.spec.output.kind == "logprob" else self.spec.on_error.retries + 1

    def _recall(self, question: Question) -> Reply | None:
        """Return the first readable answer in the cache, over the first call and its retries as they would be made."""
        said = ""
        for attempt in range(self.attempts):
            call = self._call(question, attempt, said)
            answer = self.cache.get([call.key]).get(call.key)
            if answer is None:
                return None
            reply = self._reply(self._read(question, answer), answer)
            said = reply.said
            if reply.reading.readable:
                return reply
        return None

    def _reply(self, reading: ParsedAnswer, answer: Answer) -> Reply:
        if answer.logprobs is not None:
            return Reply(reading, json.dumps({token: round(value, 6) for token, value in answer.logprobs.items()}))
        reasoning = self.spec.reasoning
        return Reply(reading, with_thoughts(answer, reasoning), answered(answer, reasoning))

    def _call(self, question: Question, attempt: int, before: str) -> Call:
        """Return the call for a question's attempt; `before` is the unreadable answer to the one before."""
        rules, sampling, messages = self.spec.on_error, self.spec.sampling, question.messages
        changes: dict[str, Any] = {"seed": sampling.seed + self.seed + attempt}
        if attempt and rules.repair is not None and self.spec.output.kind != "logprob" and before:
            said = Message(role="assistant", content=clean(before, self.special))
            messages = (*messages, said, Message(role="user", content=rules.repair))
        elif attempt:
            changes["temperature"] = max(sampling.temperature, rules.retry_temperature)
        thinking, endpoint = self.spec.reasoning, self.spec.endpoint
        if thinking.budget:
            changes["max_tokens"] = sampling.max_tokens + thinking.budget
        drawn: SamplingParams = sampling.model_copy(update=changes)
        if self.spec.output.kind == "json" and (
            endpoint is not None or not thinking.budget
        ):  # which a schema would forbid
            drawn = GuidedSampling(**drawn.model_dump(), json_schema=answer_schema(self.spec.output, question.menu))
        choices = self._tokens(question.menu) if self.spec.output.kind == "logprob" else None
        key = key_of(
            messages=[message.model_dump() for message in messages],
            model="" if self.weights and Path(str(self.spec.model)).is_absolute() else self.spec.model,  # it may move
            revision=self.spec.revision,
            weights=self.weights,
            url=self.spec.endpoint.url if self.spec.endpoint else "",
            asked=drawn.model_dump() if choices is None else choices,
            **({"template": thinking.chat_template_kwargs} if thinking.chat_template_kwargs else {}),
            **({"server": own} if endpoint is not None and (own := endpoint.changes) else {}),
        )
        return Call(key, messages, drawn, choices, thinking.chat_template_kwargs)

    def _tokens(self, menu: AnswerOptions) -> tuple[str, ...]:
        """Return the texts whose log-probabilities a logprob judge asks for."""
        tokens = self.spec.output.tokens or {}
        return tuple(dict.fromkeys(token for label in menu.labels or {} for token in tokens.get(label, (label,))))

    def _read(self, question: Question, answer: Answer) -> ParsedAnswer:
        if answer.logprobs is not None:
            return read_logprobs(self.spec.output, question.menu, answer.logprobs)
        if not answer.texts:
            return ParsedAnswer(None, error="no answer")
        return average(hear(self.spec.output, question.menu, self.spec.reasoning, answer))

    def _answers(self, calls: Sequence[Call]) -> Iterator[tuple[int, Answer | None, str]]:
        """Yield (number of the call, its answer or None, error) as they come, each in the cache before it is given out.

        Calls with one key are made once.
        """
        twins: dict[str, list[int]] = {}
        for number, call in enumerate(calls):
            twins.setdefault(call.key, []).append(number)
        by_sampling: dict[tuple[str, object], list[Call]] = {}
        for numbers in twins.values():
            call = calls[numbers[0]]
            by_sampling.setdefault((call.sampling.model_dump_json(), call.choices), []).append(call)
        for group in by_sampling.values():
            start, size = 0, LEAST
            while start < len(group):
                chunk = group[start : start + self._allowance(size)]
                if not chunk:
                    raise JudgeStopped(
                        f"judge {self.spec.name!r} reached its limit of {self._limit()}; the answers so "
                        "far are saved: raise `limits` in its file and give the same command to go on"
                    )
                began = time.monotonic()
                for outcomes in make_calls(self.engine, chunk):
                    self._keep([(chunk[place].key, answer) for place, answer, _ in outcomes])
                    for place, answer, error in outcomes:
                        for number in twins[chunk[place].key]:
                            yield number, answer, error
                start += len(chunk)
                size = max(LEAST, min(MOST, int(SECONDS * len(chunk) / max(time.monotonic() - began, 1e-3))))

    def _keep(self, outcomes: Sequence[tuple[str, Answer | None]]) -> None:
        """Count calls and save their answers by key, in one transaction: each costs the disk a few milliseconds."""
        answers = [(key, answer) for key, answer in outcomes if answer is not None]
        self.calls += len(outcomes)
        self.tokens += sum(answer.input_tokens + answer.output_tokens for _, answer in answers)
        self.cache.put(answers, self.spec.model or "")

    def _allowance(self, count: int) -> int:
        """Return how many of `count` calls the file's limits still allow."""
        limits = self.spec.limits
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return 0
        return count if limits.calls is None else max(0, min(count, limits.calls - self.calls))

    def _limit(self) -> str:
        limits = self.spec.limits
        spent_calls = limits.calls is not None and self.calls >= limits.calls
        return f"{limits.calls} calls" if spent_calls else f"{limits.tokens} tokens"
