"""Which algorithm goes on improving? PPO, RLOO, DPO and rejection sampling over five iterations, at equal labels and samples.

    python tests/bench/which_algorithm.py runs/which --jobs 2             # make the start, then all runs; again to go on
    python tests/bench/which_algorithm.py runs/which --table              # the tables of what is finished, as Markdown

The recipe is runs/stories-5.yaml with another `algorithm`: a judge that the run makes labels, and rules that label nothing
measure. All runs begin with one start, the policy and the judge of a run's iteration 0 (`--start`, made if it is not there).
In each iteration all ask the judge about as many pairs, in both orders, and sample as many completions: PPO, RLOO and
rejection sampling are rewarded by the judge for each of PAIRS completions, shown beside one of the policy before to the
same prompt; DPO learns from as many pairs of two completions of the policy before. Each run is one `selfplay run` of one
thread; what a kill or `--limit` cut short goes on where it was.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from prompts.sources import load_prompts
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json, read_json_lines, read_rows, rows_in

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "runs" / "stories-5.yaml"
PAIRS = 800
"""Pairs that the judge is asked about in an iteration: one for each prompt of DPO, one for each episode of the others."""
COMPLETIONS = 2 * PAIRS
"""Completions that an iteration samples, beside those that measure it."""
STEPS = {
    "steps": 5,
    "episodes": 160,
    "minibatches": 2,
    "learning_rate": 7e-4,
    "kl_coefficient": 0.02,
    "target_kl": 0.05,
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {**STEPS, "critic_learning_rate": 2e-3, "critic_warmup": 1},
    "rloo": {**STEPS, "advantage": "rloo", "group": 4},
    "dpo": {"kind": "dpo", "beta": 0.3, "learning_rate": 3e-4, "batch_size": 32, "soft_labels": True},
    "rejection": {"kind": "rejection", "prompts": 200, "completions": 4, "epochs": 2, "learning_rate": 1e-3},
}
"""Name of a run -> its recipe's `algorithm` section."""
TIMES = "times.jsonl"
"""Seconds of processor time of each process that ran, beside the runs."""


def overrides(name: str, start: Path) -> list[str]:
    """Return what a run changes in the recipe: its algorithm, and the start's policy and judge in place of ones to make."""
    made, generate = start / "iteration-000", {"prompts": PAIRS, "completions": 2}
    return [
        f"policy.model={made / 'policy'}",
        "policy.bootstrap=null",
        f"judge.model={made / 'judge'}",
        "judge.bootstrap=null",
        "judge.precheck=false",
        "guard.patience=null",
        f"prompts.train.limit={PAIRS}",
        f"generate={json.dumps(generate)}",
        f"algorithm={json.dumps(ALGORITHMS[name])}",
    ]


def words(name: str, seed: int, folder: Path, start: Path, changes: Sequence[str] = ()) -> list[str]:
    """Return all overrides of a run, as `selfplay run` reads them."""
    return [f"output={folder / f'{name}-seed{seed}'}", f"seed={seed}", "threads=1", *overrides(name, start), *changes]


def make_start(start: Path) -> None:
    """Make iteration 0 of the recipe in a run of its own, unless its policy and its judge are there."""
    files = RunDirectory(start)
    if not (files.finished(0, "policy") and files.finished(0, "judge")):
        subprocess.run(
            [sys.executable, "-m", "selfplay", "bootstrap", str(RECIPE), f"output={start}"], check=True, cwd=ROOT
        )


@dataclass
class Runner:
    """Runs processes of one thread each beside one another, and writes down the processor time that each took."""

    folder: Path
    stop_at: float
    lock: Lock

    def run(self, name: str, arguments: list[str]) -> int:
        """Run `selfplay run` to its end, or until `stop_at`, when it is asked to save and stop. Return its exit code."""
        left = self.stop_at - time.monotonic()
        if left <= 0:
            return 75
        command = [sys.executable, "-m", "selfplay", "run", str(RECIPE), *arguments]
        if self.stop_at < float("inf"):
            command = ["timeout", "--kill-after=60", str(math.ceil(left)), *command]
        alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | alone, stdout=log, stderr=log)
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        with self.lock, (self.folder / TIMES).open("a") as file:
            file.write(json.dumps({"run": name, "cpu": used.ru_utime + used.ru_stime, "code": code}) + "\n")
        print(f"{name}: {ENDS.get(code, f'failed, exit code {code}: see {name}.log')}", flush=True)
        return code


ENDS = {0: "done", 3: "ended early, by its own rules", 75: "stopped", 124: "stopped"}
"""Exit codes of `selfplay run` and of `timeout` that are no failures."""


@dataclass(frozen=True)
class Iteration:
    """One iteration of a run, as measured: rates in [0, 1] with their 95% intervals, KL in nats per response."""

    previous: tuple[float, float, float]
    start: tuple[float, float, float]
    kl: float
    distinct_2: float
    unique: float
    pairs: int
    completions: int
    tokens: int

    @property
    def better(self) -> bool:
        """Whether it beats the iteration before by the audit."""
        return self.previous[1] > 0.5


