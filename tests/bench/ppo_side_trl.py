"""The other side of `ppo_vs_trl`: TRL 1.12's PPOTrainer on the same, in an environment of its own. Prints one JSON object.

Its reward model gets our shift and scale as the bias and scale of its head, so that both sides optimise the same score.
Each part of a step is timed by wrapping the function that does it.
"""

import argparse
import json
import os
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from measuring import PeakMemory
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

spent = {"rollout": 0.0, "scoring": 0.0}


def timed(name: str, function: Any, only_without_gradients: bool = False) -> Any:
    """`function`, whose seconds are added up under `name`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        begun = perf_counter()
        result = function(*args, **kwargs)
        if not (only_without_gradients and torch.is_grad_enabled()):
            spent[name] += perf_counter() - begun
        return result

    return call


class Watcher(TrainerCallback):
    """Keeps the metrics of each step and when it ended."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.ends: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "objective/scores" in logs:
            self.rows.append(logs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(perf_counter())


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward", required=True)
    parser.add_argument("--prompts", required=True, help="JSON lines with input_ids")
    parser.add_argument("--settings", required=True, help="JSON: what both sides share")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rollout-batch", type=int, default=256)
    return parser.parse_args()


def scaled_reward(path: str) -> PreTrainedModel:
    """Our reward model, with its shift and scale in the head."""
    reward = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    scale = reward.config.selfplay_reward
    head = torch.nn.Linear(reward.config.hidden_size, 1)
    with torch.no_grad():
        head.weight.copy_(reward.score.weight / scale["deviation"])
        head.bias.fill_(-scale["mean"] / scale["deviation"])
    reward.score = head
    return reward


def config_of(given: argparse.Namespace) -> PPOConfig:
    """TRL's settings that do the same as ours."""
    shared, on_gpu = json.loads(given.settings), torch.cuda.is_available()
    return PPOConfig(
        output_dir="unused",
        per_device_train_batch_size=shared["episodes"],
        gradient_accumulation_steps=1,
        num_mini_batches=shared["minibatches"],
        num_ppo_epochs=shared["epochs"],
        total_episodes=given.steps * shared["episodes"],
        response_length=shared["max_tokens"],
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=shared["missing_eos_penalty"],
        kl_coef=shared["kl_coefficient"],
        learning_rate=shared["learning_rate"],
        lr_scheduler_type="linear",
        adam_epsilon=1e-5,
        weight_decay=0.0,
        local_rollout_forward_batch_size=given.rollout_batch,
        num_sample_generations=0,
        seed=given.seed,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
    )


def trainer_of(given: argparse.Namespace, watcher: Watcher) -> PPOTrainer:
    """TRL's trainer on the models and prompts that are given."""
    rows = [json.loads(line)["input_ids"] for line in Path(given.prompts).read_text().split("\n") if line]
    return PPOTrainer(
        config_of(given),
        AutoTokenizer.from_pretrained(given.policy, padding_side="left"),
        AutoModelForCausalLM.from_pretrained(given.policy),
        AutoModelForCausalLM.from_pretrained(given.policy),
        scaled_reward(given.reward),
        Dataset.from_dict({"input_ids": rows}),
        AutoModelForSequenceClassification.from_pretrained(given.reward, num_labels=1),
        callbacks=[watcher],
        eval_dataset=Dataset.from_dict({"input_ids": rows[:1]}),
    )


def time_parts() -> None:
    """Let TRL's functions add up the seconds of sampling and of scoring."""
    ppo_trainer.batch_generation = timed("rollout", ppo_trainer.batch_generation)
    ppo_trainer.get_reward = timed("scoring", ppo_trainer.get_reward)
    ppo_trainer.forward = timed("scoring", ppo_trainer.forward, only_without_gradients=True)


def main() -> None:
    watcher = Watcher()
    trainer = trainer_of(arguments(), watcher)
    time_parts()
    on_gpu = torch.cuda.is_available()
    memory, begun = PeakMemory(), perf_counter()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = perf_counter() - begun
    found = {
        "seconds": seconds,
        "step_seconds": [after - before for before, after in pairwise([begun, *watcher.ends])],
        "growth": torch.cuda.max_memory_allocated() if on_gpu else memory.growth(),
        "peak": torch.cuda.max_memory_allocated() if on_gpu else memory.peak(),
        "threads": torch.get_num_threads(),
        "scores": [row["objective/scores"] for row in watcher.rows],
        "kl": [row["objective/kl"] for row in watcher.rows],
        "tokens": [],
        **spent,
        "update": seconds - sum(spent.values()),
    }
    print("RESULT" + json.dumps(found))


if __name__ == "__main__":
    main()
