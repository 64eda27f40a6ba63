"""From verdicts to preferences, and the figures about a judge, derived by hand."""

import pytest
from judging import numbered, pair, spec, verdict

from judges import aggregate_verdicts, health, to_preferences

PAIRWISE = """
mode: pairwise
messages: [{role: user, content: "{{ prompt }} {{ responses[0] }} {{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
"""


def both(id: str, forward: float | None, backward: float | None) -> list:
    return [verdict(forward, "forward", id), verdict(backward, "reversed", id)]


def test_two_orders_are_averaged_and_one_unreadable_order_is_no_verdict() -> None:
    rows = (
        both("agree", 1.0, 1.0)
        + both("split", 1.0, 0.0)
        + both("half", 1.0, None)
        + both("soft", 0.75, 0.5)
        + [verdict(0.25, id="one")]
    )
    assert aggregate_verdicts(rows) == {"agree": 1.0, "split": 0.5, "half": None, "soft": 0.625, "one": 0.25}


def test_disagreement_and_margin_follow_the_file() -> None:
    rows = both("split", 0.9, 0.3) + both("tie and first", 0.5, 1.0) + both("close", 0.6, 0.56)
    # Means .6, .75, .58: |2 p - 1| is .2, .5, .16. Only "split" names two winners.
    assert aggregate_verdicts(rows, spec(PAIRWISE)) == pytest.approx(
        {"split": 0.6, "tie and first": 0.75, "close": 0.58}, abs=1e-12
    )
    assert aggregate_verdicts(rows, spec(PAIRWISE + "disagreement: tie"))["split"] == 0.5
    assert aggregate_verdicts(rows, spec(PAIRWISE + "disagreement: drop"))["split"] is None
    assert aggregate_verdicts(rows, spec(PAIRWISE + "margin: 0.16")) == pytest.approx(
        {"split": 0.6, "tie and first": 0.75, "close": 0.5}, abs=1e-12
    )
    assert aggregate_verdicts(rows, spec(PAIRWISE + "disagreement: tie"))["tie and first"] == 0.75


def test_only_decided_pairs_of_different_texts_become_preferences() -> None:
    pairs = numbered([("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"), ("same", "same"), ("i", "j")])
    rows = (
        both("p0", 1.0, 0.5)
        + both("p1", 0.0, 0.0)
        + both("p2", 1.0, 0.0)
        + both("p3", None, 1.0)
        + both("p4", 1.0, 1.0)
    )
    preferences, counts = to_preferences(pairs, rows)
    assert counts == {"pairs": 6, "decided": 2, "ties": 1, "unscored": 2, "identical": 1}  # p5 was never judged
    assert [(row.pair_id, row.chosen.text, row.rejected.text, row.margin, row.confidence) for row in preferences] == [
        ("p0", "a", "b", 0.5, 0.75),
        ("p1", "d", "c", 1.0, 1.0),
    ]


def test_health_by_hand() -> None:
    pairs = [
        pair("long answer", "short", id="p0"),
        pair("x", "longer", id="p1"),
        pair("aa", "bb", id="p2"),
        pair("aaa", "b", id="p3"),
        pair("same", "same", id="p4"),
    ]
    rows = (
        both("p0", 1.0, 1.0)
        + both("p1", 1.0, 0.0)
        + both("p2", 0.0, 0.5)
        + both("p3", None, 1.0)
        + both("p4", 1.0, 1.0)
    )
    found = health(pairs, rows)
    # Settled: p0 first, p1 tie, p2 second (.25), p3 unscored; p4 is no pair.
    assert (found["pairs"], found["decided"], found["ties"], found["unscored"]) == (4, 2, 1, 1)
    # Both orders read: p0 agrees, p1 does not, p2 does not (second and tie).
    assert found["swap_consistency"] == 1 / 3
    # Decided answers: p0 forward first (shown first), p0 reversed first (shown second), p1 forward first, p1 reversed
    # second
    # (shown first), p2 forward second (shown second), p3 reversed first (shown second): 3 of 6.
    assert found["first_share"] == 0.5
    assert found["longer_share"] == 1.0  # p0; the two of p2 are equally long
    assert found["unscored_answers"] == 1 / 8


def test_health_of_a_judge_without_order_has_no_figures_about_order() -> None:
    found = health(numbered([("a", "b")]), [verdict(1.0, id="p0")])
    assert found["swap_consistency"] is None and found["first_share"] is None and found["longer_share"] is None
    assert health([], [])["unscored_answers"] is None
