"""How far each part of a PPO step is from what the machine can do: tokens/s, and model FLOP/s over the matmul rate (MFU).

The matmul rate is the best of several rounds of one large square product in the precision used. A pass is counted as
2 FLOP per weight and token (embeddings only where they multiply: the head, on response tokens), 6 with the backward
pass, and 4 T H per token and layer for attention over T / 2 earlier places on average. What the machine would do with
nothing but these products stands beside what it does.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from measuring import publish
from ppo_vs_trl import ROOT, SHARED, start_of

from prompts.sources import load_prompts
from selfplay.config import PPO, SamplingParams, load_recipe
from selfplay.models import load_policy, load_scalar_model, load_tokenizer
from selfplay.rewards.reward_model import RewardModel
from selfplay.rl import PPOTrainer
from selfplay.rl.advantages import RunningMoments
from selfplay.rl.experience import build_experience
from selfplay.rl.rollouts import Episodes, build_episodes
from selfplay.rl.sampler import score

KERNELS = {
    "products": ("gemm", "nvjet", "cutlass", "xmma", "sm90_", "sm80_"),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "optimizer and clipping": ("multi_tensor", "adam", "lpnorm"),
    "compiled": ("triton",),
    "copies and casts": ("copy", "memcpy", "memset", "fill"),
}
"""What a GPU's kernels are for, by parts of their names; the rest is "elementwise and sums"."""


def best(function: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest of so many calls, after one to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        begun = perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(perf_counter() - begun)
    return min(seconds[1:])


def matmul_rate(where: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
    """FLOP/s of a square matrix product."""
    left, right = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    return 2 * size**3 / best(lambda: left @ right, rounds)


def flop_of_pass(config: Any, episodes: Episodes, head: bool) -> float:
    """FLOP of one forward pass over all episodes, without padding; `head` adds the logits of the response tokens."""
    lengths = (episodes.prompt_lengths + episodes.response_lengths).double()
    width, layers = config.hidden_size, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or width // config.num_attention_heads
    attention = width * size * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    weights = layers * (attention + 3 * width * config.intermediate_size)
    total = 2 * weights * float(lengths.sum())
    total += 2 * layers * config.num_attention_heads * size * float((lengths**2).sum())
    if head:
        total += 2 * width * config.vocab_size * float(episodes.response_lengths.sum())
    return total


def profile_of(function: Any) -> None:
    """Print the GPU's seconds in a call by what its kernels are for, and the kernels that take most."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        function()
        torch.cuda.synchronize()
    kernels = [(event.key, event.self_device_time_total / 1e6, event.count) for event in found.key_averages()]
    purposes: dict[str, float] = defaultdict(float)
    for name, seconds, _ in kernels:
        known = (kind for kind, words in KERNELS.items() if any(word in name.lower() for word in words))
        purposes[next(known, "elementwise and sums")] += seconds
    print({kind: round(seconds, 4) for kind, seconds in purposes.items()}, "sum", round(sum(purposes.values()), 3))
    for name, seconds, count in sorted(kernels, key=lambda one: -one[1])[:22]:
        print(f"  {1000 * seconds:8.1f} ms {count:6d} x {name[:110]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--start", type=Path, default=ROOT / "runs" / "bench-quickstart")
    given = parser.parse_args()
    policy_path, reward_path = start_of(given.start)
    recipe = load_recipe(ROOT / "runs" / "quickstart.yaml")
    prompts, tokenizer = load_prompts(recipe.prompts.train, recipe.seed), load_tokenizer(policy_path)
    config = PPO(
        episodes=SHARED["episodes"],
        minibatches=SHARED["minibatches"],
        epochs=1,
        learning_rate=1e-9,
        critic_learning_rate=1e-9,
        log_samples=0,
    )
    reward = RewardModel.load(reward_path)
    trainer = PPOTrainer(
        load_policy(policy_path),
        tokenizer,
        reward,
        prompts,
        config,
        SamplingParams(max_tokens=SHARED["max_tokens"]),
        critic=load_scalar_model(reward_path),
    )
    shape = trainer.policy.config

    answers = trainer.sampler.answers(0)
    rows = score(answers, prompts, reward)
    episodes, _ = build_episodes(rows, prompts, trainer.encoded, reward, trainer.device, tokenizer.pad_token_id)
    estimates = trainer.learner.estimate(episodes)
    experience = build_experience(episodes, estimates, config, 0.05, RunningMoments(), SHARED["max_tokens"])

    body, whole = flop_of_pass(shape, episodes, head=False), flop_of_pass(shape, episodes, head=True)
    asked, said = [prompts[number] for number, _ in answers], [answer for _, answer in answers]
    parts: list[tuple[str, float, Callable[[], Any]]] = [
        ("decode (transformers engine)", whole, lambda: trainer.sampler.answers(0)),
        ("reward model", body, lambda: reward.score(asked, said)),
        (
            "estimate: policy, reference, critic",
            2 * whole + body,
            lambda: trainer.learner.estimate(episodes),
        ),
        (
            "update: policy and critic, one epoch",
            3 * (whole + body),
            lambda: trainer.learner.learn(episodes, experience, 0),
        ),
    ]
    rate = matmul_rate(trainer.device, torch.float32, 2048 if trainer.device.type == "cpu" else 8192, given.rounds)
    tokens, spoken = float(sum(episodes.lengths)), float(episodes.response_lengths.sum())
    rows = []
    for name, flop, function in parts:
        seconds = best(function, given.rounds)
        count = spoken if name.startswith("decode") else tokens
        rows.append(
            {
                "part": name,
                "tokens/s": count / seconds,
                "seconds": seconds,
                "GFLOP": flop / 1e9,
                "seconds at the matmul rate": flop / rate,
                "MFU %": 100 * flop / seconds / rate,
            }
        )
    epochs = SHARED["epochs"] - 1
    step, bound = (
        sum(row[name] for row in rows) + epochs * rows[-1][name] for name in ("seconds", "seconds at the matmul rate")
    )
    publish("limits", rows, matmul_gflops=rate / 1e9)
    print(
        f"matmul {rate / 1e9:.0f} GFLOP/s in float32. A step of {SHARED['episodes']} episodes and {SHARED['epochs']} "
        f"epochs: {SHARED['episodes'] / step:.1f} episodes/s, {SHARED['episodes'] / bound:.1f} if every product ran at "
        f"the matmul rate and nothing else took time"
    )


if __name__ == "__main__":
    main()
