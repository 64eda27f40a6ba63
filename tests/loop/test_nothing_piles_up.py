"""Over 200 PPO steps and 20 killed runs, no memory, tensor, open file, thread, process, shared memory or file is left over."""

import gc
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from killing import Moment, in_process, in_use, shared_memory
from transformers import LlamaForCausalLM

from prompts.stories import documents
from selfplay.config import PPO, Architecture, SamplingParams
from selfplay.records import Prompt
from selfplay.rewards.sources import FunctionReward
from selfplay.rl import PPOTrainer
from selfplay.stages.bootstrap import llama_config, train_tokenizer
from selfplay.storage.files import read_json

KILLS = 20
MEGABYTE = 1 << 20


def held() -> dict[str, Any]:
    """What this process holds: bytes of memory, open files, threads, tensors, and the processes it has started."""
    gc.collect()
    me = psutil.Process()
    return {
        "bytes": me.memory_info().rss,
        "files": me.num_fds(),
        "threads": me.num_threads(),
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()),
        "processes": sorted(child.pid for child in me.children(recursive=True)),
    }


def test_two_hundred_steps_of_ppo_hold_no_more_than_fifty(tmp_path: Path, training_seed: int) -> None:
    """Memory may not grow by one in ten of 150 steps' activations, which are 1 MB each; nothing else may grow at all."""
    shared, at = shared_memory(), {}
    config = PPO(
        steps=200, episodes=8, minibatches=1, epochs=1, checkpoint_every=10, async_rollouts=True, log_samples=1
    )
    tokenizer = train_tokenizer(documents(50), 300)
    shape = Architecture(layers=2, hidden_size=64, heads=2, intermediate_size=128, context=64)

    def look(row: dict[str, Any]) -> None:
        if row["step"] in (50, 200):
            at[row["step"]] = held()

    PPOTrainer(
        LlamaForCausalLM(llama_config(shape, tokenizer)).eval(),
        tokenizer,
        FunctionReward(lambda prompts, responses, meta: [float(response.count("e")) for response in responses]),
        [Prompt.plain(f"p{number}", f"Tell story {number}.") for number in range(12)],
        config,
        SamplingParams(max_tokens=12),
        directory=tmp_path,
        seed=training_seed,
        on_step=look,
    ).train()
    assert {**at[200], "bytes": 0} == {**at[50], "bytes": 0}
    assert at[200]["bytes"] - at[50]["bytes"] < 15 * MEGABYTE
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-200",
        "metrics.jsonl",
        "samples.jsonl",
    }
    assert shared_memory() - shared <= in_use()


def train_policy(directory: Path) -> None:
    """Run PPO of the first iteration."""
    from selfplay.loop import run_stage

    run_stage(directory, "policy", 1)


def test_twenty_killed_runs_leave_nothing_behind(tiny_run: Path, tmp_path: Path) -> None:
    directory, stage = tmp_path / "run", "iteration-001/policy"
    shutil.copytree(tiny_run, directory, symlinks=True)
    shutil.rmtree(directory / stage)
    moments = [
        Moment("selfplay.rl.trainer", "PPOTrainer.train", 1),
        Moment("selfplay.rl.learner", "Learner.learn", 1),
        Moment("selfplay.rl.checkpoint", "write_sealed", 1),
        Moment("selfplay.storage.durable", "_sync", 2),
    ]
    begun, group = time.time(), os.getpgrp()
    assert in_process(train_policy, directory, moment=moments[0]) == -9  # starts the server that all others come from
    before, shared = held(), shared_memory()
    size = len(list(directory.rglob("*")))
    for number in range(1, KILLS):
        assert in_process(train_policy, directory, moment=moments[number % len(moments)]) == -9
    after = held()
    assert {**after, "bytes": 0} == {**before, "bytes": 0}
    assert after["bytes"] - before["bytes"] < 20 * MEGABYTE
    assert shared_memory() - shared <= in_use()
    assert len(list(directory.rglob("*"))) <= size + 3, "what a killed run leaves, the next one clears"
    orphans = [
        process.pid
        for process in psutil.process_iter(["pid", "ppid", "create_time"])
        if process.info["ppid"] == 1 and process.info["create_time"] > begun and os.getpgid(process.pid) == group
    ]
    assert orphans == []

    assert in_process(train_policy, directory) == 0
    one, other = (read_json(folder / stage / "manifest.json")["outputs"] for folder in (tiny_run, directory))
    assert one["model.safetensors"] == other["model.safetensors"] and one.keys() == other.keys()
    assert not list(directory.rglob("*.partial"))
