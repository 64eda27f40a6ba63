"""What a server says when it refuses a call, and which setting changes that."""

import json
import re

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
