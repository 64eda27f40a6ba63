"""The recipe lm-human-preferences on a real pretrained model, and ranking beside pairwise on its labels.

    python tests/bench/lm_human_preferences.py [--seeds 1] [--output runs/lm-human-preferences-bench]

A Llama of 260k parameters pretrained on TinyStories (../shared) goes on from the first words of a sentence; the recipe is as
shipped but for the policy and the prompts. Prints, per seed: held-out accuracy of the reward model, KL over the last five
PPO steps, win rate against the start by the second word list; then, on the pairs of the first seed, held-out accuracy
and sequences forwarded of `reward.loss` pairwise and of ranking, after as many epochs and after as many sequences. Left out:
labels by people.
"""

import argparse
import math
import tempfile
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import set_seed

from judges.criteria.sentiment import polarity
from prompts.sources import load_documents, load_prompts
from selfplay.config import load_recipe
from selfplay.loop import run
from selfplay.models import encode_prompt, load_scalar_model, load_tokenizer
from selfplay.rewards.reward_model import RewardModel
from selfplay.rundir import RunDirectory
from selfplay.stages.reward_model import measure, split
from selfplay.storage.files import read_json, read_json_lines, read_rows, write_json_lines
from selfplay.training.reward_model import groups_of, train_reward_model

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
TARGET = 6.0
LAST = 5


def write_prompts(folder: Path) -> list[str]:
    """Write the first six words of TinyStories' sentences as prompts; give the overrides of the recipe that name them."""
    stories = load_documents(str(SHARED / "data/corpora/tinystories_10k.txt"), 2000, 0)
    sentences = [sentence.split() for story in stories for sentence in story.split(". ")[:2]]
    openings = dict.fromkeys(" ".join(words[:6]) for words in sentences if len(words) > 6)
    rows = [{"id": f"s{number}", "prompt": opening} for number, opening in enumerate(openings)]
    for name, part in (("heldout", rows[:256]), ("train", rows[256:1280])):
        write_json_lines(folder / f"{name}.jsonl", part)
    sources = [f"prompts.{name}={{source: {folder / name}.jsonl}}" for name in ("heldout", "train")]
    return [*sources, f"policy.model={SHARED / 'models/stories260k'}", "policy.bootstrap=null"]


def run_recipe(output: Path, overrides: list[str], seed: int) -> Path:
    """Run the recipe with a seed, or go on with it."""
    settings = [f"output={output / f'seed-{seed}'}", f"seed={seed}", "threads=1", *overrides]
    return run(load_recipe(ROOT / "runs/lm-human-preferences.yaml", settings))


def report(directory: Path) -> bool:
    """Print what a run reached; whether that is what the recipe promises."""
    folder = directory / "iteration-001"
    accuracy = read_json(folder / "reward/metrics.json")["accuracy"]
    last = mean(row["objective/kl"] for row in read_json_lines(folder / "policy/metrics.jsonl")[-LAST:])
    evaluation = read_json(folder / "evaluate/evaluation.json")
    won = evaluation["win_rate_vs_start"]
    print(
        f"{directory.name}: reward model {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], "
        f"KL {last:.2f} over the last {LAST} steps ({evaluation['kl_to_start']:.2f} on held-out prompts), win rate "
        f"{won['win_rate']:.3f} [{won['low']:.3f}, {won['high']:.3f}]"
    )
    return abs(last - TARGET) <= 1 and won["win_rate"] > 0.7


def ranked_pairs(directory: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Return all pairs of different texts among a run's completions of a prompt, as rows of preferences."""
    recipe = RunDirectory(directory).recipe()
    asked = {prompt.id: encode_prompt(tokenizer, prompt) for prompt in load_prompts(recipe.prompts.train, recipe.seed)}
    groups: dict[str, dict[tuple[float, int], list[int]]] = {}
    for row in read_rows(directory / "iteration-001/generate/completions.parquet"):
        score = (polarity("", row["text"]), -len(row["text"]))
        groups.setdefault(row["prompt_id"], {})[score] = [*asked[row["prompt_id"]], *row["token_ids"]]
    rows = []
    for prompt, group in groups.items():
        for worse, better in combinations(sorted(group), 2):
            sides = {"chosen_ids": group[better], "rejected_ids": group[worse]}
            rows.append({"prompt_id": prompt, **sides, "confidence": 1.0, "margin": 1.0})
    return rows


def compare_losses(directory: Path) -> bool:
    """Print accuracy and sequences forwarded of two losses on a run's completions; whether ranking learns as much from as many.

    Pairs are those of the word list, where it ties of the shorter text, so that K = 4 completions have six, and an epoch of
    ranking forwards a third of the sequences. An epoch has the same number of steps, of as many prompts each.
    """
    start = RunDirectory(directory).policy(0)
    tokenizer, config = load_tokenizer(start), RunDirectory(directory).recipe().reward
    train, heldout = split(ranked_pairs(directory, tokenizer), 0.3, 0)
    groups = groups_of(train)
    each = sum(len(group["ids"]) for group in groups)
    pairwise, ranking = ("pairwise", len(train), 2 * len(train)), ("ranking", len(groups), each)
    found = []
    for (loss, elements, forwarded), epochs in ((pairwise, 2), (ranking, 2), (ranking, round(2 * pairwise[2] / each))):
        batch = max(1, math.ceil(elements / math.ceil(len(groups) / config.batch_size)))
        set_seed(0)
        model = RewardModel(load_scalar_model(start), tokenizer)
        model.model.config.pad_token_id = tokenizer.pad_token_id
        with tempfile.TemporaryDirectory() as work:
            settings = config.model_copy(
                update={"loss": loss, "batch_size": batch, "epochs": epochs, "learning_rate": 1e-3}
            )
            train_reward_model(model, train, settings, Path(work), seed=0)
        accuracy = measure(model, heldout)["accuracy"]
        found.append(accuracy)
        print(
            f"{loss}: {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] of {accuracy['n']} pairs after "
            f"{epochs} epochs, {epochs * forwarded} sequences forwarded"
        )
    return bool(found[-1]["high"] >= found[0]["value"])


def main() -> None:
    """Run it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--output", type=Path, default=ROOT / "runs/lm-human-preferences-bench")
    given = options.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    overrides = write_prompts(given.output)
    directories = [run_recipe(given.output, overrides, seed) for seed in range(given.seeds)]
    kept = [report(directory) for directory in directories]
    kept.append(compare_losses(directories[0]))
    if not all(kept):
        raise SystemExit("not as the recipe promises")


if __name__ == "__main__":
    main()
