"""What goes to an OpenAI-compatible server and what comes back, as plain data: no network here.

Nothing of the answer is taken on trust: a page of HTML, an object without choices or one with other fields is no
answer. A refusal's sentence is found, and which setting changes that."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from selfplay.config import Endpoint, SamplingParams
from selfplay.engines import Answer, GuidedSampling
from selfplay.errors import ConfigError
from selfplay.records import Prompt, TemplatedPrompt

CURES = (
    (
        r"max_completion_tokens",
        "set endpoint.extra to {max_tokens: null, max_completion_tokens: 2048}, since this model takes no max_tokens",
    ),
    (
        r"context.{0,20}(length|window|size)|maximum.{0,20}(context|tokens)|too (many tokens|long)|n_ctx",
        "lower sampling.max_tokens or limits.response_characters, or ask a model with a longer context",
    ),
    (r"chat_template|enable_thinking", "take out reasoning.template, or the key of it that the server does not know"),
    (r"top_logprobs|logprobs", "lower top_logprobs with endpoint.extra: {top_logprobs: 5}, or use output.kind regex"),
    (
        r"response_format|json_schema|guided|structured|grammar",
        "set endpoint.guided to false, or output.json_schema to a schema that the server takes",
    ),
    (r"temperature", "set endpoint.extra to {temperature: null}, or sampling.temperature to the value that it takes"),
    (r"reasoning_effort|thinking|reasoning", "correct endpoint.extra, which has the fields for thinking"),
    (r"\bseed\b", "set endpoint.extra to {seed: null}"),
    (r"\bstop\b", "take strings out of sampling.stop"),
    (
        r"system.{0,10}(role|message|prompt)|roles? must alternate",
        "put the system message's text into the user's message",
    ),
    (r"\bn\b.{0,30}(support|must|greater|value|1)|number of (choices|completions)", "set sampling.n to 1"),
    (r"api[-_ ]version", "set endpoint.query to {api-version: ...}"),
    (r"max_tokens", "change sampling.max_tokens"),
    (r"\bmodel\b.{0,60}(not|unknown|invalid|exist)", "set `model` to a name that the server knows"),
)
"""Pattern in the server's sentence -> what to change; the first that matches counts."""
OTHERWISE = (
    "if it names a field of the call, endpoint.extra changes it, or takes it out with null (docs/judges.md, Servers)"
)

