"""The policy stage on a real tiny run: adapters, the engine's batch, and the checkpoint that it leaves."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from staging import open_run

from selfplay.algorithms import algorithm_of
from selfplay.config import Lora
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.models import load_policy
from selfplay.rundir import RunDirectory
from selfplay.stages import policy

FUNCTION = "def length(prompts, responses, meta):\n    return [len(response) / 50 for response in responses]\n"


def train(directory: Path, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights of a second iteration's policy, made anew."""
    (folder / "length.py").write_text(FUNCTION)
    run = open_run(
        directory,
        algorithm={"steps": 1, "episodes": 16, **changes.pop("algorithm", {})},
        reward={"kind": "function", "function": f"{folder / 'length.py'}:length"},
        **changes,
    )
    shutil.rmtree(run.files.policy(2))
    policy.run(run, 2)
    return load_policy(RunDirectory(directory).policy(2)).state_dict()


def test_adapters_are_merged_into_a_checkpoint_that_follows_from_the_seed(copied: Path, tmp_path: Path) -> None:
    before = load_policy(RunDirectory(copied).policy(1)).state_dict()
    made = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)  # whatever ran before in this process
        made.append(train(copied, tmp_path, policy={"lora": Lora(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))}))
    assert made[0].keys() == before.keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in before)
    changed = {name.split(".")[-2] for name in before if not torch.equal(made[0][name], before[name])}
    assert changed == {"q_proj", "down_proj"}


def test_adapters_are_added_to_the_weights_of_the_checkpoint_and_not_to_rounded_ones(
    copied: Path, tmp_path: Path
) -> None:
    before = load_policy(RunDirectory(copied).policy(1)).state_dict()
    lora = Lora(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    after = train(copied, tmp_path, policy={"lora": lora}, algorithm={"precision": "bfloat16", "learning_rate": 1e-2})
    changes = {name: (after[name] - before[name]).double() for name in before}
    for name, change in changes.items():
        if name.split(".")[-2] in lora.targets:
            sizes = torch.linalg.svdvals(change)
            assert sizes[1] > 100 * sizes[2:].max()  # of rank 2, which what rounding leaves is not
        else:
            assert not change.any()


def test_rollouts_keep_to_the_engines_batch(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    decode_batch = TransformersEngine._decode_batch

    def spy(engine: TransformersEngine, rows: list[Any], *more: Any) -> Iterator[None]:
        sizes.append(len(rows))
        return decode_batch(engine, rows, *more)

    monkeypatch.setattr(TransformersEngine, "_decode_batch", spy)
    train(copied, tmp_path, engine={"batch_size": 6})
    assert sizes == [6, 6, 4]


def test_what_changes_time_and_memory_alone_leaves_a_policy_what_it_is(copied: Path) -> None:
    less = {"micro_batch_tokens": 64, "gradient_checkpointing": True, "offload_optimizer": True, "checkpoint_every": 2}
    plain = policy.fingerprint(open_run(copied), 2)
    assert policy.fingerprint(open_run(copied, algorithm=less), 2) == plain
    assert policy.fingerprint(open_run(copied, algorithm={**less, "epochs": 3}), 2) != plain
    open_run(copied, algorithm=less).files.check_fingerprint(2, "policy", plain)


def test_a_policy_of_before_those_settings_were_free_goes_by_them(copied: Path) -> None:
    less = {"micro_batch_tokens": 64, "offload_optimizer": True}
    run = open_run(copied, algorithm=less)
    before = policy._fingerprint(run, 2, algorithm_of(run.recipe))  # all settings as they are given
    assert before != policy.fingerprint(run, 2)
    shutil.rmtree(run.files.policy(2))
    with pytest.raises(KeyboardInterrupt), run.writing(2, "policy", before) as folder:
        (folder / "work" / "step").write_text("1")
        raise KeyboardInterrupt
    with run.writing(2, "policy", policy.fingerprint(run, 2)) as folder:
        assert (folder / "work" / "step").exists(), "gone on with"
    run.files.check_fingerprint(2, "policy", policy.fingerprint(run, 2))
    other = open_run(copied, algorithm={**less, "epochs": 3})
    with pytest.raises(ConfigError, match="was made with other settings"):
        other.files.check_fingerprint(2, "policy", policy.fingerprint(other, 2))
