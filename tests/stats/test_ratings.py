"""Bradley-Terry ratings against published scores, evalica, closed forms and simulation."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selfplay.formatting import bounds_text
from selfplay.stats import ratings as rating
from selfplay.stats.votes import Vote, VoteTable, tabulate

DATA = Path(__file__).parents[3] / "shared" / "data" / "statistics"
WORDS = {"left": 1.0, "right": 0.0, "tie": 0.5}


@pytest.fixture(scope="module")
def llmfao() -> VoteTable:
    """8,931 real votes on 59 models (evalica's, Apache-2.0)."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent: no real votes")
    with (DATA / "llmfao.csv").open() as file:
        return tabulate(
            Vote(row["prompt"], row["left"], row["right"], WORDS[row["winner"]]) for row in csv.DictReader(file)
        )


def golden(algorithm: str) -> dict[str, float]:
    with (DATA / "llmfao-golden.csv").open() as file:
        return {row["item"]: float(row["score"]) for row in csv.DictReader(file) if row["algorithm"] == algorithm}


def test_golden_bradley_terry_scores(llmfao):
    expected = golden("bradley_terry")
    logarithms = np.log([expected[name] for name in llmfao.models])
    wins = rating.win_matrix(llmfao)
    ours = rating.strengths(wins)
    np.testing.assert_allclose(ours, logarithms - logarithms.mean(), atol=1e-6)
    np.testing.assert_allclose(rating.newton_strengths(wins[None])[0], ours, atol=1e-9)


def test_golden_average_win_rates(llmfao):
    expected = golden("average_win_rate")
    wins = rating.win_matrix(llmfao)
    with np.errstate(invalid="ignore"):
        ours = np.nanmean(wins / (wins + wins.T), axis=1)
    np.testing.assert_allclose(ours, [expected[name] for name in llmfao.models], atol=1e-9)


def test_two_models_by_hand():
    # 3 wins of 4: odds 3 : 1, so the ratings lie 400 log10(3) = 190.8485 apart, half above and half below 0.
    table = tabulate([Vote(str(i), "new", "old", float(i > 0)) for i in range(4)])
    found, note = rating.ratings(table)
    assert note == "" and [one.model for one in found] == ["new", "old"]
    assert found[0].rating == pytest.approx(200 * np.log10(3), abs=1e-6)
    assert found[1].rating == pytest.approx(-200 * np.log10(3), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (4, 4), elements=st.integers(1, 40)))
def test_newton_agrees_with_evalica(wins):
    np.fill_diagonal(wins, 0)
    np.testing.assert_allclose(rating.newton_strengths(wins[None])[0], rating.strengths(wins), atol=1e-6)


@pytest.mark.parametrize(
    ("wins", "expected"),
    [
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], True),
        ([[0, 1, 1], [0, 0, 1], [0, 0, 0]], False),  # the last never wins
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], False),  # the last never plays
    ],
)
def test_connected(wins, expected):
    assert rating.connected(np.array(wins, dtype=float)) == expected


def test_a_clean_sweep_stays_finite_and_says_so():
    table = tabulate([Vote(str(i), "new", "old", 1.0) for i in range(20)])
    found, note = rating.ratings(table)
    # 20.5 : 0.5 after half a win each way: 400 log10(41) apart.
    assert found[0].rating - found[1].rating == pytest.approx(400 * np.log10(41), abs=1e-6)
    assert "half a win" in note


def test_a_clean_sweep_has_the_bounds_of_its_win_rate():
    """Five wins of five were reported as a rating of `208 [208, 208]`."""
    table = tabulate([Vote(str(i), "new", "old", 1.0) for i in range(5)])
    new, old = rating.ratings(table, resamples=20_000)[0]
    # Clopper-Pearson: the win rate is at least 0.025^(1/5) = 0.4782; two ratings of mean 0 lie half the odds from it.
    lowest = 200 * np.log10(0.4782 / 0.5218)
    assert lowest == pytest.approx(-7.6, abs=0.05)
    assert new.low == pytest.approx(lowest, abs=0.5) and new.high is None
    assert old.high == pytest.approx(-lowest, abs=0.5) and old.low is None
    assert bounds_text(new.low, new.high) == "[-8, \N{INFINITY})"


def test_only_who_was_never_beaten_has_no_upper_bound():
    """a and b beat each other and both beat c always: a and b have no bound above, c none below."""
    votes = [Vote(str(i), "a", "b", float(i % 2)) for i in range(20)]
    votes += [Vote(str(i), one, "c", 1.0) for i in range(20) for one in "ab"]
    found = {one.model: one for one in rating.ratings(tabulate(votes))[0]}
    assert found["a"].high is None and found["b"].high is None and found["c"].low is None
    assert 0 < found["a"].low < found["a"].rating and found["c"].rating < found["c"].high < 0


def test_all_ties_leave_a_spread():
    (one, other), note = rating.ratings(tabulate([Vote(str(i), "x", "y", 0.5) for i in range(10)]))
    assert note == "" and one.low < -10 and one.high > 10 and other.low < -10


def test_models_that_no_chain_links_have_no_rating():
    found, note = rating.ratings(tabulate([Vote("p", "a", "b", 1.0), Vote("p", "c", "d", 0.0)]))
    assert found is None and "no chain" in note


def test_cycles_are_named_once():
    rates = {("a", "b"): 0.8, ("b", "c"): 0.7, ("c", "a"): 0.6, ("a", "d"): 0.9, ("b", "d"): 0.9, ("c", "d"): 0.9}
    found = rating.cycles(tabulate([Vote("p", one, two, rate) for (one, two), rate in rates.items()], models="abcd"))
    assert len(found) == 1
    assert found[0].models == ("a", "b", "c")
    assert found[0].win_rates == pytest.approx((0.8, 0.7, 0.6), abs=1e-12)


def test_a_transitive_order_has_no_cycle():
    assert rating.cycles(tabulate([Vote("p", "a", "b", 0.6), Vote("p", "b", "c", 0.6), Vote("p", "a", "c", 0.5)])) == []


def test_rating_intervals_cover_the_known_strengths():
    """Three checkpoints of known strength on 150 prompts, 1,000 times: 95% intervals cover 93 to 97%."""
    generator = np.random.default_rng(2)
    truth = np.array([-0.5, 0.1, 0.4])
    pairs = np.array([(1, 0), (2, 0), (2, 1)])
    chance = 1 / (1 + np.exp(-(truth[pairs[:, 0]] - truth[pairs[:, 1]])))
    covered, simulations = 0, 1000
    for seed in range(simulations):
        score = (generator.random((150, 3)) < chance).astype(float)
        table = VoteTable(
            prompts=("p",) * 150,
            models=("m0", "m1", "m2"),
            pairs=pairs,
            score=score,
            count=np.ones_like(score),
            unscored=np.zeros_like(score),
            length=np.full_like(score, np.nan),
        )
        found, _ = rating.ratings(table, resamples=1000, seed=seed)
        covered += sum(one.low <= truth[int(one.model[1])] * rating.POINTS <= one.high for one in found)
    assert 0.93 <= covered / (3 * simulations) <= 0.97
