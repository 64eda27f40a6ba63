"""Rejection sampling: what is kept, the shipped recipe in small, and kills, after which no answer is scored again."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from algorithm_runs import checksums, small_run
from killing import Moment, in_process

from selfplay.algorithms.rejection import RejectionAlgorithm, measure, select
from selfplay.config import Rejection
from selfplay.records import Completion
from selfplay.storage.checksums import write_checks
from selfplay.storage.files import read_json_lines, write_json_lines

SMALL = "algorithm.rounds=2", "algorithm.prompts=8", "algorithm.completions=6", "algorithm.batch_size=4", "iterations=1"
REWARD = """\
from pathlib import Path


def brevity(prompts, responses, meta):
    with open(Path(__file__).with_name("scored.txt"), "a") as file:
        file.write("x" * len(responses))
    return [-len(response) for response in responses]
"""
STEP = "selfplay.training.supervised", "Watcher.on_step_end"


def answer(place: int, score: float, tokens: tuple[int, ...] = (), cut: bool = False) -> tuple[Completion, float]:
    reason: Any = "length" if cut else "stop"
    ids = tokens or (100 + place,)
    return (
        Completion(id=str(place), prompt_id="p", text="", token_ids=ids, finish_reason=reason, policy="test"),
        score,
    )


NAN = math.nan
GROUPS = [
    [
        answer(0, 0.2),
        answer(1, 0.9, cut=True),
        answer(2, 0.7),
        answer(3, 0.7, (9,)),
    ],  # 2 is the first of the best that end
    [answer(4, 0.5), answer(5, 0.5)],  # none is better than another
    [answer(6, NAN), answer(7, 0.1), answer(8, 0.3)],
    [answer(9, NAN), answer(10, 0.8)],  # nothing to be better than
    [answer(11, 0.4), answer(12, 0.4, (111,))],  # the same tokens twice
]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["2", "8"]),
        ({"truncated": True}, ["1", "8"]),
        ({"keep": "above", "threshold": 0.5}, ["2", "3", "4", "5", "10"]),
        ({"keep": "above", "threshold": 0.4, "truncated": True}, ["1", "2", "3", "4", "5", "10", "11"]),
        ({"keep": "top", "share": 0.25}, ["2", "3", "10"]),  # a quarter of 11 scored ones, up to 3: .8, .7, .7
    ],
)
def test_what_is_kept(settings: dict[str, Any], expected: list[str]) -> None:
    kept = select(GROUPS, Rejection(kind="rejection", **settings))
    assert sorted((one.id for _, (one, _) in kept), key=int) == expected


def test_what_is_measured() -> None:
    """The groups 0 and 2: scores .2 .9 .7 .7 .1 .3 have mean 2.9 / 6 and, of their squares, 1.93 / 6."""
    groups = [GROUPS[0], GROUPS[2]]
    found = measure(groups, select(groups, Rejection(kind="rejection")))
    assert found["objective/scores"] == pytest.approx(2.9 / 6)
    assert found["objective/scores_std"] == pytest.approx(math.sqrt(1.93 / 6 - (2.9 / 6) ** 2))
    assert found["objective/scores_kept"] == pytest.approx((0.7 + 0.3) / 2)
    assert (found["objective/unscored"], found["objective/kept"], found["response/truncated"]) == (1, 2, 1 / 7)


def run_with_reward(tiny_run: Path, folder: Path) -> None:
    """The shipped recipe with a reward that notes how many answers it was asked about."""
    folder.mkdir(exist_ok=True)
    (folder / "brevity.py").write_text(REWARD)
    reward = f"reward={{kind: function, function: '{folder}/brevity.py:brevity'}}"
    small_run("rejection", tiny_run, folder, reward, *SMALL)


def test_a_killed_run_ends_with_the_same_weights_and_scores_nothing_twice(tiny_run: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_process(run_with_reward, tiny_run, whole) == 0
    moments = [
        Moment("selfplay.context", "scores_of", 1),  # scored, and not yet on disk: these 48 are asked about again
        Moment(*STEP, 1),
        Moment("selfplay.storage.durable", "publish", 2),  # behind the checkpoint of the first round's training
        Moment("selfplay.algorithms.rejection", "select", 1),  # in the second round
        Moment("selfplay.models", "save", 2),
    ]
    for moment in moments:
        assert in_process(run_with_reward, tiny_run, killed, moment=moment) == -9, f"was not killed at {moment}"
    assert in_process(run_with_reward, tiny_run, killed) == 0
    place = Path("run") / "iteration-001" / "policy"
    expected = checksums(whole / place)
    for name in ("manifest.json", "README.md"):  # which say when, and where
        expected.pop(name)
    found = checksums(killed / place)
    assert {name: found[name] for name in expected} == expected
    assert len((whole / "scored.txt").read_text()) == 2 * 48
    assert len((killed / "scored.txt").read_text()) == 3 * 48
    rows = read_json_lines(killed / place / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and [row["episode"] for row in rows] == [48, 96]
    assert all(row["objective/scores_kept"] > row["objective/scores"] for row in rows)
    assert not list((killed / "run").rglob("*.making"))


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "checks.json"])
def test_a_finished_round_that_was_changed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Rounds that write their number, killed in the third: those before are taken as they are, or made again if damaged."""
    made: list[int] = []

    def make(self: Any, inputs: Any, number: int, before: Any, result: Path) -> None:
        if number == 3 and 3 not in made:
            made.append(3)
            raise KeyboardInterrupt
        made.append(number)
        result.mkdir()
        (result / "model.safetensors").write_bytes(bytes([number] * 50))
        write_json_lines(result / "metrics.jsonl", [{"step": one + 1} for one in range(number)])
        write_checks(result)

    monkeypatch.setattr(RejectionAlgorithm, "_round", make)
    monkeypatch.setattr("selfplay.models.load_policy", lambda folder: folder)
    monkeypatch.setattr("selfplay.models.load_tokenizer", lambda folder: folder)
    monkeypatch.setattr("selfplay.models.save", lambda model, tokenizer, folder: None)
    algorithm = RejectionAlgorithm(Rejection(kind="rejection", rounds=3))
    for damaged in (False, True):
        made.clear()
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        (tmp_path / "work").mkdir()
        inputs: Any = SimpleNamespace(work=tmp_path / "work", folder=tmp_path, iteration=1)
        with pytest.raises(KeyboardInterrupt):
            algorithm.train(inputs)
        file = tmp_path / "work" / "round-2" / name
        data = file.read_bytes()
        file.write_bytes(data[:10] + bytes([data[10] ^ damaged]) + data[11:])
        algorithm.train(inputs)
        assert made == [1, 2, 3, *([1, 2] if damaged else []), 3]
        assert ("is damaged and was removed; its round is made again" in capsys.readouterr().err) == damaged
        assert read_json_lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_the_shipped_recipe_with_adapters_and_its_pages(tiny_run: Path, tmp_path: Path) -> None:
    lora = "policy.lora={rank: 2, alpha: 4.0}"
    directory = small_run("rejection", tiny_run, tmp_path, lora, *SMALL, "algorithm.truncated=true")
    assert sorted(path.name for path in (directory / "iteration-001").iterdir()) == ["evaluate", "policy"]
    assert "Reward per response" in (directory / "report.html").read_text()
    card = (directory / "iteration-001" / "policy" / "README.md").read_text()
    assert "iteration 1 of 1: Rejection sampling follows the reward." in card
    shutil.rmtree(directory)
