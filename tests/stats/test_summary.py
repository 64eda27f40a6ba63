"""The whole summary against sums done by hand; false alarms, power, and the time and memory it takes."""

import math
import subprocess
import sys
from pathlib import Path

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


def test_ten_thousand_prompts_and_five_checkpoints_take_seconds_and_little_memory(tmp_path):
    """Read and summarise 100,000 votes: under 10 s and 1 GiB."""
    generator = np.random.default_rng(0)
    path = tmp_path / "votes.csv"
    with path.open("w") as file:
        file.write("prompt,model_a,model_b,preference,length_a,length_b\n")
        for prompt in range(10_000):
            lengths = generator.integers(50, 150, 5)
            wins = generator.random((5, 5)) < 0.5
            file.writelines(
                f"{prompt},m{a},m{b},{int(wins[a, b])},{lengths[a]},{lengths[b]}\n" for b in range(5) for a in range(b)
            )
    script = """
import resource, sys, time
from selfplay.stats.summary import summarise
from selfplay.stats.votes import read_votes
begin = time.process_time()
assert len(summarise(read_votes(sys.argv[1])).pairs) == 10
print(time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    seconds, gibibytes = map(float, done.stdout.split())
    assert seconds < 10
    assert gibibytes < 1
