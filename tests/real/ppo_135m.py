"""PPO on SmolLM2-135M-Instruct beside TRL 1.12's PPOTrainer, and beside what its matrix products alone would take.

    PYTHONPATH=.:tests/bench .venv/bin/python tests/real/ppo_135m.py --rounds 3

Both sides learn all weights from the same checkpoint, against a reward model of its size (the policy with a new head: time and
memory do not ask what it has learned) on the same prompts: a step of 64 episodes of up to 64 tokens, one epoch of 4 minibatches.
They run in turn, each in a process of its own; each as it comes on a CPU, which is float32 for TRL. `make bench` makes TRL's
environment. The products of a step, each counted in the precision that it runs in here, are set against the rate of one large
square product.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from limits import flop_of_pass, matmul_rate
from measuring import publish
from ppo_vs_trl import HERE, ROOT, run_side, write_rows
from smollm2 import checkpoint
from transformers import AutoConfig

from prompts.sources import load_prompts
from selfplay.config.data import PromptSource
from selfplay.models import encode_prompt, load_policy, load_scalar_model, load_tokenizer
from selfplay.rewards.reward_model import RewardModel
from selfplay.weights.precision import preferred

SETTINGS = {
    "episodes": 64,
    "minibatches": 4,
    "epochs": 1,
    "max_tokens": 64,
    "learning_rate": 1e-6,
    "kl_coefficient": 0.05,
    "missing_eos_penalty": 1.0,
}
SIDES = ("TRL 1.12.0", "selfplay")


def seconds_alone(prompts: list[int], tokens: float, precision: str) -> dict[str, float]:
    """Seconds of a step's products at the rate of a square one: float32, bfloat16, and both.

    All tokens go six times through the policy or its like with logits (sampled once; estimated by policy and reference; forward
    and backward of the update, which is three) and five times without (reward model, critic's estimate and its update).
    Logits are float32, all else is in `precision`.
    """
    shape = AutoConfig.from_pretrained(checkpoint())
    episodes: Any = SimpleNamespace(
        prompt_lengths=torch.tensor(prompts), response_lengths=torch.full((len(prompts),), tokens)
    )
    body, whole = (flop_of_pass(shape, episodes, head) for head in (False, True))
    rates = {name: matmul_rate(torch.device("cpu"), getattr(torch, name), 2048, 5) for name in ("float32", precision)}
    print(
        {f"{name} GFLOP/s": round(rate / 1e9) for name, rate in rates.items()},
        f"{(6 * whole + 5 * body) / 1e12:.1f} TFLOP",
    )
    exact, rest = 6 * (whole - body) / rates["float32"], 11 * body / rates[precision]
    return {"float32": exact, precision: rest, "all": exact + rest}


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table: medians over rounds."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "trainer": name,
        "s a step": median([statistics.mean(run["step_seconds"]) for run in runs]),
        "episodes/s": median([SETTINGS["episodes"] / statistics.mean(run["step_seconds"]) for run in runs]),
        "peak GB": median([run["peak"] / 1e9 for run in runs]),
        **{
            f"{part} s": median([run[part] / len(run["step_seconds"]) for run in runs])
            for part in ("rollout", "scoring", "update")
        },
    }


def main() -> None:
    """Run all rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=SETTINGS["episodes"])
    parser.add_argument("--trl-python", default=str(ROOT / ".venv-trl" / "bin" / "python"))
    given = parser.parse_args()
    SETTINGS["episodes"] = given.episodes
    model, tokenizer = str(checkpoint()), load_tokenizer(checkpoint())
    prompts = load_prompts(PromptSource(source="instructions", limit=given.episodes), 0)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        reward, (ours, theirs) = Path(place) / "reward", write_rows(prompts, tokenizer, Path(place))
        torch.manual_seed(0)
        scalar = load_scalar_model(model)
        scalar.config.selfplay_reward = {"mean": 0.0, "deviation": 1.0}
        RewardModel(scalar, tokenizer).save(reward)
        del scalar
        common = ["--policy", model, "--reward", str(reward), "--steps", str(given.steps)]
        for seed in range(given.first_seed, given.first_seed + given.rounds):
            asked = [*common, "--settings", json.dumps(SETTINGS), "--seed", str(seed)]
            their_side = [given.trl_python, str(HERE / "ppo_side_trl.py"), *asked, "--prompts", str(theirs)]
            our_side = [sys.executable, str(HERE / "ppo_side_ours.py"), *asked, "--prompts", str(ours)]
            for side, command in zip(SIDES, (their_side, our_side), strict=True):
                runs[side].append(run_side(command))
                print(side, row(side, runs[side][-1:]), flush=True)
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    tokens = statistics.mean(statistics.mean(run["tokens"]) for run in runs["selfplay"])
    alone = seconds_alone(lengths, tokens, preferred(load_policy(model)))
    rows = [row(side, runs[side]) for side in SIDES]
    ratios = [
        {
            "speed": statistics.mean(trl["step_seconds"]) / statistics.mean(mine["step_seconds"]),
            "memory": mine["peak"] / trl["peak"],
            "share of the products": alone["all"] / statistics.mean(mine["step_seconds"]),
        }
        for trl, mine in zip(*runs.values(), strict=True)
    ]
    publish("ppo_135m", rows, rounds=ratios, runs=runs, products=alone, settings={**SETTINGS, "steps": given.steps})
    for number, one in enumerate(ratios):
        print(f"round {number}: " + ", ".join(f"{name} {value:.2f}" for name, value in one.items()))
    print(f"products alone: {alone}, prompts of {statistics.mean(lengths):.0f} tokens, answers of {tokens:.0f}")


if __name__ == "__main__":
    main()
