"""What tests of judges share: pairs in one line, an engine that says what it is told, a judge file and gold pairs for it."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from judges.audit.gold import BUILT_IN, load_gold
from judges.spec.base import JudgeSpec
from judges.spec.load import parse_spec
from selfplay.config import SamplingParams, parse_yaml
from selfplay.records import Completion, Pair, Prompt, Verdict

GOLD = load_gold(BUILT_IN)
RIGHT = {(row.pair.first if row.answer == 1 else row.pair.second).text: row for row in GOLD}
"""Text of the better response -> its gold pair."""
PAIRWISE = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ prompt }}\\n{{ responses[0] }}\\n{{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B|C)\\]\\]', labels: {A: 1, B: 0, C: 0.5}}
on_error: {retries: 0}
thresholds: {accuracy: 0.7}
"""
"""A judge file that the functions `honest` and `by` answer for."""


def completion(text: str, id: str = "c", prompt_id: str = "p") -> Completion:
    return Completion(id=id, prompt_id=prompt_id, text=text, finish_reason="stop", policy="test")


def pair(first: str, second: str, prompt: str = "Say hello.", id: str = "p", **meta: Any) -> Pair:
    return Pair(
        id=id,
        prompt=Prompt.plain(id, prompt, **meta),
        first=completion(first, f"{id}/0", id),
        second=completion(second, f"{id}/1", id),
    )


def numbered(pairs: Sequence[tuple[str, str]], **meta: Any) -> list[Pair]:
    return [pair(first, second, id=f"p{number}", **meta) for number, (first, second) in enumerate(pairs)]


def verdict(preference: float | None, order: Any = "none", id: str = "p", error: str = "") -> Verdict:
    return Verdict(
        pair_id=id,
        judge="test",
        order=order,
        preference=preference,
        error=error or ("unreadable" if preference is None else ""),
    )


def spec(yaml: str, folder: Path = Path()) -> Any:
    """A judge file's text as a spec."""
    tree = parse_yaml(yaml)
    tree.setdefault("name", "test")
    found: JudgeSpec = parse_spec(tree, "test.yaml", folder)
    return found


class Scripted:
    """An engine that says what a function of the last message tells it to, and notes every call.

    `say(text)` is called with the last message's content; `chances(text)` gives label -> probability for log-probs.
    """

    def __init__(
        self,
        say: Callable[[str], str] = lambda text: "",
        chances: Callable[[str], dict[str, float]] | None = None,
        finish_reason: Any = "stop",
    ) -> None:
        self.say, self.chances, self.finish_reason = say, chances, finish_reason
        self.prompts: list[Prompt] = []
        self.samplings: list[SamplingParams] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        self.prompts += prompts
        self.samplings += [sampling] * len(prompts)
        return [
            [
                Completion(
                    id=f"{prompt.id}/{index}",
                    prompt_id=prompt.id,
                    text=self.say(prompt.text),
                    policy="scripted",
                    finish_reason=self.finish_reason,
                )
                for index in range(sampling.n)
            ]
            for prompt in prompts
        ]

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        assert self.chances is not None
        self.prompts += prompts
        rows = [self.chances(prompt.text) for prompt in prompts]
        return [[math.log(row[choice]) if row[choice] else -math.inf for choice in choices] for row in rows]

    def update_weights(self, model: object) -> None:
        raise AssertionError("a judge's engine is not trained")

    def close(self) -> None:
        pass

    @property
    def calls(self) -> int:
        return len(self.prompts)


def fenced(text: str) -> list[str]:
    """What stands between fences in a rendered message, in order."""
    return [body for _, body in re.findall(r"^(`{3,})\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)]


def honest(text: str) -> str:
    """Knows the right answers, and is fooled by nothing."""
    _, first, second = fenced(text)
    knows = (first in RIGHT, second in RIGHT)
    return {(True, False): "[[A]]", (False, True): "[[B]]"}.get(knows, "[[C]]")


def by(rule: Callable[[str, str], bool]) -> Callable[[str], str]:
    """Prefers the first response where a rule of the two says so, else the second."""
    return lambda text: "[[A]]" if rule(*fenced(text)[1:]) else "[[B]]"
