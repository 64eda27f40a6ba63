"""Peak memory of PPO on SmolLM2-135M-Instruct, full fine-tuning and LoRA, and what the dry run said of it.

    PYTHONPATH=.:tests/real .venv/bin/python tests/bench/memory_135m.py

Each is two steps of 8 episodes of up to 64 tokens against a reward model of the same size, in a process of its own, through the
stage's own code. The reward model is the policy with a new head: memory does not ask what it has learned.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

EPISODES, TOKENS, STEPS = 8, 64, 2


def recipe_of(kind: str, model: str, output: str):  # type: ignore[no-untyped-def]
    """The recipe of one run."""
    from selfplay.config import Lora, Policy, Prompts, Recipe
    from selfplay.config.data import PromptSource, Sampling
    from selfplay.config.judging import Judge
    from selfplay.config.ppo import PPO

    source = {"source": "instructions", "limit": EPISODES}
    return Recipe(
        name="memory",
        output=output,
        iterations=1,
        prompts=Prompts(train=PromptSource(**source), heldout=PromptSource(**source, split="heldout")),
        policy=Policy(model=model, lora=Lora() if kind == "lora" else None),
        sampling=Sampling(max_tokens=TOKENS),
        judge=Judge(file="instructions"),
        algorithm=PPO(steps=STEPS, episodes=EPISODES, epochs=1, learning_rate=1e-6, critic_learning_rate=1e-6),
    )


def make_reward_model(model: str, folder: str) -> None:
    """Save the policy with a new head."""
    from selfplay.models import load_scalar_model, load_tokenizer
    from selfplay.rewards.reward_model import RewardModel

    RewardModel(load_scalar_model(model), load_tokenizer(model)).save(folder)


def train(kind: str, model: str, reward: str) -> None:
    """Train as the stage does, and print this process's peak and what the checkpoint takes on disk."""
    from prompts.sources import load_prompts
    from selfplay.algorithms import Inputs, algorithm_of
    from selfplay.context import RunContext
    from selfplay.rewards.reward_model import RewardModel
    from selfplay.rundir import RunDirectory

    with tempfile.TemporaryDirectory() as place:
        recipe, folder = recipe_of(kind, model, place), Path(place) / "new"
        prompts = load_prompts(recipe.prompts.train, 0)
        run = RunContext(recipe, RunDirectory(place), prompts, prompts[:1])
        run.files.policy(0).parent.mkdir()
        run.files.policy(0).symlink_to(model)
        folder.mkdir()
        scorer = RewardModel.load(reward)
        algorithm_of(recipe).train(Inputs(run, 1, folder, folder / "work", scorer, Path(reward), ()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            json.dumps(
                {"peak": peak, "checkpoint": sum(one.stat().st_size for one in (folder / "work").rglob("*.distcp"))}
            )
        )


def predicted(kind: str, model: str) -> int:
    """What the dry run says of the stage, in bytes."""
    from selfplay.sizing.cards import found
    from selfplay.sizing.sizes import sizes_of
    from selfplay.sizing.stages import stages

    sizes = sizes_of(recipe_of(kind, model, "unused"), found(24 << 30), prompt=96)
    assert sizes is not None
    return max(row.total for row in stages(sizes) if row.stage.startswith("policy"))


def in_a_process(*arguments: str) -> str:
    """Run a part of this file in a process of its own, which has held nothing else; gives its last line."""
    ran = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.strip().rpartition("\n")[2]


def main(kinds: list[str]) -> None:
    """Print the table."""
    from smollm2 import checkpoint

    model = str(checkpoint())
    print(f"{'':6}{'measured':>10}{'predicted':>11}{'checkpoint':>12}   GB")
    with tempfile.TemporaryDirectory() as reward:
        in_a_process("reward", model, reward)
        for kind in kinds:
            row = json.loads(in_a_process("train", kind, model, reward))
            measured, disk = row["peak"] / 1e9, row["checkpoint"] / 1e9
            print(f"{kind:6}{measured:10.2f}{predicted(kind, model) / 1e9:11.2f}{disk:12.2f}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["reward", model, reward]:
            make_reward_model(model, reward)
        case ["train", kind, model, reward]:
            train(kind, model, reward)
        case kinds:
            main(kinds or ["full", "lora"])
