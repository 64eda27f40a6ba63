"""The whole summary against sums done by hand; false alarms, power, and the time and memory it takes."""

import math

import numpy as np
import pytest

from selfplay.errors import ConfigError
from selfplay.stats.intervals import prompts_needed, win_rate
from selfplay.stats.summary import ratio_error, summarise
from selfplay.stats.votes import Vote, tabulate

PREFERENCES = [1.0, 0.0, 1.0, 0.5, 1.0, 1.0, None, 1.0]


def votes(preferences=PREFERENCES, a="new", b="old"):
    return [Vote(str(x), a, b, math.nan if p is None else p) for x, p in enumerate(preferences)]


def test_a_pair_is_what_win_rate_says_of_it():
    pair = summarise(tabulate(votes(), models=["old", "new"])).pairs[0]
    one = win_rate("new", "old", PREFERENCES)
    # 5.5 / 7; the sum of squares about it is 1 + ... : s^2 = (5 + 0.25 - 7 (5.5/7)^2) / 6.
    assert pair.comparison.win_rate == pytest.approx(5.5 / 7, abs=1e-12)
    assert (
        (pair.comparison.n, pair.comparison.ties, pair.comparison.unscored)
        == (one.n, one.ties, one.unscored)
        == (7, 1, 1)
    )
    assert pair.standard_error == pytest.approx(math.sqrt((5.25 - 5.5**2 / 7) / 6 / 7), abs=1e-12)
    assert pair.p_value == pytest.approx(2 * 7 / 2**6, abs=1e-12)  # 5 of 6: 2 (1 + 6) / 64


def test_intervals_of_a_pair_agree_with_a_direct_bootstrap():
    values = np.random.default_rng(1).choice([0, 0.5, 1], size=400)
    pair = summarise(tabulate(votes(list(values)), models=["old", "new"])).pairs[0].comparison
    one = win_rate("new", "old", values)
    assert (pair.low, pair.high) == (pytest.approx(one.low, abs=1e-9), pytest.approx(one.high, abs=1e-9))


def test_several_votes_on_a_prompt_are_one_prompt():
    table = tabulate(votes([1.0, 0.0, 1.0]) + votes([1.0, 0.0, 1.0]), models=["old", "new"])
    twice = summarise(table).pairs[0]
    once = summarise(tabulate(votes([1.0, 0.0, 1.0]), models=["old", "new"])).pairs[0]
    assert twice == once  # copying every vote tells nothing new, so nothing gets narrower


