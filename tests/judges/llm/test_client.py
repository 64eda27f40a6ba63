"""Asking a model through the cache: retries, repair, limits, and failures that are never cached as final."""

from pathlib import Path
from typing import Any

import pytest
from judging import Scripted, fenced, numbered, pair, spec

from judges import JudgeStopped, build
from judges.llm.cache import AnswerCache
from selfplay.config import SamplingParams
from selfplay.errors import ConfigError
from selfplay.records import Completion, Prompt

HEAD = """
mode: pairwise
model: some-model
messages: [{role: user, content: "{{ prompt }}\\n{{ responses[0] }}\\n{{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
"""
LENIENT = HEAD + "on_error: {max_failure_rate: 1}\n"
ONE_ORDER = LENIENT + "order: fixed\n"


def prefers_longer(text: str) -> str:
    _, first, second = fenced(text)
    return f"I looked. [[{'A' if len(first) > len(second) else 'B'}]]"


def test_both_orders_are_asked_and_speak_of_the_original_position() -> None:
    engine = Scripted(prefers_longer)
    rows = build(spec(HEAD), engine).judge(numbered([("long answer", "short"), ("x", "yes indeed")]))
    assert [(row.pair_id, row.order, row.preference, row.reason, row.raw) for row in rows] == [
        ("p0", "forward", 1.0, "I looked.", "I looked. [[A]]"),
        ("p0", "reversed", 1.0, "I looked.", "I looked. [[B]]"),
        ("p1", "forward", 0.0, "I looked.", "I looked. [[B]]"),
        ("p1", "reversed", 0.0, "I looked.", "I looked. [[A]]"),
    ]
    assert [fenced(prompt.text)[1:] for prompt in engine.prompts[:2]] == [
        ["long answer", "short"],
        ["short", "long answer"],
    ]


def test_one_order_drawn_per_pair_is_fair_and_repeatable() -> None:
    pairs = numbered([(f"first {number}", f"second {number}") for number in range(200)])
    orders = [row.order for row in build(spec(HEAD + "order: random"), Scripted(prefers_longer)).judge(pairs)]
    assert orders == [row.order for row in build(spec(HEAD + "order: random"), Scripted(prefers_longer)).judge(pairs)]
    assert orders != [
        row.order for row in build(spec(HEAD + "order: random"), Scripted(prefers_longer), seed=1).judge(pairs)
    ]
    assert 70 <= orders.count("reversed") <= 130  # 100 +- 4 deviations of sqrt(200)/2 = 7.1
    assert {row.order for row in build(spec(HEAD + "order: fixed"), Scripted(prefers_longer)).judge(pairs)} == {
        "forward"
    }


def test_the_cache_answers_the_second_time_and_across_processes_files(tmp_path: Path) -> None:
    pairs, path = numbered([("long answer", "short"), ("x", "yes")]), tmp_path / "cache.sqlite"
    first = build(spec(HEAD), Scripted(prefers_longer), path).judge(pairs)
    silent = Scripted(prefers_longer)
    assert build(spec(HEAD), silent, path).judge(pairs) == first
    assert silent.calls == 0


@pytest.mark.parametrize(
    "change",
    [
        "model: other-model",
        "revision: v2",
        "sampling: {max_tokens: 7}",
        "sampling: {seed: 3}",
        "messages: [{role: user, content: 'New: {{ prompt }} {{ responses }}'}]",
    ],
)
def test_whatever_the_answer_depends_on_is_in_the_key(tmp_path: Path, change: str) -> None:
    path = tmp_path / "cache.sqlite"
    build(spec(ONE_ORDER), Scripted(prefers_longer), path).judge([pair("a", "bb")])
    engine = Scripted(lambda text: "[[A]]")
    build(
        spec(ONE_ORDER.replace("model: some-model", "") + change if change.startswith("model") else _with(change)),
        engine,
        path,
    ).judge([pair("a", "bb")])
    assert engine.calls == 1


def _with(change: str) -> str:
    key = change.partition(":")[0]
    return "\n".join(line for line in ONE_ORDER.splitlines() if not line.startswith(f"{key}:")) + f"\n{change}\n"


