"""The reward model: what it learns from, what is kept back, and what is measured on that."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from staging import open_run

from selfplay.rewards.reward_model import RewardModel
from selfplay.stages import reward_model as reward
from selfplay.stages.reward_model import calibration_error, draw, measure, preferences, split
from selfplay.stats.intervals import clustered_interval
from selfplay.storage.files import read_json
from selfplay.training.pairs import read_preferences


def rows(prompts: int, each: int = 3) -> list[dict[str, Any]]:
    return [{"prompt_id": f"p{number}", "pair_id": f"p{number}/{k}"} for number in range(prompts) for k in range(each)]


def test_all_pairs_of_a_prompt_go_the_same_way_whatever_else_there_is() -> None:
    train, heldout = split(rows(400), 0.3, seed=1)
    sides = [{row["prompt_id"] for row in part} for part in (train, heldout)]
    assert not sides[0] & sides[1] and len(train) + len(heldout) == 1200
    # Binomial(400, 0.3): 120 prompts, deviation 9.2; four deviations.
    assert 83 < len(sides[1]) < 157
    assert {row["prompt_id"] for row in split(rows(50, each=1), 0.3, seed=1)[1]} == sides[1] & {
        f"p{n}" for n in range(50)
    }
    assert {row["prompt_id"] for row in split(rows(400), 0.3, seed=2)[1]} != sides[1]


def test_a_share_is_drawn_pair_by_pair() -> None:
    pool = rows(1000)
    some, more = draw(pool, 0.3, seed=4), draw(pool, 0.5, seed=4)
    # Binomial(3000, 0.3): 900, deviation 25; four deviations.
    assert 800 < len(some) < 1000 and all(row in more for row in some)
    assert draw(pool, 0.0, 4) == [] and draw(pool, 1.0, 4) == pool
    assert draw(pool, 0.3, seed=5) != some


def test_calibration_error_by_hand() -> None:
    """Ten bins of confidence from 0.5 to 1. In the third (0.6 to 0.65) one of 0.62 is right and one wrong (0.38): 1.24
    expected, 1 found. In the last, 0.97 and 1 are right: 1.97 expected, 2 found. (0.24 + 0.03) / 4 = 0.0675."""
    assert calibration_error([0.62, 0.38, 0.97, 1.0]) == pytest.approx(0.0675, abs=1e-12)
    assert calibration_error([1.0, 1.0]) == 0
    assert calibration_error([0.0, 0.0]) == 1, "sure, and always wrong"


class Scores:
    """Stands in for the model: the raw score of a sequence is its first id's natural logarithm."""

    def raw(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        return [math.log(sequence[0]) for sequence in sequences]


def test_measures_by_hand() -> None:
    """P(chosen) = sigmoid(log a - log b) = a / (a + b): 3/4, 9/10 on one prompt, 1/4 on another."""
    pairs = [("p", 3, 1), ("p", 9, 1), ("q", 1, 3)]
    found = measure(
        Scores(),
        [
            {"prompt_id": prompt, "chosen_ids": [a], "rejected_ids": [b]}  # type: ignore[arg-type]
            for prompt, a, b in pairs
        ],
    )
    assert found["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-12) and found["accuracy"]["n"] == 3
    # By prompt: residues 2 - 4/3 and 0 - 2/3, V = (8/9) / 9 x 2 = 16/81, so n = (2/9) / (16/81) = 9/8 and not 3.
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == clustered_interval([2, 0], [2, 1])
    assert found["brier"] == pytest.approx((0.25**2 + 0.1**2 + 0.75**2) / 3, abs=1e-12)
    # Confidences 3/4 (right) and 3/4 (wrong) share a bin: |1.5 - 1|; 9/10 is right: |0.9 - 1|.
    assert found["calibration_error"] == pytest.approx((0.5 + 0.1) / 3, abs=1e-12)


@pytest.mark.parametrize(("replay", "low", "high"), [(0.0, 0, 0), (0.5, 0.25, 0.75), (1.0, 1, 1)])
def test_earlier_preferences_are_mixed_in_and_what_is_held_back_is_never_learned(
    copied: Path, monkeypatch: pytest.MonkeyPatch, replay: float, low: float, high: float
) -> None:
    seen: list[dict[str, Any]] = []

    def look(model: object, train: list[dict[str, Any]], *_: object) -> None:
        seen.extend(train)
        raise KeyboardInterrupt

    monkeypatch.setattr(reward, "train_reward_model", look)
    shutil.rmtree(copied / "iteration-002/reward")
    run = open_run(copied, reward={"replay": replay})
    with pytest.raises(KeyboardInterrupt):
        reward.run(run, 2)
    (old, old_back), (new, new_back) = (
        split(preferences(run, number, "label"), 0.3, run.seed("reward split")) for number in (1, 2)
    )
    learned = [row["pair_id"] for row in seen]
    assert learned[: len(new)] == [row["pair_id"] for row in new] and old_back and new_back
    again = set(learned[len(new) :])
    assert again <= {row["pair_id"] for row in old} and low * len(old) <= len(again) <= high * len(old)
    assert len(set(learned)) == len(learned)


def test_what_a_real_run_measured_is_what_its_model_says(tiny_run: Path) -> None:
    run = open_run(tiny_run)
    for number in (1, 2):
        folder = tiny_run / f"iteration-00{number}"
        everything = read_preferences(folder / "label/preferences.parquet")
        train, heldout = split(everything, 0.3, run.seed("reward split"))
        found, again = read_json(folder / "reward/metrics.json"), measure(RewardModel.load(folder / "reward"), heldout)
        assert found["trained_on"] == len(train) and found["accuracy"]["n"] == len(heldout)
        assert again["accuracy"] == found["accuracy"] and again["brier"] == pytest.approx(found["brier"], abs=1e-5)
    samples = reward.start_samples(run, RewardModel.load(tiny_run / "iteration-001/reward").tokenizer)
    model = RewardModel.load(tiny_run / "iteration-002/reward")
    scores = [(value - model.mean) / model.deviation for value in model.raw(samples)]
    mean = sum(scores) / len(scores)
    assert len(samples) == 192 and mean == pytest.approx(0, abs=1e-4), (
        "the start's own samples have mean 0, deviation 1"
    )
    assert math.sqrt(sum((score - mean) ** 2 for score in scores) / 191) == pytest.approx(1, abs=1e-4)
