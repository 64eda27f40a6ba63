"""A tracker beside the standalone trainer, and beside the stage that the loop runs: every step arrives, in its place."""

import shutil
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import PolicyMaker, count_of_fives
from transformers import PreTrainedTokenizerFast

from selfplay.config import PPO, SamplingParams
from selfplay.context import RunContext
from selfplay.loop import settle_libraries
from selfplay.preflight import check
from selfplay.records import Prompt
from selfplay.rewards.sources import FunctionReward
from selfplay.rl import PPOTrainer
from selfplay.rundir import RunDirectory
from selfplay.stages import policy
from selfplay.storage.files import read_json_lines
from selfplay.tracking import Tracker


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    return {key: [(one.step, one.value) for one in events.Scalars(key)] for key in events.Tags()["scalars"]}


def agree(found: dict[str, list[tuple[int, float]]], rows: list[dict[str, Any]], before: int = 0) -> None:
    """Every number of every row, in float32 as TensorBoard keeps it."""
    assert found.keys() == rows[0].keys() - {"step", "time", "iteration", "stage"} and "objective/kl" in found
    for key, points in found.items():
        assert [place for place, _ in points] == [before + row["step"] for row in rows]
        for (_, value), row in zip(points, rows, strict=True):
            assert abs(value - row[key]) <= 1e-6 * max(1.0, abs(row[key]))


def test_a_trackers_method_is_what_the_trainer_calls(
    make_policy: PolicyMaker, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], tmp_path: Path
) -> None:
    tracker = Tracker(["tensorboard"], tmp_path, "title")
    PPOTrainer(
        make_policy(),
        tokenizer,
        FunctionReward(count_of_fives),
        prompts,
        PPO(steps=2, episodes=12, minibatches=3),
        SamplingParams(max_tokens=7),
        directory=tmp_path,
        on_step=tracker.log_step,
    ).train()
    tracker.close()
    agree(scalars(tmp_path), read_json_lines(tmp_path / "metrics.jsonl"))


def test_the_stage_counts_the_steps_of_earlier_iterations(tiny_run: Path, tmp_path: Path) -> None:
    """Iteration 2's three steps are the run's fourth to sixth."""
    directory = tmp_path / "run"
    shutil.copytree(tiny_run, directory, symlinks=True)
    shutil.rmtree(directory / "iteration-002/policy")
    files = RunDirectory(directory)
    recipe = files.recipe().model_copy(update={"output": str(directory)})
    settle_libraries(recipe.threads)
    tracker = Tracker(["tensorboard"], directory, "title")
    policy.run(RunContext(recipe, files, *check(recipe), tracker=tracker), 2)
    tracker.close()
    agree(scalars(directory), read_json_lines(directory / "iteration-002/policy/metrics.jsonl"), before=3)
