"""The sections of a judge file that several modes share, each knob documented beneath its field."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import TypeAliasType

from selfplay.config import Count, NonNegative, Positive, SamplingParams, Section, Texts, Unit

Said = TypeAliasType("Said", "str | dict[str, float] | list[Said]")
"""What a model says in a judge's own tests: a text, label -> probability, or one list for each member of a jury."""
Whole = Annotated[int, Field(ge=0)]
PROSE = (
    "A good answer is short, and so is this one.",
    "I think B is a good response.",
    "Both are fine; response A is better, I think.",
    "The first response has 3 mistakes and 10 good points.",
    "It deserves an 8, or maybe a 7 out of 10.",
)


def key_text(key: Any) -> str:
    """Return a label as text, as JSON writes it: YAML reads `true` and `1` as a truth value and a number. 1.0 is `1`."""
    if isinstance(key, float) and key.is_integer():
        key = int(key)
    return key if isinstance(key, str) else json.dumps(key)


def with_text_keys(value: Any) -> Any:
    """Return mappings with truth values and numbers as keys, and lists of such, with their text as key."""
    if isinstance(value, Mapping):
        return {key_text(key) if isinstance(key, (bool, int, float)) else key: item for key, item in value.items()}
    return [with_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


Labels = Annotated[dict[str, Unit], BeforeValidator(with_text_keys)]
"""Label -> its value in [0, 1]."""


class JudgeSampling(SamplingParams):
    """How the judge's answer is drawn."""

    temperature: NonNegative = 0.0
    """Divides the logits; 0 is greedy."""
    max_tokens: Count = 512
    """Longest answer, in tokens. An answer that is cut off there is not read."""
    n: Count = 1
    """Answers per question (self-consistency): their verdicts are averaged, if more than half can be read."""

    @model_validator(mode="after")
    def _check(self) -> "JudgeSampling":
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"sampling.n = {self.n} answers at temperature 0 are all the same: set n to 1 or a temperature above 0"
            )
        return self


NO_OPTIONS = (
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "chat_template",
    "tokenize",
    "return_dict",
)


class Reasoning(Section):
    """How a judge that thinks before it answers is heard: only what stands behind its thinking is read."""

    tags: Annotated[tuple[str, str], Field(strict=False)] = ("<think>", "</think>")
    """What the model writes before and behind its thinking, where the server does not tell it apart. The first may be
    missing, as where the chat template writes it."""
    budget: Whole = 0
    """Tokens for thinking, on top of `sampling.max_tokens`."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options of the model's chat template, such as {enable_thinking: false}; sent to a server under the same name."""

    @model_validator(mode="after")
    def _check(self) -> "Reasoning":
        if not all(self.tags) or self.tags[0] == self.tags[1]:
            raise ValueError(f"tags {list(self.tags)}: two different texts, before the thinking and behind it")
        for name in self.chat_template_kwargs:
            if name in NO_OPTIONS:
                raise ValueError(
                    f"chat_template_kwargs: {name!r} is not an option of a template, but says how it is used"
                )
        return self


class Template(Section):
    """One message to the judge."""

    role: Literal["system", "user", "assistant"]
    """Who speaks; the last message is the user's. A system message goes into the user's where the model has no such role."""
    content: str
    """A Jinja2 template; docs/judges.md lists its variables. In a file, `file: NAME` may stand instead."""


class Example(Section):
    """A solved case, shown to the judge before the real one (few-shot)."""

    prompt: str
    """What was asked."""
    responses: Texts
    """The responses, in the order shown: two for pairwise, one for pointwise and rubric."""
    answer: str
    """What the judge should have said, word for word."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """The row's own columns, where the template uses them."""


