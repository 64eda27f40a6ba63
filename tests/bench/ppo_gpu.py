"""PPO on one GPU with vLLM rollouts, beside TRL 1.12: a randomly initialised Qwen2.5 of 0.5B, which needs no network.

    python tests/bench/ppo_gpu.py                        # all parts; `--size tiny` runs on a CPU
    python tests/bench/ppo_gpu.py --parts update         # no vLLM, no TRL: where an update's time goes

Each part runs in a process of its own, and one that fails costs its own rows. `ours`: episodes/s, seconds of each part of a step,
rollout tokens/s over those of a bare `LLM.generate` with the same prompts and sampling, the update's FLOP/s over the matmul rate
(MFU, counted as in `limits`), seconds of a weight sync, the log-prob gap, peak memory. `trl`: episodes/s and peak memory.
`sleep` (`ours` does it once, too): the memory that a sleeping vLLM gives back, and the gap after changed weights have woken it.
`update`: made-up
answers, with and without compiled kernels, and a profile. Random weights hardly ever end a response, so all have `--max-tokens`
tokens, the worst case for a trainer that pads. The defaults fit a card of 80 GB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from limits import best, flop_of_pass, matmul_rate, profile_of
from measuring import PeakMemory, publish
from ppo_vs_trl import HERE, ROOT, write_rows
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from prompts import stories
from selfplay.config import PPO, Engine, SamplingParams
from selfplay.engines.vllm import VllmEngine
from selfplay.models import encode_prompt, load_policy, load_scalar_model, load_tokenizer
from selfplay.records import Completion, Prompt
from selfplay.rewards.reward_model import RewardModel
from selfplay.rl import PPOTrainer
from selfplay.rl.advantages import RunningMoments
from selfplay.rl.experience import build_experience
from selfplay.rl.rollouts import Episodes, build_episodes
from selfplay.rl.sampler import score
from selfplay.stages.bootstrap import train_tokenizer

RATE = 1e-6
LEARNING: dict[str, Any] = {"epochs": 2, "minibatches": 4, "kl_coefficient": 0.05, "missing_eos_penalty": 0.0}
"""What both trainers are told."""
HEADS = ("num_attention_heads", "num_key_value_heads")
WIDTHS = ("hidden_size", "num_hidden_layers", *HEADS, "intermediate_size", "vocab_size")
SIZES = {
    "tiny": (64, 2, 2, 2, 128, 4096),
    "0.5b": (896, 24, 14, 2, 4864, 151936),
    "1.5b": (1536, 28, 12, 2, 8960, 151936),
}
"""Of the policy, in the order of `WIDTHS`."""


def random_start(size: str, directory: Path) -> tuple[Path, Path]:
    """A policy and a reward model with random weights, and a tokenizer of 1,024 tokens."""
    tokenizer = train_tokenizer(stories.documents(2000), 1024)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    widths = dict(zip(WIDTHS, SIZES[size], strict=True))
    config = Qwen2Config(num_labels=1, **widths, tie_word_embeddings=True, max_position_embeddings=2048, **ends)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        policy, reward = Qwen2ForCausalLM(config), Qwen2ForSequenceClassification(config)
    policy.generation_config.update(**ends)
    reward.config.selfplay_reward = {"mean": 0.0, "deviation": 1.0}
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return directory / "policy", directory / "reward"


def trainer_of(given: argparse.Namespace, compiled: bool, **more: Any) -> PPOTrainer:
    """Our trainer of the start in `given.folder`."""
    policy_path, reward_path = given.folder / "policy", given.folder / "reward"
    config = PPO(
        steps=given.steps,
        episodes=given.episodes,
        **LEARNING,
        learning_rate=RATE,
        critic_learning_rate=RATE,
        precision="bfloat16" if torch.cuda.is_available() else "float32",
        compile=compiled,
        log_samples=0,
    )
    return PPOTrainer(
        load_policy(policy_path),
        load_tokenizer(policy_path),
        RewardModel.load(reward_path),
        stories.prompts("train", 1024),
        config,
        SamplingParams(max_tokens=given.max_tokens),
        critic=load_scalar_model(reward_path),
        **more,
    )


def flop_of_update(trainer: PPOTrainer, episodes: Episodes) -> float:
    """FLOP of all epochs of a step, forward and backward, of policy and critic; nothing that is computed again."""
    shape = trainer.policy.config
    passes = flop_of_pass(shape, episodes, head=True) + flop_of_pass(shape, episodes, head=False)
    return float(3 * LEARNING["epochs"] * passes)


def products_rate(trainer: PPOTrainer) -> float:
    """FLOP/s of a large product in the trainer's precision."""
    dtype = getattr(torch, trainer.config.precision)
    return matmul_rate(trainer.device, dtype, 8192 if dtype == torch.bfloat16 else 2048, 5)


