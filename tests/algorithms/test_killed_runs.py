"""Runs by ILQL and NLPO that are killed with SIGKILL and started again end with the same weights, heads and masks."""

from pathlib import Path

import pytest
from algorithm_runs import checksums, small_run
from killing import Moment, in_process

SMALL = {
    "ilql": ("algorithm.steps=5", "algorithm.batch_size=8", "algorithm.checkpoint_every=2"),
    "nlpo": (
        "algorithm.steps=5",
        "algorithm.episodes=8",
        "algorithm.checkpoint_every=2",
        "algorithm.nlpo.every=2",
    ),
}
STEP = {"ilql": ("selfplay.ilql.trainer", "ILQLTrainer._step"), "nlpo": ("selfplay.rl.trainer", "PPOTrainer._step")}


def run_small(name: str, tiny_run: Path, folder: Path, seed: int, *more: str) -> None:
    folder.mkdir(exist_ok=True)
    small_run(name, tiny_run, folder, "iterations=1", "prompts.heldout=null", f"seed={seed}", *SMALL[name], *more)


@pytest.mark.parametrize(("name", "more"), [("ilql", ()), ("ilql", ("algorithm.heads=mlp",)), ("nlpo", ())])
def test_a_killed_run_ends_with_the_same_weights(
    tiny_run: Path, training_seed: int, tmp_path: Path, name: str, more: tuple[str, ...]
) -> None:
    arguments = (run_small, name, tiny_run)
    assert in_process(*arguments, tmp_path / "whole", training_seed, *more) == 0
    for moment in (Moment(*STEP[name], 4), Moment("selfplay.rl.checkpoint", "write_sealed", 1)):
        code = in_process(*arguments, tmp_path / "killed", training_seed, *more, moment=moment)
        assert code == -9, f"was not killed at {moment}"
    assert in_process(*arguments, tmp_path / "killed", training_seed, *more) == 0
    whole, killed = (tmp_path / folder / "run" / "iteration-001" / "policy" for folder in ("whole", "killed"))
    files = {
        "model.safetensors",
        *(("perturbation.safetensors",) if more else ()),
        *(("mask.json",) if name == "nlpo" else ()),
    }
    assert files <= {file.name for file in whole.iterdir()}
    for folder in (Path(), *((Path("mask"),) if name == "nlpo" else ())):
        ours, theirs = (
            {
                name: check
                for name, check in checksums(place / folder).items()
                if name.endswith(".safetensors") or name == "mask.json"
            }
            for place in (whole, killed)
        )
        assert ours == theirs and ours
