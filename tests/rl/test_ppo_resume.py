"""A run that is killed and resumed ends with the same weights, bit for bit, as one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import PolicyMaker
from transformers import PreTrainedTokenizerFast

from selfplay.config import PPO, AdaptiveKL, Lora, Pretraining, SamplingParams
from selfplay.errors import ConfigError
from selfplay.lora import add_adapter
from selfplay.records import Prompt
from selfplay.rewards.sources import FunctionReward, WeightedSum
from selfplay.rl import PPOTrainer
from selfplay.rl.checkpoint import find_checkpoint, load_tensors, restore_logs, save_checkpoint
from selfplay.rl.metrics import append_rows
from selfplay.storage.checksums import Damaged
from selfplay.storage.files import read_json_lines


class Killed(Exception):
    """Stands for the kill."""


def by_length(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    return [float(len(response)) for response in responses]


def all_weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {
        **{"policy." + name: p.detach() for name, p in trainer.policy.named_parameters()},
        **{"critic." + name: p.detach() for name, p in trainer.learner.critic.named_parameters()},
    }


@pytest.mark.parametrize("where", ["between", "inside"])
@pytest.mark.parametrize(
    "knobs",
    [
        {
            "adaptive_kl": AdaptiveKL(target=0.01, horizon=100.0),
            "normalise_scores": "standardise",
            "schedule": "cosine",
            "pretraining": Pretraining(batch_size=2),
            "entropy_coefficient": 0.01,
        },
        {"async_rollouts": True, "precision": "bfloat16"},
        {"precision": "bfloat16"},
        {"lora": True},
        {"lora": True, "half_base": True, "precision": "bfloat16"},
    ],
)
def test_killed_and_resumed_is_bitwise_the_same(
    make_policy: PolicyMaker,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Prompt],
    tmp_path: Path,
    where: str,
    knobs: dict[str, Any],
) -> None:
    knobs = dict(knobs)
    lora, half_base = (knobs.pop(name, False) for name in ("lora", "half_base"))
    config = PPO(steps=5, episodes=8, minibatches=2, checkpoint_every=2, learning_rate=1e-2, **knobs)

    def trainer(directory: Path) -> PPOTrainer:
        policy = make_policy(dtype=torch.float32)
        return PPOTrainer(
            add_adapter(policy, Lora(rank=2, alpha=4.0)) if lora else policy,
            tokenizer,
            FunctionReward(lambda p, responses, m: [r.count("5") + random.random() for r in responses]),
            prompts,
            config,
            SamplingParams(max_tokens=6),
            directory=directory,
            seed=3,
            corpus=["1 2 3", "4 5 6 7"],
            half_base=half_base,
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    cut = trainer(tmp_path / "cut")
    calls = 0

    def kill(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        # Steps 1 and 2 are in the checkpoint. Kill after step 3, or inside it after 2 of its 4 minibatches.
        if calls > (3 if where == "between" else 2 * 4 + 2):
            raise Killed
        return kept(*arguments, **named)

    target, name = (cut, "_step") if where == "between" else (cut.learner, "gradients")
    kept = getattr(target, name)
    setattr(target, name, kill)
    with pytest.raises(Killed):
        cut.train()
    (tmp_path / "cut" / "metrics.jsonl").open("a").write('{"step": 4, "objec')
    resumed = trainer(tmp_path / "cut")
    resumed.train()
    assert resumed.steps_done == 5
    expected, actual = all_weights(whole), all_weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    timeless = [
        [{key: row[key] for key in row if "time" not in key and "second" not in key} for row in part] for part in rows
    ]
    assert timeless[0] == timeless[1] and len(rows[0]) == 5
    resumed.train()
    assert [name for name in expected if not torch.equal(expected[name], all_weights(resumed)[name])] == []


def test_a_precision_that_was_measured_is_kept(
    make_policy: PolicyMaker,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine finds bfloat16 faster at first, and float32 when the run is resumed."""

    def train(directory: str, precision: str, steps: int = 3) -> PPOTrainer:
        monkeypatch.setattr("selfplay.rl.trainer.preferred", lambda policy: precision)
        trainer = PPOTrainer(
            make_policy(dtype=torch.float32),
            tokenizer,
            FunctionReward(by_length),
            prompts,
            PPO(steps=3, episodes=4, minibatches=1, checkpoint_every=1, learning_rate=1e-2),
            SamplingParams(max_tokens=6),
            directory=tmp_path / directory,
        )

        def end(row: dict[str, Any]) -> None:
            if row["step"] == steps:
                raise Killed

        trainer.on_step = end
        with pytest.raises(Killed):
            trainer.train()
        return trainer

    train("cut", "bfloat16", steps=1)
    cut, whole, other = train("cut", "float32"), train("whole", "bfloat16"), train("other", "float32")
    expected, actual = all_weights(whole), all_weights(cut)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []
    assert any(not torch.equal(expected[name], tensor) for name, tensor in all_weights(other).items())


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from tiny_models import build_policy, build_prompts, build_tokenizer
from pathlib import Path
from selfplay.config import PPO, SamplingParams
from selfplay.rl import PPOTrainer
from selfplay.rewards.sources import FunctionReward
torch.set_num_threads(1)
trainer = PPOTrainer(build_policy({seed}, torch.float32), build_tokenizer(),
                     FunctionReward(lambda p, responses, m: [float(r.count("5")) for r in responses]),
                     build_prompts(), PPO(steps=12, episodes=8, minibatches=2, checkpoint_every=1),
                     SamplingParams(max_tokens=6), directory=Path(sys.argv[1]))