class Output(Section):
    """How the judge's answer is read. Whatever does not fit is an unscored pair, never a guess."""

    kind: Literal["json", "regex", "logprob"]
    """`json`: an object with the verdict under `key`; `regex`: what `pattern` matches; `logprob`: the probabilities of
    the labels as the next token."""
    labels: Labels | None = None
    """Label -> degree in [0, 1] to which the first response shown is better, or, for scores, the score."""
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Instead of labels, for scores: the smallest and the largest number, mapped to 0 and 1."""
    pattern: str | None = None
    """regex: a pattern with one group, the verdict. It must not match in ordinary prose."""
    match: Literal["end", "line", "last", "unique", "first"] = "end"
    """regex: which match counts. `end`: the one that the answer ends with, outside of fenced blocks and quoted lines; where an
    earlier one says something else, or where it is quoted, only on a line of its own. `line`: the same, and always on a
    line of its own, or behind a finished sentence or the word "verdict"; no two that differ.
    `last` and `first` also read a verdict that the judge merely quotes;
    `unique` refuses an answer with two different verdicts."""
    key: str = "verdict"
    """json: where the verdict stands."""
    reason_key: str = "reason"
    """json: where the reason stands, if the judge gives one."""
    json_schema: dict[str, Any] | None = None
    """json: the schema for guided decoding; default an object of a reason (a string) and a verdict on the menu."""
    tokens: Annotated[dict[str, Texts], BeforeValidator(with_text_keys)] | None = None
    """logprob: label -> the texts, each one token, that count for it; default the label itself."""
    least_mass: Unit = 0.01
    """logprob: if all labels together are less likely than this, the judge meant to say something else: unscored."""
    allow_truncated: bool = False
    """Read answers that were cut off at `sampling.max_tokens` too: for a judge whose whole answer is the verdict."""

    @model_validator(mode="after")
    def _check(self) -> "Output":
        given = self.model_fields_set
        belongs = {
            "pattern": "regex",
            "match": "regex",
            "key": "json",
            "reason_key": "json",
            "json_schema": "json",
            "tokens": "logprob",
            "least_mass": "logprob",
        }
        for name, kind in belongs.items():
            if name in given and kind != self.kind:
                raise ValueError(f"{name} belongs to kind {kind}, not to {self.kind}: remove it")
        if self.labels is not None and self.range is not None:
            raise ValueError(
                "the judge answers either with one of `labels` or with a number in `range`: remove one of them"
            )
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range {list(self.range)} goes from the smallest to the largest number")
        if self.labels is not None and len(self.labels) < 2:
            raise ValueError(f"labels {list(self.labels)}: a judge needs two labels or more")
        if self.kind == "logprob" and self.labels is None:
            raise ValueError("kind logprob needs `labels`, since a probability belongs to a label")
        if self.tokens is not None and set(self.tokens) != set(self.labels or {}):
            raise ValueError(f"tokens names {sorted(self.tokens)}, but the labels are {sorted(self.labels or {})}")
        if self.kind == "regex":
            check_pattern(self.pattern)
        return self


def check_pattern(pattern: str | None) -> None:
    """Raise ValueError for a pattern without its one group, or one that reads a verdict out of ordinary prose."""
    if pattern is None:
        raise ValueError(r"kind regex needs `pattern`, such as '\[\[(A|B)\]\]'")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    if compiled.groups != 1:
        raise ValueError(
            f"pattern {pattern!r} has {compiled.groups} groups, but needs exactly one: the verdict; write "
            "(?:...) for others"
        )
    for sentence in PROSE:
        if compiled.search(sentence):
            raise ValueError(
                f"pattern {pattern!r} also matches in the sentence {sentence!r}: let the judge put its "
                "verdict in a "
                r"delimiter, such as '\[\[(A|B)\]\]', or match the whole answer, such as '^\s*(A|B)\s*$'"
            )


class OnError(Section):
    """What happens when an answer cannot be read."""

    retries: Whole = 1
    """How often to ask again, each time with another seed."""
    retry_temperature: NonNegative = 0.7
    """Least temperature of a retry without `repair`: a greedy one would say the same again."""
    repair: str | None = None
    """Ask by a further message instead, such as "End with [[A]] or [[B]]."; the unreadable answer stands before it."""
    action: Literal["drop", "abort"] = "drop"
    """`drop`: the pair stays unscored; `abort`: the stage stops at the first one."""
    max_failure_rate: Unit = 0.1
    """Above this share of unscored pairs the stage stops, with examples of what the judge said."""


class Limits(Section):
    """Bounds on what judging may take; null is no bound."""

    response_characters: Count | None = None
    """A longer response is cut there, and the judge is told so."""
    calls: Count | None = None
    """Most calls of the model in one labelling; then the stage stops, with everything saved."""
    tokens: Count | None = None
    """Most tokens, read and written, where the engine counts them."""


class Untrusted(Section):
    """How prompts, responses and the row's columns, which may hold anything, are put into the messages."""

    fence: Literal["block", "none"] = "block"
    """`block`: each stands on lines of its own between fences longer than any run of backticks inside it. `none`: as it
    is, for a judge model that was trained so."""
    special_tokens: Texts = ()
    """Special tokens of a judge model behind an endpoint that are not the usual ones, to be shown as plain text. Those of a
    model in process are known."""


