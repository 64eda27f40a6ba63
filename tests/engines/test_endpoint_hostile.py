"""Answers that are none: a failed call with its reason, soon, in little memory, and never in the cache."""

import asyncio
import gzip
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from asking_servers import engine, judge_and_pairs, prompts
from misbehaving import HOSTILE, ODD_WAITS, serving, url

from judges.llm.cache import AnswerCache
from selfplay.config import Endpoint, SamplingParams
from selfplay.engines.endpoint_calls import BadAnswer, read_logprobs, read_text
from selfplay.engines.endpoint_http import read_bounded
from selfplay.errors import ConfigError

CHAT = Endpoint(url="http://x/v1")


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_answer_is_a_failed_call_and_never_cached(fault: str, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "cache.sqlite")
    with serving(lambda text, number: fault if "a 0" in text else "") as server:
        judge, pairs = judge_and_pairs(server, cache, 2, retries=1)
        rows = judge.judge(pairs)
        assert [row.preference is None for row in rows] == [True, True, False, False]
        assert all(row.error.endswith("(2 tries)") and not row.raw for row in rows[:2])
        assert cache.spent()["answers"] == 2
        [told] = engine(server, retries=0).stream(prompts(1), SamplingParams())
        assert told[1] is not None
        server.fault = lambda text, number: ""
        assert all(row.preference is not None for row in judge.judge(pairs))


