"""Looks at one judge closely: what it is shown and says for one pair, what judges there are, what a file may hold."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from judges.audit.cautions import cautions
from judges.audit.file_tests import case_of
from judges.audit.gold import gold_file, load_gold
from judges.build import Opener, build
from judges.spec.base import JudgeSpec, ModelSpec
from judges.spec.load import load_spec, shipped
from judges.spec.modes import JurySpec, ListwiseSpec, PairwiseSpec, PointwiseSpec, PythonSpec, RubricSpec, RulesSpec
from judges.verdicts import aggregate_verdicts
from selfplay.config import SamplingParams
from selfplay.engines import Answer, Engine
from selfplay.errors import ConfigError
from selfplay.records import Completion, Message, Pair, Prompt, Verdict

AnySpec = Annotated[
    PairwiseSpec | PointwiseSpec | ListwiseSpec | RubricSpec | RulesSpec | JurySpec | PythonSpec,
    Field(discriminator="mode"),
]

NO_MODEL = "there is no model"


class Exchange(BaseModel):
    """One call: what the model was shown and what it said, or its log-probabilities; nothing if there was no model."""

    messages: list[Message]
    said: list[str] | dict[str, float] | None
    thoughts: list[str] = []
    """What was thought before each text, where a server tells it apart; a verdict in JSON may be there alone."""
    error: str = ""
    """Why nothing was said, such as the sentence with which a server refused."""


class Trial(BaseModel):
    """What `judge try` shows: every call, the verdicts read from them, and what they come to."""

    exchanges: list[Exchange]
    verdicts: list[Verdict]
    preference: float | None
    """For the pair's first response."""


class Listener:
    """An engine that passes everything on and notes it. Without an engine inside, it only notes what it is asked."""

    def __init__(self, inner: Engine | None) -> None:
        self.inner, self.exchanges = inner, list[Exchange]()
        self.special_tokens: frozenset[str] = getattr(inner, "special_tokens", frozenset())
        if inner is None or hasattr(inner, "stream"):
            self.stream = self._stream

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """Return the inner engine's texts, or none."""
        made = self.inner.generate(prompts, sampling) if self.inner is not None else [[] for _ in prompts]
        self._note(prompts, [[one.text for one in answers] or None for answers in made])
        return made

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """Return the inner engine's log-probabilities, or none."""
        if self.inner is None:
            self._note(prompts, [None] * len(prompts))
            return [[float("nan")] * len(choices) for _ in prompts]
        rows = self.inner.choice_logprobs(prompts, choices)
        self._note(prompts, [dict(zip(choices, row, strict=True)) for row in rows])
        return rows

    def _stream(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, choices: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Answer | None, str]]:
        """Yield the inner engine's answers as they come, and why there is none: without an engine each call is made once."""
        inner: Any = self.inner
        none = ((place, None, NO_MODEL) for place in range(len(prompts)))
        for place, answer, error in none if inner is None else inner.stream(prompts, sampling, choices):
            said = None if answer is None else list(answer.texts) if answer.logprobs is None else answer.logprobs
            thoughts = [] if answer is None else [thought for thought in answer.thoughts if thought]
            messages = list(prompts[place].messages)
            self.exchanges.append(Exchange(messages=messages, said=said, thoughts=thoughts, error=error))
            yield place, answer, error

    def _note(self, prompts: Sequence[Prompt], said: Sequence[Any]) -> None:
        self.exchanges += [
            Exchange(messages=list(prompt.messages), said=answer) for prompt, answer in zip(prompts, said, strict=True)
        ]

    def update_weights(self, model: object) -> None:
        """Do nothing: a judge's engine keeps its weights."""

    def close(self) -> None:
        """Do nothing: the inner engine belongs to the caller."""


def try_pair(
    spec: JudgeSpec,
    engine: Engine | Opener | None = None,
    pair: Pair | None = None,
    *,
    seed: int = 0,
    announce: Callable[[str], None] = lambda line: None,
) -> Trial:
    """Judge one pair, by default the first of the judge's gold set, and tell every step. Nothing is cached.

    Without an engine it shows what the model would be asked. `announce` gets what to beware of, before the first call.
    """
    pair = pair or example_pair(spec)
    for caution in cautions(spec, [pair.prompt]):
        announce(f"caution: {caution}")
    exchanges: list[Exchange] = []

    def listen(part: JudgeSpec) -> Any:
        inner: Any = engine if engine is None or hasattr(engine, "generate") else engine(part)
        listener = Listener(inner)
        listener.exchanges = exchanges
        return listener

    verdicts = build(spec.lenient(), listen, seed=seed).judge([pair])
    return Trial(exchanges=exchanges, verdicts=verdicts, preference=aggregate_verdicts(verdicts, spec)[pair.id])


def example_pair(spec: JudgeSpec) -> Pair:
    """Return the first pair of the judge's gold set, or of its tests if it has none. Raises ConfigError if those have
    none either.
    """
    file = gold_file(spec)
    paired = next((test for test in spec.tests if len(test.responses) == 2), None)
    if file is None and paired is not None:
        prompt, (first, second) = case_of(paired)
        return Pair(id="test", prompt=prompt, first=first, second=second)
    if file is None:
        raise ConfigError(
            f"judge {spec.name!r} has no gold set to take a pair from: write one into `tests` in its "
            "file, or set `gold` there (see docs/judges.md)"
        )
    return load_gold(file)[0].pair


def overview() -> list[dict[str, Any]]:
    """Return the shipped judges: name, mode, what they do, whether they need a model and can score one response, tests."""
    return [
        {
            "name": name,
            "mode": spec.mode,
            "description": spec.description,
            "needs_model": spec.needs_model,
            "scores": spec.scores,
            "tests": len(spec.tests),
        }
        for name, spec in ((name, load_spec(name)) for name in shipped())
    ]


def in_a_file(template: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a message whose template is in a file, from that of a message."""
    file = {"type": "string", "description": "A file beside this one that holds the Jinja2 template."}
    return {
        **template,
        "title": "TemplateFile",
        "properties": {"role": template["properties"]["role"], "file": file},
        "required": ["role", "file"],
    }


def schema() -> dict[str, Any]:
    """JSON schema of judge files, for editors: what the loader accepts, and every setting explained.

    Beside what a spec holds, a file may leave its name out, read a message from another file and name a rubric.
    """
    found = TypeAdapter(AnySpec).json_schema()
    documented = {**JudgeSpec.model_fields, **ModelSpec.model_fields}
    found["$defs"]["TemplateFile"] = in_a_file(found["$defs"]["Template"])
    for definition in found["$defs"].values():
        settings = definition.get("properties", {})
        if "mode" in settings:
            definition["required"] = [name for name in definition["required"] if name != "name"]
            for name, setting in settings.items():
                if "description" not in setting and name in documented:
                    setting["description"] = documented[name].description
        if "messages" in settings:
            settings["messages"]["items"] = {
                "anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in ("Template", "TemplateFile")]
            }
        if "criteria" in settings:
            criteria = settings["criteria"]
            listed = {name: criteria.pop(name) for name in ("type", "items", "minItems") if name in criteria}
            settings["criteria"] = {**criteria, "anyOf": [listed, {"type": "string"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "selfplay judge", **found}
