"""Our PPOTrainer against TRL 1.12's, the last that TRL shipped: episodes/s, memory, where time goes, and how fast it learns.

Both start from the same weights, the quickstart's policy and first reward model, and see the same prompts. They run in
turn, each in a process and a Python environment of its own, for several rounds with a seed each; a round's ratio is of
two runs that stand next to each other in time. The first step of each run, in which libraries warm up, is left out of
episodes/s. `python tests/bench/ppo_vs_trl.py --help`; `make bench` makes the environment `.venv-trl`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import publish
from transformers import PreTrainedTokenizerBase

from prompts.sources import load_prompts
from selfplay.loop import run_stage
from selfplay.models import encode_prompt, load_tokenizer
from selfplay.records import Prompt

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SHARED = {
    "episodes": 256,
    "minibatches": 4,
    "epochs": 2,
    "max_tokens": 110,
    "learning_rate": 7e-4,
    "kl_coefficient": 0.05,
    "missing_eos_penalty": 1.0,
}


def start_of(directory: Path) -> tuple[Path, Path]:
    """The quickstart's policy and first reward model, made if they are not there (two minutes)."""
    if not (directory / "iteration-001" / "reward").is_dir():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "selfplay.cli",
                "bootstrap",
                str(ROOT / "runs" / "quickstart.yaml"),
                f"output={directory}",
            ],
            check=True,
            cwd=ROOT,
        )
        for stage in ("generate", "label", "reward"):
            run_stage(directory, stage, 1)
    return directory / "iteration-000" / "policy", directory / "iteration-001" / "reward"


def write_prompts(policy: Path, directory: Path) -> tuple[Path, Path]:
    """The quickstart's 2,048 training prompts, as our records and as token ids."""
    from selfplay.config import load_recipe

    recipe = load_recipe(ROOT / "runs" / "quickstart.yaml")
    return write_rows(load_prompts(recipe.prompts.train, recipe.seed), load_tokenizer(policy), directory)


def write_rows(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, directory: Path) -> tuple[Path, Path]:
    """Prompts as our records and as token ids, in two files."""
    ours, theirs = directory / "prompts.jsonl", directory / "ids.jsonl"
    ours.write_text("".join(prompt.model_dump_json() + "\n" for prompt in prompts))
    theirs.write_text("".join(json.dumps({"input_ids": encode_prompt(tokenizer, prompt)}) + "\n" for prompt in prompts))
    return ours, theirs


def run_side(command: list[str]) -> dict[str, Any]:
    """Run one side and read the JSON object it prints last."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().split("\n")[-1].removeprefix("RESULT")))


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table: medians over rounds."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    whole = [run["rollout"] + run["scoring"] + run["update"] for run in runs]
    return {
        "trainer": name,
        "episodes/s": median([SHARED["episodes"] / statistics.mean(run["step_seconds"][1:]) for run in runs]),
        "peak growth MiB": median([run["growth"] / 2**20 for run in runs]),
        **{
            f"{part} %": median([100 * run[part] / all_of_it for run, all_of_it in zip(runs, whole, strict=True)])
            for part in ("rollout", "scoring", "update")
        },
        "first score": median([run["scores"][0] for run in runs]),
        "last score": median([statistics.mean(run["scores"][-2:]) for run in runs]),
        "last KL": median([statistics.mean(run["kl"][-2:]) for run in runs]),
    }


def episodes_to_reach(run: dict[str, Any], score: float) -> float | None:
    """Episodes after which the mean score of two steps in a row is at least `score`; None if never."""
    pairs = pairwise(run["scores"])
    return next(
        ((place + 2) * SHARED["episodes"] for place, both in enumerate(pairs) if statistics.mean(both) >= score), None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trl-python", default=str(ROOT / ".venv-trl" / "bin" / "python"))
    parser.add_argument("--start", type=Path, default=ROOT / "runs" / "bench-quickstart")
    parser.add_argument(
        "--ppo",
        default='{"critic_learning_rate": 7e-4}',
        help="JSON: further settings of ours; TRL has one learning rate for both networks",
    )
    given = parser.parse_args()
    policy, reward = start_of(given.start)
    sides: dict[str, list[dict[str, Any]]] = {"TRL 1.12.0": [], "selfplay": []}
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = write_prompts(policy, Path(directory))
        for seed in range(given.rounds):
            common = [
                "--policy",
                str(policy),
                "--reward",
                str(reward),
                "--settings",
                json.dumps(SHARED),
                "--steps",
                str(given.steps),
                "--seed",
                str(seed),
            ]
            sides["TRL 1.12.0"].append(
                run_side([given.trl_python, str(HERE / "ppo_side_trl.py"), *common, "--prompts", str(theirs)])
            )
            sides["selfplay"].append(
                run_side(
                    [
                        sys.executable,
                        str(HERE / "ppo_side_ours.py"),
                        *common,
                        "--prompts",
                        str(ours),
                        "--ppo",
                        given.ppo,
                    ]
                )
            )
    rows = [summary(name, runs) for name, runs in sides.items()]
    rounds = [compare(*both) for both in zip(sides["TRL 1.12.0"], sides["selfplay"], strict=True)]
    publish("ppo_vs_trl", rows, rounds=rounds, runs=sides, settings={**SHARED, "steps": given.steps})
    for number, one in enumerate(rounds):
        print(
            f"round {number}: {one['episodes/s, ratio']:.2f}x the episodes/s, {one['peak growth, ratio']:.2f}x the "
            f"peak memory growth; TRL's last score {one['their last score']:.3f} reached after "
            f"{one['our episodes to it']} episodes, by TRL after {one['their episodes to it']}"
        )


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """What one round says."""
    last = statistics.mean(theirs["scores"][-2:])
    return {
        "episodes/s, ratio": statistics.mean(theirs["step_seconds"][1:]) / statistics.mean(ours["step_seconds"][1:]),
        "peak growth, ratio": ours["growth"] / theirs["growth"],
        "their last score": last,
        "our episodes to it": episodes_to_reach(ours, last),
        "their episodes to it": episodes_to_reach(theirs, last),
    }


if __name__ == "__main__":
    main()