def test_a_bomb_takes_little_memory_and_no_time() -> None:
    """256 MiB from a quarter of a MiB, sixteen times at once: no more than 16 MiB of each are ever unpacked."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with serving(lambda text, number: "gzip bomb") as server:
        rows = list(engine(server, retries=0, concurrency=4).stream(prompts(8), SamplingParams()))
    assert {error for _, _, error in rows} == {"the answer is larger than 16 MiB (1 tries)"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # KiB; 2 GiB unpacked in full
    assert time.monotonic() - began < 60


def test_what_stands_behind_the_end_of_a_packed_body_is_bounded_too() -> None:
    """zlib keeps it: 200 MiB of it took 200 MiB."""

    async def body() -> AsyncIterator[bytes]:
        yield gzip.compress(b"{}")
        for _ in range(parts):
            yield bytes(2**20)

    parts = 4
    response = httpx.Response(200, headers={"content-encoding": "gzip"}, content=body())
    assert asyncio.run(read_bounded(response)) == b"{}"
    parts = 17
    response = httpx.Response(200, headers={"content-encoding": "gzip"}, content=body())
    with pytest.raises(BadAnswer, match="larger than 16 MiB"):
        asyncio.run(read_bounded(response))


@pytest.mark.parametrize("wait", ODD_WAITS)
def test_an_odd_retry_after_neither_fails_nor_waits(wait: str) -> None:
    with serving(lambda text, number: f"retry after {wait}" if number == 0 else "") as server:
        began = time.monotonic()
        assert [len(row) for row in engine(server, longest_wait=0.05).generate(prompts(2), SamplingParams())] == [1, 1]
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "place", ["http://[x", "http://h:99999999/", "http://a\u2100b/".encode().decode("latin-1"), "//"]
)
def test_a_redirect_that_leads_nowhere_is_a_sentence(place: str) -> None:
    with serving(lambda text, number: "redirect") as server:
        server.moved_to = place
        said: list[str] = []
        try:
            said += [error for _, _, error in engine(server, retries=0).stream(prompts(1), SamplingParams())]
        except ConfigError as refusal:
            said += [str(refusal)]
    assert len(said) == 1 and ("the connection failed: " in said[0] or "sends its callers to" in said[0])


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:99999/v1",
        "http://127.0.0.1:0/v1",
        "http://h:x/v1",
        "http://[::1/v1",
        f"http://{'a' * 64}.de/v1",
        "http://a..b/v1",
        "http://a b/v1",
        "http://a\x00b/v1",
    ],
)
def test_an_address_that_cannot_be_is_refused_when_it_is_read(address: str) -> None:
    with pytest.raises(ValueError, match="nothing can be at this address"):
        Endpoint(url=address)
    assert Endpoint(url="http://[::1]:8000/v1").url and Endpoint(url="http://judge.example.:65535/v1").url


def test_a_redirect_is_refused_and_the_prompt_goes_nowhere_else() -> None:
    with serving() as elsewhere, serving(lambda text, number: "redirect") as server:
        server.moved_to = f"{url(elsewhere)}/chat/completions?prompt=secret"
        with pytest.raises(
            ConfigError, match=r"sends its callers to http://127.0.0.1 \(307\).*set endpoint.url"
        ) as refusal:
            list(engine(server, concurrency=1).stream(prompts(5), SamplingParams()))
        assert "secret" not in str(refusal.value)
        assert not elsewhere.tries and sum(server.tries.values()) == 1


@pytest.mark.parametrize("value", [1000.0, 0.5, float("nan"), float("inf"), True, "-0.1", None, 10**400])
def test_a_log_probability_above_zero_is_none(value: object) -> None:
    chat = {"logprobs": {"content": [{"top_logprobs": [{"token": "A", "logprob": value}]}]}}
    text = {"logprobs": {"top_logprobs": [{"A": value}]}}
    with pytest.raises(BadAnswer, match="the log-probability of 'A' is"):
        read_logprobs(CHAT, chat, ["A", "B"])
    with pytest.raises(BadAnswer, match="the log-probability of 'A' is"):
        read_logprobs(CHAT.model_copy(update={"api": "completions"}), text, ["A", "B"])


def test_probabilities_add_up_to_at_most_one() -> None:
    def named(**values: float) -> dict[str, object]:
        rows = [{"token": token, "logprob": value} for token, value in values.items()]
        return {"logprobs": {"content": [{"top_logprobs": rows}]}}

    with pytest.raises(BadAnswer, match="the probabilities of tokens add up to more than 1"):
        read_logprobs(CHAT, named(A=-0.1, B=-0.1), ["A", "B"])
    assert read_logprobs(CHAT, named(A=0.0, B=-9999.0), ["A", "B"]) == {"A": 0.0, "B": -9999.0}
    assert read_logprobs(CHAT, named(A=-0.7, B=float("-inf")), ["A", "B"]) == {"A": -0.7, "B": -1e4}


@pytest.mark.parametrize(
    ("message", "text", "thought"),
    [
        ({"content": "[[A]]"}, "[[A]]", ""),
        ({"content": None}, "", ""),
        ({"content": "[[A]]", "reasoning_content": "[[B]]"}, "[[A]]", "[[B]]"),  # vLLM, SGLang, DeepSeek, llama.cpp
        ({"content": "[[A]]", "reasoning": "[[B]]"}, "[[A]]", "[[B]]"),  # OpenRouter, Ollama
        ({"reasoning_content": "on and on"}, "", "on and on"),
        ({"content": None, "refusal": "I cannot."}, "I cannot.", ""),  # OpenAI
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "[[B]]"}]},
                    {"type": "text", "text": "A"},
                ]
            },
            "A",
            "[[B]]",
        ),  # Mistral
    ],
)
def test_text_and_thought_in_the_fields_of_several_servers(message: dict[str, object], text: str, thought: str) -> None:
    assert read_text(CHAT, {"message": message}) == (text, thought)


@pytest.mark.parametrize(
    ("sentence", "cure"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         "endpoint.extra to {max_tokens: null, max_completion_tokens"),
        ("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
         "{temperature: null}"),
        ("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens", "limits.response_characters"),
        ("Invalid value for 'top_logprobs': must be less than or equal to 5.", "{top_logprobs: 5}"),
        ("response_format type json_schema is not supported by this backend", "endpoint.guided to false"),
        ("Unknown parameter: 'seed'", "{seed: null}"),
        ("System role not supported", "user's message"),
        ("something else entirely", "endpoint.extra changes it"),
    ],
)  # fmt: skip
def test_a_refusal_for_good_names_the_setting_to_change(sentence: str, cure: str) -> None:
    with serving(lambda text, number: f"refuse: {sentence}") as server:
        asked = engine(server, concurrency=4)
        [(_, answer, error)] = asked.stream(prompts(1), SamplingParams())
        assert answer is None and sentence in error and cure in error
        with pytest.raises(ConfigError, match="refused 24 calls in a row") as refusal:
            list(asked.stream(prompts(60), SamplingParams()))
        assert cure in str(refusal.value) and "same command" not in str(refusal.value)
