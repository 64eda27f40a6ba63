"""One engine for several workers in a row: the same rollouts, weights gathered by all together; and blocks that stream."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from test_sharded_ppo import make_trainer
from tiny_models import build_policy

from selfplay import stopping
from selfplay.config import SamplingParams
from selfplay.distributed.collectives import init_process_group, rank, world_size
from selfplay.distributed.sharding import copy_whole, skeleton, whole
from selfplay.distributed.streaming import stream_blocks
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.vllm_weights import Follower, write_checkpoint
from selfplay.errors import Stopped
from selfplay.models import load_policy
from selfplay.records import Completion, Prompt
from selfplay.rl.sampler import Receiver, Sampler

RANKS = 2
AHEAD: dict[str, Any] = {"async_rollouts": True, "tied": False}


class CopyingEngine(TransformersEngine):
    """An engine with weights of its own, as vLLM has them, for RANKS workers in a row."""

    ranks = RANKS

    def receive(self, policy: Any) -> None:
        copy_whole(policy, self.model)

    def generate(self, prompts: list[Prompt], sampling: SamplingParams) -> list[list[Completion]]:  # type: ignore[override]
        self.made = getattr(self, "made", 0) + len(prompts)
        return super().generate(prompts, sampling)


def train(seed: int, folder: Path, changes: dict[str, Any], stop_after: int | None = None) -> dict[str, Any]:
    """Train three steps of 18 episodes, and return the whole weights and how many answers this process's engine made."""
    init_process_group()
    trainer = make_trainer(seed, folder, changes)
    engine: Any = None
    if world_size() > 1:
        leads, before = rank() % RANKS == 0, trainer.sampler
        copy = skeleton(trainer.policy, torch.float64, "cpu") if leads else None
        engine = CopyingEngine(copy, trainer.tokenizer) if leads else Follower(RANKS, torch.float64)
        assert isinstance(engine, Receiver)
        trainer.sampler = Sampler(
            engine, trainer.policy, trainer.tokenizer, before.prompts, before.config, before.sampling, seed
        )
        assert trainer.sampler.snapshot is None, "no copy beside that of the engine"
    real = trainer._step

    def step(number: int) -> Any:
        if number + 1 == stop_after:
            stopping._asked.append("SIGTERM")
        return real(number)

    trainer._step = step
    try:
        trainer.train()
    except Stopped:
        return {}
    weights = {name: whole(one.detach()) for name, one in trainer.learner.policy.named_parameters()}
    return {"weights": weights, "made": getattr(engine, "made", 0)}


@pytest.mark.parametrize("changes", [{}, AHEAD], ids=["in step", "ahead"])
def test_two_engines_for_four_workers_make_what_one_process_makes(
    tmp_path: Path, training_seed: int, changes: dict[str, Any]
) -> None:
    (alone,) = in_processes(1, train, tmp_path / "1", training_seed, tmp_path / "1", changes)
    found = in_processes(4, train, tmp_path / "4", training_seed, tmp_path / "4", changes)
    for one in found:
        torch.testing.assert_close(one["weights"], alone["weights"], rtol=1e-12, atol=1e-12)
    assert [one["made"] for one in found] == [27, 0, 27, 0], "three steps of 18 episodes"


def test_what_was_sampled_ahead_goes_on_in_one_process(tmp_path: Path, training_seed: int) -> None:
    (alone,) = in_processes(1, train, tmp_path / "1", training_seed, tmp_path / "1", AHEAD)
    assert in_processes(2, train, tmp_path / "run", training_seed, tmp_path / "run", AHEAD, 1) == [{}, {}]
    (resumed,) = in_processes(1, train, tmp_path / "run", training_seed, tmp_path / "run", AHEAD)
    torch.testing.assert_close(resumed["weights"], alone["weights"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_for_vllm_is_in_its_precision(tmp_path: Path, training_seed: int, tied: bool) -> None:
    policy = build_policy(training_seed, tie_word_embeddings=tied)
    write_checkpoint(policy, torch.bfloat16, tmp_path)
    found = load_policy(tmp_path, where="cpu")
    assert found.dtype == torch.bfloat16
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor.bfloat16(), rtol=0, atol=0)


@torch.no_grad()
def test_streamed_blocks_compute_what_a_whole_model_does_and_stay_where_they_are(
    tmp_path: Path, training_seed: int
) -> None:
    build_policy(training_seed).bfloat16().save_pretrained(tmp_path)
    ids = torch.tensor([[5, 3, 4, 2]])
    streamed = stream_blocks(load_policy(tmp_path, where="cpu"), torch.device("cpu"))
    seen: list[torch.dtype] = []
    block = streamed.model.layers[0].mlp.up_proj
    block.register_forward_hook(lambda module, *_: seen.append(module.weight.dtype))
    expected = load_policy(tmp_path)(input_ids=ids).logits
    for _ in range(2):
        torch.testing.assert_close(streamed(input_ids=ids).logits, expected, rtol=0, atol=0)
    assert seen == [torch.float32] * 2 and block.weight.dtype == torch.bfloat16
    assert streamed.get_output_embeddings().weight.dtype == torch.float32
