"""The messages that a judge file's templates make for one question: few-shot examples, then the real case."""

import hashlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Template

from judges.spec.base import ModelSpec
from judges.spec.load import compile_templates
from prompts.cleaning import joined
from prompts.render import Data, render, variables_of, wrap
from selfplay.records import Message, Prompt

NAMES = tuple(string.ascii_uppercase)


class Conversation:
    """A judge file's templates, compiled once."""

    def __init__(self, spec: ModelSpec, where: str = "", special: Iterable[str] = ()) -> None:
        """Take in `special`, the special tokens of the model that is asked, which no data may hold."""
        self.spec, self.where = spec, where or f"judge {spec.name!r}"
        self.special = joined(special, spec.untrusted.special_tokens)
        self.templates = compile_templates(spec, self.where)
        self.shows_history = any("history" in variables_of(message.content) for message in spec.messages)

    def messages(self, prompt: Prompt, responses: Sequence[str], **variables: Any) -> tuple[Message, ...]:
        """Messages that show prompt and responses, in this order. Raises ConfigError for a column that is missing."""
        opening = next(
            (place for place, (role, _) in enumerate(self.templates) if role != "system"), len(self.templates)
        )
        where = f"{self.where}, prompt {prompt.id!r}"
        real = {**self._variables(prompt, responses), **variables}
        said = self._render(self.templates[:opening], real, where)
        for number, example in enumerate(self.spec.examples, 1):
            solved = Prompt.plain(f"example {number}", example.prompt, **example.meta)
            said += self._render(
                self.templates[opening:],
                {**self._variables(solved, example.responses), **variables},
                f"{where}, example {number}",
            )
            said.append(Message(role="assistant", content=example.answer))
        return (*said, *self._render(self.templates[opening:], real, where))

    def _render(
        self, templates: Sequence[tuple[Any, Template]], variables: Mapping[str, Any], where: str
    ) -> list[Message]:
        return [render(template, role, variables, where) for role, template in templates]

    def _variables(self, prompt: Prompt, responses: Sequence[str]) -> dict[str, Any]:
        form, special = self.spec.untrusted.fence, self.special
        shown = [Data(text, form, special, self.spec.limits.response_characters) for text in responses]
        variables: dict[str, Any] = {
            "prompt": Data(prompt.text, form, special),
            "responses": shown,
            "names": NAMES[: len(responses)],
            "history": [
                {"role": message.role, "content": Data(message.content, form, special)}
                for message in prompt.messages[:-1]
            ],
            "labels": list(self.spec.output.labels or ()),
            "meta": wrap(prompt.meta, form, special),
            "criteria": [one.model_dump() for one in getattr(self.spec, "criteria", ()) if one.text is not None],
        }
        if len(shown) == 1:
            variables["response"] = shown[0]
        if self.spec.reference in prompt.meta:
            variables["reference"] = wrap(prompt.meta[self.spec.reference], form, special)
        return variables


def drawn(seed: int, what: str, identity: str, count: int) -> int:
    """Return a number below `count`, the same whenever the same is drawn for the same `identity`."""
    name = f"{seed}\x00{what}\x00{identity}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % count


def principle(spec: ModelSpec, seed: int, identity: str) -> dict[str, str]:
    """Return the constitution's principle for this pair, as a variable of the template; nothing without a constitution."""
    if not spec.principles:
        return {}
    return {"principle": spec.principles[drawn(seed, "principle", identity, len(spec.principles))]}
