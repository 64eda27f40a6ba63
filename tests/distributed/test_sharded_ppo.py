"""PPO spread over processes learns what a single one does, holds its share only, and resumes on any number of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from safetensors.torch import load_file
from tiny_models import build_policy, build_prompts, build_tokenizer, count_of_fives

from selfplay import stopping
from selfplay.config import PPO, AdaptiveKL, Lora, Pretraining, SamplingParams
from selfplay.distributed.collectives import init_process_group, rank, world_size
from selfplay.distributed.sharding import load_on_first, save_whole, shard, whole, whole_tensors
from selfplay.errors import Stopped
from selfplay.lora import add_adapter
from selfplay.models import load_policy
from selfplay.rewards.sources import FunctionReward
from selfplay.rl import PPOTrainer
from selfplay.storage.files import read_json_lines


def make_trainer(seed: int, directory: Path | None, changes: dict[str, Any]) -> Any:
    changes = dict(changes)
    lora = changes.pop("lora", False)
    policy = build_policy(seed + rank(), tie_word_embeddings=changes.pop("tied", True))  # all get the first one's
    config = PPO(
        **{"steps": 3, "episodes": 18, "minibatches": 3, "learning_rate": 1e-2, "checkpoint_every": 1, **changes}
    )
    return PPOTrainer(
        add_adapter(policy, Lora(rank=4, alpha=8.0)).double() if lora else policy,
        build_tokenizer(),
        FunctionReward(count_of_fives),
        build_prompts(),
        config,
        SamplingParams(max_tokens=7),
        corpus=["1 2 3 4", "5 6", "7 8 9"],
        directory=directory,
        seed=seed,
    )


def train(seed: int, folder: Path, changes: dict[str, Any], stop_after: int | None = None) -> dict[str, Any]:
    """Train, and return the whole weights, and how many numbers this process holds of them and of Adam's moments."""
    init_process_group()
    trainer, rows = make_trainer(seed, folder, changes), []
    trainer.on_step = rows.append

    def step(number: int) -> Any:
        if number + 1 == stop_after and rank() == world_size() - 1:  # a signal reaches one of them
            stopping._asked.append("SIGTERM")
        return real(number)

    real, trainer._step = trainer._step, step
    try:
        trainer.train()
    except Stopped:
        assert trainer.steps_done == stop_after
        return {}
    save_whole(trainer.policy, trainer.tokenizer, folder / "saved")
    networks = {"policy": trainer.learner.policy}
    if trainer.learner.critic is not None:
        networks["critic"] = trainer.learner.critic
    moments = [
        one for entry in trainer.learner.tensors()["policy_optimiser"].values() for one in entry.values() if one.dim()
    ]
    return {
        "weights": {
            f"{kind}.{name}": whole(one.detach())
            for kind, network in networks.items()
            for name, one in network.named_parameters()
        },
        "held": sum(held(one) for network in networks.values() for one in network.parameters()),
        "moments": sum(held(one) for one in moments),
        "rows": rows,
    }


