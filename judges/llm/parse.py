"""Reads a verdict out of what a judge said. Whatever is not plainly a verdict is none, and the reason is kept.

Left out on purpose: fixing broken JSON and guessing from prose, because both turn text into verdicts nobody gave.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from judges.llm.quotations import without_quotations, without_quoted_lines
from judges.spec.sections import Output, key_text

WORD = re.compile(r"[^\W_]")
QUOTES = "\"'`“”‘’«»„"
BEGINNING = re.compile(r"(?:```[A-Za-z]*\s*)?")
END_TOKEN = re.compile(r"(?:</s>|<\|[^|<>\s]{1,64}\|>|<｜[^｜<>\s]{1,64}｜>|<(?:eos|pad|end_of_turn)>)\Z")
LONGEST_TOKEN = 68
GIVEN = re.compile(
    r"""[.!?]["'”’»)*_]*\s*[*_]*$|(?:^\W*|[.!?]\W+|\b(?:my|final|overall)\s+)(?:the\s+)?verdict(?:\s+is)?[\s:*_–—-]*$""",
    re.IGNORECASE,
)
"""What a verdict with `match: line` may stand behind on its line: a finished sentence, or the word "verdict"."""
LONGEST_LEAD = 200
"""Characters before a verdict in which GIVEN is looked for."""
STARTS = 200
"""Most opening braces that are tried as the beginning of the object."""


@dataclass(frozen=True)
class ParsedAnswer:
    """`value` in [0, 1] as the file's labels or range say, `label` the verdict's own text; or None and `error`.

    A ranking has its label only.
    """

    value: float | None
    label: str = ""
    reason: str = ""
    error: str = ""

    @property
    def readable(self) -> bool:
        """Whether there is a verdict."""
        return not self.error


@dataclass(frozen=True)
class AnswerOptions:
    """What the judge may say: labels with their values, or a range of numbers, or a ranking of so many responses."""

    labels: Mapping[str, float] | None = None
    range: tuple[float, float] | None = None
    ranking: int | None = None

    def value(self, label: str) -> float | None:
        """Return the value of a verdict in [0, 1], None for a ranking. Raises ValueError for one that is not on the menu."""
        if self.ranking is not None:
            read_ranking(label, self.ranking)
            return None
        if self.labels is not None:
            if label not in self.labels:
                raise ValueError(f"{label!r} is not one of {', '.join(self.labels)}")
            return float(self.labels[label])
        return self._number(label)

    def _number(self, label: str) -> float:
        assert self.range is not None
        low, high = self.range
        try:
            number = float(label)
        except ValueError:
            raise ValueError(f"{label!r} is not a number") from None
        if not math.isfinite(number) or not low <= number <= high:
            raise ValueError(f"{label!r} is not between {low:g} and {high:g}")
        return (number - low) / (high - low)


def read_ranking(label: str, count: int) -> list[int]:
    """Return the rank (0 is best) of each of the responses A, B, C, ... in a ranking such as `B > A = C`.

    Raises ValueError unless each of the `count` letters stands there exactly once.
    """
    groups = [[name.strip() for name in group.split("=")] for group in label.split(">")]
    ranks = {name: rank for rank, group in enumerate(groups) for name in group}
    wanted = [chr(ord("A") + place) for place in range(count)]
    if sum(len(group) for group in groups) != count or set(ranks) != set(wanted):
        raise ValueError(f"{label!r} does not rank each of {', '.join(wanted)} once")
    return [ranks[name] for name in wanted]


def read(output: Output, menu: AnswerOptions, text: str, finish_reason: str = "stop") -> ParsedAnswer:
    """Return the verdict in one answer of a `json` or `regex` judge."""
    if not text.strip():
        return ParsedAnswer(None, error="empty answer")
    if finish_reason == "length" and not output.allow_truncated:
        return ParsedAnswer(None, error="answer cut off at max_tokens")
    try:
        label, reason = find_json(output, text) if output.kind == "json" else find_match(output, text)
        return ParsedAnswer(menu.value(label), label, reason)
    except (ValueError, RecursionError) as problem:
        return ParsedAnswer(None, error=str(problem))


