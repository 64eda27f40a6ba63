"""How long `compare --votes` takes, and how much memory: 10,000 prompts, 20 models, all 190 pairs, with lengths.

    python tests/bench/compare_speed.py [--prompts 10000] [--models 20]

Writes a file of votes, then reads and summarises it in a process of its own. Prints CPU seconds and peak memory, and
keeps them in results/compare_speed.json. Aim: 30 s and 1.5 GB; one fit of prompt difficulty per pair took 127 s and 2.4 GB.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import publish

ROOT = Path(__file__).parents[2]
READ = """
import resource, sys, time
from selfplay.compare.vote_files import read_votes
from selfplay.stats.summary import summarise
table = read_votes(sys.argv[1]).table
read = time.process_time()
summary = summarise(table)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(read, time.process_time() - read, used, len(summary.pairs))
"""


def write_votes(path: Path, prompts: int, models: int) -> None:
    """Votes of a judge who likes length, models of rising quality, every pair on every prompt."""
    generator = np.random.default_rng(0)
    a, b = np.tril_indices(models, -1)
    quality = np.linspace(-1, 1, models)
    with path.open("w") as file:
        file.write("prompt,model_a,model_b,preference,length_a,length_b\n")
        for prompt in range(prompts):
            lengths = generator.integers(50, 150, models)
            chance = 1 / (1 + np.exp(quality[b] - quality[a] - 0.5 * np.tanh((lengths[a] - lengths[b]) / 30)))
            wins = (generator.random(len(a)) < chance).astype(int)
            rows = zip(a, b, wins, lengths[a], lengths[b], strict=True)
            file.writelines(f"{prompt},m{x},m{y},{win},{p},{q}\n" for x, y, win, p, q in rows)


def main() -> None:
    """Write, read, summarise, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.csv"
        write_votes(path, options.prompts, options.models)
        done = subprocess.run(
            [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
        )
    read, summarised, gigabytes, pairs = map(float, done.stdout.split())
    row = {
        "prompts": options.prompts,
        "models": options.models,
        "pairs": int(pairs),
        "read_cpu_s": round(read, 1),
        "summarise_cpu_s": round(summarised, 1),
        "cpu_s": round(read + summarised, 1),
        "peak_gb": round(gigabytes, 2),
    }
    publish("compare_speed", [row])


if __name__ == "__main__":
    main()
