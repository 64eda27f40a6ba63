"""An iteration with an ensemble of reward models: what its stages leave, and that kills change nothing of it."""

import math
import shutil
from pathlib import Path

import pytest
from killing import Moment, in_process
from test_stage_kills import STEP, left, run_one
from tiny_run import write_recipe
from transformers import AutoModelForSequenceClassification, set_seed

from prompts.sources import load_prompts
from selfplay.config import load_recipe
from selfplay.loop import run
from selfplay.models import load_scalar_model, load_tokenizer
from selfplay.records import Completion
from selfplay.results.verify import verify
from selfplay.rewards.ensemble import RewardEnsemble, load_reward_model
from selfplay.rewards.reward_model import RewardModel
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json, read_json_lines, read_rows


@pytest.fixture(scope="module")
def ensemble_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    reward = "loss: ranking, ensemble: 2, normalise: both, learning_rate: 3e-3, batch_size: 8, heldout_share: 0.3"
    start = [f"policy.model={tiny_run / 'iteration-000' / 'policy'}", "policy.bootstrap=null", "iterations=1"]
    recipe = load_recipe(write_recipe(folder), [f"output={folder / 'run'}", *start, f"reward={{{reward}}}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfplay.stages.reward_model.above_chance", lambda run, iteration, extra: True)
        return run(recipe)


def test_what_an_iteration_with_an_ensemble_leaves(ensemble_run: Path) -> None:
    folder = ensemble_run / "iteration-001"
    model = load_reward_model(folder / "reward")
    assert isinstance(model, RewardEnsemble) and len(model.members) == 2
    recipe = RunDirectory(ensemble_run).recipe()
    prompts = load_prompts(recipe.prompts.heldout, recipe.seed)
    answers = [Completion.model_validate(row) for row in read_rows(folder / "evaluate" / "completions.parquet")]
    each = [
        RewardModel.load(place).score(prompts, answers) for place in (folder / "reward", folder / "reward/member-2")
    ]
    assert model.score(prompts, answers) == [min(pair) for pair in zip(*each, strict=True)]
    apart = [abs(one - other) / 2 for one, other in zip(*each, strict=True)]
    evaluation = read_json(folder / "evaluate" / "evaluation.json")
    assert min(apart) > 0 and evaluation["reward_disagreement"] == pytest.approx(sum(apart) / len(apart), abs=1e-5)
    assert evaluation["mean_reward"] == pytest.approx(sum(map(min, zip(*each, strict=True))) / len(apart), abs=1e-5)
    found = read_json(folder / "reward" / "metrics.json")
    assert len(found["members"]) == 2 and found["disagreement"] > 0
    rows = read_json_lines(folder / "reward" / "metrics.jsonl")
    assert {row["reward/member"] for row in rows} == {1, 2}
    assert all(row["objective/disagreement"] > 0 for row in read_json_lines(folder / "policy" / "metrics.jsonl"))
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "reward" / "member-2")
    assert plain.config.num_labels == 1
    assert (folder / "policy" / "README.md").is_file() and (ensemble_run / "report.html").is_file()
    assert not verify(ensemble_run).damage


def test_kills_while_the_second_member_trains_change_nothing(ensemble_run: Path) -> None:
    steps = len(read_json_lines(ensemble_run / "iteration-001" / "reward" / "metrics.jsonl")) // 2
    home = ensemble_run.parent / "killed"
    shutil.copytree(ensemble_run, home, symlinks=True)
    shutil.rmtree(home / "iteration-001" / "reward")
    for moment in (Moment(*STEP, steps + 3), Moment("selfplay.stages.reward_model", "measure", 2)):
        assert in_process(run_one, home, "reward", moment=moment) == -9
    assert in_process(run_one, home, "reward") == 0
    assert left(home / "iteration-001" / "reward") == left(ensemble_run / "iteration-001" / "reward")


def test_before_training_the_heads_scores_get_deviation_one(tiny_run: Path) -> None:
    start = tiny_run / "iteration-000" / "policy"
    set_seed(0)
    model = RewardModel(load_scalar_model(start), load_tokenizer(start))
    samples = [[5, 6, token] for token in range(20, 60)]
    before = model.raw(samples)
    deviation = model.rescale(before)
    after = model.raw(samples)
    mean = sum(before) / 40
    assert deviation == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in before) / 39), rel=1e-5)
    assert after == pytest.approx([value / deviation for value in before], rel=1e-4, abs=1e-5)