def held(tensor: Any) -> int:
    """Numbers that this process holds of a tensor."""
    return int((tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel())


KNOBS: dict[str, dict[str, Any]] = {
    "tied, with the pretraining mix": {
        "pretraining": Pretraining(batch_size=3),
        "adaptive_kl": AdaptiveKL(target=0.01, horizon=100.0),
    },
    "a head of its own, rollouts ahead": {"tied": False, "async_rollouts": True, "kl_in": "loss", "kl_estimator": "k2"},
    "a micro-batch for each row": {"micro_batch_tokens": 1, "gradient_checkpointing": True, "episodes": 15},
    "adapters": {"lora": True},
    "RLOO": {"advantage": "rloo", "group": 3},
}


def train_all(seed: int, folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    return {name: train(seed, folder / name, KNOBS[name]) for name in names}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, training_seed: int) -> tuple[Path, dict[str, dict[str, Any]]]:
    """What a single process makes of each of the settings, and the folder with its checkpoints."""
    folder = tmp_path_factory.mktemp("alone")
    (found,) = in_processes(1, train_all, folder, training_seed, folder, list(KNOBS))
    return folder, found


@pytest.mark.parametrize(("count", "names"), [(2, list(KNOBS)), (3, [next(iter(KNOBS)), "RLOO"])])
def test_any_number_of_processes_learns_the_same(
    alone: tuple[Path, dict[str, dict[str, Any]]], count: int, names: list[str], tmp_path: Path, training_seed: int
) -> None:
    """With 18 episodes on 3 processes, and with 15 in micro-batches of one, some have fewer micro-batches than others."""
    folder, expected = alone
    every = in_processes(count, train_all, tmp_path, training_seed, tmp_path, names)
    for name in names:
        for found in (one[name] for one in every):
            torch.testing.assert_close(found["weights"], expected[name]["weights"], rtol=1e-12, atol=1e-12)
        for kind in ("held", "moments"):
            shares = [one[name][kind] / expected[name][kind] for one in every]
            # Rows are dealt in equal numbers, the last process has what is left: of 16, 6 + 6 + 4; of an adapter's 4, 2 + 2 + 0.
            assert sum(shares) == pytest.approx(1) and max(shares) < {2: 0.502, 3: 0.365}[count], (name, kind, shares)
        assert [len(one[name]["rows"]) for one in every] == [3] + [0] * (count - 1)
        for mine, theirs in zip(every[0][name]["rows"], expected[name]["rows"], strict=True):
            for key, value in theirs.items():
                if "time" not in key and "second" not in key:
                    assert mine[key] == pytest.approx(value, rel=1e-9, abs=1e-9), f"{name}: {key}"
        plain, same = (load_file(place / name / "saved" / "model.safetensors") for place in (folder, tmp_path))
        torch.testing.assert_close(same, plain, rtol=1e-12, atol=1e-12)
        assert sorted(path.name for path in (tmp_path / name).glob("checkpoint-*")) == ["checkpoint-3"]


def train_compiled(seed: int, folder: Path) -> dict[str, Any]:
    """Train with what torch.compile would be given, run as it is; note what that is."""
    graphs: list[str] = []
    real = torch.compile

    def compiled(function: Any, **options: Any) -> Any:
        def keep(graph: Any, inputs: Any) -> Any:
            graphs.append(function.__qualname__)
            return graph.forward

        return real(function, backend=keep, **options)

    torch.compile = compiled
    return train(seed, folder, {**KNOBS["RLOO"], "compile": True}) | {"graphs": graphs}


def test_blocks_that_are_spread_over_processes_are_compiled_as_well(
    alone: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, training_seed: int
) -> None:
    for found in in_processes(2, train_compiled, tmp_path, training_seed, tmp_path):
        torch.testing.assert_close(found["weights"], alone[1]["RLOO"]["weights"], rtol=1e-9, atol=1e-9)
        assert {"LlamaDecoderLayer.forward", "_statistics", "_gradient"} <= set(found["graphs"])


def resume(seed: int, folder: Path, name: str) -> dict[str, Any]:
    return train(seed, folder, KNOBS[name])


def test_stopped_on_two_and_resumed_on_one_or_four_is_as_if_never_stopped(
    alone: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, training_seed: int
) -> None:
    name = "tied, with the pretraining mix"
    assert in_processes(2, train, tmp_path / "run", training_seed, tmp_path / "run", KNOBS[name], 1) == [{}, {}]
    (stopped,) = (tmp_path / "run").glob("checkpoint-*")
    assert stopped.name == "checkpoint-1" and len(list(stopped.glob("__*_0.distcp"))) == 2
    for count in (1, 4):
        folder = tmp_path / f"on {count}"
        shutil.copytree(tmp_path / "run", folder)
        for found in in_processes(count, train, folder, training_seed, folder, KNOBS[name]):
            torch.testing.assert_close(found["weights"], alone[1][name]["weights"], rtol=1e-12, atol=1e-12)
        steps = [row["step"] for row in read_json_lines(folder / "metrics.jsonl")]
        assert steps == [1, 2, 3]


def test_weights_of_the_first_process_reach_all_with_ties_and_buffers(tmp_path: Path, training_seed: int) -> None:
    build_policy(training_seed).float().save_pretrained(tmp_path / "model")
    for found in in_processes(2, load_and_shard, tmp_path, tmp_path / "model"):
        assert found["before"] in (["cpu"], ["meta"]) and found["tied"]
        torch.testing.assert_close(
            found["weights"], load_file(tmp_path / "model" / "model.safetensors"), rtol=0, atol=0
        )
        assert found["rotary"] == pytest.approx([1 / 10000 ** (k / 8) for k in range(0, 8, 2)], rel=1e-6)  # head size 8


def load_and_shard(path: Path) -> dict[str, Any]:
    init_process_group()
    model = load_on_first(load_policy, path)
    before = sorted({one.device.type for one in model.parameters()})
    shard(model)
    return {
        "before": before,
        "weights": dict(whole_tensors(model)),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "rotary": model.model.rotary_emb.inv_freq.tolist(),
    }
