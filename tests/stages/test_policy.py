"""The policy stage on a real tiny run: adapters, the engine's batch, and the checkpoint that it leaves."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from staging import open_run

from selfplay.algorithms import algorithm_of
from selfplay.algorithms.ppo import PPOAlgorithm
from selfplay.config import Lora
from selfplay.context import RunContext
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
        reward=changes.pop("reward", {"kind": "function", "function": f"{folder / 'length.py'}:length"}),
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


OWN_ENGINE = """\
import torch

from selfplay.engines.hf import TransformersEngine
from selfplay.models import load_policy, load_tokenizer


class Own:
    def __init__(self, checkpoint, name, dtype):
        self.inner = TransformersEngine(load_policy(checkpoint), load_tokenizer(checkpoint), name)

    def generate(self, prompts, sampling):
        return self.inner.generate(prompts, sampling)

    def choice_logprobs(self, prompts, choices):
        return self.inner.choice_logprobs(prompts, choices)

    def update_weights(self, model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        self.inner.update_weights(model)

    def close(self):
        pass
"""


def test_an_engine_of_ones_own_gets_adapters_merged_into_weights_as_precise_as_the_checkpoints(
    copied: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN_ENGINE)
    before = load_policy(RunDirectory(copied).policy(1)).state_dict()
    after = train(
        copied,
        tmp_path,
        engine={"kind": "python", "python": f"{tmp_path / 'own.py'}:Own"},
        policy={"lora": Lora(rank=2)},
        algorithm={"precision": "bfloat16"},
    )
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("halved", ["policy", "reward"])
def test_a_critic_has_weights_of_its_own_where_the_reward_computes_in_another_precision(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved: str
) -> None:
    def preferred(model: Any) -> str:
        return "bfloat16" if hasattr(model, "score") == (halved == "reward") else "float32"

    for module in ("rewards.reward_model", "rl.trainer", "weights.precision"):
        monkeypatch.setattr(f"selfplay.{module}.preferred", preferred)
    before = load_policy(RunDirectory(copied).policy(1)).state_dict()
    changes = {"policy": {"lora": Lora(rank=2)}, "algorithm": {"precision": "auto"}}
    after = train(copied, tmp_path, reward={"kind": "model"}, **changes)
    assert any(not torch.equal(after[name], before[name]) for name in before)


COMPARING = """\
from selfplay.records import Verdict


class Shorter:
    def judge(self, pairs):
        return [Verdict(pair_id=pair.id, judge="shorter", order="none",
                        preference=float(len(pair.first.text) < len(pair.second.text))) for pair in pairs]
"""


def test_the_engine_that_answered_for_a_comparing_judge_makes_room_for_ppo(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shorter.py").write_text(COMPARING)
    (tmp_path / "shorter.yaml").write_text("name: shorter\nmode: python\npython: ./shorter.py:Shorter\n")
    run = open_run(copied, reward={"kind": "judge"}, judge={"file": str(tmp_path / "shorter.yaml")})
    shutil.rmtree(run.files.policy(2))
    opened, open_engine = [], RunContext.engine

    def spy(self: RunContext, *arguments: Any, **more: Any) -> Any:
        opened.append(open_engine(self, *arguments, **more))
        return opened[-1]

    def trained(self: Any, *arguments: Any) -> Any:
        assert opened, "the policy before answered"
        assert run._engine is None
        raise KeyboardInterrupt

    monkeypatch.setattr(RunContext, "engine", spy)
    monkeypatch.setattr(PPOAlgorithm, "_trained", trained)
    with pytest.raises(KeyboardInterrupt):
        policy.run(run, 2)


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
