"""What goes to an OpenAI-compatible server and what comes back, as plain data: no network here.

Nothing of the answer is taken on trust: a page of HTML, an object without choices or one with other fields is no
answer."""

import math
from collections.abc import Sequence
from typing import Any

from selfplay.config import Endpoint, Sampling
from selfplay.engines import Answer, GuidedSampling
from selfplay.errors import ConfigError
from selfplay.records import Prompt

TOP_LOGPROBS = 20
"""Most log-probabilities that servers give per token."""
OVERHEAD_TOKENS = 64
"""Tokens that a chat template may add to a message, for the upper bound of a call's cost."""


class BadAnswer(Exception):
    """The server answered, but not with an answer; the message says what is wrong with it."""


def request_body(
    config: Endpoint, model: str, prompt: Prompt, sampling: Sampling, choices: Sequence[str] | None
) -> dict[str, Any]:
    """The fields of one call. Raises ConfigError for a conversation where the server only completes text."""
    body: dict[str, Any] = {"model": model}
    if config.api == "chat":
        body["messages"] = [message.model_dump() for message in prompt.messages]
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


def worst_cost(config: Endpoint, body: dict[str, Any]) -> float:
    """Dollars that a call can cost at most: a token is at least one byte of the prompt."""
    texts = [message["content"] for message in body["messages"]] if "messages" in body else [body["prompt"]]
    read = sum(len(text.encode("utf-8", "replace")) + OVERHEAD_TOKENS for text in texts)
    written = body.get("max_tokens", body.get("max_completion_tokens", 0)) * body.get("n", 1)
    return cost_of(config, read, written)


def cost_of(config: Endpoint, read: int, written: int) -> float:
    """Dollars for so many tokens."""
    return (read * config.input_price + written * config.output_price) / 1e6


def spent_on(config: Endpoint, payload: Any) -> tuple[int, int, float]:
    """Tokens read, tokens written and dollars, as the server counts them; 0 where it does not."""
    usage = payload.get("usage") if isinstance(payload, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) else 0 for count in counts)
    return read, written, cost_of(config, read, written)


def read_answer(config: Endpoint, payload: Any, count: int, choices: Sequence[str] | None) -> Answer:
    """The server's `payload` as an answer of `count` texts, or of log-probabilities. Raises BadAnswer if it is none."""
    if not isinstance(payload, dict):
        raise BadAnswer(f"the answer is a {type(payload).__name__}, not an object")
    given = payload.get("choices")
    if not isinstance(given, list) or not given or not all(isinstance(choice, dict) for choice in given):
        raise BadAnswer(f"the answer has no choices: {str(payload.get('error') or payload)[:200]}")
    read, written, cost = spent_on(config, payload)
    if choices is not None:
        return Answer(
            logprobs=read_logprobs(config, given[0], choices), input_tokens=read, output_tokens=written, cost=cost
        )
    if len(given) != count:
        raise BadAnswer(f"the answer has {len(given)} choices, not {count}")
    return Answer(
        tuple(_text(config, choice) for choice in given),
        tuple(_reason(choice) for choice in given),
        input_tokens=read,
        output_tokens=written,
        cost=cost,
    )


def _text(config: Endpoint, choice: dict[str, Any]) -> str:
    """The text of one choice; a message without content is an empty text."""
    holder, name = (choice.get("message"), "content") if config.api == "chat" else (choice, "text")
    text = holder.get(name) if isinstance(holder, dict) and name in holder else False
    if text is not None and not isinstance(text, str):
        raise BadAnswer(f"a choice holds no text: {str(choice)[:200]}")
    return text or ""


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
    answer names no log-probabilities.
    """
    try:
        if config.api == "chat":
            named = {row["token"]: float(row["logprob"]) for row in choice["logprobs"]["content"][0]["top_logprobs"]}
        else:
            named = {token: float(value) for token, value in choice["logprobs"]["top_logprobs"][0].items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise BadAnswer("the answer names no log-probabilities; does the server give them?") from None
    if not named or not any(token in named for token in choices):
        return dict.fromkeys(choices, math.nan)
    least = min(named.values())
    return {token: named.get(token, least) for token in choices}