def read_iteration(files: RunDirectory, number: int) -> Iteration:
    """Read an evaluated iteration from disk, with what it asked the judge and sampled.

    A judge that rewards was shown a completion of the policy before to each prompt, whose tokens are counted at the mean length
    of that policy's held-out ones.
    """
    found, before = (read_json(files.stage(one, "evaluate") / "evaluation.json") for one in (number, number - 1))
    generated = files.rounds(number, "generate")
    answers = [row["token_ids"] for folder in generated for row in read_rows(folder / "completions.parquet")]
    steps = read_json_lines(files.stage(number, "policy") / "metrics.jsonl")
    episodes = max((row["episode"] for row in steps if "episode" in row), default=0)
    sampled = episodes * sum(row["response/length"] for row in steps) / len(steps) if episodes else 0.0
    opponents = 0 if generated else len(load_prompts(files.recipe().prompts.train, files.recipe().seed))
    rates = [found[f"win_rate_vs_{opponent}"] for opponent in ("previous", "start")]
    previous, start = ((rate["win_rate"], rate["low"], rate["high"]) for rate in rates)
    return Iteration(
        previous,
        start,
        found["kl_to_start"],
        found["distinct_2"],
        found["unique"],
        sum(rows_in(folder / "pairs.parquet") for folder in generated) or episodes,
        len(answers) + episodes + opponents,
        round(sum(map(len, answers)) + sampled + opponents * before["mean_length"]),
    )


def read_run(directory: Path) -> list[Iteration]:
    """Return the iterations of a run that are evaluated, in order."""
    files = RunDirectory(directory)
    numbers = [number for number in files.numbers() if number and files.finished(number, "evaluate")]
    return [read_iteration(files, number) for number in sorted(numbers)]


def processor_seconds(folder: Path) -> dict[str, float]:
    """Return the processor time of each run, over all processes that worked on it."""
    total: dict[str, float] = {}
    for row in read_json_lines(folder / TIMES) if (folder / TIMES).is_file() else []:
        total[row["run"]] = total.get(row["run"], 0.0) + row["cpu"]
    return total


def tables(folder: Path) -> str:
    """Return the tables of what is finished, as Markdown: against the iteration before, then the rest."""
    names = sorted(path.parent.name for path in folder.glob("*-seed*/config.yaml"))
    runs = {name: found for name in sorted(names, key=place_of) if (found := read_run(folder / name))}
    if not runs:
        return f"no iteration under {folder} is evaluated yet"
    longest = max(map(len, runs.values()))
    seconds = processor_seconds(folder)
    head = ["run", *(str(number) for number in range(1, longest + 1))]
    against = markdown(
        [*head, "in a row"],
        (
            [name, *(percent(one.previous) for one in found), *[""] * (longest - len(found)), in_a_row(found)]
            for name, found in runs.items()
        ),
    )
    columns = ["iterations", "against the start", "KL of each", "distinct bigrams", "different answers"]
    rest = markdown(
        ["run", *columns, "pairs judged", "completions", "tokens sampled", "CPU s"],
        (
            [
                name,
                len(found),
                percent(found[-1].start),
                " ".join(f"{one.kl:.1f}" for one in found),
                " ".join(f"{one.distinct_2:.2f}".lstrip("0") for one in found),
                " ".join(f"{one.unique:.2f}".lstrip("0") for one in found),
                f"{sum(one.pairs for one in found):,}",
                f"{sum(one.completions for one in found):,}",
                f"{sum(one.tokens for one in found):,}",
                f"{seconds[name]:,.0f}" if name in seconds else "",
            ]
            for name, found in runs.items()
        ),
    )
    return f"Win rate of each iteration against the one before, by the audit:\n\n{against}\n\n{rest}"


def place_of(name: str) -> tuple[int, str]:
    """Order runs as ALGORITHMS does."""
    algorithm = name.rpartition("-seed")[0]
    return (list(ALGORITHMS).index(algorithm) if algorithm in ALGORITHMS else len(ALGORITHMS), name)


def in_a_row(found: Sequence[Iteration]) -> int:
    """Return how many iterations from the first on beat the one before."""
    return next((place for place, one in enumerate(found) if not one.better), len(found))


def percent(rate: tuple[float, float, float]) -> str:
    """Write a rate and its interval as `58.5 [54.8, 62.2]`."""
    value, low, high = (f"{100 * part:.1f}" for part in rate)
    return f"{value} [{low}, {high}]"


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    """Run what is not done, and print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the runs are kept")
    options.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="further overrides of every run")
    options.add_argument("--table", action="store_true", help="print the tables of what is there, and run nothing")
    options.add_argument("--start", type=Path, help="a run whose iteration 0 all begin with; default FOLDER/start")
    options.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--jobs", type=int, default=1, help="runs beside one another")
    options.add_argument(
        "--limit", type=float, default=float("inf"), help="seconds after which all are asked to save and stop"
    )
    given = options.parse_intermixed_args()
    folder = given.folder.resolve()
    codes = [] if given.table else run_all(folder, given)
    print(tables(folder))
    if set(codes) - ENDS.keys():
        raise SystemExit(1)


def run_all(folder: Path, given: argparse.Namespace) -> list[int]:
    """Run what is not done; return the exit codes."""
    runner = Runner(folder, time.monotonic() + given.limit, Lock())
    start = (given.start or folder / "start").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_start(start)
    with ThreadPoolExecutor(given.jobs) as pool:
        waiting = [
            pool.submit(runner.run, f"{name}-seed{seed}", words(name, seed, folder, start, given.changes))
            for seed in range(given.seeds)
            for name in given.algorithms
        ]
        return [one.result() for one in waiting]


if __name__ == "__main__":
    main()