def find_match(output: Output, text: str) -> tuple[str, str]:
    """Verdict and reason (the text before it) by the file's pattern. Raises ValueError if there is none, or several.

    What is quoted, between fences or behind `>`, is not searched for a verdict that ends the answer.
    """
    anchored = output.match in ("end", "line")
    said = without_end_tokens(text)
    read_in = without_quotations(said) + text[len(said) :] if anchored else text
    matches = [match for match in re.finditer(output.pattern or "", read_in) if match.group(1) is not None]
    if not matches:
        raise ValueError("no verdict found")
    if output.match == "line":
        matches = given(read_in, matches)
    labels = list(dict.fromkeys(match.group(1).strip() for match in matches))
    if output.match in ("unique", "line") and len(labels) > 1:
        raise ValueError(f"two different verdicts: {labels[0]!r} and {labels[1]!r}")
    chosen = matches[0] if output.match == "first" else matches[-1]
    if anchored:
        require_end(read_in, chosen, labels)
    return chosen.group(1).strip(), text[: chosen.start()].strip()


def given(text: str, matches: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Return the matches that begin a line, or stand behind a finished sentence or the word "verdict".

    Others are somebody's, as in "Response A says: [[A]]". Raises ValueError if there is none.
    """
    found = []
    for match in matches:
        before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if not WORD.search(before) or GIVEN.search(before[-LONGEST_LEAD:]):
            found.append(match)
    if not found:
        raise ValueError(f"the verdict {matches[-1].group(1).strip()!r} has no line of its own")
    return found


def require_end(text: str, last: re.Match[str], labels: Sequence[str]) -> None:
    """Raise ValueError unless the last match is what the judge ends with, rather than something that it quotes.

    Behind it there may be no word. Where it is quoted, or where a different verdict stands before it, it must have a line
    of its own.
    """
    label, behind = last.group(1).strip(), without_end_tokens(text[last.end() :])
    if WORD.search(behind):
        raise ValueError(f"the answer does not end with its verdict: behind {label!r} it says {behind.strip()[:40]!r}")
    before = text[text.rfind("\n", 0, last.start()) + 1 : last.start()]
    if not WORD.search(before):
        return
    if len(labels) > 1:
        other = next(one for one in labels if one != label)
        raise ValueError(f"two different verdicts: {other!r} and {label!r}, and the last has no line of its own")
    if before[-1] in QUOTES and behind[:1] and behind[0] in QUOTES:
        raise ValueError(f"the verdict {label!r} is a quotation")


def find_json(output: Output, text: str) -> tuple[str, str]:
    """Verdict and reason from the JSON object that ends the answer, behind prose or not, or that begins it, with text behind.

    It may stand in a code fence and be followed by an end token; lines that begin with `>` are quoted. Raises ValueError if
    there is no such object, if a key stands twice in it, if it has no verdict, or if another object gives another verdict.
    """
    text = without_quoted_lines(without_end_tokens(text.strip())).rstrip().removesuffix("```").rstrip()
    found = objects(text)
    ends = bool(found) and found[-1].end == len(text)
    if not ends and not (found and BEGINNING.fullmatch(text[: found[0].start])):
        raise ValueError("no JSON object ends the answer or begins it")
    answer = found[-1 if ends else 0].value
    if output.key not in answer:
        raise ValueError(f"no {output.key!r} in the JSON object")
    label = as_label(answer[output.key])
    for other in (one.value for one in found):
        if output.key in other and as_label(other[output.key]) != label:
            raise ValueError(f"two different verdicts: {as_label(other[output.key])!r} and {label!r}")
    reason = answer.get(output.reason_key, "")
    return label, whole_text(reason) if isinstance(reason, str) else json.dumps(reason)


def without_end_tokens(text: str) -> str:
    """Return the text without blanks and written-out end tokens, such as `</s>` or `<|im_end|>`, behind it."""
    text = text.rstrip()
    while found := END_TOKEN.search(text, max(0, len(text) - LONGEST_TOKEN)):
        text = text[: found.start()].rstrip()
    return text


class Found(NamedTuple):
    """A JSON object in a text, and where it stands."""

    value: dict[str, Any]
    start: int
    end: int


def objects(text: str) -> list[Found]:
    """Return the JSON objects in a text, outermost ones, left to right."""
    decoder = json.JSONDecoder(object_pairs_hook=without_twins)
    found: list[Found] = []
    place = text.find("{")
    for _ in range(STARTS):
        if place < 0:
            break
        try:
            value, end = decoder.raw_decode(text, place)
            found.append(Found(value, place, end))
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    return found


def without_twins(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object as a dict. Raises ValueError if a key stands twice."""
    if len({key for key, _ in items}) < len(items):
        raise ValueError("a key stands twice in a JSON object")
    return dict(items)


def whole_text(text: str) -> str:
    """Return text with a question mark for each half of a surrogate pair, which no file can hold and JSON may escape."""
    return text.encode("utf-8", "replace").decode()


def as_label(value: Any) -> str:
    """Return a verdict in JSON, a text, a number or a truth value, as the text that a file's labels name it by.

    3 and 3.0 are `3`, true is `true`. Raises ValueError for anything else.
    """
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"the verdict {value!r} is neither text nor a number nor true or false")
    return key_text(value)