trainer.train()
torch.save(trainer.policy.state_dict(), sys.argv[2])
"""


def test_sigkill_loses_nothing_but_time(tmp_path: Path, training_seed: int) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), seed=training_seed)
    root = Path(__file__).parents[2]

    def start(directory: str, result: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / directory), str(tmp_path / result)],
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    assert start("whole", "whole.pt").wait(120) == 0
    process = start("cut", "cut.pt")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    found = find_checkpoint(tmp_path / "cut", {})
    assert found is not None and 2 <= found[1]["steps_done"] < 12
    assert start("cut", "cut.pt").wait(120) == 0
    whole, cut = torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "cut.pt")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_a_checkpoint_of_other_settings_or_an_earlier_version_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"fingerprint": {"clip": 0.2, "seed": 1}, "steps_done": 3}, {"a": torch.arange(4.0)})
    found = find_checkpoint(tmp_path, {"clip": 0.2, "seed": 1})
    assert found is not None and found[0].name == "checkpoint-3"
    assert (found[1]["fingerprint"], found[1]["steps_done"]) == ({"clip": 0.2, "seed": 1}, 3)
    into = {"a": torch.zeros(4)}
    load_tensors(found[0], into)
    assert into["a"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"clip = 0.2, and now it is 0.3: put it back, or delete '.*' to begin"):
        find_checkpoint(tmp_path, {"clip": 0.3, "seed": 1})
    assert find_checkpoint(tmp_path / "elsewhere", {}) is None
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"checkpoint.pt' was written by a version of selfplay before 0.3.*: delete"):
        find_checkpoint(tmp_path, {"clip": 0.2, "seed": 1})


def test_a_checkpoint_of_another_reward_start_or_prompts_is_refused(
    make_policy: PolicyMaker, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], tmp_path: Path
) -> None:
    def train(reward: Any = by_length, seed: int = 10, asked: list[Prompt] = prompts) -> None:
        PPOTrainer(
            make_policy(seed=seed),
            tokenizer,
            WeightedSum([(1.0, FunctionReward(reward))]),
            asked,
            PPO(steps=1, episodes=4, minibatches=1),
            SamplingParams(max_tokens=3),
            directory=tmp_path,
        ).train()

    def by_spread(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
        return [float(len(set(response))) for response in responses]

    train()
    train()  # the same once more: nothing is left to do
    with pytest.raises(ConfigError, match=r"reward = '1.0 x by_length \w+', and now it is '1.0 x .*by_spread"):
        train(by_spread)
    with pytest.raises(ConfigError, match="written with policy weights = "):
        train(seed=11)
    with pytest.raises(ConfigError, match="written with prompts = "):
        train(asked=[prompts[1], prompts[0], *prompts[2:]])


def test_a_trainer_with_rollouts_ahead_goes_on_after_an_exception(
    make_policy: PolicyMaker, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    trainer = PPOTrainer(
        make_policy(),
        tokenizer,
        FunctionReward(by_length),
        prompts,
        PPO(steps=4, episodes=4, minibatches=1, async_rollouts=True, checkpoint_every=1),
        SamplingParams(max_tokens=3),
        directory=tmp_path,
    )

    def fail(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == 2:
            raise Killed

    trainer.on_step = fail
    with pytest.raises(Killed):
        trainer.train()
    trainer.train()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_an_unfinished_checkpoint_counts_for_nothing_and_is_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"fingerprint": {}, "steps_done": 1}, {})
    (tmp_path / "checkpoint-2.partial").mkdir()
    (tmp_path / "checkpoint-2.partial" / ".metadata").write_bytes(b"cut short")
    found = find_checkpoint(tmp_path, {})
    assert found is not None and found[1]["steps_done"] == 1
    restore_logs(tmp_path, found[0])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_that_is_not_what_was_written_is_one_sentence(tmp_path: Path) -> None:
    """An empty file once ended in "Aborted!", a changed byte in other weights."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    save_checkpoint(tmp_path, {"fingerprint": {}, "steps_done": 1}, {"policy": torch.arange(50.0)})
    written = [*(tmp_path / "checkpoint-1").iterdir(), tmp_path / "metrics.jsonl"]
    assert {path.name for path in written} == {
        "__0_0.distcp",
        ".metadata",
        "state.json",
        "checks.json",
        "metrics.jsonl",
    }
    for path in written:
        data = path.read_bytes()
        places = range(0, len(data), max(1, len(data) // 60))
        changed = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in places]
        for other in [b"", data[:-1], data[: len(data) // 2], *changed]:
            path.write_bytes(other)
            with pytest.raises(
                Damaged, match=rf"{path.name}' is damaged: .*; delete '.*', and this training begins anew"
            ):
                find_checkpoint(tmp_path, {})
        path.unlink()
        with pytest.raises(Damaged, match=f"{path.name}' is damaged: "):
            find_checkpoint(tmp_path, {})
        path.write_bytes(data)
    assert find_checkpoint(tmp_path, {}) is not None


def test_the_checkpoint_before_is_good_too_where_a_kill_came_before_the_new_one_has_its_name(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {one}}}\n' for one in range(1, step + 1)))
        save_checkpoint(tmp_path, {"fingerprint": {}, "steps_done": step}, {"a": torch.full((3,), float(step))})
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {one}}}\n' for one in (1, 2, 3)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(source: Any, target: Any) -> None:
            if str(target).endswith("checkpoint-3"):
                raise KeyboardInterrupt
            real(source, target)

        real = os.rename
        patch.setattr("selfplay.storage.durable.os.rename", killed)
        save_checkpoint(tmp_path, {"fingerprint": {}, "steps_done": 3}, {"a": torch.zeros(3)})
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3.partial"]
    found, into = find_checkpoint(tmp_path, {}), {"a": torch.zeros(3)}
    assert found is not None and found[1]["steps_done"] == 2
    load_tensors(found[0], into)
    assert into["a"].tolist() == [2, 2, 2]
    restore_logs(tmp_path, found[0])
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_texts_with_separators_of_unicode_stay_whole(tmp_path: Path) -> None:
    """Sampled text may hold any of these; JSON escapes none of them."""
    path = tmp_path / "samples.jsonl"
    rows = [{"step": step, "response": "one\x85two\u2028three\u2029four"} for step in (1, 2, 3)]
    append_rows(path, rows[:2])
    before = path.read_bytes()
    save_checkpoint(tmp_path, {"fingerprint": {}, "steps_done": 2}, {})
    append_rows(path, rows[2:])
    restore_logs(tmp_path, tmp_path / "checkpoint-2")
    assert path.read_bytes() == before
    append_rows(path, rows[2:])
    assert read_json_lines(path) == rows
