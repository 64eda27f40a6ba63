"""Win rates, intervals and tests against sums done by hand, scipy's own bootstrap, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from selfplay.stats import intervals as stats
from selfplay.stats.summary import summarise
from selfplay.stats.votes import Vote, tabulate


def test_win_rate_counts_ties_half_and_unscored_apart():
    # Scored: 1, 1, 0.5, 0, 0.5 -> 3 / 5; two ties; one None.
    result = stats.win_rate("new", "old", [1, 1, 0.5, None, 0, 0.5])
    assert (result.a, result.b, result.n, result.ties, result.unscored) == ("new", "old", 5, 2, 1)
    assert result.win_rate == pytest.approx(0.6, abs=1e-12)


def test_graded_preferences_are_averaged_and_only_exact_halves_are_ties():
    # (0.25 + 0.75 + 0.49) / 3 = 0.496666...
    result = stats.win_rate("a", "b", [0.25, 0.75, 0.49])
    assert result.win_rate == pytest.approx(1.49 / 3, abs=1e-12)
    assert result.ties == 0


def test_a_pair_has_the_interval_of_its_table():
    """A run says `win_rate` of each iteration, and `compare` tabulates the same matches: one interval, unscored ones too."""
    preferences = [None if place % 7 == 0 else (place % 5) / 4 for place in range(60)]
    votes = [Vote(str(place), "new", "old", math.nan if p is None else p) for place, p in enumerate(preferences)]
    assert stats.win_rate("new", "old", preferences) == summarise(tabulate(votes)).pairs[0].comparison


@pytest.mark.parametrize("preferences", [[], [None], [None, None]])
def test_nothing_scored_has_no_rate(preferences):
    result = stats.win_rate("a", "b", preferences)
    assert (result.win_rate, result.low, result.high, result.n) == (None, None, None, 0)
    assert result.unscored == len(preferences)


@pytest.mark.parametrize("wrong", [-0.01, 1.01, 2.0])
def test_a_preference_outside_the_unit_interval_is_refused(wrong):
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        stats.win_rate("a", "b", [0.5, wrong])


def test_interval_is_that_of_a_direct_bootstrap():
    values = np.random.default_rng(5).choice([0, 0.25, 0.5, 1], size=300)
    ours = stats.win_rate("a", "b", values, resamples=20_000)
    direct = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    # Two runs of 20,000 resamples: each end has a Monte Carlo error of about 0.0003 (a fifth of se / 10).
    assert ours.low == pytest.approx(direct.low, abs=0.0015)
    assert ours.high == pytest.approx(direct.high, abs=0.0015)


def test_interval_of_two_prompts_by_hand():
    # Resamples of {0, 1}: mean 0 with chance 1/4, 1/2 with 1/2, 1 with 1/4: the 2.5% and 97.5% quantiles are 0 and 1.
    result = stats.win_rate("a", "b", [0, 1])
    assert (result.low, result.high) == (0, 1)


def wilson(share, n):
    """The two roots p of (share - p)^2 = z^2 p (1 - p) / n, as numpy finds them."""
    z2 = 1.959963984540054**2
    return sorted(np.roots([1 + z2 / n, -2 * share - z2 / n, share**2]).real)


def test_clustered_interval_by_hand():
    # One try on each of 5 prompts: V = sum (hit - 3/5)^2 / 25 x 5/4 = 1.2 / 20, so n = 0.24 / 0.06 = 4.
    assert stats.clustered_interval([1, 1, 1, 0, 0], [1] * 5) == pytest.approx(wilson(0.6, 4), abs=1e-9)
    # Hits 3 of 3, 1 of 2, 0 of 1: share 4/6; residues 1, -1/3, -2/3; V = (14/9) / 36 x 3/2 = 7/108; n = (2/9) / V = 24/7.
    assert stats.clustered_interval([3, 1, 0], [3, 2, 1]) == pytest.approx(wilson(2 / 3, 24 / 7), abs=1e-9)
    # Even halves on every prompt: V is 0, as if all were known; as many as there are prompts.
    assert stats.clustered_interval([1, 1, 1], [2, 2, 2]) == pytest.approx(wilson(0.5, 3), abs=1e-9)
    assert stats.clustered_interval([2, 2], [2, 2]) == pytest.approx(wilson(1.0, 2), abs=1e-7)
    # A bound at the value itself is exact, whatever the roots round to.
    for n in range(1, 60):
        assert (
            stats.clustered_interval([1] * n, [1] * n)[1] == 1.0 and stats.clustered_interval([0] * n, [1] * n)[0] == 0
        )


def test_pairs_that_repeat_what_their_prompt_said_add_nothing():
    once = stats.clustered_interval([1, 0, 1, 1], [1, 1, 1, 1])
    assert stats.clustered_interval([6, 0, 6, 6], [6, 6, 6, 6]) == pytest.approx(once, abs=1e-12)


def test_unlike_pairs_never_count_for_more_than_they_are():
    # V = 4 x 0.1^2 / 40^2 x 4/3 is tiny; 40 tries stay 40.
    assert stats.clustered_interval([5.1, 4.9, 5.1, 4.9], [10] * 4) == pytest.approx(wilson(0.5, 40), abs=1e-9)
    with pytest.raises(ValueError, match="no tries"):
        stats.clustered_interval([], [])


def test_clustered_interval_covers_where_the_plain_one_does_not():
    """40 prompts with 6 pairs each; a prompt's own accuracy is Beta(1.4, 0.6): mean 0.7, correlation within 1/3."""
    generator = np.random.default_rng(7)
    hits = generator.binomial(6, generator.beta(1.4, 0.6, size=(1000, 40)))
    clustered = [stats.clustered_interval(row, [6] * 40) for row in hits]
    plain = [wilson(row.sum() / 240, 240) for row in hits]
    covered, naive = (np.mean([low <= 0.7 <= high for low, high in found]) for found in (clustered, plain))
    assert 0.93 <= covered <= 0.97 and naive < 0.85


