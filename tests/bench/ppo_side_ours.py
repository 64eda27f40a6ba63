"""Our side of `ppo_vs_trl` and of `group_vs_trl`: our PPOTrainer on the quickstart's policy and reward model.

As a script it prints one JSON object for `ppo_vs_trl`.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from measuring import PeakMemory

from selfplay.config import PPO, SamplingParams
from selfplay.models import load_policy, load_scalar_model, load_tokenizer
from selfplay.records import Prompt
from selfplay.rewards.reward_model import RewardModel
from selfplay.rl import PPOTrainer


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts that `ppo_vs_trl.write_prompts` wrote."""
    return [Prompt.model_validate_json(line) for line in Path(path).read_text().split("\n") if line]


def train(given: argparse.Namespace, config: PPO, max_tokens: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train from `given.policy` with `given.reward`, `.prompts` and `.seed`; gives its steps and what tables hold."""
    rows: list[dict[str, Any]] = []
    trainer = PPOTrainer(
        load_policy(given.policy),
        load_tokenizer(given.policy),
        RewardModel.load(given.reward),
        read_prompts(given.prompts),
        config,
        SamplingParams(max_tokens=max_tokens),
        critic=load_scalar_model(given.reward) if config.has_critic else None,
        seed=given.seed,
        on_step=rows.append,
    )
    memory, begun = PeakMemory(), perf_counter()
    trainer.train()
    seconds = perf_counter() - begun
    return rows, {
        "seconds": seconds,
        "step_seconds": [row["time/step"] for row in rows],
        "growth": memory.growth(),
        "peak": memory.peak(),
        "scores": [row["objective/scores"] for row in rows],
        "tokens": [row["response/length"] for row in rows],
        "rollout": sum(row["time/rollout"] for row in rows),
        "scoring": sum(row["time/score"] + row["time/estimate"] for row in rows),
        "update": sum(row["time/update"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--settings", required=True, help="JSON: what both sides share")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--ppo", default="{}", help="JSON: further settings of selfplay.config.PPO")
    given = parser.parse_args()
    shared = json.loads(given.settings)
    config = PPO(
        steps=given.steps,
        episodes=shared["episodes"],
        epochs=shared["epochs"],
        minibatches=shared["minibatches"],
        learning_rate=shared["learning_rate"],
        kl_coefficient=shared["kl_coefficient"],
        missing_eos_penalty=shared["missing_eos_penalty"],
        log_samples=0,
        **json.loads(given.ppo),
    )
    rows, found = train(given, config, shared["max_tokens"])
    found["threads"] = torch.get_num_threads()
    found["scores"] = [
        row["objective/scores"] - shared["missing_eos_penalty"] * row["response/truncated"] for row in rows
    ]
    found["kl"] = [row["objective/kl"] for row in rows]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
