"""Tells what a judge thought from what it answered: only the answer is read, and both are kept.

A server may send the thinking in a field of its own; else the model writes it between tags, of which the first may be
missing where the chat template writes it. Thinking is never searched for a verdict, with one exception: a whole JSON
object that a server with a reasoning parser took for thinking, though nothing followed it.
"""

import json
import re
from collections.abc import Sequence
from itertools import accumulate

from judges.llm.parse import AnswerOptions, ParsedAnswer, read
from judges.spec.sections import Output, Reasoning
from selfplay.engines import Answer

LESS = "or turn thinking off (reasoning.chat_template_kwargs: {enable_thinking: false}, or the server's own setting)"
CURES = (
    ("thinking", ""),  # says it itself
    ("cut off at max_tokens", "raise sampling.max_tokens, or reasoning.budget if it thinks without tags"),
    ("the server answered", ""),
    ("no answer within", "raise endpoint.timeout, or lower endpoint.concurrency"),
    ("labels together have probability", "give the tokens that it does say in output.tokens, " + LESS),
    ("empty answer", "look at the model's chat template and its end tokens"),
    ("JSON", "say in the template that the answer is one JSON object, or set output.json_schema"),
    ("verdict", "say in the template how the answer must end, and give output.pattern for just that"),
)
"""What an error says -> what most likely fixes it."""


def split(text: str, tags: tuple[str, str]) -> tuple[str, str, bool]:
    """Return what a model thought, what it answered, and whether its thinking came to an end, if it thought at all.

    The last closing tag counts: whatever the thinking quotes, the answer is behind all of it. Only in a string of a JSON
    object that the text begins with, and that is still open there, is it part of an answer.
    """
    opening, closing = tags
    begun = text.lstrip().startswith(opening)
    if closing in text and (begun or not quoted_in_object(text, closing)):
        thought, _, answer = text.rpartition(closing)
        return thought.strip().removeprefix(opening).strip(), answer.strip(), True
    if begun:
        return text.strip().removeprefix(opening).strip(), "", False
    return "", text, True


def quoted_in_object(text: str, tag: str) -> bool:
    """Return whether the last `tag` stands in a string of the JSON object that `text` begins with, cut off or not."""
    before = text[: text.rindex(tag)].lstrip()
    code, open_string, _ = re.sub(r'"(?:[^"\\]|\\.)*"', "", before, flags=re.DOTALL).partition('"')
    depths = accumulate({"{": 1, "}": -1}.get(sign, 0) for sign in code)
    return code.startswith("{") and bool(open_string) and all(depth > 0 for depth in depths)


def hear(output: Output, menu: AnswerOptions, reasoning: Reasoning, answer: Answer) -> list[ParsedAnswer]:
    """Return the verdict in each text of an answer, read behind the thinking."""
    thoughts = answer.thoughts or ("",) * len(answer.texts)
    return [
        _hear_one(output, menu, reasoning, *one)
        for one in zip(answer.texts, thoughts, answer.finish_reasons, strict=True)
    ]


def _hear_one(
    output: Output, menu: AnswerOptions, reasoning: Reasoning, text: str, sent: str, reason: str
) -> ParsedAnswer:
    thought, said, ended = split(text, reasoning.tags)
    thought = sent or thought
    if said.strip() or not thought:
        return read(output, menu, said, reason)
    if reason == "length":
        return ParsedAnswer(
            None, error=f"the thinking took all tokens: raise reasoning.budget, now {reasoning.budget}, {LESS}"
        )
    if output.kind == "json" and sent and is_object(sent):
        return read(output, menu, sent, reason)
    if not ended:
        return ParsedAnswer(
            None, error=f"the thinking never ends with {reasoning.tags[1]!r}: set reasoning.tags, {LESS}"
        )
    return ParsedAnswer(
        None, error=f"no answer behind {len(thought)} characters of thinking: raise reasoning.budget, {LESS}"
    )


def is_object(text: str) -> bool:
    """Return whether a text is one JSON object and nothing else."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def answered(answer: Answer, reasoning: Reasoning) -> str:
    """Return the texts of an answer without thinking, as one."""
    return "\n\n---\n\n".join(split(text, reasoning.tags)[1] for text in answer.texts)


def with_thoughts(answer: Answer, reasoning: Reasoning) -> str:
    """Return the texts of an answer with what was thought before each, as one, for people."""
    opening, closing = reasoning.tags
    thoughts = answer.thoughts or ("",) * len(answer.texts)
    return "\n\n---\n\n".join(
        f"{opening}\n{thought}\n{closing}\n\n{text}" if thought else text
        for text, thought in zip(answer.texts, thoughts, strict=True)
    )


def example(failures: Sequence[tuple[str, str]]) -> str:
    """Return one of the answers that could not be read, given as (error, raw), why, and what most likely fixes it."""
    error, raw = max(failures, key=lambda failure: sum(failure[0] == other for other, _ in failures))
    cure = next((what for sign, what in CURES if sign in error), "")
    return "; ".join(part for part in (error + (f": {raw[:160]!r}" if raw else ""), cure) if part)
