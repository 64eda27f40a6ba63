"""What a row of somebody's data says: a conversation, whichever names its columns and roles have.

Known are a prompt (a text or messages) with or without an answer, OpenAI's `messages`, ShareGPT's `conversations`,
Alpaca's `instruction` and `input`, questions with answers, and preferences with their prompt inside (HH's transcripts).
Left out: images and sound, which are refused by name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay.config import Unusable, parse_json
from selfplay.errors import ConfigError
from selfplay.records import Message

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
}
"""Role as data has it -> role as chat templates know it."""
CONVERSATIONS = ("messages", "conversations", "conversation")
TEXTS = {"instruction": "Alpaca", "question": "question and answer", "query": "question and answer"}
ANSWERS = ("completion", "response", "output", "answer", "chosen")
SYSTEMS = ("system", "system_prompt")
IMAGES = ("image", "images", "video", "videos", "audio", "audios")
UNSEEN = ("tools", "functions")
"""Columns that change what a chat model sees elsewhere, and that are not shown to it here."""
TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Conversation:
    """A row as turns: `shape` names what it was, `columns` the row's columns that the request came from."""

    shape: str
    messages: tuple[Message, ...]
    columns: frozenset[str]

    @property
    def request(self) -> tuple[Message, ...]:
        """The turns up to the last that is not the assistant's: what the model is asked."""
        end = len(self.messages)
        while end and self.messages[end - 1].role == "assistant":
            end -= 1
        return self.messages[:end]

    @property
    def answer(self) -> str | None:
        """The assistant's turns behind the request; None if there are none."""
        behind = [message.content for message in self.messages[len(self.request) :]]
        return "\n".join(behind) if behind else None


def conversation_of(row: Mapping[str, Any], column: str, where: str) -> Conversation:
    """Return what a row says, from its `column`, or where that is `prompt` and not there, from columns that are known.

    Raises ConfigError naming `where` for a row that holds no prompt, or an image.
    """
    for name in IMAGES:
        if row.get(name):
            raise ConfigError(
                f"{where}: column {name!r} holds more than text, and models here read text alone: leave it out"
            )
    found = _known(row, column, where)
    if found is None:
        raise ConfigError(
            f"{where}: column {column!r} holds no prompt (there are: {', '.join(sorted(map(str, row)))}); name "
            "the column with `column`"
        )
    system = next(
        (name for name in SYSTEMS if name != column and isinstance(row.get(name), str) and row[name].strip()), None
    )
    if system is not None and found.messages[0].role != "system":
        turn = Message(role="system", content=row[system])
        found = Conversation(found.shape, (turn, *found.messages), found.columns | {system})
    if not found.request:
        raise ConfigError(f"{where}: the conversation has no turn of the user's")
    if not found.request[-1].content.strip():
        raise ConfigError(f"{where}: the prompt is empty")
    return found


def _known(row: Mapping[str, Any], column: str, where: str) -> Conversation | None:
    """Return the conversation of the first shape that the row has, or None."""
    value = parsed(row.get(column), f"{where}, column {column!r}")
    if isinstance(value, str):
        if column == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
            turn = Message(role="user", content=f"{value}\n\n{row['input']}")
            return Conversation(TEXTS[column], (turn, *answer_of(row, where)), frozenset({column, "input"}))
        shape = TEXTS.get(column, column)
        turn = Message(role="user", content=value)
        return Conversation(shape, (turn, *answer_of(row, where)), frozenset({column}))
    if isinstance(value, list) and value:
        turns = messages_of(value, where)
        behind = () if turns[-1].role == "assistant" else answer_of(row, where)
        return Conversation(_list_shape(value), (*turns, *behind), frozenset({column}))
    if column != "prompt" or column in row:
        return None
    for name in (*CONVERSATIONS, *TEXTS):
        if row.get(name) and (
            name not in CONVERSATIONS or isinstance(parsed(row[name], f"{where}, column {name!r}"), list)
        ):
            return _known(row, name, where)
    if "chosen" in row and "rejected" in row:
        return _preference(row, where)
    return None


def _list_shape(turns: Sequence[Any]) -> str:
    return "ShareGPT" if isinstance(turns[0], dict) and "from" in turns[0] else "messages"