def test_ratio_error_by_hand():
    # Two votes on the first prompt: rate 2/3, residuals 1 - 4/3, 1 - 2/3 -> sqrt(2/1 * 2/9) / 3 = 2/9.
    assert ratio_error(np.array([1.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx(2 / 9, abs=1e-12)
    assert ratio_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) is None


def test_differences_are_paired_on_shared_prompts():
    one, two = [1.0, 1.0, 0.0, 0.5], [0.5, 1.0, 0.0, None]
    table = tabulate(votes(one, "x", "base") + votes(two, "y", "base"), models=["base", "x", "y"])
    (found,) = summarise(table).differences
    # y - x on three shared prompts: -1/2, 0, 0: mean -1/6, variance 1/12, error sqrt(1/36) = 1/6.
    assert (found.a, found.b, found.baseline, found.n) == ("y", "x", "base", 3)
    assert found.difference == pytest.approx(-1 / 6, abs=1e-12)
    assert found.standard_error == pytest.approx(1 / 6, abs=1e-12)
    # Unpaired: variances of (0.5, 1, 0) and (1, 1, 0) are 1/4 and 1/3: sqrt((7/12) / 3).
    assert found.unpaired_error == pytest.approx(math.sqrt(7 / 36), abs=1e-12)
    assert found.low <= found.difference <= found.high


def test_holm_runs_over_all_pairs_and_the_matrix_mirrors():
    table = tabulate(votes([1.0] * 9 + [0.0], "x", "base") + votes([1.0] * 10, "y", "base"), models=["base", "x", "y"])
    summary = summarise(table)
    # p: 2 (1 + 10) / 1024 = 22/1024 and 2/1024; Holm: 22/1024 and 4/1024.
    assert [pair.p_adjusted for pair in summary.pairs] == pytest.approx([22 / 1024, 4 / 1024], abs=1e-12)
    matrix = summary.matrix()
    assert matrix[1][0] == pytest.approx(0.9, abs=1e-12) and matrix[0][1] == pytest.approx(0.1, abs=1e-12)
    assert matrix[1][2] is None and matrix[0][0] is None


def test_a_summary_survives_json_and_names_a_wrong_baseline():
    summary = summarise(tabulate(votes()))
    assert type(summary).model_validate_json(summary.model_dump_json()) == summary
    with pytest.raises(ConfigError, match="none of the models compared"):
        summarise(tabulate(votes()), baseline="older")


def test_two_copies_of_a_checkpoint_are_rarely_told_apart():
    """Same strength, fresh samples, ties among the verdicts: at most 5% of 200 comparisons raise a false alarm."""
    generator = np.random.default_rng(0)
    alarms = 0
    for seed in range(200):
        values = generator.choice([1.0, 0.5, 0.0], size=256, p=[0.4, 0.2, 0.4])
        alarms += summarise(tabulate(votes(list(values))), seed=seed).pairs[0].significant
    assert alarms <= 10


def test_a_difference_of_five_points_is_found_with_the_prompts_that_are_asked_for():
    """Win rate 0.55 with 20% ties: the size named for it finds it in 80% of 300 tries (standard deviation 2.3%)."""
    chances = [0.45, 0.2, 0.35]
    deviation = math.sqrt(0.45 * 0.45**2 + 0.2 * 0.05**2 + 0.35 * 0.55**2)
    size = prompts_needed(0.05, deviation)
    generator = np.random.default_rng(3)
    found = 0
    for seed in range(300):
        values = generator.choice([1.0, 0.5, 0.0], size=size, p=chances)
        found += summarise(tabulate(votes(list(values))), resamples=1000, seed=seed).pairs[0].significant
    assert 0.75 <= found / 300 <= 0.87


def test_the_difficulty_of_prompts_is_never_fitted_for_a_pair(monkeypatch):
    """190 identical fits took most of two minutes for twenty models; what it takes now is measured in tests/bench."""
    monkeypatch.setattr("selfplay.stats.length_control._alternate", lambda *_: pytest.fail("fitted"))
    lengths = np.random.default_rng(0).normal(100, 20, (30, 5))
    many = [
        Vote(str(x), f"m{a}", f"m{b}", float((x + a) % 2), lengths[x, a], lengths[x, b])
        for x in range(30)
        for a in range(5)
        for b in range(a)
    ]
    assert len(summarise(tabulate(many)).pairs) == 10


def test_a_baseline_turns_every_pair_that_it_is_in():
    many = votes([1.0] * 8 + [0.0] * 2, "x", "base") + votes([1.0] * 6 + [0.0] * 4, "y", "x")
    table = tabulate(many, models=["base", "x", "y"])
    seen = {
        name: [(pair.comparison.a, pair.comparison.b, pair.comparison.win_rate) for pair in summary.pairs]
        for name in (None, "x", "y")
        if (summary := summarise(table, baseline=name))
    }
    assert seen[None] == [("x", "base", 0.8), ("y", "x", 0.6)]
    assert seen["x"] == [("base", "x", pytest.approx(0.2)), ("y", "x", 0.6)]
    assert seen["y"] == [("x", "y", pytest.approx(0.4)), ("x", "base", 0.8)]


def test_groups_are_neighbours_that_cannot_be_told_apart():
    """Ratings a < b < c < d; a and d are told apart, and so are a and c: groups {d, c, b} and {b, a}."""
    rates = {("b", "a"): 0.55, ("c", "a"): 0.8, ("d", "a"): 0.9, ("c", "b"): 0.6, ("d", "b"): 0.62, ("d", "c"): 0.52}
    many = [
        Vote(f"{one}{two}{x}", one, two, float(x < 50 * rate)) for (one, two), rate in rates.items() for x in range(50)
    ]
    summary = summarise(tabulate(many, models="abcd"))
    assert [one.model for one in summary.ratings] == ["d", "c", "b", "a"]
    assert {(pair.comparison.a, pair.comparison.b) for pair in summary.pairs if pair.significant} == {
        ("c", "a"),
        ("d", "a"),
    }
    assert summary.groups == [["d", "c", "b"], ["b", "a"]]