def test_a_new_parser_reads_what_is_cached_without_a_call(tmp_path: Path) -> None:
    path, pairs = tmp_path / "cache.sqlite", [pair("a", "b")]
    said = "Verdict: <<B>>"
    assert build(spec(ONE_ORDER), Scripted(lambda text: said), path).judge(pairs)[0].preference is None
    silent = Scripted()
    other = spec(ONE_ORDER.replace(r"'\[\[(A|B)\]\]'", "'<<(A|B)>>'"))
    assert build(other, silent, path).judge(pairs)[0].preference == 0.0
    assert silent.calls == 0


def test_an_unreadable_answer_is_never_final(tmp_path: Path) -> None:
    path, pairs = tmp_path / "cache.sqlite", [pair("a", "b")]
    broken = Scripted(lambda text: "Both are fine.")
    [row] = build(spec(ONE_ORDER), broken, path).judge(pairs)
    assert (row.preference, row.error, row.raw, broken.calls) == (None, "no verdict found", "Both are fine.", 2)
    fixed = Scripted(lambda text: "[[A]]")
    assert build(spec(ONE_ORDER), fixed, path).judge(pairs)[0].preference == 1.0
    assert fixed.calls == 1
    assert fixed.samplings[0].seed == broken.samplings[0].seed  # a deterministic engine says what it said before


def test_a_retry_has_another_seed_and_some_temperature() -> None:
    says = iter(["hm", "[[B]]"])
    engine = Scripted(lambda text: next(says))
    [row] = build(spec(ONE_ORDER), engine).judge([pair("a", "b")])
    assert (row.preference, row.raw) == (0.0, "[[B]]")
    assert [(sampling.seed, sampling.temperature) for sampling in engine.samplings] == [(0, 0.0), (1, 0.7)]


def test_a_repair_shows_the_judge_what_it_said() -> None:
    says = iter(["I like the first.", "[[A]]"])
    engine = Scripted(lambda text: next(says))
    repairing = spec(
        LENIENT.replace("max_failure_rate: 1", "max_failure_rate: 1, repair: 'End with [[A]] or [[B]].'")
        + "order: fixed"
    )
    assert build(repairing, engine).judge([pair("a", "b")])[0].preference == 1.0
    assert [(message.role, message.content) for message in engine.prompts[1].messages[1:]] == [
        ("assistant", "I like the first."),
        ("user", "End with [[A]] or [[B]]."),
    ]
    assert engine.samplings[1].temperature == 0.0


@pytest.mark.parametrize(
    ("said", "reason", "error"),
    [
        ("", "stop", "empty answer"),
        ("  \n", "stop", "empty answer"),
        ("[[A]]", "length", "answer cut off at max_tokens"),
        ("[[C]]", "stop", "no verdict found"),
        ("I cannot judge this.", "stop", "no verdict found"),
    ],
)
def test_what_cannot_be_read_is_unscored_with_the_raw_text_kept(said: str, reason: Any, error: str) -> None:
    [row] = build(spec(ONE_ORDER), Scripted(lambda text: said, finish_reason=reason)).judge([pair("a", "b")])
    assert (row.preference, row.error, row.raw) == (None, error, said)


def test_above_the_failure_rate_the_stage_stops_with_what_the_judge_said() -> None:
    engine = Scripted(lambda text: "[[A]]" if "fine" in text else "As an AI, I have no preferences.")
    pairs = numbered([("fine", "x")] * 7 + [("odd", "y")])
    with pytest.raises(
        JudgeStopped, match=r"no verdict on 2 of 16 .*max_failure_rate is 0.1.*no verdict found: 'As an AI"
    ):
        build(spec(HEAD), engine).judge(pairs)
    assert build(spec(HEAD), engine).judge(pairs[:5])[0].preference == 1.0


