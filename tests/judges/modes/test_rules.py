"""Rules: weighted Python criteria, exact scores, and functions that fail."""

import pytest
from judging import completion, numbered, pair, spec

from judges import JudgeStopped, build, load_spec
from judges.modes.rules import aggregate
from judges.spec.sections import Criterion
from selfplay.records import Prompt

TWO = """
mode: rules
criteria:
  - {name: greets, weight: 3, python: criteria_for_tests:has_hello}
  - {name: vowels, weight: 1, python: criteria_for_tests:vowels}
"""


def test_the_score_is_the_weighted_mean_and_the_reason_names_what_decided() -> None:
    judge = build(spec(TWO))
    # "hello": greets 1, vowels 2/5; (3 * 1 + 1 * 0.4) / 4 = 0.85. "aaaa": greets 0, vowels 1; (0 + 1) / 4 = 0.25.
    assert judge.score([Prompt.plain("p", "?")] * 2, [completion("hello"), completion("aaaa")]) == pytest.approx(
        [0.85, 0.25], abs=1e-12
    )
    [verdict] = judge.judge([pair("hello", "aaaa")])
    assert (verdict.preference, verdict.order, verdict.judge, verdict.error) == (1.0, "none", "test", "")
    assert verdict.reason == "score 0.85 > 0.25: greets 1.00 > 0.00, vowels 0.40 < 1.00"
    assert judge.judge([pair("aaaa", "hello")])[0].preference == 0.0


def test_equal_scores_and_scores_within_the_margin_are_a_tie() -> None:
    pairs = numbered([("hello", "hello"), ("aabb", "aaab"), ("hello", "xyz")])
    # Vowels of aabb and aaab are 2/4 and 3/4: scores 0.125 and 0.1875, apart by 0.0625.
    assert [row.preference for row in build(spec(TWO)).judge(pairs)] == [0.5, 0.0, 1.0]
    assert [row.preference for row in build(spec(TWO + "margin: 0.0625")).judge(pairs)] == [0.5, 0.5, 1.0]
    assert [row.preference for row in build(spec(TWO + "margin: 0.0624")).judge(pairs)] == [0.5, 0.0, 1.0]


def test_gates_negative_criteria_and_the_minimum() -> None:
    criteria = [
        Criterion(name="gate", python="m:f", gate=True),
        Criterion(name="a", python="m:f", weight=3.0),
        Criterion(name="bad", python="m:f", negative=True),
    ]
    # (3 * 0.5 + 1 * (1 - 0.25)) / 4 = 2.25 / 4; the gate carries no weight.
    assert aggregate(criteria, {"gate": 0.2, "a": 0.5, "bad": 0.25}) == pytest.approx(0.5625, abs=1e-12)
    assert aggregate(criteria, {"gate": 0.0, "a": 0.5, "bad": 0.25}) == 0.0
    assert aggregate(criteria, {"gate": 1.0, "a": 0.5, "bad": 0.75}, "minimum") == 0.25
    negative_gate = [Criterion(name="swears", python="m:f", gate=True, negative=True), criteria[1]]
    assert aggregate(negative_gate, {"swears": 1.0, "a": 1.0}) == 0.0
    assert aggregate(negative_gate, {"swears": 0.0, "a": 1.0}) == 1.0


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("asked_for", "criterion 'x' raised KeyError: 'word'"),
        ("too_much", "criterion 'x' returned 1.5, not a number in [0, 1]"),
        ("nothing_at_all", "criterion 'x' returned None, not a number in [0, 1]"),
        ("not_a_number", "criterion 'x' returned nan, not a number in [0, 1]"),
        ("as_text", "criterion 'x' returned '0.5', not a number in [0, 1]"),
    ],
)
def test_a_failing_function_leaves_the_pair_unscored_and_says_why(function: str, problem: str) -> None:
    lenient = spec(
        f"mode: rules\ncriteria: [{{name: x, python: 'criteria_for_tests:{function}'}}]\non_error: "
        f"{{max_failure_rate: 1}}"
    )
    [verdict] = build(lenient).judge([pair("one", "two")])
    assert verdict.preference is None
    assert verdict.error == f"first: {problem}; second: {problem}"
    assert build(lenient).score([Prompt.plain("p", "?")], [completion("one")]) == [None]


def test_too_many_failures_stop_judging_with_an_example() -> None:
    rules = "mode: rules\ncriteria: [{name: x, python: 'criteria_for_tests:asked_for'}]\n"
    good = [pair("kite", "bell", id=f"g{number}", word="kite") for number in range(9)]
    bad = pair("kite", "bell", id="bad")
    assert [row.preference for row in build(spec(rules)).judge([*good, bad])] == [1.0] * 9 + [None]
    with pytest.raises(
        JudgeStopped,
        match=r"no verdict on 1 of 9 \(on_error.max_failure_rate is 0.1\): first: criterion 'x' raised "
        r"KeyError",
    ):
        build(spec(rules)).judge([*good[:8], bad])
    with pytest.raises(JudgeStopped, match="on_error.action is abort"):
        build(spec(rules + "on_error: {action: abort}")).judge([*good, bad])


def test_a_completion_in_several_pairs_is_assessed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import criteria_for_tests

    seen: list[str] = []
    monkeypatch.setattr(criteria_for_tests, "has_hello", lambda prompt, response: seen.append(response) or 1.0)
    one, two = pair("a", "b", id="x"), pair("a", "c", id="x")
    two = two.model_copy(update={"id": "y", "second": completion("c", "x/2", "x")})
    build(spec("mode: rules\ncriteria: [{name: greets, python: 'criteria_for_tests:has_hello'}]")).judge([one, two])
    assert sorted(seen) == ["a", "b", "c"]


def test_the_stories_judge_checks_every_wish() -> None:
    judge = build(load_spec("stories"))
    wishes = {"trait": "shy", "animal": "fox", "place": "lake", "first_thing": "kite", "second_thing": "bell"}
    perfect = (
        "One day a shy fox went to the lake. It found a kite under a tree. It took the kite home. A "
        "friend gave it a bell. The bell made it smile. It was happy. The end."
    )
    poor = "A dog slept. A dog slept."
    assert judge.score([Prompt.plain("p", "Tell a story.", **wishes)], [completion(perfect)]) == [1.0]
    # Of all points the poor one gets none: another animal, no place, no things, no ending, a repeat, 6 words.
    assert judge.score([Prompt.plain("p", "Tell a story.", **wishes)], [completion(poor)]) == [0.0]
    assert judge.judge([pair(poor, perfect, **wishes)])[0].preference == 0.0