TOP_LOGPROBS = 20
"""Most log-probabilities that servers give per token."""
OVERHEAD_TOKENS = 256
"""Tokens that a chat template may add to a call, for the upper bound of its cost."""
MOST_TOKENS = 10_000_000
"""A count of tokens above this is nonsense: no model reads or writes as many in a call."""
LARGEST_LOGPROB = 1e-3
"""A log-probability is at most 0, but for rounding."""
LEAST_LOGPROB = -1e4
"""Anything below counts as this, whose probability is 0."""
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Where servers put what a model thought: vLLM, SGLang, DeepSeek and llama.cpp; OpenRouter and Ollama; others."""


class BadAnswer(Exception):
    """The server answered, but not with an answer; the message says what is wrong with it."""


def request_body(
    config: Endpoint, model: str, prompt: Prompt, sampling: SamplingParams, choices: Sequence[str] | None
) -> dict[str, Any]:
    """Return the fields of one call. Raises ConfigError for a conversation where the server only completes text."""
    body: dict[str, Any] = {"model": model}
    if config.api == "chat":
        body["messages"] = [message.model_dump() for message in prompt.messages]
        if isinstance(prompt, TemplatedPrompt) and prompt.options:
            body["chat_template_kwargs"] = dict(prompt.options)
    elif len(prompt.messages) == 1:
        body["prompt"] = prompt.text
    else:
        raise ConfigError(
            f"prompt {prompt.id!r} is a conversation of {len(prompt.messages)} messages, but "
            "endpoint.api is "
            "completions: use api chat, or templates of a single message"
        )
    if choices is not None:
        body |= {"max_tokens": 1, "temperature": 0.0}
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if config.api == "chat" else {"logprobs": TOP_LOGPROBS}
    else:
        body |= {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "n": sampling.n,
        }
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if config.guided and isinstance(sampling, GuidedSampling):
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": sampling.json_schema},
            }
    return {key: value for key, value in {**body, **config.extra}.items() if value is not None}


class Usage(NamedTuple):
    """Tokens that a server counted: read, those of them that it remembered from an earlier call, and written."""

    read: int = 0
    cached: int = 0
    written: int = 0


def worst_cost(config: Endpoint, body: dict[str, Any]) -> float:
    """Dollars that a call can cost at most: a token read is at least one byte of the call.

    Raises ConfigError if `extra` leaves the tokens written without a limit while there is one on the cost.
    """
    if not config.costs:
        return 0.0
    read = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")) + OVERHEAD_TOKENS
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body]
    counts = [*limits, body.get("n", 1)]
    if not limits or not all(type(count) is int and count > 0 for count in counts):
        raise ConfigError(
            "what a call may cost is not known: endpoint.extra leaves neither max_tokens nor max_completion_tokens with a "
            "number in it (nor n, if it sets that): give one, such as max_completion_tokens: 2048"
        )
    prices = (
        config.input_price,
        config.input_price if config.cached_input_price is None else config.cached_input_price,
    )
    return (read * max(prices) + max(limits) * counts[-1] * config.output_price) / 1e6


def cost_of(config: Endpoint, usage: Usage) -> float:
    """Dollars for so many tokens."""
    remembered = config.input_price if config.cached_input_price is None else config.cached_input_price
    fresh = usage.read - usage.cached
    return (fresh * config.input_price + usage.cached * remembered + usage.written * config.output_price) / 1e6


def read_usage(payload: Any) -> Usage | None:
    """Return the tokens that the server counted; None if it did not count. Raises BadAnswer for counts that cannot be.

    A count of no tokens read is none, since no call is empty.
    """
    usage = payload.get("usage") if isinstance(payload, dict) else None
    if usage is None:
        return None
    if not isinstance(usage, dict):
        raise BadAnswer(f"the answer's usage is not an object: {str(usage)[:100]}")
    counts: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if counts == [None, None]:
        return None
    if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
        raise BadAnswer(f"the answer's usage cannot be: {str(usage)[:100]}")
    if counts[0] == 0:
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("prompt_cache_hit_tokens")
    return Usage(counts[0], cached if type(cached) is int and 0 <= cached <= counts[0] else 0, counts[1])


def says_something(answer: Answer) -> bool:
    """Return whether an answer holds what cannot have been written without a token."""
    return any(answer.texts) or any(answer.thoughts) or bool(answer.logprobs)


def read_answer(config: Endpoint, payload: Any, count: int, choices: Sequence[str] | None) -> Answer:
    """Return the server's `payload` as an answer of `count` texts, or of log-probabilities. Raises BadAnswer if it is none.

    What it cost is not looked at here.
    """
    if not isinstance(payload, dict):
        raise BadAnswer(f"the answer is a {type(payload).__name__}, not an object")
    given = payload.get("choices")
    if not isinstance(given, list) or not given or not all(isinstance(choice, dict) for choice in given):
        raise BadAnswer(f"the answer has no choices: {str(payload.get('error') or payload)[:200]}")
    if choices is not None:
        return Answer(logprobs=read_logprobs(config, given[0], choices))
    if len(given) != count:
        raise BadAnswer(f"the answer has {len(given)} choices, not {count}")
    said = [read_text(config, choice) for choice in given]
    thoughts = tuple(thought for _, thought in said)
    return Answer(
        tuple(text for text, _ in said),
        tuple(_reason(choice) for choice in given),
        thoughts=thoughts if any(thoughts) else (),
    )


def read_text(config: Endpoint, choice: dict[str, Any]) -> tuple[str, str]:
    """Return the text of one choice and what the model thought before it, each empty if there is none.

    A message without content is an empty text, or the sentence with which the model refuses. Raises BadAnswer for a text
    that cannot be one.
    """
    holder = choice.get("message") if config.api == "chat" else choice
    if not isinstance(holder, dict):
        raise BadAnswer(f"a choice holds no text: {str(choice)[:200]}")
    thought = next((holder[name] for name in THOUGHT_FIELDS if isinstance(holder.get(name), str)), "")
    name = "content" if config.api == "chat" else "text"
    if name not in holder and not thought:
        raise BadAnswer(f"a choice holds no text: {str(choice)[:200]}")
    text = holder.get(name)
    if isinstance(text, list):
        parts = [_part(part) for part in text]
        text, thought = "".join(said for said, _ in parts), thought or "".join(thinking for _, thinking in parts)
    text = text if text is not None else holder.get("refusal") or ""
    if not isinstance(text, str):
        raise BadAnswer(f"a choice holds no text: {str(choice)[:200]}")
    for value in (text, thought):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise BadAnswer("a text holds half of a surrogate pair, which is not a character")
    return text, thought


def _part(part: Any) -> tuple[str, str]:
    """Return one part of a content in parts, as (text, thought)."""
    kind = part.get("type") if isinstance(part, dict) else None
    value = part.get(kind) if kind in ("text", "thinking") else None
    if kind == "thinking" and isinstance(value, list):
        value = "".join(_part(piece)[0] for piece in value)
    if not isinstance(value, str):
        raise BadAnswer(f"a part of the content holds no text: {str(part)[:200]}")
    return (value, "") if kind == "text" else ("", value)


def _reason(choice: dict[str, Any]) -> str:
    """`stop`, or `length` for a text that was cut off. Raises BadAnswer for one that the server held back."""
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise BadAnswer("the server's content filter held the answer back")
    return "length" if reason == "length" else "stop"


def read_logprobs(config: Endpoint, choice: dict[str, Any], choices: Sequence[str]) -> dict[str, float]:
    """Choice -> log-probability in nats as the first token.

    Servers name only the likeliest tokens: a choice that is not among them gets the least value named, an upper bound
    that makes a preference milder and never stronger; if none of the choices is, all are nan. Raises BadAnswer if the
    answer names no log-probabilities, or some that are none.
    """
    try:
        if config.api == "chat":
            named = {row["token"]: row["logprob"] for row in choice["logprobs"]["content"][0]["top_logprobs"]}
        else:
            named = dict(choice["logprobs"]["top_logprobs"][0].items())
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise BadAnswer("the answer names no log-probabilities; does the server give them?") from None
    for token, value in named.items():
        if type(value) not in (int, float) or not value <= LARGEST_LOGPROB:
            raise BadAnswer(f"the log-probability of {str(token)[:40]!r} is {str(value)[:40]}, and none is above 0")
    named = {token: float(max(value, LEAST_LOGPROB)) for token, value in named.items()}
    if sum(math.exp(value) for value in named.values()) > 1.01:
        raise BadAnswer(f"the probabilities of tokens add up to more than 1: {str(named)[:200]}")
    if not named or not any(token in named for token in choices):
        return dict.fromkeys(choices, math.nan)
    least = min(named.values())
    return {token: named.get(token, least) for token in choices}


def sentence_of(text: str) -> str:
    """Return the server's own sentence in the body of a refusal, wherever it put it; the body if it has none."""
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        return " ".join(text.split())
    for _ in range(3):
        if isinstance(payload, dict):
            payload = next((payload[name] for name in ("error", "message", "detail") if payload.get(name)), text)
    return " ".join(str(payload).split())


def cure_of(message: str) -> str:
    """Return the setting to change after a refusal for good."""
    return next((cure for pattern, cure in CURES if re.search(pattern, message, re.IGNORECASE)), OTHERWISE)
