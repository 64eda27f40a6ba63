"""The reward model: what it learns from, what is kept back, and what is measured on that."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from staging import open_run

from selfplay.errors import ConfigError
from selfplay.rewards.reward_model import RewardModel
from selfplay.stages import reward_model as reward
from selfplay.stages.reward_model import (
    calibration_error,
    draw,
    learned_rows,
    measure,
    moved_prompts,
    preferences,
    split,
)
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


@pytest.mark.parametrize(
    ("places", "share", "moved"),
    [
        (
            {"a": 5000, "b": 1000, "c": 9999, "d": 1200},
            0.1,
            "b",
        ),  # none is below 1000; a tenth of four is 0.4: one prompt
        ({"a": 5000, "b": 3000, "c": 9999, "d": 3001}, 0.3, "b"),  # 1.2: one
        ({"a": 5000, "b": 6000, "c": 6000, "d": 7000}, 0.4, "ab"),  # 1.6: two, of equal places the first name
        ({"a": 5, "b": 1, "c": 3}, 0.3, "ac"),  # all are below 3000; 0.9: one stays
        ({"a": 5, "b": 1, "c": 3}, 0.89, "a"),  # 2.67 would be all
        ({"a": 5, "b": 1, "c": 3000}, 0.3, ""),
        ({"a": 4000, "b": 2999, "c": 3000}, 0.3, ""),
        ({"a": 5}, 0.3, ""),
        ({"a": 5000}, 0.3, ""),
    ],
)
def test_prompts_change_sides_only_where_one_would_be_empty(
    monkeypatch: pytest.MonkeyPatch, places: dict[str, int], share: float, moved: str
) -> None:
    monkeypatch.setattr(reward, "place_of", lambda prompt, seed: places[prompt])
    given = [{"prompt_id": name, "pair_id": f"{name}/{k}"} for name in places for k in range(2)]
    assert moved_prompts(given, share, 1) == moved_prompts(given[::-1], share, 1) == set(moved)
    train, heldout = split(given, share, 1, moved)
    expected = {name for name in places if (places[name] < share * 10_000) != (name in moved)}
    assert {row["prompt_id"] for row in heldout} == expected and len(train) + len(heldout) == len(given)
    assert len(places) == 1 or (train and heldout)


def names(rows: Sequence[dict[str, Any]]) -> set[str]:
    """The prompts of some rows."""
    return {row["prompt_id"] for row in rows}


@pytest.mark.parametrize(("share", "all_trained_on"), [(1e-4, True), (0.8999, False)])
def test_a_split_with_an_empty_side_is_mended_and_no_prompt_changes_sides(
    copied: Path, monkeypatch: pytest.MonkeyPatch, share: float, all_trained_on: bool
) -> None:
    """The two iterations have no prompt in common. By their hashes all would be on one side."""
    real = reward.place_of
    monkeypatch.setattr(
        reward, "place_of", lambda prompt, seed: real(prompt, seed) // 2 + (5000 if all_trained_on else 0)
    )
    run = open_run(copied, reward={"replay": 1.0, "heldout_share": share})
    rows = [preferences(run, number, "label") for number in (1, 2)]
    assert not names(rows[0]) & names(rows[1])
    train, heldout = learned_rows(run, 1, 0, None)
    prompts = len(names(rows[0]))
    assert len(names(heldout)) == max(1, round(share * prompts)) and len(train) + len(heldout) == len(rows[0])
    again, measured = learned_rows(run, 2, 0, None)
    assert not names(train + again) & names(heldout + measured)
    if all_trained_on:  # what was held back measures again, and the replayed rows are all that were trained on
        assert measured == heldout and again == rows[1] + train
    else:
        assert measured == rows[1] and again == train


def test_without_replay_an_iteration_that_is_all_held_back_trains_on_earlier_ones(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(copied)
    kept = names(preferences(run, 2, "label")) | {min(names(preferences(run, 1, "label")))}
    monkeypatch.setattr(reward, "place_of", lambda prompt, seed: 0 if prompt in kept else 9999)
    assert learned_rows(run, 2, 0, None) == (learned_rows(run, 1, 0, None)[0], preferences(run, 2, "label"))


def test_extra_rounds_count_for_the_sides_of_later_iterations(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first iteration's own prompts are all trained on; one that an extra round asks is held back, so none moves."""
    shutil.copytree(copied / "iteration-002/label", copied / "iteration-001/label-extra-1")
    run = open_run(copied)
    first, extra = (preferences(run, 1, name) for name in ("label", "label-extra-1"))
    kept = min(names(extra))
    monkeypatch.setattr(reward, "place_of", lambda prompt, seed: 0 if prompt == kept else 9999)
    assert names(learned_rows(run, 1, 0, None)[1]) and kept not in names(first)
    assert names(learned_rows(run, 1, 1, None)[1]) == {kept}
    train, heldout = learned_rows(run, 2, 0, None)
    assert names(heldout) == {kept} and names(train) == names(extra) - {kept}
    shutil.rmtree(copied / "iteration-002/label")
    shutil.copytree(copied / "iteration-001/label", copied / "iteration-002/label")
    train, heldout = learned_rows(
        run, 2, 0, None
    )  # asks the first round's prompts again: only the extra one was held back
    assert names(heldout) == {kept} and names(train) == names(first)


def test_pairs_of_one_prompt_are_a_sentence(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(copied)
    one = [{**row, "prompt_id": "p"} for row in preferences(run, 1, "label")][:3]
    monkeypatch.setattr(reward, "preferences", lambda *_: one)
    with pytest.raises(ConfigError, match="^3 decided pairs of 1 prompt are too few .* raise generate.prompts"):
        learned_rows(run, 1, 0, None)


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
