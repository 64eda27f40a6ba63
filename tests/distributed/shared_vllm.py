"""A vLLM on a CPU that two workers share, given the weights of a policy that is spread over them, and adapters folded in."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "rl"))
from processes import in_processes
from tiny_models import build_policy, build_prompts, build_tokenizer

from selfplay.config import Engine, Lora, SamplingParams
from selfplay.distributed.collectives import init_process_group, rank
from selfplay.distributed.sharding import shard, skeleton, whole_tensors
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.open import follower, open_engine
from selfplay.lora import add_adapter

SHARED = Engine(kind="vllm", tensor_parallel=2)
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


def policy(seed: int) -> Any:
    return build_policy(seed, dtype=torch.float32, hidden_size=64, max_position_embeddings=128, initializer_range=0.3)


def answers(engine: Any) -> list[str]:
    return [one.text for (one,) in engine.generate(build_prompts(), GREEDY)]


def transfer(seed: int, folder: Path, adapted: bool) -> list[Any] | None:
    """Start from one set of weights, give it another, and return what vLLM and transformers answer with the second."""
    multiprocessing.current_process()._config["daemon"] = False  # or it may not start vLLM's
    init_process_group()
    spread = policy(seed + 1)
    if adapted:
        spread = add_adapter(spread, Lora(rank=4, alpha=8.0))
        for name, tensor in spread.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor, std=0.3, generator=torch.Generator().manual_seed(seed))
    shard(spread, dtype=torch.float32)
    engine: Any = follower(SHARED, "float32") or open_engine(SHARED, folder, "policy")
    assert engine.ranks == 2
    before = [] if rank() else answers(engine)
    engine.receive(spread)
    plain = skeleton(spread, torch.float32, "cpu")
    weights = dict(whole_tensors(spread))
    if rank():
        engine.close()
        return None
    plain.load_state_dict(weights, strict=False)
    plain.tie_weights()
    after = answers(engine)
    engine.close()
    return [before, after, answers(TransformersEngine(plain, build_tokenizer()))]


@pytest.mark.parametrize("adapted", [False, True])
def test_two_workers_give_one_vllm_their_weights(tmp_path: Path, training_seed: int, adapted: bool) -> None:
    policy(training_seed).save_pretrained(tmp_path / "start")
    build_tokenizer().save_pretrained(tmp_path / "start")
    found = in_processes(2, transfer, tmp_path / "processes", training_seed, tmp_path / "start", adapted)
    assert found[1] is None
    before, after, expected = found[0]
    assert after == expected and before != after
