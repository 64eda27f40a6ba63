"""The endpoint engine against a server that misbehaves in every way we could think of."""

import math
import time
from pathlib import Path

import pytest
from asking_servers import engine, judge_and_pairs, prompts
from misbehaving import FAULTS, serving

from selfplay.config import Endpoint, SamplingParams
from selfplay.engines import GuidedSampling
from selfplay.engines.endpoint import EndpointEngine
from selfplay.engines.endpoint_calls import read_logprobs
from selfplay.engines.endpoint_client import seconds_of
from selfplay.errors import ConfigError
from selfplay.records import Message, Prompt


def test_texts_reasons_and_what_is_sent() -> None:
    with serving(say=lambda text: "cut ..." if text.endswith("1") else f"said to {text}") as server:
        asked = engine(server, extra={"reasoning_effort": "low", "seed": None})
        rows = asked.generate(prompts(2), SamplingParams(temperature=0.5, max_tokens=7, n=2, stop=("END",), seed=3))
        assert [[one.text for one in row] for row in rows] == [["said to question 0"] * 2, ["cut ..."] * 2]
        assert [row[0].finish_reason for row in rows] == ["stop", "length"] and rows[1][1].id == "p1/1"
        assert rows[0][0].policy == "judge-model"
        body = next(body for body in server.bodies if body["messages"][0]["content"] == "question 0")
        assert body == {
            "model": "judge-model",
            "messages": [{"role": "user", "content": "question 0"}],
            "max_tokens": 7,
            "temperature": 0.5,
            "n": 2,
            "stop": ["END"],
            "reasoning_effort": "low",
        }
        guided = GuidedSampling(json_schema={"type": "object"})
        asked.generate(prompts(1), guided)
        assert server.bodies[-1]["response_format"]["json_schema"]["schema"] == {"type": "object"}
        engine(server, guided=False).generate(prompts(1), guided)
        assert "response_format" not in server.bodies[-1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_once_is_made_again_and_no_other(fault: str) -> None:
    with serving(lambda text, number: fault if number == 0 and text == "question 1" else "") as server:
        asked = engine(server, timeout=3.0 if fault in ("timeout", "slow") else 30.0)
        rows = list(asked.stream(prompts(3), SamplingParams()))
        assert sorted((place, answer.texts if answer else None, error) for place, answer, error in rows) == [
            (place, ("[[A]]",), "") for place in range(3)
        ]
        assert server.tries == {"question 0": 1, "question 1": 2, "question 2": 1}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("500", "the server answered 500"),
        ("timeout", "no answer within 2 s"),
        ("slow", "no answer within 2 s"),
        ("cut", "the connection failed"),
        ("html", "the answer is not JSON: '<html>"),
        ("empty", "the answer is not JSON: ''"),
        ("no choices", "the answer has no choices"),
        ("wrong json", "the answer has no choices"),
        ("list", "the answer is a list, not an object"),
        ("null text", "a choice holds no text"),
    ],
)
def test_a_call_that_always_fails_costs_only_itself_and_says_why(fault: str, error: str) -> None:
    with serving(lambda text, number: fault if text == "question 1" else "") as server:
        asked = engine(server, retries=1, timeout=2.0 if fault in ("timeout", "slow") else 30.0)
        rows = {place: (answer, said) for place, answer, said in asked.stream(prompts(3), SamplingParams())}
        assert rows[1][0] is None and rows[1][1].startswith(error) and rows[1][1].endswith("(2 tries)")
        assert rows[0][0] is not None and rows[2][0] is not None
        assert server.tries == {"question 0": 1, "question 1": 2, "question 2": 1}
        assert [len(row) for row in asked.generate(prompts(3), SamplingParams())] == [1, 0, 1]


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_call_is_not_made_again(status: str) -> None:
    with serving(lambda text, number: status if text == "question 0" else "") as server:
        rows = {place: error for place, _, error in engine(server).stream(prompts(2), SamplingParams())}
        assert rows[0].startswith(f"the server answered {status}") and rows[1] == ""
        assert server.tries["question 0"] == 1


def test_the_key_comes_from_the_environment_and_appears_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with serving(lambda text, number: "400") as server:
        [(_, answer, error)] = engine(server, key_variable="JUDGE_KEY").stream(prompts(1), SamplingParams())
        assert answer is None and server.keys == ["Bearer sk-very-secret"]
        assert "key Bearer ***" in error and "secret" not in error
    with serving(lambda text, number: "401") as server:
        with pytest.raises(
            ConfigError, match=r"refuses the key \(401\): set the environment variable JUDGE_KEY"
        ) as refusal:
            list(engine(server, key_variable="JUDGE_KEY", concurrency=1).stream(prompts(5), SamplingParams()))
        assert "secret" not in str(refusal.value) and sum(server.tries.values()) == 1


def test_a_model_that_is_not_there_stops_at_once() -> None:
    with (
        serving(lambda text, number: "404") as server,
        pytest.raises(ConfigError, match="does not know what was asked for"),
    ):
        list(engine(server, concurrency=1).stream(prompts(5), SamplingParams()))
    assert sum(server.tries.values()) == 1


