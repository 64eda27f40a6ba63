"""The recipes that are settings of PPO, whole and small: every stage for real, on the tiny run's start."""

from pathlib import Path

import pytest

from selfplay.algorithms import algorithm_of
from selfplay.config import load_recipe
from selfplay.loop import run
from selfplay.models import load_policy
from selfplay.storage.files import read_json_lines

RUNS = Path(__file__).parents[2] / "runs"
SMALL = [
    "iterations=1",
    "policy.bootstrap=null",
    "prompts.train.limit=64",
    "prompts.heldout.limit=16",
    "sampling.max_tokens=48",
    "generate.prompts=32",
    "reward.heldout_share=0.3",
    "algorithm.episodes=32",
    "algorithm.steps=5",
    "threads=1",
]
"""Of 32 prompts, 0.9^32 = 3% of seeds would hold back none by the default share, and be refused; by 0.3, one in 90,000.

Of 128 tokens, `instructgpt` would read eight sequences for each of 32 episodes."""


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("rloo", {"generate", "label", "reward", "policy", "evaluate"}),
        ("grpo", {"policy", "evaluate"}),
        ("a2c", {"policy", "evaluate"}),
        ("instructgpt", {"generate", "label", "reward", "policy", "evaluate"}),
        ("stories-5", {"policy", "evaluate"}),
    ],
)
def test_a_recipe_runs(
    tiny_run: Path, training_seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stages: set[str]
) -> None:
    monkeypatch.setattr("selfplay.stages.reward_model.above_chance", lambda run, iteration, extra: True)
    start = tiny_run / "iteration-000" / "policy"
    changes = [f"policy.model={start}", f"seed={training_seed}", f"output={tmp_path / name}"]
    if name == "stories-5":  # its judge takes minutes to teach, and test_trained_judge.py teaches a smaller one
        changes += ["judge.bootstrap=null", "judge.file=stories"]
    recipe = load_recipe(RUNS / f"{name}.yaml", [*SMALL, *changes])
    made = run(recipe)
    assert {folder.name for folder in (made / "iteration-001").iterdir()} == stages
    rows = read_json_lines(made / "iteration-001" / "policy" / "metrics.jsonl")
    critic = algorithm_of(recipe).needs(recipe).critic
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and ("critic_lr" in rows[0]) == critic
    assert ("group/scores_std" in rows[0]) == (not critic)
    before, after = (load_policy(made / f"iteration-00{number}" / "policy") for number in (0, 1))
    moved = [
        float((one.detach() - two.detach()).abs().max())
        for one, two in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert min(moved) > 0
    if name == "instructgpt":
        assert rows[0]["lr"] == pytest.approx(0.1 * 7e-4, abs=1e-12) and "loss/pretraining_avg" in rows[0]
