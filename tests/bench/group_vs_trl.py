"""Our RLOO and GRPO against TRL 1.16's RLOOTrainer and GRPOTrainer (transformers generation): episodes/s and memory.

Both start from the quickstart's policy, see the same prompts, are rewarded by the same reward model through the same code, and
make the same optimiser steps on groups of eight. They run in turn, each in a process of its own, for several rounds with a seed
each; a round's ratio is of two runs that stand next to each other in time. The first step of each run, in which libraries
warm up, is left out of episodes/s. `python tests/bench/group_vs_trl.py --help`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from measuring import PeakMemory, publish
from ppo_vs_trl import ROOT, run_side, start_of, write_prompts

from selfplay.records import Completion

SHARED = {"episodes": 256, "minibatches": 4, "epochs": 2, "group": 8, "max_tokens": 110, "lr": 7e-4, "beta": 0.05}
ALGORITHMS = ("rloo", "grpo")


def ours(given: argparse.Namespace) -> dict[str, Any]:
    """One run of our trainer."""
    from ppo_side_ours import train

    from selfplay.config import PPO

    as_grpo = {"loss_average": "sequence", "kl_in": "loss", "kl_estimator": "k3"} if given.algorithm == "grpo" else {}
    config = PPO(
        advantage=given.algorithm,
        group=SHARED["group"],
        steps=given.steps,
        episodes=SHARED["episodes"],
        epochs=SHARED["epochs"],
        minibatches=SHARED["minibatches"],
        learning_rate=SHARED["lr"],
        kl_coefficient=SHARED["beta"],
        missing_eos_penalty=0.0,
        log_samples=0,
        **as_grpo,
    )
    return train(given, config, SHARED["max_tokens"])[1]


def theirs(given: argparse.Namespace) -> dict[str, Any]:
    """One run of TRL's trainer, which scores through our reward model and reports when each step's last update ended."""
    from datasets import Dataset
    from ppo_side_ours import read_prompts
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from selfplay.rewards.reward_model import RewardModel

    kind, settings = (RLOOTrainer, RLOOConfig) if given.algorithm == "rloo" else (GRPOTrainer, GRPOConfig)
    tokenizer = AutoTokenizer.from_pretrained(given.policy, padding_side="left")
    reward, updates = RewardModel.load(given.reward), SHARED["epochs"] * SHARED["minibatches"]
    known = {prompt.text: prompt for prompt in read_prompts(given.prompts)}
    scores: list[float] = []
    tokens: list[float] = []

    def score(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        answers = [
            Completion(
                id=str(place),
                prompt_id=known[prompt].id,
                text=completion,
                token_ids=tuple(ids),
                finish_reason="stop" if ids[-1] == tokenizer.eos_token_id else "length",
                policy="trl",
            )
            for place, (prompt, completion, ids) in enumerate(zip(prompts, completions, completion_ids, strict=True))
        ]
        found = reward.score([known[prompt] for prompt in prompts], answers)
        scores.append(statistics.mean(found))
        tokens.append(statistics.mean(map(len, completion_ids)))
        return found

    class Watcher(TrainerCallback):
        """Notes when each update ended."""

        ends: list[float] = []  # noqa: RUF012

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(perf_counter())

    args = settings(
        output_dir="unused",
        per_device_train_batch_size=SHARED["episodes"] // SHARED["minibatches"],
        gradient_accumulation_steps=1,
        steps_per_generation=SHARED["minibatches"],
        num_iterations=SHARED["epochs"],
        num_generations=SHARED["group"],
        max_completion_length=SHARED["max_tokens"],
        max_steps=given.steps * updates,
        learning_rate=SHARED["lr"],
        lr_scheduler_type="linear",
        adam_epsilon=1e-5,
        beta=SHARED["beta"],
        temperature=1.0,
        seed=given.seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({"loss_type": "grpo"} if given.algorithm == "grpo" else {}),
    )
    watcher = Watcher()
    trainer = kind(
        str(given.policy),
        score,
        args,
        Dataset.from_list([{"prompt": text} for text in known]),
        processing_class=tokenizer,
        callbacks=[watcher],
    )
    trainer.model.to("cpu").float()
    memory, begun = PeakMemory(), perf_counter()
    trainer.train()
    ends = [begun, *watcher.ends[updates - 1 :: updates]]
    assert len(ends) == given.steps + 1
    seconds = [after - before for before, after in pairwise(ends)]
    return {"step_seconds": seconds, "growth": memory.growth(), "scores": scores, "tokens": tokens}


SIDES = {"TRL 1.16": theirs, "selfplay": ours}


def rate(run: dict[str, Any]) -> float:
    """Episodes per second, the first step left out."""
    return float(SHARED["episodes"] / statistics.mean(run["step_seconds"][1:]))


def compare(algorithm: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One row of the table: medians over rounds, and of the rounds' ratios."""
    pairs = list(zip(*(runs[side] for side in SIDES), strict=True))
    speed, memory = [rate(b) / rate(a) for a, b in pairs], [b["growth"] / a["growth"] for a, b in pairs]
    each = {
        f"{side} {name}": statistics.median([value(run) for run in runs[side]])
        for side in SIDES
        for name, value in (
            ("episodes/s", rate),
            ("MiB", lambda run: run["growth"] / 2**20),
            ("tokens", lambda run: statistics.mean(run["tokens"])),
            ("last score", lambda run: run["scores"][-1]),
        )
    }
    return {
        "algorithm": algorithm,
        **each,
        "speed, median ratio": statistics.median(speed),
        "speed, least ratio": min(speed),
        "memory, median ratio": statistics.median(memory),
    }


def main() -> None:
    """Run all rounds, or with `--side` one run of one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--start", type=Path, default=ROOT / "runs" / "bench-quickstart")
    parser.add_argument("--side", choices=SIDES, help="used by the rounds themselves")
    for name in ("policy", "reward", "prompts"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--algorithm", choices=ALGORITHMS)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    if given.side:
        print("\nRESULT" + json.dumps(SIDES[given.side](given)))
        return
    policy, reward = start_of(given.start)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {one: {side: [] for side in SIDES} for one in ALGORITHMS}
    with tempfile.TemporaryDirectory() as directory:
        prompts, _ = write_prompts(policy, Path(directory))
        for seed in range(given.rounds):
            for algorithm in ALGORITHMS:
                for side in SIDES:
                    words = ["--side", side, "--algorithm", algorithm, "--seed", seed, "--steps", given.steps]
                    words += ["--policy", policy, "--reward", reward, "--prompts", prompts]
                    found[algorithm][side].append(run_side([sys.executable, __file__, *map(str, words)]))
                    print(
                        f"round {seed}, {algorithm}, {side}: {rate(found[algorithm][side][-1]):.2f} episodes/s",
                        flush=True,
                    )
    rows = [compare(algorithm, runs) for algorithm, runs in found.items()]
    publish("group_vs_trl", rows, runs=found, settings={**SHARED, "steps": given.steps, "rounds": given.rounds})


if __name__ == "__main__":
    main()