class Thresholds(Section):
    """What the judge must reach on the gold set, on the canaries and on a run's own pairs; else it is not trusted."""

    accuracy: Unit | None = None
    """Least share right on the gold set (lower bound of its 95% interval; an unscored pair is not right)."""
    swap_consistency: Unit = 0.5
    """Least share of pairs on which both orders agree."""
    first_share: Annotated[float, Field(ge=0.5, le=1)] = 0.75
    """Largest share of one position among the decided answers."""
    length_bias: Unit = 0.3
    """Largest difference between the share of gold pairs that the longer response won and the share it deserved to
    win."""
    ties: Unit = 0.9
    """Largest share of ties."""
    unscored: Unit = 0.1
    """Largest share of unscored pairs."""
    canary_wins: Unit = 0.2
    """Largest share, of any kind of canary (empty, echoed, injected ... responses), that beat a right answer."""


class JudgeTest(Section):
    """A case with the verdict that must come out, run by `selfplay judge check` without a model."""

    prompt: str = "Say something."
    """What was asked."""
    responses: Texts = ("one response", "another response")
    """Two responses, or one for a judge that scores."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """The row's own columns, where templates or Python use them."""
    outputs: Annotated[tuple[Said, ...], Field(strict=False), BeforeValidator(with_text_keys)] = ()
    """What the model says, word for word, call by call (both orders: two); for logprob, label -> probability. For a jury,
    one such list for each member, empty where a member asks no model."""
    expect: Literal["first", "second", "tie", "unscored"] | Unit
    """The verdict, or the exact preference or score."""


class Criterion(Section):
    """One thing to look at. Keep it atomic: compound criteria are the ones that get gamed."""

    name: str
    """What the reasons of a verdict call it."""
    text: str | None = None
    """A question for the language model, answered by one of `choices`."""
    python: str | None = None
    """`package.module:function` or `./file.py:function`, from (prompt: Prompt, response: str) to a number in [0, 1]."""
    weight: Positive = 1.0
    """Its share in the weighted mean."""
    choices: Labels | None = None
    """What the model may answer and what it is worth; default those of the judge's output."""
    gate: bool = False
    """If it is not met at all (0), the whole score is 0; it carries no weight of its own."""
    negative: bool = False
    """Being met counts against the response: the value becomes 1 - value."""

    @model_validator(mode="after")
    def _check(self) -> "Criterion":
        if (self.text is None) == (self.python is None):
            raise ValueError(
                f"criterion {self.name!r} needs either `text`, a question for the model, or `python`, a function"
            )
        if self.choices is not None and self.text is None:
            raise ValueError(f"criterion {self.name!r}: choices are for the model; a Python function returns a number")
        return self


def check_criteria(criteria: tuple[Criterion, ...]) -> None:
    """Raise ValueError if two criteria share a name or all of them are gates."""
    names = [criterion.name for criterion in criteria]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"criteria: the name {twice[0]!r} stands twice")
    if all(criterion.gate for criterion in criteria):
        raise ValueError("criteria: all are gates, so that nothing tells responses apart; give one a weight instead")
