"""Every stage by itself: killed once, twice or three times, it leaves the same files as if it had never been."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from killing import Moment, in_process, run_recipe

from selfplay.storage.files import read_json

STEP = "selfplay.training.supervised", "Watcher.on_step_end"
MOMENTS = {
    "generate": [
        Moment("selfplay.storage.journal", "Journal.append", 1),
        Moment("selfplay.storage.journal", "Journal.append", 2),
        Moment("selfplay.stages.generate", "write_json", 1),
    ],
    "label": [
        Moment("selfplay.storage.journal", "Journal.append", 1),
        Moment("selfplay.stages.label", "write_rows", 2),
        Moment("selfplay.storage.durable", "publish", 1),
    ],
    "reward": [
        Moment(*STEP, 5),
        Moment("selfplay.stages.reward_model", "measure", 1),
        Moment("selfplay.stages.reward_model", "write_json", 1),
    ],
    "policy": [
        Moment("selfplay.rl.trainer", "save_checkpoint", 2),
        Moment("selfplay.rl.checkpoint", "write_sealed", 1),
        Moment("transformers.modeling_utils", "PreTrainedModel.save_pretrained", 1),
    ],
    "evaluate": [
        Moment("selfplay.storage.journal", "Journal.append", 1),
        Moment("selfplay.stages.evaluate", "win_rate", 1),
        Moment("selfplay.rundir", "RunDirectory.collect_metrics", 2),
    ],
    "start": [
        Moment(*STEP, 40 + 30),  # in fine-tuning, behind a checkpoint
        Moment(*STEP, 40 - 20),  # its last step: pretraining is not entered again
        Moment("selfplay.stages.bootstrap", "save", 1),
    ],
}
CLOCK = ("time", "seconds", "per_second")


def timeless(value: Any) -> Any:
    """A value of JSON without what a clock said."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if not any(word in key for word in CLOCK)}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def left(folder: Path) -> dict[str, Any]:
    """What a stage left: the content of its JSON, the hash of any other file."""
    found: dict[str, Any] = {}
    for name, digest in read_json(folder / "manifest.json")["outputs"].items():
        lines = (folder / name).read_text().split("\n")[:-1] if name.endswith(".jsonl") else []
        text = read_json(folder / name) if name.endswith(".json") else [json.loads(line) for line in lines]
        found[name] = timeless(text) if name.endswith((".json", ".jsonl")) else digest
    return found


def run_one(directory: Path, name: str, seed: int = 0) -> None:
    """Run a stage of the first iteration, with the seed of its run, or the start with the seed given."""
    from selfplay.loop import run_stage

    if name == "start":
        run_recipe(directory.parent / "tiny.yaml", [f"output={directory}", f"seed={seed}"], only_start=True)
    else:
        run_stage(directory, name, 1)


@pytest.mark.parametrize("name", MOMENTS)
def test_kills_in_a_stage_change_nothing(tiny_run: Path, training_seed: int, name: str) -> None:
    place = "iteration-000/policy" if name == "start" else f"iteration-001/{name}"
    home = tiny_run.parent / f"killed-{name}"  # beside the recipe
    if name == "start":
        home.mkdir()
    else:
        shutil.copytree(tiny_run, home, symlinks=True)
        shutil.rmtree(home / place)
    expected = left(tiny_run / place)
    for kills, moment in enumerate(MOMENTS[name], start=1):
        assert in_process(run_one, home, name, training_seed, moment=moment) == -9, f"was not killed at {moment}"
        copy = tiny_run.parent / f"killed-{name}-{kills}"
        shutil.copytree(home, copy, symlinks=True)
        assert in_process(run_one, copy, name, training_seed) == 0
        assert left(copy / place) == expected, f"another outcome after {kills} kills"
        assert not list(copy.rglob("*.partial"))
        shutil.rmtree(copy)