def _preference(row: Mapping[str, Any], where: str) -> Conversation | None:
    """Return the conversation of a preference that repeats its prompt in both answers; the better one is its end."""
    chosen = parsed(row["chosen"], f"{where}, column 'chosen'")
    if isinstance(chosen, list) and len(chosen) > 1:
        return Conversation("preferences", messages_of(chosen, where), frozenset({"chosen"}))
    if isinstance(chosen, str) and TRANSCRIPT.match(chosen):
        return Conversation("transcripts (HH)", transcript_of(chosen), frozenset({"chosen"}))
    return None


def transcript_of(text: str) -> tuple[Message, ...]:
    r"""Return the turns of a transcript `\n\nHuman: ...\n\nAssistant: ...`, as HH-RLHF writes it."""
    parts = TRANSCRIPT.split(text)[1:]
    return tuple(
        Message(role="user" if speaker == "Human" else "assistant", content=said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )


def answer_of(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """Return the answer that stands in a column of its own, as a turn; nothing if there is none."""
    for name in ANSWERS:
        value = parsed(row.get(name), f"{where}, column {name!r}")
        if isinstance(value, str) and value.strip():
            return (Message(role="assistant", content=value),)
        if isinstance(value, list) and value and isinstance(value[-1], dict):
            last = messages_of(value, where)[-1]
            if last.role == "assistant" and last.content.strip():
                return (last,)
    return ()


def parsed(value: Any, where: str) -> Any:
    """Return a list of messages that a cell of a CSV file holds as JSON, or the value as it is.

    Raises ConfigError naming `where` for JSON that nothing can be done with.
    """
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):
        return _json_or_text(value, where)
    return value


def _json_or_text(text: str, where: str) -> Any:
    """Return what JSON says, or the text if it is none. Raises ConfigError for JSON that nothing can be done with."""
    try:
        return parse_json(text)
    except Unusable as error:
        raise ConfigError(f"{where}: {error}") from None
    except ValueError:
        return text


def messages_of(turns: Sequence[Any], where: str) -> tuple[Message, ...]:
    """Return turns under the names of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`) as messages.

    Raises ConfigError naming `where`.
    """
    return tuple(_message(turn, where) for turn in turns)


def _message(turn: Any, where: str) -> Message:
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    known = ROLES.get(str(role).lower())
    if known is None or not isinstance(turn, dict):
        said = f", not {role!r}" if role is not None else ""
        raise ConfigError(
            f"{where}: a message needs a `role` (system, user, assistant, tool or developer{said}) and a `content`"
        )
    content = next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), None)
    calls = _calls(turn.get("tool_calls"), where)
    if content is None and not calls:
        raise ConfigError(f"{where}: the message of role {role!r} has no `content`")
    text = "" if content is None else _text_of(content, where)
    return Message.model_validate(
        {"role": known, "content": "\n".join([*([text] if text else []), *calls]) if calls else text}
    )


def _text_of(content: Any, where: str) -> str:
    """Return a message's text; of a list of parts, the texts on lines of their own. Raises ConfigError for other parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ConfigError(f"{where}: a message's `content` is a text or a list of parts, not {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise ConfigError(
                f"{where}: a message has a part of type {kind!r}, and models here read text alone: leave such rows out"
            )
        texts.append(text)
    return "\n".join(texts)


def _calls(calls: Any, where: str) -> list[str]:
    """Return an assistant's tool calls as texts. Raises ConfigError naming `where` for what is no list of calls."""
    if calls is not None and not isinstance(calls, list | tuple):
        raise ConfigError(f"{where}: a message's `tool_calls` is a list of calls, not {type(calls).__name__}")
    return [_call_text(call, where) for call in calls or ()]


def _call_text(call: Any, where: str) -> str:
    """Return a tool call of an assistant's as text, in the form that Hermes and Qwen write it."""
    function = call.get("function", call) if isinstance(call, dict) else {"name": str(call)}
    if not isinstance(function, dict):
        raise ConfigError(
            f"{where}: a call in `tool_calls` has the `function` {ascii(function)[:60]}; it must be a mapping with `name` and "
            "`arguments`"
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json_or_text(arguments, f"{where}, the arguments of a tool call")
    body = json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False, default=str)
    return f"<tool_call>\n{body}\n</tool_call>"
