"""A run that is killed again and again ends as one that never was: same weights, same rows, bit for bit."""

import json
from pathlib import Path
from typing import Any

from killing import Moment, run_in_process
from tiny_run import write_recipe

from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json

MOMENTS = [
    Moment("selfplay.training.supervised", "Watcher.on_step_end", 30),  # pretraining, behind a checkpoint
    Moment("selfplay.stages.bootstrap", "fine_tune", 1),  # between pretraining and fine-tuning
    Moment("selfplay.stages.evaluate", "write_rows", 1),  # the start's held-out answers are in the journal only
    Moment("selfplay.storage.journal", "Journal.append", 2),  # generation, one batch done
    Moment("selfplay.stages.label", "write_json", 1),  # verdicts written, health not
    Moment("selfplay.training.supervised", "Watcher.on_step_end", 5),
    Moment("selfplay.rl.trainer", "save_checkpoint", 2),  # the second step is learned and not saved
    Moment("selfplay.rl.checkpoint", "write_sealed", 1),  # a checkpoint is half written
    Moment("selfplay.stages.evaluate", "win_rate", 1),
    Moment("selfplay.storage.durable", "publish", 1),  # a stage is whole but not yet in its place
    Moment("selfplay.rundir", "RunDirectory.collect_metrics", 2),  # it is in its place, with what it was resumed from
]
VARYING = {
    "time",
    "seconds",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "episodes_per_second",
}


def outputs(directory: Path) -> dict[str, str]:
    """Hash of every file that any stage wrote, but for those that hold times."""
    return {
        f"{manifest.parent.relative_to(directory)}/{name}": digest
        for manifest in sorted(directory.glob("iteration-*/*/manifest.json"))
        for name, digest in read_json(manifest)["outputs"].items()
        if not name.endswith((".json", ".jsonl")) or name in ("config.json", "tokenizer.json", "generate.json")
    }


def metrics(directory: Path) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if key.split("/")[-1] not in VARYING and not key.startswith("time/")}
        for row in RunDirectory(directory).metrics()
    ]


def test_eleven_kills_change_nothing(tmp_path: Path, training_seed: int) -> None:
    recipe = write_recipe(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    seed = f"seed={training_seed}"
    assert run_in_process(recipe, [f"output={whole}", seed]) == 0
    for moment in MOMENTS:
        assert run_in_process(recipe, [f"output={killed}", seed], moment) == -9, f"was not killed at {moment}"
    assert run_in_process(recipe, [f"output={killed}", seed]) == 0

    assert outputs(killed) == outputs(whole)
    assert "iteration-002/policy/model.safetensors" in outputs(whole)
    assert metrics(killed) == metrics(whole)
    assert read_json(killed / "outcome.json") == read_json(whole / "outcome.json")
    assert not list(killed.rglob("*.partial")), "something half done was left behind"
    seen = [json.dumps(row, sort_keys=True) for row in metrics(killed)]
    assert len(seen) == len(set(seen)), "a row was logged twice"
