"""What a run refuses before it works: what is certainly larger than all memory or the whole disk."""

from collections import namedtuple
from pathlib import Path

import pytest
from recipes_to_size import BOOTSTRAPPED, SEVEN_BILLION, h100, recipe, sized

from selfplay.config import Recipe
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.rundir import RunDirectory
from selfplay.sizing import cards, limits
from selfplay.sizing.cards import GB, Machine
from selfplay.sizing.disk import kept_models
from selfplay.sizing.limits import CERTAIN, refuse_what_cannot_fit
from selfplay.sizing.stages import stages

Usage = namedtuple("Usage", "total used free")
ON_A_LAPTOP = "engine.kind=transformers"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing but memory as it is set."""
    monkeypatch.setattr("psutil.swap_memory", lambda: namedtuple("Swap", "total")(0))
    return monkeypatch


def on(patch: pytest.MonkeyPatch, machine: Machine) -> None:
    patch.setattr(limits, "machine_here", lambda: machine)


def refusal(found: Recipe) -> str:
    with pytest.raises(ConfigError) as error:
        refuse_what_cannot_fit(found, [])
    return str(error.value)


def test_a_run_that_memory_cannot_hold_is_refused_before_it_is_begun(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    on(here, Machine(0, None, 16 * GB))
    with pytest.raises(ConfigError) as error:
        run(recipe(tmp_path, SEVEN_BILLION, ON_A_LAPTOP, "algorithm.precision=float32"))
    said = str(error.value)
    # The first stage that is too large trains the reward model: 16 bytes for each of 7.07e9 weights without an output embedding.
    assert said.startswith(
        "the stage 'reward' takes 113.1 GB whatever the lengths of prompts and answers, and this machine has 16.0 GB: with "
    )
    assert "GB short: it takes a smaller reward.backbone (`selfplay run RECIPE --dry-run` has the table)" in said
    assert not (tmp_path / "run").exists()


def test_only_what_is_certain_is_refused(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    found = recipe(tmp_path, SEVEN_BILLION, ON_A_LAPTOP)
    needed = max(row.least for row in stages(sized(found, Machine(0, None, 16 * GB), prompt=0)))
    on(here, Machine(0, None, int(CERTAIN * needed) + 1))
    refuse_what_cannot_fit(found, [])
    on(here, Machine(0, None, int(CERTAIN * needed) - 1))
    assert "the stage 'policy: update' takes" in refusal(found)
    here.setattr("psutil.swap_memory", lambda: namedtuple("Swap", "total")(GB))
    refuse_what_cannot_fit(found, [])


def test_workers_share_a_machines_memory(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    found = recipe(tmp_path, SEVEN_BILLION, ON_A_LAPTOP, "launch.workers=4")
    on(here, Machine(0, None, 100 * GB))
    assert "this machine has 25.0 GB for each of 4 workers" in refusal(found)
    refuse_what_cannot_fit(recipe(tmp_path, SEVEN_BILLION, "launch={workers: 4, address: auto}"), [])


def test_a_card_that_cannot_hold_it(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    on(here, h100(1))
    said = refusal(recipe(tmp_path, SEVEN_BILLION))
    assert "and a GPU here has 80.0 GB: with engine.sleep=true" in said and "`selfplay run RECIPE --dry-run`" in said
    small = recipe(tmp_path, SEVEN_BILLION, "policy.model=Qwen/Qwen2.5-1.5B-Instruct", "engine.sleep=true")
    refuse_what_cannot_fit(small, [])


def test_models_of_unknown_size_are_not_refused(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    """A small reward model that is not at hand is not taken for one of the policy's size."""
    on(here, Machine(0, None, 1000))
    here.setenv("HF_HUB_OFFLINE", "1")
    refuse_what_cannot_fit(recipe(tmp_path, SEVEN_BILLION, "reward.backbone=nobody/has-this"), [])
    refuse_what_cannot_fit(recipe(tmp_path, SEVEN_BILLION, "policy.model=nobody/has-this"), [])


def test_what_is_done_needs_no_room(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    on(here, Machine(0, None, 1000))
    found = recipe(tmp_path, BOOTSTRAPPED)
    assert "the stage 'start' takes" in refusal(found)
    here.setattr(RunDirectory, "finished", lambda files, number, stage: number == 0)
    assert "the stage 'generate' takes" in refusal(found)
    here.setattr(RunDirectory, "finished", lambda files, number, stage: stage not in ("policy", "evaluate"))
    assert "the stage 'start' takes" in refusal(found), "whose folder is that of iteration 0's policy"
    here.setattr(RunDirectory, "finished", lambda files, number, stage: number == 0 or stage != "evaluate")
    assert "the stage 'evaluate' takes" in refusal(found)
    here.setattr(RunDirectory, "finished", lambda files, number, stage: True)
    refuse_what_cannot_fit(found, [])


def test_the_start_alone_needs_no_room_for_the_rest(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    found = recipe(tmp_path, SEVEN_BILLION)
    on(here, h100(1))
    assert "the stage 'policy" in refusal(found) or "the stage 'reward" in refusal(found)
    here.setattr("shutil.disk_usage", lambda path: Usage(1, 0, 1))
    refuse_what_cannot_fit(found, [], only_start=True)


def test_what_a_machine_does_not_tell_refuses_nothing(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    """A GPU without a count of its memory, and a file system without one of its space."""
    found = recipe(tmp_path, SEVEN_BILLION)
    here.setattr("torch.cuda.is_available", lambda: True)
    for listing in ("echo 'NVIDIA GB10, [N/A]'", "exit 9"):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{listing}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        here.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        refuse_what_cannot_fit(found, [])
    on(here, Machine(0, None, 10_000 * GB))
    here.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 0))
    refuse_what_cannot_fit(found, [])


def test_a_disk_that_cannot_hold_the_models(
    tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(here, Machine(0, None, 8 * GB))
    found = recipe(tmp_path, BOOTSTRAPPED)
    kept = kept_models(sized(found, Machine(0, None, 8 * GB)))
    here.setattr("shutil.disk_usage", lambda path: Usage(kept // 2, 0, kept // 2))
    said = refusal(found)
    assert (
        said.startswith("the run's 2 iterations keep 0.0 GB of models, and the disk of ") and "give an `output`" in said
    )
    here.setattr("shutil.disk_usage", lambda path: Usage(kept, kept // 2, kept // 2))
    refuse_what_cannot_fit(found, [])
    assert "caution: the run's 2 iterations keep" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").write_bytes(b"x" * (kept // 2))
    refuse_what_cannot_fit(found, [])
    assert capsys.readouterr().err == "", "half of it is there already"


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cards, "CONTAINER_LIMITS", (limit,))
    all_of_it = cards.memory_here()
    limit.write_text("max\n")
    assert cards.memory_here() == all_of_it
    limit.write_text("1000000\n")
    assert cards.memory_here() == 1_000_000