def test_limits_on_calls_stop_with_everything_saved(tmp_path: Path) -> None:
    path, pairs = tmp_path / "cache.sqlite", numbered([("a", "b"), ("c", "dd"), ("e", "ff")])
    engine = Scripted(prefers_longer)
    with pytest.raises(JudgeStopped, match="reached its limit of 4 calls; the answers so far are saved"):
        build(spec(HEAD + "limits: {calls: 4}"), engine, path).judge(pairs)
    assert engine.calls == 4
    rest = Scripted(prefers_longer)
    build(spec(HEAD + "limits: {calls: 4}"), rest, path).judge(pairs)
    assert rest.calls == 2


def test_equal_questions_are_asked_once() -> None:
    engine = Scripted(prefers_longer)
    rows = build(spec(HEAD), engine).judge([pair("a", "bb", id="one"), pair("a", "bb", id="two")])
    assert engine.calls == 2 and [row.preference for row in rows] == [0.0] * 4


def test_self_consistency_averages_and_needs_more_than_half() -> None:
    says = iter(["[[A]]", "[[A]]", "[[B]]", "[[A]]", "[[A]]", "[[B]]", "hm", "[[A]]", "hm", "hm", "hm", "[[A]]"])
    four = spec(ONE_ORDER + "sampling: {n: 4, temperature: 1.0}")
    rows = build(four, Scripted(lambda text: next(says))).judge([pair("a", "b", id="x"), pair("c", "d", id="y")])
    # x: three of four say A. y: A, B and an unreadable one and A: 2/3; the retry is not needed.
    assert [row.preference for row in rows] == [0.75, 2 / 3]
    says = iter(["[[A]]", "hm", "hm", "[[A]]"] * 2)
    [row] = build(four, Scripted(lambda text: next(says))).judge([pair("a", "b")])
    assert (row.preference, row.error) == (None, "only 2 of 4 answers can be read: no verdict found")


def test_a_prompt_the_engine_refuses_costs_no_other_its_verdict() -> None:
    class Short(Scripted):
        def generate(self, prompts: Any, sampling: SamplingParams) -> list[list[Completion]]:
            if any(len(prompt.text) > 200 for prompt in prompts):
                raise ConfigError("prompt is longer than the context")
            return super().generate(prompts, sampling)

    pairs = numbered([("a", "bb"), ("x" * 300, "b"), ("ccc", "d"), ("e", "ff")])
    rows = build(spec(ONE_ORDER), Short(prefers_longer)).judge(pairs)
    assert [row.preference for row in rows] == [0.0, None, 1.0, 0.0]
    assert rows[1].error == "prompt is longer than the context"


def test_what_a_model_says_is_kept_under_the_name_of_its_weights_and_what_the_policy_says_under_no_other(
    tmp_path: Path,
) -> None:
    path, pairs = tmp_path / "cache.sqlite", [pair("a", "bb")]
    for model, unnamed in (("policy", 1), ("some-model", 0)):
        own = spec(ONE_ORDER.replace("some-model", model))
        for weights, calls in ((None, 1), (None, unnamed), ("one", 1), ("one", 0), ("two", 1), ("one", 0)):
            engine = Scripted(prefers_longer)
            build(own, engine, path, weights={model: weights} if weights else {"other": "three"}).judge(pairs)
            assert engine.calls == calls


def test_a_judge_without_its_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="judge 'test' asks a language model, but there is none: set judge.model"):
        build(spec(HEAD))


def test_progress_counts_every_question_once() -> None:
    counts: list[int] = []
    says = iter(["hm", "[[A]]", "[[A]]", "[[B]]"])
    cache = AnswerCache()
    build(spec(LENIENT), Scripted(lambda text: next(says)), cache, advance=counts.append).judge([pair("a", "b")])
    assert sum(counts) == 2
    build(spec(LENIENT), Scripted(), cache, advance=counts.append).judge([pair("a", "b")])
    assert sum(counts) == 4


def test_prompt_ids_are_the_same_for_the_same_question(tmp_path: Path) -> None:
    one, two = Scripted(prefers_longer), Scripted(prefers_longer)
    build(spec(HEAD), one).judge([pair("a", "bb")])
    build(spec(HEAD), two).judge([pair("x", "yy", id="q"), pair("a", "bb")])
    assert {prompt.id for prompt in one.prompts} < {prompt.id for prompt in two.prompts}
    assert isinstance(one.prompts[0], Prompt)
