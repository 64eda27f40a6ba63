"""TRL's trainers on two processes: the losses and gradient norms of one, the same weights, and a resume on another number."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import apart, in_processes
from tiny_models import build_policy, build_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from selfplay import stopping
from selfplay.config import DPO, Optimisation, Reward
from selfplay.distributed.collectives import init_process_group, rank, world_size
from selfplay.errors import ConfigError, Stopped
from selfplay.rewards.reward_model import RewardModel
from selfplay.training.preference import pair_trainer, train_on_pairs
from selfplay.training.reward_model import train_reward_model
from selfplay.training.supervised import train_supervised, trainer_options

BATCH, STEPS = 8, 4


def sequences(count: int) -> list[list[int]]:
    """Token ids of different lengths."""
    draw = random.Random(0)
    return [[draw.randrange(3, 16) for _ in range(draw.randrange(4, 12))] for _ in range(count)]


def score_model(seed: int) -> LlamaForSequenceClassification:
    """A random scalar model, float32."""
    config = build_policy(seed).config.to_dict() | {"num_labels": 1, "pad_token_id": 0}
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(LlamaConfig(**config)).eval()


def reward(folder: Path, seed: int, loss: str) -> tuple[Any, list[dict[str, float]]]:
    """Train on pairs, two of each prompt."""
    ids = sequences(2 * BATCH * STEPS * (1 if loss == "pairwise" else 2))
    rows = [
        {"prompt_id": str(n // 2), "chosen_ids": a, "rejected_ids": b, "margin": 1.0, "confidence": 0.9}
        for n, (a, b) in enumerate(zip(ids[::2], ids[1::2], strict=True))
    ]
    config = Reward(batch_size=BATCH, epochs=1, learning_rate=1e-3, loss=loss)
    model = RewardModel(score_model(seed), build_tokenizer())
    return model.model, train_reward_model(model, rows, config, folder, seed)


def sft(folder: Path, seed: int) -> tuple[Any, list[dict[str, float]]]:
    """Train on texts of which the first three tokens count for nothing."""
    model = build_policy(seed, torch.float32)
    rows = [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]} for ids in sequences(BATCH * STEPS)]
    training = Optimisation(steps=STEPS, batch_size=BATCH, learning_rate=1e-3)
    return model, train_supervised(model, build_tokenizer(), rows, training, folder, seed, "fine-tune")


def dpo(folder: Path, seed: int) -> tuple[Any, list[dict[str, float]]]:
    """Train on pairs of answers to a prompt of two tokens."""
    ids = sequences(2 * BATCH * STEPS)
    told = {"target": 1.0, "chosen_wins": 1.0, "rejected_wins": 0.0}
    rows: Any = [
        {"prompt_ids": [3, 4], "chosen_ids": a, "rejected_ids": b, **told}
        for a, b in zip(ids[::2], ids[1::2], strict=True)
    ]
    config = DPO(kind="dpo", batch_size=BATCH, epochs=1, learning_rate=1e-3)
    model = build_policy(seed, torch.float32)
    trainer = pair_trainer(model, None, build_tokenizer(), rows, config, None, folder, seed)
    return train_on_pairs(trainer, folder)


def train_all(folder: Path, seed: int) -> dict[str, Any]:
    init_process_group()
    found = {
        "reward model": reward(folder / "reward", seed, "pairwise"),
        "reward model of groups": reward(folder / "groups", seed, "ranking"),
        "fine-tuning": sft(folder / "sft", seed),
        "DPO": dpo(folder / "dpo", seed),
    }
    return {name: (model.state_dict(), logged) for name, (model, logged) in found.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, training_seed: int) -> dict[str, Any]:
    """What a single process makes of each."""
    folder = tmp_path_factory.mktemp("alone")
    (found,) = in_processes(1, train_all, folder, folder, training_seed)
    return found


def require_near(name: str, weights: dict[str, torch.Tensor], alone: dict[str, Any], seed: int) -> None:
    """Require the weights that a single process makes, but for rounding."""
    start = score_model(seed) if name.startswith("reward") else build_policy(seed, torch.float32)
    assert apart(weights, alone[name][0], start.state_dict()) < 0.05, name


def test_two_processes_have_the_losses_and_gradients_of_one(
    alone: dict[str, Any], tmp_path: Path, training_seed: int
) -> None:
    for found in in_processes(2, train_all, tmp_path, tmp_path, training_seed):
        for name, (weights, logged) in found.items():
            rows = [row for row in logged if "loss" in row or "loss/preference" in row]
            expected = [row for row in alone[name][1] if "loss" in row or "loss/preference" in row]
            assert len(rows) == len(expected) == STEPS, name
            for row, other in zip(rows, expected, strict=True):
                for key in {"loss", "loss/preference", "grad_norm", "policy/grad_norm", "num_tokens"} & other.keys():
                    assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), (name, key)
            require_near(name, weights, alone, training_seed)


def stop(folder: Path, seed: int) -> str:
    """Be asked to stop, on one of the processes, before the second step ends."""
    init_process_group()
    ended, asked = stopping.requested, []

    def requested() -> bool:
        asked.append(1)
        return len(asked) >= 2 and rank() == world_size() - 1

    stopping.requested = requested
    try:
        sft(folder, seed)
    except Stopped as error:
        return str(error)
    finally:
        stopping.requested = ended
    return ""


def sft_alone(folder: Path, seed: int) -> dict[str, Any]:
    init_process_group()
    return sft(folder, seed)[0].state_dict()


def test_stopped_on_two_and_gone_on_with_on_one(alone: dict[str, Any], tmp_path: Path, training_seed: int) -> None:
    said = in_processes(2, stop, tmp_path / "a", tmp_path / "run", training_seed)
    assert all("stopped by" in one for one in said), said
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-2"]
    (weights,) = in_processes(1, sft_alone, tmp_path / "b", tmp_path / "run", training_seed)
    require_near("fine-tuning", weights, alone, training_seed)


def uneven(folder: Path, seed: int) -> str:
    init_process_group()
    with pytest.raises(ConfigError) as error:
        trainer_options(score_model(seed), Optimisation(steps=1, batch_size=7), folder, 0, 1)
    return str(error.value)


def test_a_batch_that_cannot_be_dealt_evenly_is_one_sentence(tmp_path: Path, training_seed: int) -> None:
    for said in in_processes(2, uneven, tmp_path, tmp_path, training_seed):
        assert said.startswith("a batch of 7 cannot be dealt evenly to 2 workers: make batch_size a multiple of it")