def peak_gib(memory: PeakMemory) -> float:
    """Most memory held so far: of the GPU by torch, or else by this process."""
    return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.growth()) / 2**30


def ours(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole steps with vLLM, and what only our side can be asked: the sync, the bare engine, the update's MFU."""
    engine, rows = engine_of(given), []

    def show(row: dict[str, Any]) -> None:
        rows.append(row)
        print({name: round(row[name], 4) for name in row if name.startswith(("time/", "engine/"))}, flush=True)

    trainer = trainer_of(given, compiled=not given.eager, engine=engine, on_step=show)
    memory = PeakMemory()
    trainer.train()
    peak, prompts, sampling = peak_gib(memory), trainer.prompts, trainer.sampler.sampling
    asked = prompts[: given.episodes]
    encoded = [{"prompt_token_ids": encode_prompt(trainer.tokenizer, prompt)} for prompt in asked]
    parameters = [engine._parameters(sampling, engine.stop_ids, prompt.id, 0) for prompt in asked]
    bare = best(lambda: engine.llm.generate(encoded, parameters, use_tqdm=False), 3)
    generate = best(lambda: engine.generate(asked, sampling), 2)
    sync = best(lambda: engine.update_weights(trainer.policy), 3)
    rate, episodes = products_rate(trainer), made_up(trainer, given)
    later = rows[1:]
    seconds = {part: statistics.median(row[f"time/{part}"] for row in later) for part in PARTS}
    found = {
        "trainer": "selfplay",
        "episodes/s": given.episodes / seconds["step"],
        "peak GiB": peak,
        **{f"{part} s": seconds[part] for part in PARTS},
        "sync s": sync,
        "bare vLLM s": bare,
        "rollout over bare %": 100 * bare / seconds["rollout"],
        "sampling over bare %": 100 * bare / generate,
        "update MFU %": 100 * flop_of_update(trainer, episodes) / seconds["update"] / rate,
        "TFLOP/s of products": rate / 1e12,
        "log-prob gap": max(row["engine/logprob_gap"] for row in rows),
    }
    print({name: value if isinstance(value, str) else round(value, 4) for name, value in found.items()}, flush=True)
    if torch.cuda.is_available():
        print(asleep(engine, trainer.policy), flush=True)
    engine.close()
    return [found]


def engine_of(given: argparse.Namespace) -> VllmEngine:
    """The policy's vLLM, up; waits for the file `given.wait_for`, if there is one to wait for."""
    begun, dtype = time.perf_counter(), "bfloat16" if torch.cuda.is_available() else "float32"
    config = Engine(kind="vllm", gpu_memory=given.gpu_memory, sleep=torch.cuda.is_available())
    engine = VllmEngine(given.folder / "policy", config, dtype=dtype)
    engine.may_sleep = False
    print(f"vLLM is up after {time.perf_counter() - begun:.0f} s", flush=True)
    while given.wait_for is not None and not given.wait_for.exists():
        time.sleep(0.2)
    return engine


PARTS = ("rollout", "score", "estimate", "update", "step")


def trl(given: argparse.Namespace) -> list[dict[str, Any]]:
    """TRL's trainer, in its own environment."""
    settings = {**LEARNING, "learning_rate": RATE, "episodes": given.episodes, "max_tokens": given.max_tokens}
    tokenizer = load_tokenizer(given.folder / "policy")
    _, ids = write_rows(stories.prompts("train", 1024), tokenizer, given.folder)
    where = {"policy": given.folder / "policy", "reward": given.folder / "reward", "prompts": ids}
    options = {**where, "settings": json.dumps(settings), "steps": given.steps, "seed": 0, "rollout-batch": 64}
    command = [given.trl_python, str(HERE / "ppo_side_trl.py")]
    found = in_a_process(
        [*command, *(word for name, value in options.items() for word in (f"--{name}", str(value)))], given.trl_path
    )
    seconds = found["step_seconds"][1:] or found["step_seconds"]
    whole = found["rollout"] + found["scoring"] + found["update"]
    step = sum(seconds) / len(seconds)
    return [
        {
            "trainer": "TRL 1.12.0",
            "episodes/s": given.episodes / step,
            "peak GiB": found["growth"] / 2**30,
            "rollout s": step * found["rollout"] / whole,
            "score s": step * found["scoring"] / whole,
            "update s": step * found["update"] / whole,
            "step s": step,
        }
    ]


def made_up(trainer: PPOTrainer, given: argparse.Namespace) -> Episodes:
    """Episodes of one step with random answers of full length."""
    generator, size = torch.Generator().manual_seed(0), len(trainer.tokenizer)
    drawn = torch.randint(size // 2, size, (given.episodes, given.max_tokens), generator=generator).tolist()
    same: dict[str, Any] = {"text": "", "finish_reason": "length", "policy": "made up", "logprobs": None}
    names = [trainer.prompts[number].id for number in range(given.episodes)]
    answers = [
        (number, Completion(id=f"{name}/0", prompt_id=name, token_ids=tuple(drawn[number]), **same))
        for number, name in enumerate(names)
    ]
    rows = score(answers, trainer.prompts, trainer.reward)
    pad = trainer.tokenizer.pad_token_id
    return build_episodes(rows, trainer.prompts, trainer.encoded, trainer.reward, trainer.device, pad)[0]


def update(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Score, estimate and update on made-up answers, plain and with compiled kernels, and their kernels by purpose."""
    return [learning(given, compiled) for compiled in (False, True)]


def learning(given: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    """Seconds of the parts of a step that are not sampling."""
    trainer, memory, begun = trainer_of(given, compiled), PeakMemory(), time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    learner, episodes = trainer.learner, made_up(trainer, given)
    estimates = learner.estimate(episodes)
    experience = build_experience(episodes, estimates, trainer.config, 0.05, RunningMoments(), given.max_tokens)
    learner.learn(episodes, experience, 0)
    first = time.perf_counter() - begun
    seconds = {
        "score s": best(lambda: trainer.reward.score(episodes.prompts, episodes.completions), 2),
        "estimate s": best(lambda: learner.estimate(episodes), 2),
        "update s": best(lambda: learner.learn(episodes, experience, 0), 3),
    }
    mfu = 100 * flop_of_update(trainer, episodes) / seconds["update s"] / products_rate(trainer)
    row = {"compiled": compiled, "first s": first, **seconds, "update MFU %": mfu, "peak GiB": peak_gib(memory)}
    print({name: round(value, 4) for name, value in row.items()}, flush=True)
    if torch.cuda.is_available():
        profile_of(lambda: learner.learn(episodes, experience, 0))
    return row


def sleep(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A vLLM that sleeps and wakes twice, the policy's weights changed in between."""
    engine, policy = engine_of(given), load_policy(given.folder / "policy")
    rows = [asleep(engine, policy) for _ in range(2)]
    engine.close()
    return rows


@torch.no_grad()
def asleep(engine: VllmEngine, policy: Any) -> dict[str, Any]:
    """What a sleeping vLLM gives back, and how near its log-probs are to the policy's after changed weights have woken it."""

    def free() -> float:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return round(torch.cuda.mem_get_info()[0] / 2**30, 2)

    for weight in policy.parameters():
        weight.add_(torch.randn_like(weight) * 0.01)
    engine.may_sleep, awake, begun = True, free(), time.perf_counter()
    engine.sleep()
    slept, given_back = time.perf_counter() - begun, free()
    begun = time.perf_counter()
    engine.update_weights(policy)
    woken, prompts = time.perf_counter() - begun, stories.prompts("train", 32)
    answers = [group[0] for group in engine.generate(prompts, SamplingParams(max_tokens=64, seed=5))]
    gaps = gaps_of(policy, engine, prompts, answers)
    engine.may_sleep = False
    memory = {"free GiB awake": awake, "asleep": given_back, "woken": free()}
    times = {"sleep s": round(slept, 3), "wake and sync s": round(woken, 3)}
    return {**memory, **times, "mean gap": round(gaps.mean().item(), 5), "largest gap": round(gaps.max().item(), 5)}


def gaps_of(policy: Any, engine: VllmEngine, prompts: list[Prompt], answers: list[Completion]) -> torch.Tensor:
    """|log-prob of the engine - that of the policy in bfloat16| of each sampled token."""
    gaps = []
    for prompt, answer in zip(prompts, answers, strict=True):
        start = encode_prompt(engine.tokenizer, prompt)
        ids = torch.tensor([[*start, *answer.token_ids]], device=policy.device)
        with torch.no_grad(), torch.autocast(policy.device.type, torch.bfloat16):
            logits = policy(input_ids=ids).logits[0, len(start) - 1 : -1].float()
        own = torch.log_softmax(logits, -1).gather(1, ids[0, len(start) :, None]).squeeze(1)
        gaps.append((own - torch.tensor(answer.logprobs, device=own.device)).abs())
    return torch.cat(gaps)


def in_a_process(command: list[str], path: str = "") -> dict[str, Any]:
    """Run a part and return the JSON object of its last line; what it prints before is shown."""
    paths = [path, str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        lines = []
        for line in running.stdout or ():
            lines.append(line)
            if not line.startswith("RESULT"):
                print(line, end="", flush=True)
    results = [line for line in lines if line.startswith("RESULT")]
    if running.returncode or not results:
        raise RuntimeError(f"{' '.join(command[:4])} ... ended with {running.returncode}")
    return dict(json.loads(results[-1].removeprefix("RESULT")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="ours,trl,sleep,update", help="which, in this order, separated by commas")
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--gpu-memory", type=float, default=0.3, help="share that vLLM takes")
    parser.add_argument("--eager", action="store_true", help="without compiled kernels")
    parser.add_argument("--trl-python", default=str(ROOT / ".venv-trl" / "bin" / "python"))
    parser.add_argument("--trl-path", default="", help="where TRL 1.12 lies, if not in that Python")
    parser.add_argument("--folder", type=Path, help="where the random start lies or is to be made")
    parser.add_argument("--wait-for", type=Path, help="a file that the measured part waits for, once vLLM is up")
    parser.add_argument("--alone", choices=("ours", "trl", "sleep", "update"), help="one part, in this process")
    given = parser.parse_args()
    if given.alone:
        rows = {"ours": ours, "trl": trl, "sleep": sleep, "update": update}[given.alone](given)
        print("RESULT" + json.dumps({"rows": rows}), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        given.folder = given.folder or Path(folder)
        if not (given.folder / "reward").is_dir():
            random_start(given.size, given.folder)
        speeds = {}
        for part in given.parts.split(","):
            try:
                rows = in_a_process(
                    [sys.executable, __file__, *sys.argv[1:], "--folder", str(given.folder), "--alone", part]
                )["rows"]
            except RuntimeError as error:
                print(f"{part} failed: {error}", flush=True)
                continue
            settings = {name: str(value) for name, value in vars(given).items()}
            publish(f"ppo_gpu-{given.size}-{part}", rows, settings=settings)
            speeds[part] = rows[0].get("episodes/s")
        if speeds.get("ours") and speeds.get("trl"):
            print(f"{speeds['ours'] / speeds['trl']:.2f}x the episodes/s")


if __name__ == "__main__":
    main()
