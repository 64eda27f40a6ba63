"""Preferences that exist already: a prompt, an answer that was chosen and one that was rejected, in the shapes that data has.

UltraFeedback's messages with the prompt in a column of its own or inside both answers, HH-RLHF's transcripts, and plain texts.
Left out: rankings of more than two, and scores; write them as pairs.
"""

from collections.abc import Mapping
from typing import Any

from prompts.files import rows_of
from prompts.shapes import TRANSCRIPT, messages_of, parsed, transcript_of
from prompts.sources import prompt_of
from selfplay.errors import ConfigError
from selfplay.records import Message, Prompt

COLUMNS = ("chosen", "rejected")


def load_preferences(source: str) -> tuple[list[tuple[Prompt, str, str]], int]:
    """Return each pair as prompt, chosen text and rejected text, and how many rows are no pair of different answers.

    Raises ConfigError for a file that cannot be read, for rows without the columns, and where no pair is left.
    """
    found, dropped = [], 0
    for number, row in enumerate(rows_of(source, "train"), 1):
        pair = _pair(row, f"{source}, row {number}")
        if pair is None:
            dropped += 1
        else:
            found.append(pair)
    if not found:
        raise ConfigError(
            f"{source!r} holds no preferences: all of {dropped} rows give the same answer twice, or answers to two prompts"
        )
    return found, dropped


def _pair(row: Mapping[str, Any], where: str) -> tuple[Prompt, str, str] | None:
    """Return a row's pair, None if it has not one prompt and two answers that differ."""
    missing = [name for name in COLUMNS if not row.get(name)]
    if missing:
        raise ConfigError(
            f"{where}: column {missing[0]!r} is missing or empty (there are: {', '.join(sorted(row))}); preferences have "
            "the columns chosen and rejected, and prompt unless both answers begin with it"
        )
    asked = prompt_of(dict(row), "prompt", where) if row.get("prompt") else None
    chosen, rejected = (_turns(row[name], asked, where, name) for name in COLUMNS)
    *before, answer = chosen
    if (asked is None and not before) or answer.role != "assistant":
        raise ConfigError(
            f"{where}: there is no column `prompt`, and `chosen` is no conversation that begins with it and ends with an "
            "answer: add the column"
        )
    if before != rejected[:-1] or rejected[-1].role != "assistant" or answer.content == rejected[-1].content:
        return None
    own = {key: value for key, value in row.items() if key not in (*COLUMNS, "prompt")}
    prompt = asked or prompt_of({**own, "prompt": [turn.model_dump() for turn in before]}, "prompt", where)
    return prompt, answer.content, rejected[-1].content


def _turns(value: Any, asked: Prompt | None, where: str, name: str) -> list[Message]:
    """Return an answer as turns of a conversation, without the prompt's if that has a column of its own."""
    value = parsed(value, f"{where}, column {name!r}")
    if isinstance(value, list):
        turns = list(messages_of(value, where))
    elif isinstance(value, str) and asked is None and TRANSCRIPT.match(value):
        turns = list(transcript_of(value))
    elif isinstance(value, str):
        return [Message(role="assistant", content=value)]
    else:
        raise ConfigError(f"{where}: `{name}` is a {type(value).__name__}; it must be a text or a list of messages")
    known = list(asked.messages) if asked is not None else []
    return turns[len(known) :] if known and turns[: len(known)] == known and len(turns) > len(known) else turns
