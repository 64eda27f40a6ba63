"""What endpoints cost: counted in full where the server does not say, never beyond the limit, and not forgotten."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from asking_servers import engine, judge_and_pairs, prompts
from misbehaving import HOSTILE, serving, url

from selfplay.config import Endpoint, SamplingParams
from selfplay.engines.endpoint_calls import Usage, cost_of, read_usage, request_body, worst_cost
from selfplay.engines.ledger import TOTAL, Ledger, mend, problem_with
from selfplay.errors import ConfigError, JudgeStopped
from selfplay.storage.checksums import write_sealed
from selfplay.storage.journal import line_of

PRICES = {"input_price": 10.0, "output_price": 30.0}
TWENTY = SamplingParams(max_tokens=20)
BODY = request_body(Endpoint(url="http://x/v1"), "judge-model", prompts(1)[0], TWENTY, None)
BYTES = len(json.dumps(BODY))
WORST = ((BYTES + 256) * 10 + 20 * 30) / 1e6
"""Dollars of a call in these tests: every byte a token, 256 for the chat template, and 20 tokens written."""
USUAL = 1.3e-3
"""100 tokens read at $10 and 10 written at $30 per million: 1e-3 + 3e-4."""


def test_prices_by_hand() -> None:
    config = Endpoint(url="http://x/v1", **PRICES, cached_input_price=2.5)
    # 100 read, 60 of them remembered: 40 * 10 + 60 * 2.5 + 10 * 30 = 850 millionths.
    assert cost_of(config, Usage(100, 60, 10)) == pytest.approx(8.5e-4, abs=1e-12)
    assert cost_of(Endpoint(url="http://x/v1", **PRICES), Usage(100, 60, 10)) == pytest.approx(1.3e-3, abs=1e-12)
    # `{"messages": [{"content": "\u00e9"}], "max_tokens": 20, "n": 2}` is 59 bytes: (59 + 256) * 10 + 2 * 20 * 30 = 4,350.
    body = {"messages": [{"content": "\u00e9"}], "max_tokens": 20, "n": 2}
    assert worst_cost(config, body) == pytest.approx(4.35e-3, abs=1e-12)
    dear = config.model_copy(update={"cached_input_price": 20.0})  # some servers charge more for what they remember
    assert worst_cost(dear, body) == pytest.approx((315 * 20 + 1200) / 1e6, abs=1e-12)
    with pytest.raises(
        ConfigError, match="what a call may cost is not known: endpoint.extra leaves neither max_tokens"
    ):
        worst_cost(config, {"messages": []})
    assert worst_cost(Endpoint(url="http://x/v1"), {"messages": []}) == 0.0


def test_tokens_that_the_server_remembers_in_the_fields_of_several_servers() -> None:
    counts = {"prompt_tokens": 100, "completion_tokens": 10}
    assert read_usage({"usage": {**counts, "prompt_tokens_details": {"cached_tokens": 60}}}) == Usage(100, 60, 10)
    assert read_usage({"usage": {**counts, "prompt_cache_hit_tokens": 64}}) == Usage(100, 64, 10)
    for nonsense in (-1, 101, 1.5, "60", True, None):  # then nothing was remembered, and everything has the full price
        assert read_usage({"usage": {**counts, "prompt_tokens_details": {"cached_tokens": nonsense}}}) == Usage(
            100, 0, 10
        )
    assert read_usage({"usage": None}) is None and read_usage({"usage": {}}) is None


def test_money_is_counted_and_never_passes_the_limit() -> None:
    with serving() as server:
        asked = engine(server, **PRICES)
        answers = [answer for _, answer, _ in asked.stream(prompts(3), TWENTY) if answer]
        assert [answer.cost for answer in answers] == pytest.approx([USUAL] * 3, abs=1e-12)
        assert asked.ledger.total == pytest.approx(3 * USUAL, abs=1e-12)
    with serving() as server:
        limited = engine(server, **PRICES, max_cost=0.01)
        with pytest.raises(
            ConfigError, match=r"has spent .* could pass the limit endpoint.max_cost of \$0.01; the answers"
        ):
            list(limited.stream(prompts(50), TWENTY))
        calls = sum(server.tries.values())
        assert calls * USUAL == pytest.approx(limited.ledger.total, abs=1e-12)
        assert limited.ledger.total <= 0.01 < limited.ledger.total + WORST  # not one call fewer than the limit allows


@pytest.mark.parametrize("concurrency", [1, 16])
def test_without_usage_every_call_counts_at_the_most_it_can_cost(concurrency: int) -> None:
    with serving() as server:
        server.usage = None
        asked = engine(server, **PRICES, max_cost=0.06, concurrency=concurrency)
        with pytest.raises(ConfigError, match="could pass the limit"):
            list(asked.stream(prompts(80), TWENTY))
        assert sum(server.tries.values()) == int(0.06 / WORST) and asked.ledger.total <= 0.06


@pytest.mark.parametrize("usage", [(0, 0), (0, 10), (100, 0)])
def test_a_count_without_tokens_for_what_is_there_is_no_count(usage: tuple[int, int]) -> None:
    """80 calls that counted no tokens passed a limit of $0.06."""
    with serving() as server:
        server.usage = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
        asked = engine(server, **PRICES, max_cost=0.06)
        with pytest.raises(ConfigError, match="could pass the limit"):
            list(asked.stream(prompts(80), TWENTY))
        assert sum(server.tries.values()) == int(0.06 / WORST) and asked.ledger.total <= 0.06


def test_an_answer_without_text_may_have_cost_no_token_written() -> None:
    with serving(say=lambda text: "") as server:
        server.usage = {"prompt_tokens": 100, "completion_tokens": 0}
        asked = engine(server, **PRICES)
        list(asked.stream(prompts(1), TWENTY))
        assert asked.ledger.total == pytest.approx(100 * PRICES["input_price"] / 1e6, abs=1e-12)


@pytest.mark.parametrize("name", ["n", "best_of", "stream"])
def test_extra_cannot_multiply_what_a_call_costs(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' changes how many texts a call is paid for"):
        Endpoint(url="http://x/v1", extra={name: 8})
    assert Endpoint(url="http://x/v1", extra={name: None}).extra == {name: None}


@pytest.mark.parametrize("fault", [name for name in HOSTILE if "usage" in name])
def test_an_absurd_usage_is_a_failed_call_at_the_most_it_can_cost(fault: str) -> None:
    with serving(lambda text, number: fault) as server:
        asked = engine(server, **PRICES, retries=1)
        [(_, answer, error)] = asked.stream(prompts(1), TWENTY)
        assert answer is None and "usage" in error
        assert asked.ledger.total == pytest.approx(2 * WORST, abs=1e-12)


@pytest.mark.parametrize(
    ("fault", "charged"),
    [("timeout", True), ("cut", True), ("html", True), ("504", True), ("500", False), ("429", False), ("400", False)],
)
def test_what_may_have_been_billed_is_charged_and_what_was_refused_is_not(fault: str, charged: bool) -> None:
    with serving(lambda text, number: fault) as server:
        asked = engine(server, **PRICES, retries=0, timeout=1.0)
        [(_, answer, _)] = asked.stream(prompts(1), TWENTY)
        assert answer is None
        assert asked.ledger.total == pytest.approx(WORST if charged else 0.0, abs=1e-12)
    gone = engine(server, **PRICES, retries=0)
    [(_, answer, _)] = gone.stream(prompts(1), TWENTY)
    assert answer is None and gone.ledger.total == 0.0  # never connected, never sent


def test_what_an_unreadable_answer_cost_is_counted_too() -> None:
    with serving(lambda text, number: "filtered") as server:
        asked = engine(server, input_price=10.0, retries=1)
        [(_, answer, error)] = asked.stream(prompts(1), TWENTY)
        assert answer is None and error == "the server's content filter held the answer back (2 tries)"
        assert asked.ledger.total == pytest.approx(2 * 1e-3, abs=1e-12)


def test_the_limit_stops_the_stage_with_everything_saved_and_holds_across_runs(tmp_path: Path) -> None:
    cache, money = tmp_path / "cache.sqlite", {"output_price": 100.0, "max_cost": 0.06}
    with serving() as server:
        # An answer costs 10 tokens at $100 per million, 1e-3; a call may cost 512 of them, .0512: 9 fit below .06.
        for _ in range(2):
            judge, pairs = judge_and_pairs(server, cache, 10, Ledger(tmp_path / "spending.jsonl"), **money)
            with pytest.raises(ConfigError, match=r"has spent \$0.0090 .*endpoint.max_cost of \$0.06"):
                judge.judge(pairs)
            assert sum(server.answered.values()) == 9
        more = {**money, "max_cost": 1.0}
        judge, pairs = judge_and_pairs(server, cache, 10, Ledger(tmp_path / "spending.jsonl"), **more)
        assert len(judge.judge(pairs)) == 20
        assert sum(server.answered.values()) == 20 and max(server.answered.values()) == 1
        assert Ledger(tmp_path / "spending.jsonl").total == pytest.approx(0.02, abs=1e-12)


def test_answers_that_could_not_be_read_are_not_forgotten_at_a_restart(tmp_path: Path) -> None:
    with serving(say=lambda text: "no verdict here") as server:
        for run in (1, 2):
            ledger = Ledger(tmp_path / "spending.jsonl")
            judge, pairs = judge_and_pairs(server, tmp_path / "cache.sqlite", 2, ledger, output_price=100.0)
            with pytest.raises(JudgeStopped, match="no verdict on 4 of 4"):
                judge.judge(pairs)
            assert Ledger(tmp_path / "spending.jsonl").total == pytest.approx(4e-3 * run, abs=1e-12)


def test_judges_that_share_a_ledger_share_the_limit(tmp_path: Path) -> None:
    """Two engines side by side, as two members of a jury or two processes have them: one limit for both."""
    path = tmp_path / "spending.jsonl"
    shared = Ledger(path)
    for ledgers in ((shared, shared), (Ledger(path), Ledger(path))):
        for file in (path, path.with_name(TOTAL)):
            file.unlink(missing_ok=True)
        for ledger in ledgers:
            ledger.__init__(path)  # type: ignore[misc]
        with serving() as server:
            server.usage = None
            engines = [engine(server, ledger, **PRICES, max_cost=0.06) for ledger in ledgers]

            def ask(one: Any) -> None:
                with pytest.raises(ConfigError, match="could pass the limit"):
                    list(one.stream(prompts(80), TWENTY))

            threads = [threading.Thread(target=ask, args=(one,)) for one in engines]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(server.tries.values()) == int(0.06 / WORST)
            assert Ledger(path).total <= 0.06


def test_a_call_that_a_kill_cut_off_counts_in_full(tmp_path: Path) -> None:
    path = tmp_path / "spending.jsonl"
    script = f"""
