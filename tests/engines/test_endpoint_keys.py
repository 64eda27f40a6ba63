"""A key is sent to its endpoint and is shown and written nowhere."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from asking_servers import engine, prompts
from misbehaving import serving

from selfplay.config import Endpoint, SamplingParams, validate
from selfplay.config.load import hide_keys
from selfplay.engines.endpoint import EndpointEngine
from selfplay.engines.endpoint_keys import Secrets
from selfplay.errors import ConfigError

KEY = "sk-proj-4f9a7c21d0e8b653"


def text_of(error: BaseException) -> str:
    """All that a traceback could show."""
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"{KEY}\n", "whitespace or a control character at place 25 of 25"),
        (f"{KEY} {KEY}", "whitespace or a control character at place 25 of 49"),
        (f"{KEY}\u00e9", "a character outside ASCII at place 25"),
        (f"\u201c{KEY}\u201d", "a character outside ASCII at place 1"),
        (f"{KEY}\udcff", "a character outside ASCII"),
        ("", "which is not set: set it to the key, or set key_variable to null"),
    ],
)
def test_a_key_that_cannot_be_sent_is_a_sentence_without_it(
    key: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(ConfigError, match=f"environment variable JUDGE_KEY.*{what}") as refusal:
        EndpointEngine(Endpoint(url="http://127.0.0.1:9/v1", key_variable="JUDGE_KEY"), "m")
    assert KEY not in text_of(refusal.value)


def test_which_endpoints_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert not Secrets.read(Endpoint(url="http://127.0.0.1:8000/v1")).headers
    assert not Secrets.read(Endpoint(url="https://judge.example/v1", key_variable=None)).headers
    with pytest.raises(ConfigError, match="OPENAI_API_KEY, which is not set"):
        Secrets.read(Endpoint(url="https://judge.example/v1"))
    with pytest.raises(
        ConfigError, match="endpoint.headers.x-tenant names the environment variable TENANT, which is not set"
    ):
        Secrets.read(Endpoint(url="http://127.0.0.1:8000/v1", headers={"x-tenant": "$TENANT"}))


def test_what_is_sent_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", KEY)
    monkeypatch.setenv("TENANT", "tenant-secret-1")
    with serving() as server:
        asked = engine(
            server,
            key_variable="AZURE_KEY",
            key_header="api-key",
            headers={"x-tenant": "$TENANT", "X-Title": "selfplay"},
            query={"api-version": "2024-10-21"},
        )
        list(asked.stream(prompts(1), SamplingParams()))
        [(path, headers)] = server.requests
        assert path == "/v1/chat/completions?api-version=2024-10-21"
        assert headers["api-key"] == KEY and "authorization" not in headers
        assert headers["x-tenant"] == "tenant-secret-1" and headers["x-title"] == "selfplay"


@pytest.mark.parametrize("fault", ["400", "401", "500", "echo", "echo in html"])
def test_a_server_that_repeats_the_key_teaches_nobody(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    told: Any = None
    with serving(lambda text, number: fault) as server:
        try:
            told = list(engine(server, key_variable="JUDGE_KEY", retries=0).stream(prompts(1), SamplingParams()))
        except ConfigError as error:
            told = text_of(error)
        assert any(KEY in str(headers) for _, headers in server.requests)
    assert KEY not in repr(told) and KEY[:12] not in repr(told)
    assert fault != "echo" or told[0][1].texts == ("your key is ***",)


def test_nothing_that_holds_a_key_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    asked = EndpointEngine(Endpoint(url="http://127.0.0.1:9/v1", key_variable="JUDGE_KEY"), "m")
    assert KEY not in repr(vars(asked)) + repr(asked.secrets) + asked.config.model_dump_json()


@pytest.mark.parametrize(
    "settings",
    [
        {"url": f"https://user:{KEY}@judge.example/v1"},
        {"url": f"https://{KEY}@judge.example/v1"},
        {"url": f"https://judge.example/v1?key={KEY}"},
        {"url": KEY},
        {"key_variable": KEY},
        {"key_variable": "gsk_4f9a7c21d0e8b6534f9a7c21d0e8b653"},
        {"key_variable": "hf_" + "AbCdEfGhIjKlMnOpQ" * 2},
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"headers": {"X-Title": KEY}},
        {"headers": {"x-api-key": "abc"}},
        {"headers": f"Authorization: Bearer {KEY}"},
        {"headers": {"X-Title": [KEY]}},
        {"query": {"api-key": KEY}},
        {"query": KEY},
        {"extra": {"api_key": KEY}},
        {"api_key": KEY},
        {"concurrency": KEY},
    ],
)
def test_a_key_in_a_file_is_refused_and_not_shown(settings: dict[str, Any]) -> None:
    from judges.spec.load import parse_spec

    tree = {
        "name": "x",
        "mode": "pairwise",
        "model": "m",
        "endpoint": {"url": "http://127.0.0.1:9/v1", **settings},
        "messages": [{"role": "user", "content": "{{ responses }}"}],
        "output": {"kind": "logprob", "labels": {"A": 1, "B": 0}},
    }
    with pytest.raises(ConfigError) as refusal:
        parse_spec(tree)
    assert KEY not in text_of(refusal.value) and "gsk_4f9a" not in text_of(refusal.value)


SHORT = "sk-planted-SECRET-123456"
HUB = "hf_" + "AbCdEfGhIjKlMnOpQ" * 2
"""The hub's have 34 letters and no digit."""


@pytest.mark.parametrize("key", [KEY, SHORT, HUB, "hf_abcDEF123456789", "Bearer abc"])
@pytest.mark.parametrize(
    "line",
    [
        "model: {name: m, key: KEY}",
        "model: [KEY]",
        "reasoning: KEY",
        "revision: [KEY]",
        "revision: {api_key: [KEY]}",
        "mode: KEY",
        "mode: {token: KEY}",
        "output: {kind: KEY}",
        "KEY: 1",
        "examples: [{answer: [KEY]}]",
        "model: 'KEY\nname: [",
        "model: m\nmodel: KEY: x",
    ],
)
def test_no_mistake_in_a_judge_s_file_shows_a_key(key: str, line: str, tmp_path: Path) -> None:
    from judges import load_spec

    file = tmp_path / "own.yaml"
    known = "mode: pairwise\n" if not line.startswith("mode") else ""
    file.write_text(f"{known}{line.replace('KEY', key)}\n")
    with pytest.raises(ConfigError) as refusal:
        load_spec(file)
    assert key not in text_of(refusal.value)


def test_what_is_named_a_key_is_hidden_whatever_it_is_and_nothing_else() -> None:
    assert (
        hide_keys("{'name': 'm', 'api_key': 'plain words', 'token': 7}")
        == "{'name': 'm', 'api_key': ***, 'token': ***}"
    )
    for shown in (
        "'hf-internal-testing/tiny-random-LlamaForCausalLM'",
        "{'max_tokens': 'many'}",
        "'sklearn'",
        "'risk-averse'",
    ):
        assert hide_keys(shown) == shown


def test_ordinary_names_of_fields_are_no_keys() -> None:
    fields = {"max_completion_tokens": 9, "prompt_cache_key": "judge", "reasoning_effort": "low"}
    endpoint = validate(Endpoint, {"url": "http://x/v1", "extra": fields, "query": {"api-version": "v1"}}, "endpoint")
    assert json.loads(endpoint.model_dump_json())["extra"] == fields
