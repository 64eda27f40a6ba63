"""A run whose reward model learns from preferences that exist already: no pairs, no labels, and the same after a kill."""

import shutil
from pathlib import Path

import pytest
from killing import Moment, in_process
from test_stage_kills import STEP, left, run_one
from tiny_run import write_recipe

from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.rewards.reward_model import RewardModel
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json, read_json_lines


@pytest.fixture(scope="module")
def given_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations on the preferences that another run left, in TRL's columns."""
    folder = tmp_path_factory.mktemp("given")
    data = tiny_run / "iteration-001" / "label" / "preferences.parquet"
    start = [f"policy.model={tiny_run / 'iteration-000' / 'policy'}", "policy.bootstrap=null", f"reward.data={data}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfplay.stages.reward_model.above_chance", lambda run, iteration, extra: True)
        return run(load_recipe(write_recipe(folder), [f"output={folder / 'run'}", *start]))


def test_it_is_trained_once_and_kept(given_run: Path) -> None:
    files = RunDirectory(given_run)
    assert [files.stages(number) for number in (1, 2)] == [["reward", "policy", "evaluate"]] * 2
    first, second = (files.stage(number, "reward") for number in (1, 2))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert len(read_json_lines(first / "metrics.jsonl")) > 2 and not read_json_lines(second / "metrics.jsonl")
    found = [read_json(folder / "metrics.json") for folder in (first, second)]
    assert found[0] == found[1] and found[0]["trained_on"] + found[0]["accuracy"]["n"] > 150
    assert RewardModel.load(second).deviation != 1.0


def test_a_kill_changes_nothing(given_run: Path) -> None:
    home = given_run.parent / "killed"
    shutil.copytree(given_run, home, symlinks=True)
    shutil.rmtree(home / "iteration-001" / "reward")
    for moment in (Moment("selfplay.storage.journal", "Journal.append", 2), Moment(*STEP, 4)):
        assert in_process(run_one, home, "reward", moment=moment) == -9
    assert in_process(run_one, home, "reward") == 0
    assert left(home / "iteration-001" / "reward") == left(given_run / "iteration-001" / "reward")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("reward.data=nowhere.jsonl", "there is no file 'nowhere.jsonl'"),
        ("reward={data: a.jsonl, kind: judge}", "`data` is a reward model's, and kind is judge"),
        ("reward={data: a.jsonl, replay: 0.5}", "`replay` mixes in the judge's earlier preferences"),
    ],
)
def test_a_mistake_is_a_sentence_before_work_starts(setting: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run(load_recipe(write_recipe(tmp_path), [f"output={tmp_path / 'run'}", setting]))
    assert not (tmp_path / "run").exists()
