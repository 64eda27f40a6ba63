"""One side of `ppo_vs_trl`: our PPOTrainer on the quickstart's policy and reward model. Prints one JSON object."""

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
    prompts = [Prompt.model_validate_json(line) for line in Path(given.prompts).read_text().split("\n") if line]
    policy, tokenizer = load_policy(given.policy), load_tokenizer(given.policy)
    reward, critic = RewardModel.load(given.reward), load_scalar_model(given.reward)
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
    rows: list[dict[str, Any]] = []
    trainer = PPOTrainer(
        policy,
        tokenizer,
        reward,
        prompts,
        config,
        SamplingParams(max_tokens=shared["max_tokens"]),
        critic=critic,
        seed=given.seed,
        on_step=rows.append,
    )
    memory, begun = PeakMemory(), perf_counter()
    trainer.train()
    print(
        json.dumps(
            {
                "seconds": perf_counter() - begun,
                "step_seconds": [row["time/step"] for row in rows],
                "growth": memory.growth(),
                "threads": torch.get_num_threads(),
                "scores": [
                    row["objective/scores"] - shared["missing_eos_penalty"] * row["response/truncated"] for row in rows
                ],
                "kl": [row["objective/kl"] for row in rows],
                "tokens": [row["response/tokens"] for row in rows],
                "rollout": sum(row["time/rollout"] for row in rows),
                "scoring": sum(row["time/score"] + row["time/estimate"] for row in rows),
                "update": sum(row["time/update"] for row in rows),
            }
        )
    )


if __name__ == "__main__":
    main()
