"""Random walks (trlX's task): find the shortest way to a goal in a graph, by any algorithm, from a start that wanders.

    python tests/bench/randomwalks.py ppo rloo dpo --seeds 3

A graph of 21 nodes, one letter each, with an edge from one to another with probability 0.1; node `a` is the goal. The start
is a small Llama that imitates 1,000 random walks of at most 10 nodes. An answer is the rest of a walk from the letter that
is the prompt. Its optimality is (10 - nodes) / (10 - nodes of the shortest walk), and 0 if it takes an edge that is not
there or does not arrive. Left out: trlX's mask of the edges, which would give the graph away.
"""

import argparse
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

import selfplay
from selfplay.config import Architecture, Optimisation
from selfplay.errors import ConfigError, SelfplayError
from selfplay.notebook.trained import Trained

GOAL, LETTERS = 0, "abcdefghijklmnopqrstu"
LONGEST = 10
"""Nodes of a walk, the first and the goal included."""
SIZE = Architecture(layers=3, hidden_size=96, heads=3, intermediate_size=256, context=16)
IMITATION = Optimisation(steps=100, batch_size=100, learning_rate=1e-3)


@dataclass(frozen=True)
class Walks:
    """A graph as its edges, 1,000 walks in it as texts, and nodes of the shortest walk from each node to the goal."""

    seed: int
    edges: tuple[tuple[int, ...], ...]
    samples: tuple[str, ...]
    shortest: tuple[int, ...]

    @property
    def starts(self) -> list[str]:
        """The letters that a walk may begin with: all but the goal's."""
        return list(LETTERS[1:])

    def optimality(self, walk: str) -> float:
        """Return how short a walk is, from 0 (wrong, or of LONGEST nodes) to 1; what stands behind the goal is ignored."""
        nodes = [LETTERS.find(letter) for letter in walk]
        for place, node in enumerate(nodes):
            if node < 0 or (place and node not in self.edges[nodes[place - 1]]):
                return 0.0
            if node == GOAL:
                return max(0, LONGEST - (place + 1)) / (LONGEST - self.shortest[nodes[0]])
        return 0.0

    def reward(self, prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
        """Return the optimality of each response, behind its prompt."""
        return [self.optimality(prompt + response) for prompt, response in zip(prompts, responses, strict=True)]


def make_walks(seed: int = 1000, nodes: int = 21, walks: int = 1000, edge: float = 0.1) -> Walks:
    """Return the graph and the walks of a seed, by the same draws as trlX's.

    Raises ConfigError for a graph in which a start cannot reach the goal in time: its optimality would divide by zero.
    """
    random = numpy.random.RandomState(seed)
    there = numpy.zeros((nodes, nodes), dtype=bool)
    while not there.any(1).all():
        there = random.rand(nodes, nodes) > 1 - edge
        numpy.fill_diagonal(there, False)
    there[GOAL], there[GOAL, GOAL] = False, True
    samples = []
    for _ in range(walks):
        node = GOAL
        while node == GOAL:
            node = random.randint(nodes)
        walk = [node]
        while len(walk) < LONGEST and walk[-1] != GOAL:
            walk.append(int(random.choice(numpy.nonzero(there[walk[-1]])[0])))
        samples.append("".join(LETTERS[one] for one in walk))
    shortest = _shortest(there)
    far = [LETTERS[node] for node in range(nodes) if shortest[node] >= LONGEST]
    if far:
        raise ConfigError(
            f"in the graph of seed {seed} no walk of fewer than {LONGEST} nodes leads from {', '.join(far)} to the goal, and "
            "optimality would divide by zero: take another seed, such as 1000"
        )
    edges = tuple(tuple(int(one) for one in numpy.nonzero(row)[0]) for row in there)
    return Walks(seed, edges, tuple(samples), tuple(shortest))


def _shortest(there: numpy.ndarray) -> list[int]:
    """Return the nodes of the shortest walk from each node to the goal, both included; LONGEST where there is none so short."""
    found = {GOAL: 1}
    queue = deque([GOAL])
    while queue:
        node = queue.popleft()
        for before in numpy.nonzero(there[:, node])[0].tolist():
            if before not in found:
                found[before] = found[node] + 1
                queue.append(before)
    return [min(found.get(node, LONGEST), LONGEST) for node in range(len(there))]


def make_tokenizer() -> Any:
    """Return a tokenizer with one token per letter, and tokens for padding and the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def make_start(walks: Walks, folder: Path, seed: int = 0, training: Optimisation = IMITATION) -> Path:
    """Train the start by imitation of the walks, once; gives its checkpoint."""
    if (folder / "config.json").is_file():
        return folder
    from transformers import LlamaForCausalLM, set_seed

    from selfplay.models import save
    from selfplay.records import Prompt
    from selfplay.stages.bootstrap import llama_config
    from selfplay.training.supervised import demonstration_rows, train_supervised

    tokenizer = make_tokenizer()
    set_seed(seed)
    model = LlamaForCausalLM(llama_config(SIZE, tokenizer))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    pairs = [(Prompt.plain(walk, walk[0]), walk[1:]) for walk in walks.samples]
    rows = demonstration_rows(tokenizer, pairs, SIZE.context)
    train_supervised(model, tokenizer, rows, training, folder.with_name(f"{folder.name}.work"), seed, "imitate")
    save(model, tokenizer, folder)
    return folder


def measure(walks: Walks, checkpoint: Path, count: int = 1000, seed: int = 7) -> list[float]:
    """Return the optimality of `count` sampled answers, evenly over the starts."""
    return [value for group in answers(walks, checkpoint, -(-count // len(walks.starts)), seed) for value in group]


def best_of(
    walks: Walks, checkpoint: Path, counts: Sequence[int], groups: int = 50
) -> list[tuple[int, float, float, float]]:
    """Return for each n of `counts` the mean of the best of n answers, what other answers predict of it, and an error.

    `groups` groups of n answers are drawn per start. Of M = 1,000 other answers in order x_1 <= ... <= x_M, the best of n drawn
    from them has the mean sum x_i ((i / M)^n - ((i - 1) / M)^n). The error is the standard error of the difference of the two,
    with the starts as they are; that of the prediction comes from 200 bootstrap resamples.
    """
    found, random = [], numpy.random.default_rng(0)
    others = numpy.array(answers(walks, checkpoint, 1000, seed=9))
    resampled = others[numpy.arange(len(others))[:, None, None], random.integers(1000, size=(len(others), 200, 1000))]
    for n in counts:
        drawn = numpy.array(answers(walks, checkpoint, n * groups, seed=8)).reshape(len(others), groups, n).max(2)
        weights = numpy.diff((numpy.arange(1001) / 1000) ** n)
        predicted = float((numpy.sort(others) @ weights).mean())
        variances = drawn.var(1, ddof=1) / groups + (numpy.sort(resampled) @ weights).var(1, ddof=1)
        error = float(variances.sum() ** 0.5) / len(others)
        found.append((n, float(drawn.mean()), predicted, error))
    return found


def answers(walks: Walks, checkpoint: Path, each: int, seed: int) -> list[list[float]]:
    """Return the optimality of so many sampled answers to each start."""
    from selfplay.config import SamplingParams
    from selfplay.engines.hf import TransformersEngine
    from selfplay.engines.masking import load_mask
    from selfplay.models import load_policy, load_tokenizer
    from selfplay.records import Prompt

    engine = TransformersEngine(
        load_policy(checkpoint), load_tokenizer(checkpoint), batch_size=512, mask=load_mask(checkpoint)
    )
    sampling = SamplingParams(max_tokens=LONGEST, n=each, seed=seed)
    groups = engine.generate([Prompt.plain(letter, letter) for letter in walks.starts], sampling)
    return [
        [walks.optimality(letter + one.text) for one in group]
        for letter, group in zip(walks.starts, groups, strict=True)
    ]


COMMON: dict[str, Any] = {"sampling": {"max_tokens": LONGEST}, "engine": {"batch_size": 512}}
PPO: dict[str, Any] = {"kind": "ppo", "steps": 20, "episodes": 128, "missing_eos_penalty": 0.0, "kl_coefficient": 0.01}
PPO |= {"epochs": 4, "learning_rate": 5e-4, "critic_learning_rate": 2e-3}
WITHOUT_CRITIC = {key: value for key, value in PPO.items() if key != "critic_learning_rate"} | {"group": 8}
ILQL: dict[str, Any] = {"kind": "ilql", "steps": 300, "batch_size": 100, "beta": 30.0}
REJECTION = {
    "kind": "rejection",
    "rounds": 10,
    "prompts": 20,
    "completions": 7,
    "keep": "top",
    "epochs": 4,
    "learning_rate": 1e-3,
}
RECIPES: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm": PPO},
    "dpo": {
        "algorithm": {"kind": "dpo", "beta": 0.3, "learning_rate": 1e-4, "batch_size": 32},
        "iterations": 8,
        "copies": 8,
        "generate": {"prompts": 160, "completions": 4},
    },
    "rejection": {"algorithm": REJECTION},
    "ilql": {"algorithm": ILQL},
    "ilql-mlp": {"algorithm": ILQL | {"heads": "mlp"}},
    "ilql-beta-0": {"algorithm": ILQL | {"beta": 0.0}},  # imitation alone
    **{name: {"algorithm": WITHOUT_CRITIC | {"advantage": name}} for name in ("rloo", "grpo", "reinforce++")},
    **{
        f"{name}-1280": {"algorithm": WITHOUT_CRITIC | {"advantage": name, "steps": 10}}
        for name in ("rloo", "grpo", "reinforce++")
    },
    "nlpo": {"algorithm": PPO | {"nlpo": {"top_p": 0.98, "every": 5}}},
    "ppo-1280": {"algorithm": PPO | {"steps": 10}},
    "a2c": {"algorithm": PPO | {"steps": 60, "epochs": 1, "minibatches": 1, "gae_lambda": 1.0, "learning_rate": 1e-3}},
}
"""Name -> what `selfplay.train` gets beside the model, the reward and the prompts."""


def train(name: str, walks: Walks, start: Path, output: Path, seed: int) -> Trained:
    """Train the start by one of RECIPES; ILQL learns from the walks that the start imitated."""
    settings = {**COMMON, **RECIPES[name], "output": output, "seed": seed}
    copies = settings.pop("copies", 1)
    if RECIPES[name]["algorithm"]["kind"] == "ilql":
        samples = [(walk[0], walk[1:]) for walk in walks.samples]
        return selfplay.train(
            start, samples=samples, rewards=[walks.optimality(walk) for walk in walks.samples], **settings
        )
    prompts = [{"id": f"{letter}{copy}", "prompt": letter} for copy in range(copies) for letter in walks.starts]
    return selfplay.train(start, reward=walks.reward, prompts=prompts, **settings)


def main() -> None:
    """Train by each algorithm that was named with each seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", help=f"of {', '.join(RECIPES)}; default all, or with --best-of none")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of each")
    parser.add_argument("--graph", type=int, default=1000, help="seed of the graph")
    parser.add_argument("--folder", type=Path, default=Path("runs/randomwalks"), help="where the runs are kept")
    parser.add_argument(
        "--best-of", type=int, nargs="*", default=[], help="also the best of so many answers of the start"
    )
    options = parser.parse_args()
    unknown = [name for name in options.algorithms if name not in RECIPES]
    if unknown:
        raise ConfigError(f"there is no recipe {unknown[0]!r} here: name some of {', '.join(RECIPES)}")
    walks = make_walks(options.graph)
    start = make_start(walks, (options.folder / f"start-{options.graph}").absolute())
    data = [walks.optimality(walk) for walk in walks.samples]
    rows = [("walks imitated", [data], [0.0]), ("start", [measure(walks, start)], [0.0])]
    for name in options.algorithms or ([] if options.best_of else RECIPES):
        found, seconds = [], []
        for seed in range(options.seeds):
            begun = time.time()
            trained = train(name, walks, start, options.folder / f"{name}-{options.graph}-seed{seed}", seed)
            seconds.append(time.time() - begun)
            found.append(measure(walks, trained.policy))
        rows.append((name, found, seconds))
        print_table(rows[-1:])
    for n, mean, predicted, error in best_of(walks, start, options.best_of) if options.best_of else []:
        print(
            f"best of {n}: {mean:.3f}, predicted {predicted:.3f}, standard error of the difference {error:.4f}",
            flush=True,
        )
    print(
        f"\n{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}\n"
    )
    print("| algorithm | optimality, each seed | mean | seconds |\n|---|---|---|---|")
    print_table(rows)


def print_table(rows: Sequence[tuple[str, list[list[float]], list[float]]]) -> None:
    """Print a row per algorithm: the mean optimality of each seed's 1,000 answers, and of all."""
    for name, found, seconds in rows:
        means = [sum(one) / len(one) for one in found]
        took = f"{min(seconds):.0f}-{max(seconds):.0f}" if any(seconds) else "-"
        print(
            f"| {name} | {' '.join(f'{mean:.3f}' for mean in means)} | {sum(means) / len(means):.3f} | {took} |",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except SelfplayError as error:
        sys.exit(f"error: {error}")