def test_the_same_seed_gives_the_same_interval_and_chunks_change_nothing(monkeypatch):
    values = list(np.random.default_rng(0).random(50))
    whole = stats.win_rate("a", "b", values, seed=3)
    assert stats.win_rate("a", "b", values, seed=3) == whole
    assert stats.win_rate("a", "b", values, seed=4) != whole
    monkeypatch.setattr(stats, "CHUNK", 50 * 7)
    again = stats.win_rate("a", "b", values, seed=3)
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high), abs=1e-12), (
        "sums of a chunk may round otherwise"
    )


def test_resampled_prompts_are_drawn_with_replacement():
    counts = np.concatenate(list(stats.resample_counts(40, 500, seed=0)))
    assert counts.shape == (500, 40)
    assert np.all(counts.sum(axis=1) == 40)
    # A prompt is missed by a sample with chance (1 - 1/40)^40 = 0.3632; 20,000 cells, so within 0.015 (4 se).
    assert np.mean(counts == 0) == pytest.approx((1 - 1 / 40) ** 40, abs=0.015)


def test_all_wins_do_not_pretend_to_certainty():
    # 10 wins in 10: the lower Clopper-Pearson bound is 0.025^(1/10) = 0.691503.
    result = stats.win_rate("a", "b", [1] * 10)
    assert (result.low, result.high) == (pytest.approx(0.025**0.1, abs=1e-9), 1.0)
    mirrored = stats.win_rate("a", "b", [0] * 10)
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(1 - 0.025**0.1, abs=1e-9))


def test_all_ties_leave_room_on_both_sides():
    # q = 1 - 0.025^(1/4) = 0.602364; 0.5 (1 - q) = 0.198818 and + q.
    result = stats.win_rate("a", "b", [0.5] * 4)
    assert result.low == pytest.approx(0.5 * 0.025**0.25, abs=1e-9)
    assert result.high == pytest.approx(1 - 0.5 * 0.025**0.25, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 64).map(lambda n: n / 64)), max_size=30))
def test_swapping_the_names_mirrors_the_result(preferences):
    ours = stats.win_rate("a", "b", preferences, seed=1)
    swapped = stats.win_rate("b", "a", [None if p is None else 1 - p for p in preferences], seed=1)
    assert (ours.n, ours.unscored) == (swapped.n, swapped.unscored)
    if ours.win_rate is not None:
        assert 0 <= ours.low <= ours.win_rate + 1e-12 and ours.win_rate - 1e-12 <= ours.high <= 1
        assert swapped.win_rate == pytest.approx(1 - ours.win_rate, abs=1e-9)
        assert (swapped.low, swapped.high) == (
            pytest.approx(1 - ours.high, abs=1e-9),
            pytest.approx(1 - ours.low, abs=1e-9),
        )


def test_standard_error_by_hand():
    # 0, 1, 1: mean 2/3, squares (4 + 1 + 1)/9 = 2/3, over n - 1 = 2: 1/3; sqrt(1/3) / sqrt(3) = 1/3.
    assert stats.standard_error([0, 1, None, 1]) == pytest.approx(1 / 3, abs=1e-12)
    assert stats.standard_error([1]) is None


def test_sign_test_by_hand():
    # 8 wins, 1 loss, ties dropped: 2 (1 + 9) / 2^9 = 20 / 512.
    assert stats.sign_test([1] * 8 + [0] + [0.5] * 30 + [None]) == pytest.approx(20 / 512, abs=1e-12)
    assert stats.sign_test([0.5, None]) == 1.0


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04 -> 3 * 0.01, max(0.03, 2 * 0.03), max(0.06, 0.04) = 0.03, 0.06, 0.06.
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06], abs=1e-12)
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_prompts_needed_by_hand():
    # (1.959964 + 0.841621) * 0.5 / 0.05 = 28.01585 -> 784.888; / 4 * (1 + sqrt(1 + 2 / 39.2444))^2 = 804.76.
    assert stats.prompts_needed(0.05, 0.5) == 805
    assert stats.prompts_needed(-0.05, 0.5) == 805
    assert stats.prompts_needed(0.0, 0.5) is None
    assert stats.prompts_needed(0.5, 0.0) == math.ceil(0.25 * (1 + math.sqrt(5)) ** 2)


def test_intervals_cover_the_truth_in_95_of_100_simulations():
    generator = np.random.default_rng(11)
    covered = 0
    for simulation in range(1000):
        strength = generator.uniform(0.2, 0.8)  # of a against b: wins, ties and losses drawn from it
        wins, ties = strength * 0.8, 0.2
        values = generator.choice([1, 0.5, 0], size=200, p=[wins, ties, 1 - wins - ties])
        result = stats.win_rate("a", "b", values, seed=simulation)
        covered += result.low <= wins + ties / 2 <= result.high
    assert 930 <= covered <= 970