def test_a_server_that_is_down_is_given_up_after_some_calls() -> None:
    down = EndpointEngine(Endpoint(url="http://127.0.0.1:9/v1", retries=1, longest_wait=0.001, concurrency=4), "m")
    seen = []
    with pytest.raises(ConfigError, match="failed on 24 calls in a row, last with: the connection failed"):
        for row in down.stream(prompts(200), SamplingParams()):
            seen.append(row)
    assert 24 <= len(seen) < 40


def test_no_more_calls_at_once_and_per_minute_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(say=lambda text: time.sleep(0.02) or "x") as server:
        engine(server, concurrency=3).generate(prompts(20), SamplingParams())
        assert 1 < server.most_under_way <= 3
    with serving() as server:
        paced = engine(server, requests_per_minute=5)
        rows = paced.stream(prompts(12), SamplingParams())
        first = [next(rows) for _ in range(5)]
        time.sleep(0.2)
        assert len(first) == 5 and sum(server.tries.values()) == 5  # the sixth waits for the minute to pass
        rows.close()
        assert sum(server.tries.values()) == 5


def test_retry_after_holds_all_lanes_back() -> None:
    with serving(lambda text, number: "429 later" if number == 0 and text == "question 0" else "") as server:
        began = time.monotonic()
        engine(server, concurrency=1, longest_wait=5.0).generate(prompts(2), SamplingParams())
        assert time.monotonic() - began >= 0.2
        assert server.tries == {"question 0": 2, "question 1": 1}
    assert seconds_of("3") == 3.0 and seconds_of("nonsense") == 0.0 and seconds_of("-4") == 0.0
    assert all(
        seconds_of(odd) == 0.0 for odd in ("nan", "-inf", "-0", "0x10", "Wed, 21 Oct 99999 07:28:00 GMT", "\xe9")
    )
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0 and seconds_of("Wed, 21 Oct 2199 07:28:00 GMT") > 1e9


def test_leaving_early_ends_the_calls_under_way() -> None:
    with serving(lambda text, number: "timeout" if text != "question 0" else "") as server:
        rows = engine(server, timeout=30.0, concurrency=2).stream(prompts(20), SamplingParams())
        assert next(rows)[0] == 0
        began = time.monotonic()
        rows.close()
        assert time.monotonic() - began < 1.0


def test_log_probabilities_of_choices_in_both_apis() -> None:
    for api in ("chat", "completions"):
        with serving() as server:
            asked = engine(server, api=api)
            assert asked.choice_logprobs(prompts(1), ["A", "B"]) == [[-0.1, -2.5]]
            assert asked.choice_logprobs(prompts(1), ["A", "Z"]) == [[-0.1, -4.0]]  # not named: at most the least named
            assert all(math.isnan(value) for value in asked.choice_logprobs(prompts(1), ["Y", "Z"])[0])
            assert server.bodies[0]["max_tokens"] == 1
    config = Endpoint(url="http://x/v1")
    assert read_logprobs(
        config, {"logprobs": {"content": [{"top_logprobs": [{"token": "A", "logprob": -1}]}]}}, ["A"]
    ) == {"A": -1.0}


def test_completions_take_single_messages_only() -> None:
    with serving(say=lambda text: f"on {text}") as server:
        asked = engine(server, api="completions")
        assert asked.generate(prompts(1), SamplingParams())[0][0].text == "on question 0"
        assert server.bodies[0]["prompt"] == "question 0" and "messages" not in server.bodies[0]
        talk = Prompt(id="p", messages=(Message(role="system", content="a"), Message(role="user", content="b")))
        with pytest.raises(ConfigError, match="is a conversation of 2 messages, but endpoint.api is completions"):
            asked.generate([talk], SamplingParams())
    with pytest.raises(ConfigError, match="cannot be trained"):
        asked.update_weights(None)


def test_a_stage_completes_with_what_can_be_had_and_calls_nothing_twice_that_succeeded(tmp_path: Path) -> None:
    """Every fault strikes some calls, and some of them always: the rest has its verdict, and only those are asked
    again."""
    faults = (*FAULTS, *[""] * 6)

    def strike(text: str, number: int) -> str:
        place = sum(map(ord, text))
        return faults[place % len(faults)] if number == 0 or place % 7 == 0 else ""

    with serving(strike) as server:
        judge, pairs = judge_and_pairs(server, tmp_path / "cache.sqlite", 30, retries=1, concurrency=16, timeout=3.0)
        rows = judge.judge(pairs)
        failed = [row for row in rows if row.preference is None]
        assert 0 < len(failed) < 20 and all(row.error and not row.raw for row in failed)
        assert {row.preference for row in rows if row.order == "forward"} <= {1.0, None}
        server.fault = lambda text, number: ""
        before = server.tries.copy()
        assert all(row.preference is not None for row in judge.judge(pairs))
        assert len(before) == len(rows) == 60 and sum((server.tries - before).values()) == len(failed)
