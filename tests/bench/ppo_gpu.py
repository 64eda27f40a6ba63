"""PPO with vLLM rollouts on a randomly initialised Qwen2.5, against TRL 1.12: meant for one GPU; `--size tiny` runs on a CPU.

What it measures: episodes/s of both and their ratio; rollout tokens/s over those of a bare `LLM.generate` with the same
prompts and sampling; the update's FLOP/s over the matmul rate in its precision (MFU, counted as in `limits`); seconds
of one weight sync and the log-prob gap after it; peak memory. Random weights hardly ever end a response, so all have
`--max-tokens` tokens, the worst case for a trainer that pads.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from limits import best, flop_of_pass, matmul_rate
from measuring import PeakMemory, publish
from ppo_vs_trl import HERE, ROOT, run_side
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from prompts import stories
from selfplay.config import PPO, Engine, SamplingParams
from selfplay.engines.vllm import VllmEngine
from selfplay.models import encode_prompt, load_policy, load_scalar_model, load_tokenizer
from selfplay.records import Prompt
from selfplay.rewards.reward_model import RewardModel
from selfplay.rl import PPOTrainer
from selfplay.rl.rollouts import build_episodes
from selfplay.rl.sampler import score
from selfplay.stages.bootstrap import train_tokenizer

SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 4096,
    },
    "0.5b": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
    },
    "1.5b": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
    },
}


def random_start(size: str, directory: Path) -> tuple[Path, Path]:
    """A policy and a reward model with random weights, and a tokenizer of 1,024 tokens."""
    tokenizer = train_tokenizer(stories.documents(2000), 1024)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen2Config(**SIZES[size], tie_word_embeddings=True, max_position_embeddings=2048, **ends)
    torch.manual_seed(0)
    policy = Qwen2ForCausalLM(config)
    policy.generation_config.update(**ends)
    config.num_labels, config.selfplay_reward = 1, {"mean": 0.0, "deviation": 1.0}
    for name, model in (("policy", policy), ("reward", Qwen2ForSequenceClassification(config))):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return directory / "policy", directory / "reward"


def ours(
    policy_path: Path, reward_path: Path, prompts: list[Prompt], shared: dict[str, Any], steps: int, gpu_memory: float
) -> dict[str, Any]:
    """Our trainer with vLLM, and what only it can be asked: the sync, the bare engine, the update's MFU."""
    on_gpu = torch.cuda.is_available()
    dtype = "bfloat16" if on_gpu else "float32"
    tokenizer, sampling = load_tokenizer(policy_path), SamplingParams(max_tokens=shared["max_tokens"])
    engine = VllmEngine(policy_path, Engine(kind="vllm", gpu_memory=gpu_memory), dtype=dtype)
    policy, reward = load_policy(policy_path), RewardModel.load(reward_path)
    config = PPO(
        steps=steps,
        episodes=shared["episodes"],
        epochs=shared["epochs"],
        minibatches=shared["minibatches"],
        learning_rate=shared["learning_rate"],
        kl_coefficient=shared["kl_coefficient"],
        precision=dtype,
        gradient_checkpointing=on_gpu,
        log_samples=0,
    )
    rows: list[dict[str, Any]] = []
    trainer = PPOTrainer(
        policy,
        tokenizer,
        reward,
        prompts,
        config,
        sampling,
        engine=engine,
        critic=load_scalar_model(reward_path),
        on_step=rows.append,
    )
    memory = PeakMemory()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    asked = prompts[: shared["episodes"]]
    encoded = [{"prompt_token_ids": encode_prompt(tokenizer, prompt)} for prompt in asked]
    parameters = [engine._parameters(sampling, engine.stop_ids, prompt.id, 0) for prompt in asked]
    bare = (
        shared["episodes"]
        * shared["max_tokens"]
        / best(lambda: engine.llm.generate(encoded, parameters, use_tqdm=False), 2)
    )
    sync = best(lambda: engine.update_weights(policy), 2)
    answers = score(trainer.sampler.answers(0), prompts, reward)
    episodes, _ = build_episodes(answers, prompts, trainer.encoded, reward, trainer.device, tokenizer.pad_token_id)
    flop = (
        3
        * config.epochs
        * (flop_of_pass(policy.config, episodes, head=True) + flop_of_pass(policy.config, episodes, head=False))
    )
    rate = matmul_rate(trainer.device, getattr(torch, dtype), 8192 if on_gpu else 2048, 5)
    engine.close()
    later = rows[1:]
    count = len(later)
    update = sum(row["time/update"] for row in later) / count
    return {
        "episodes/s": count * shared["episodes"] / sum(row["time/step"] for row in later),
        "peak GiB": (torch.cuda.max_memory_allocated() if on_gpu else memory.growth()) / 2**30,
        "rollout over bare %": 100
        * sum(row["response/tokens"] for row in later)
        / bare
        / sum(row["time/rollout"] for row in later),
        "update MFU %": 100 * flop / update / rate,
        "sync s": sync,
        "logprob gap": max(row["engine/logprob_gap"] for row in rows),
    }


def theirs(
    policy_path: Path, reward_path: Path, ids: Path, shared: dict[str, Any], steps: int, python: str
) -> dict[str, Any]:
    """TRL's trainer, in its own environment."""
    found = run_side(
        [
            python,
            str(HERE / "ppo_side_trl.py"),
            "--policy",
            str(policy_path),
            "--reward",
            str(reward_path),
            "--settings",
            json.dumps(shared),
            "--steps",
            str(steps),
            "--seed",
            "0",
            "--prompts",
            str(ids),
            "--rollout-batch",
            "64",
        ]
    )
    seconds = found["step_seconds"][1:]
    return {
        "episodes/s": len(seconds) * shared["episodes"] / sum(seconds),
        "peak GiB": found["growth"] / 2**30,
        "rollout over bare %": None,
        "update MFU %": None,
        "sync s": None,
        "logprob gap": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--gpu-memory", type=float, default=0.3, help="share that vLLM takes")
    parser.add_argument("--trl-python", default=str(ROOT / ".venv-trl" / "bin" / "python"))
    given = parser.parse_args()
    shared = {
        "episodes": given.episodes,
        "minibatches": 4,
        "epochs": 2,
        "max_tokens": given.max_tokens,
        "learning_rate": 1e-6,
        "kl_coefficient": 0.05,
        "missing_eos_penalty": 0.0,
    }
    with tempfile.TemporaryDirectory() as folder:
        policy, reward = random_start(given.size, Path(folder))
        prompts, tokenizer = stories.prompts("train", 1024), load_tokenizer(policy)
        ids = Path(folder) / "ids.jsonl"
        ids.write_text(
            "".join(json.dumps({"input_ids": encode_prompt(tokenizer, prompt)}) + "\n" for prompt in prompts)
        )
        rows = [
            {"trainer": "TRL 1.12.0", **theirs(policy, reward, ids, shared, given.steps, given.trl_python)},
            {"trainer": "selfplay", **ours(policy, reward, prompts, shared, given.steps, given.gpu_memory)},
        ]
    publish(f"ppo_gpu-{given.size}", rows, settings=shared)
    print(f"{rows[1]['episodes/s'] / rows[0]['episodes/s']:.2f}x the episodes/s")


if __name__ == "__main__":
    main()
