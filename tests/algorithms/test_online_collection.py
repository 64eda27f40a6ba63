"""Iterations as rounds of labels on the policy as it moves: one reward model of all pairs so far, one reference, one beta."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from algorithm_runs import checksums, small_run
from killing import Moment, in_process

from selfplay.algorithms.ppo import goes_on
from selfplay.config import PPO, AdaptiveKL, Recipe
from selfplay.context import RunContext
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json, read_json_lines, read_rows, write_json_lines

ROUNDS = (
    "prompts.heldout=null",
    "iterations=2",
    "generate.prompts=24",
    "reward.replay=1",
    "reward.backbone=start",
    "reward.heldout_share=0.3",
    "algorithm.steps=2",
    "algorithm.episodes=8",
    "algorithm.adaptive_kl.horizon=16",
    "algorithm.checkpoint_every=1",
)


def run_rounds(tiny_run: Path, folder: Path, seed: int) -> None:
    """Run lm-human-preferences in two small rounds, in a process of its own; its reward model need not be good."""
    import selfplay.stages.reward_model

    always: Any = lambda run, iteration, extra: True  # noqa: E731
    selfplay.stages.reward_model.above_chance = always
    folder.mkdir(exist_ok=True)
    small_run("lm-human-preferences", tiny_run, folder, f"seed={seed}", *ROUNDS)


def test_each_round_adds_labels_of_the_policy_as_it_is(tiny_run: Path, training_seed: int, tmp_path: Path) -> None:
    assert in_process(run_rounds, tiny_run, tmp_path / "whole", training_seed) == 0
    first, second = (tmp_path / "whole" / "run" / f"iteration-00{number}" for number in (1, 2))
    assert {row["policy"] for row in read_rows(second / "generate" / "completions.parquet")} == {"iteration-001"}
    rows = [len(read_rows(folder / "label" / "preferences.parquet")) for folder in (first, second)]
    reward = [read_json(folder / "reward" / "metrics.json") for folder in (first, second)]
    learned = [one["trained_on"] for one in reward]
    assert learned[0] + reward[0]["accuracy"]["n"] == rows[0]
    assert learned[1] + reward[1]["accuracy"]["n"] == learned[0] + rows[1]  # what was held out is never learned
    steps = [read_json_lines(folder / "policy" / "metrics.jsonl") for folder in (first, second)]
    assert steps[0][0]["objective/kl"] == pytest.approx(0.0, abs=1e-5) and steps[1][0]["objective/kl"] > 1e-3
    beta = [[row["objective/kl_coefficient"] for row in part] for part in steps]
    assert beta[0][0] != beta[0][1] == steps[0][0]["objective/kl_coefficient_next"]
    assert beta[1][0] == steps[0][1]["objective/kl_coefficient_next"] != beta[0][1]

    # Killed behind the first step of the second round's PPO: the same weights, from the same beta.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "run" / "iteration-002" / "policy")
    moment = Moment("selfplay.rl.trainer", "PPOTrainer._step", 2)
    assert in_process(run_rounds, tiny_run, tmp_path / "killed", training_seed, moment=moment) == -9
    assert in_process(run_rounds, tiny_run, tmp_path / "killed", training_seed) == 0
    killed = checksums(tmp_path / "killed" / "run" / "iteration-002" / "policy")
    assert killed["model.safetensors"] == checksums(second / "policy")["model.safetensors"]


@pytest.mark.parametrize(("row", "beta"), [({"objective/kl_coefficient_next": 0.096}, 0.096), ({}, 0.1)])
def test_beta_goes_on_from_behind_a_single_step(tmp_path: Path, row: dict[str, float], beta: float) -> None:
    config = PPO(steps=1, reference="start", adaptive_kl=AdaptiveKL(), kl_coefficient=0.1)
    recipe = Recipe.model_validate({"name": "r", "policy": {"model": "m"}, "algorithm": config.model_dump()})
    run = RunContext(recipe, RunDirectory(tmp_path), [], [])
    run.files.policy(1).mkdir(parents=True)
    write_json_lines(run.files.policy(1) / "metrics.jsonl", [{"step": 1, "objective/kl_coefficient": 0.1, **row}])
    assert goes_on(config, run, 2).kl_coefficient == beta
    assert goes_on(config.model_copy(update={"reference": "previous"}), run, 2).kl_coefficient == 0.1
