"""Length-controlled win rates: they find the quality that was simulated, and leave alone what length did not cause."""

from dataclasses import replace

import numpy as np
import pytest

from selfplay.errors import ConfigError
from selfplay.stats.length_control import fit_difficulty, fit_logistic, length_controlled, sigmoid
from selfplay.stats.votes import Vote, VoteTable, tabulate


def judged(
    quality: dict[str, float],
    words: dict[str, float],
    taste: float,
    prompts: int,
    seed: int = 0,
    difficulty: float = 0.0,
) -> VoteTable:
    """Votes of a judge who likes length: logit P(m over start) = quality + difficulty_x + taste tanh(d / sd)."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(0, difficulty, prompts) if difficulty else np.zeros(prompts)
    votes = []
    for name, value in quality.items():
        own, start = generator.normal(words[name], 20, prompts), generator.normal(100, 20, prompts)
        d = own - start
        chance = sigmoid(value + hard + taste * np.tanh(d / d.std()))
        for x in range(prompts):
            votes.append(Vote(str(x), name, "start", float(generator.random() < chance[x]), own[x], start[x]))
    return tabulate(votes, models=["start", *quality])


def test_equal_lengths_leave_the_raw_rate():
    votes = [Vote(str(x), "new", "old", preference, 7, 7) for x, preference in enumerate([1, 1, 0, 0.5, 1])]
    (found,) = length_controlled(tabulate(votes, models=["old", "new"]))
    assert found.win_rate == pytest.approx(3.5 / 5, abs=1e-9)
    assert found.approximate


def test_longer_but_no_better_comes_out_even():
    table = judged({"long": 0.0}, {"long": 130}, taste=1.5, prompts=4000)
    raw = table.mean()[:, 0].mean()
    (found,) = length_controlled(table)
    assert raw > 0.65
    assert found.low <= 0.5 <= found.high and found.win_rate == pytest.approx(0.5, abs=0.03)


def test_better_at_any_length_stays_better():
    # Quality 1 at equal length: sigmoid(1) = 0.7311, while shorter answers drag the raw rate down.
    table = judged({"short": 1.0}, {"short": 75}, taste=1.5, prompts=4000)
    (found,) = length_controlled(table)
    assert table.mean()[:, 0].mean() < 0.65
    assert found.win_rate == pytest.approx(sigmoid(np.array(1.0)), abs=0.03)


def test_prompt_difficulty_is_found_once_and_serves_every_model():
    quality = {f"m{k}": 0.3 * k for k in range(6)}
    table = judged(quality, dict.fromkeys(quality, 110.0), taste=1.0, prompts=800, difficulty=2.0)
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 2.0, 800)  # the first draw of `judged`
    found = fit_difficulty(table, 0)
    assert np.corrcoef(found, hard)[0, 1] > 0.8
    results = length_controlled(table, found)
    assert not any(one.approximate for one in results)
    # m3 at equal length: the mean of sigmoid(0.9 + hard) over these prompts.
    assert results[3].win_rate == pytest.approx(sigmoid(0.9 + hard).mean(), abs=0.04)


def test_difficulty_speaks_of_the_baseline_whichever_way_the_votes_stand():
    quality = {f"m{k}": 0.3 * k for k in range(4)}
    table = judged(quality, dict.fromkeys(quality, 110.0), taste=1.0, prompts=300, difficulty=2.0)
    turned = table.against("m3")
    place = turned.models.index("start")
    assert [place, 0] in turned.pairs.tolist(), "m3 against start has become start against m3"
    np.testing.assert_allclose(fit_difficulty(turned, place), fit_difficulty(table, 0), atol=1e-9)
    with pytest.raises(ConfigError, match="1 models with known lengths were compared with 'm3', and it takes 3"):
        fit_difficulty(turned, 0)


def test_adding_nine_models_changes_no_rate_of_another_at_equal_length():
    """A rate that moved from 34 to 19 as others joined was reported; now each pair is fitted by itself."""
    board = {f"m{k}": -0.4 + 0.15 * k for k in range(10)}
    words = {name: 90.0 + 5 * k for k, name in enumerate(board)}
    many = judged(board, words, taste=1.2, prompts=805, difficulty=1.5)
    few = replace(
        many,
        models=many.models[:2],
        pairs=many.pairs[:1],
        **{name: getattr(many, name)[:, :1] for name in ("score", "count", "unscored", "length")},
    )
    for difficulty in (None, fit_difficulty(many, 0)):
        assert length_controlled(few, difficulty) == length_controlled(many, difficulty)[:1]


def test_one_pair_alone_is_marked_approximate_and_missing_lengths_give_none():
    assert length_controlled(judged({"m": 0.2}, {"m": 100}, 1.0, 50))[0].approximate
    assert length_controlled(tabulate([Vote("p", "a", "b", 1.0), Vote("q", "a", "b", 0.0)])) == [None]


def test_a_clean_sweep_keeps_bounds():
    (found,) = length_controlled(
        tabulate([Vote(str(x), "new", "old", 1.0, x, 5) for x in range(10)], models=["old", "new"])
    )
    assert 0.69 < found.low <= found.win_rate <= found.high == 1.0


def test_logistic_fit_by_hand():
    # Intercept alone, 3 of 4: log 3. With a group indicator, 1/4 and 3/4: -log 3 and 2 log 3.
    y = np.array([1.0, 1, 1, 0])
    assert fit_logistic(np.ones((4, 1)), y, np.zeros(1))[0] == pytest.approx(np.log(3), abs=1e-6)
    x = np.stack([np.ones(8), np.repeat([0.0, 1.0], 4)], axis=1)
    y = np.array([1.0, 0, 0, 0, 1, 1, 1, 0])
    np.testing.assert_allclose(fit_logistic(x, y, np.zeros(2)), [-np.log(3), 2 * np.log(3)], atol=1e-6)


def test_intervals_cover_the_quality_that_was_simulated():
    """500 simulations: coverage within 93 and 97%; tests/bench/length_control.py does the same with difficulty."""
    covered = 0
    for seed in range(500):
        (found,) = length_controlled(judged({"m": 0.6}, {"m": 115}, 1.0, 150, seed=seed), resamples=500, seed=seed)
        covered += found.low <= sigmoid(np.array(0.6)) <= found.high
    assert 465 <= covered <= 485