def read_logprobs(output: Output, menu: AnswerOptions, logprobs: Mapping[str, float]) -> ParsedAnswer:
    """Return the expected value under the labels' probabilities. `logprobs`: token -> log-probability in nats."""
    assert menu.labels is not None
    tokens = output.tokens or {}
    chances = {label: sum(math.exp(logprobs[token]) for token in tokens.get(label, (label,))) for label in menu.labels}
    mass = sum(chances.values())
    if not math.isfinite(mass) or mass <= 0:
        return ParsedAnswer(None, error="the model gave no probabilities for the labels")
    if mass < output.least_mass:
        return ParsedAnswer(None, error=f"the labels together have probability {mass:.2g}, below {output.least_mass:g}")
    value = sum(chance * menu.labels[label] for label, chance in chances.items()) / mass
    likeliest = max(chances, key=lambda label: chances[label])
    return ParsedAnswer(min(1.0, max(0.0, value)), likeliest, f"P({likeliest}) = {chances[likeliest] / mass:.3f}")


def answer_schema(output: Output, menu: AnswerOptions) -> dict[str, Any]:
    """Return the JSON schema of an answer: the file's own, or a reason and then a verdict on the menu."""
    if output.json_schema is not None:
        return output.json_schema
    verdict: dict[str, Any] = {"type": "string"}
    if menu.labels is not None:
        verdict = labels_schema(list(menu.labels))
    elif menu.range is not None:
        low, high = (int(number) if number.is_integer() else number for number in menu.range)
        kind = "integer" if isinstance(low, int) and isinstance(high, int) else "number"
        verdict = {"type": kind, "minimum": low, "maximum": high}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [output.reason_key, output.key],
        "properties": {output.reason_key: {"type": "string"}, output.key: verdict},
    }


def labels_schema(labels: Sequence[str]) -> dict[str, Any]:
    """Return the schema of a verdict that is one of the labels: truth values or numbers where all of them are."""
    if set(labels) == {"true", "false"}:
        return {"type": "boolean"}
    numbers = [json.loads(label) for label in labels if re.fullmatch(r"-?\d+(?:\.\d+)?", label)]
    if len(numbers) < len(labels):
        return {"type": "string", "enum": list(labels)}
    return {"type": "integer" if all(isinstance(one, int) for one in numbers) else "number", "enum": numbers}


def average(readings: Sequence[ParsedAnswer]) -> ParsedAnswer:
    """Return one reading from several answers to one question: the mean, if more than half of them can be read."""
    if len(readings) == 1:
        return readings[0]
    values = [reading.value for reading in readings if reading.value is not None]
    if 2 * len(values) <= len(readings):
        worst = next((reading.error for reading in readings if reading.error), "no answer")
        return ParsedAnswer(None, error=f"only {len(values)} of {len(readings)} answers can be read: {worst}")
    mean = sum(values) / len(values)
    nearest = min(
        (reading for reading in readings if reading.value is not None), key=lambda one: abs((one.value or 0.0) - mean)
    )
    return ParsedAnswer(
        mean, nearest.label, f"mean of {len(values)} answers; one of them: {nearest.reason}".rstrip(": ")
    )