import sys
from asking_servers import prompts
from selfplay.config import Endpoint, SamplingParams
from selfplay.engines.endpoint import EndpointEngine
from selfplay.engines.ledger import TOTAL, Ledger, mend, problem_with
from selfplay.storage.checksums import write_sealed
from selfplay.storage.journal import line_of
config = Endpoint(url=sys.argv[1], input_price=10.0, output_price=30.0, concurrency=1)
list(EndpointEngine(config, "judge-model", Ledger({str(path)!r})).stream(prompts(2), SamplingParams(max_tokens=20)))
"""
    with serving(lambda text, number: "timeout" if text == "question 1" else "") as server:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        process = subprocess.Popen([sys.executable, "-c", script, url(server)], env=environment)
        deadline = time.monotonic() + 120
        while server.tries["question 1"] == 0:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert Ledger(path).total == pytest.approx(USUAL + WORST, abs=1e-12)


def test_every_changed_byte_of_the_ledger_is_found_and_a_torn_line_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "spending.jsonl"
    ledger = Ledger(path)
    calls = [ledger.reserve(1.0, model="m") for _ in range(3)]
    ledger.settle(str(calls[0]), 0.25)
    assert Ledger(path).total == 2.25
    data = path.read_bytes()
    total = path.with_name(TOTAL).read_bytes()
    for cut in range(len(data)):  # a line that a kill cut short was never followed by its call, nor by its count
        path.write_bytes(data[:cut])
        lines = data[:cut].count(b"\n")
        write_sealed(path.with_name(TOTAL), {"lines": lines, "total": float(lines)})
        assert Ledger(path).total == lines and path.read_bytes() in (
            b"",
            data[: data.rfind(b"\n", 0, cut) + 1],
        )
    path.with_name(TOTAL).write_bytes(total)
    places = [place for place in range(len(data)) if data[place : place + 1] != b"\n"]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(
            ConfigError,
            match=r"spending.jsonl' is damaged: line \d .*or delete it and 'spending_total.json' to count from",
        ):
            Ledger(path)


def a_ledger(path: Path) -> list[bytes]:
    """The lines of a ledger of five calls at $1 each, all of them settled."""
    ledger = Ledger(path)
    for _ in range(5):
        ledger.settle(str(ledger.reserve(2.0)), 1.0)
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("kept", "problem", "total"),
    [
        (slice(0, 5), "it has 5 lines, and 10 were written", 5.0),
        (slice(0, 0), "it has 0 lines, and 10 were written", 5.0),
        (slice(4, 10), "line 1 does not follow the line before it: lines are missing", 5.0),
        ([0, 1, 4, 5, 6, 7, 8, 9], "line 3 does not follow the line before it: lines are missing", 5.0),
        ([0, 1, 2, 4, 5, 6, 7, 8, 9], "line 4 does not follow", 6.0),  # the end of a call is lost: it counts in full
        (None, "it has 0 lines, and 10 were written", 5.0),
    ],
)
def test_lines_that_are_missing_are_noticed_and_mending_counts_what_they_said(
    tmp_path: Path, kept: Any, problem: str, total: float
) -> None:
    path = tmp_path / "spending.jsonl"
    lines = a_ledger(path)
    assert problem_with(path) == "" and Ledger(path).total == 5.0
    left = lines[kept] if isinstance(kept, slice) else [lines[place] for place in kept or []]
    path.unlink() if kept is None else path.write_bytes(b"".join(left))
    with pytest.raises(ConfigError, match=f"{problem}.*, so that what was spent is not known; put it back from a copy"):
        Ledger(path)
    assert problem_with(path).startswith(problem)
    mend(path)
    assert problem_with(path) == "" and Ledger(path).total == total
    Ledger(path).reserve(1.0)
    assert Ledger(path).total == total + 1.0 and problem_with(path) == ""


def test_a_ledger_that_shrinks_under_a_run_stops_it(tmp_path: Path) -> None:
    path = tmp_path / "spending.jsonl"
    ledger = Ledger(path)
    ledger.reserve(1.0)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"it has 0 bytes, and \d+ were read from it before"):
        ledger.reserve(1.0)


def test_a_ledger_of_before_is_read_and_its_new_lines_are_chained(tmp_path: Path) -> None:
    path = tmp_path / "spending.jsonl"
    path.write_text(line_of("a", [{"worst": 2.0}]) + line_of("a", [{"cost": 1.0}]) + line_of("b", [{"worst": 3.0}]))
    old = path.read_bytes()
    ledger = Ledger(path)
    assert ledger.total == 4.0 and path.read_bytes() == old
    ledger.settle("b", 0.5)
    assert Ledger(path).total == 1.5 and problem_with(path) == ""
    path.write_bytes(path.read_bytes()[len(old.splitlines(keepends=True)[0]) :])  # lines 2 to 4
    with pytest.raises(ConfigError, match="it has 3 lines, and 4 were written"):
        Ledger(path)
    path.with_name(TOTAL).write_text("{}x")
    with pytest.raises(ConfigError, match="spending_total.json' is damaged: it is not JSON; put it back"):
        Ledger(path)
    mend(path)
    assert problem_with(path) == ""


def test_no_call_is_made_that_cannot_be_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with serving() as server:
        asked = engine(server, Ledger(tmp_path / "spending.jsonl"), **PRICES)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            ConfigError, match="spending.jsonl' could not be written: No space left on device; free some space"
        ):
            list(asked.stream(prompts(3), TWENTY))
        assert sum(server.tries.values()) == 0
