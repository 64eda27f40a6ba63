"""Hurts a thousand tiny runs, and prints what became of them. `make torture` runs it in full.

    python tests/torture/torture.py [--faults N] [--workers N] [--seed N] [--only KIND] [--log FILE]

Each run is a process forked from this one, so it takes a second or two. A fault must end in one of two ways: the next start
of the same recipe leaves, bit for bit, what a run without faults leaves; or it refuses with one sentence, and what the
sentence names (`selfplay verify --repair`, and running again) leads there. Exit code 1 if any fault ended otherwise.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bad_server import say
from faults import EXACT, OTHER, REFUSED, Known, Outcome, die
from kinds import KINDS
from misbehaving import serving, url
from running import at_call, copy_project, import_what_a_run_imports, result, start, warm_up
from tiny_project import write_project

from selfplay.storage import durable


def prepare(home: Path, stops: int) -> Known:
    """Run the project without faults, count its calls, and keep runs that were killed at some of them."""
    warm_up()
    warm = import_what_a_run_imports(write_project(home / "warm").parent)
    assert warm.code == 0, warm.said
    counted = write_project(home / "finished").parent
    calls = counted / "calls.txt"

    def count() -> None:
        def hook(call: str, path: Path) -> None:
            with open(calls, "a") as file:
                file.write(f"{call}\n")

        durable.hook = hook

    end = start(counted, count)
    assert end.code == 0, end.said
    names = calls.read_text().split()
    twice = copy_project(counted, home / "twice")
    again = start(twice, None, "iterations=2")
    assert again.code == 0, again.said
    with serving(say=say) as server:
        served = write_project(home / "served", url(server)).parent
        assert (labelled := start(served)).code == 0, labelled.said
    known = Known(home, result(counted), result(twice), result(served), names, end.seconds, finished=counted)
    for number in range(stops):
        stopped = write_project(home / f"stopped-{number}").parent
        start(stopped, at_call(len(names) * (number + 1) // (stops + 1), die))
        known.stopped.append(stopped)
    return known


def plan(known: Known, faults: int | None, only: str | None) -> list[tuple[str, int]]:
    """The cases to try: all, or `faults` of them spread over the kinds; mixed, so that a part tells of the whole."""
    cases = [
        (kind, number)
        for kind, (_, count) in KINDS.items()
        if only is None or kind == only
        for number in range(count or len(known.calls))
    ]
    if faults is not None and faults < len(cases):
        cases = [cases[int((number + 0.5) * len(cases) / faults)] for number in range(faults)]
    random.Random(0).shuffle(cases)
    return cases


def work(known: Known, cases: list[tuple[str, int]], seed: int, out: Path, parent: int) -> None:
    """Try cases, and write each outcome as a line of JSON, until all are done or the parent is gone."""
    with open(out, "a", encoding="utf-8") as file:
        for kind, number in cases:
            if os.getppid() != parent:
                return
            folder = known.home / f"{kind} {number}"
            try:
                outcome = KINDS[kind][0](folder, known, number, random.Random(f"{seed}/{kind}/{number}"))
            except Exception as error:
                outcome = Outcome(kind, f"number {number}", OTHER, f"{type(error).__name__}: {error}")
            file.write(json.dumps({**vars(outcome), "kind": kind, "number": number}) + "\n")
            file.flush()
            if outcome.came == OTHER:
                print(f"OTHER: {kind} {number}, {outcome.detail}: {outcome.note}\n", flush=True)
            shutil.rmtree(folder, ignore_errors=True)


def torture(
    home: Path,
    faults: int | None = None,
    workers: int = 1,
    seed: int = 0,
    only: str | None = None,
    log: Path | None = None,
) -> list[Outcome]:
    """Try the faults and return what became of each; those that `log` knows of already are not tried again."""
    log = log or home / "outcomes.jsonl"
    known = prepare(home, stops=24 if faults is None else 4)
    done = {(row["kind"], row["number"]) for row in read_log(log)}
    cases = [case for case in plan(known, faults, only) if case not in done]
    print(
        f"{len(known.calls)} calls of the file layer in a run of {known.seconds:.1f} s; {len(cases)} faults", flush=True
    )
    processes = []
    for worker in range(workers):
        process = os.fork()
        if process == 0:
            try:
                work(known, cases[worker::workers], seed, log, os.getppid())
            finally:
                os._exit(0)
        processes.append(process)
    for process in processes:
        os.waitpid(process, 0)
    return [Outcome(row["kind"], row["detail"], row["came"], row["note"]) for row in read_log(log)]


def read_log(log: Path) -> list[dict[str, Any]]:
    """The outcomes in a log; none if there is none."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a table in Markdown: kind, tried, resumed exactly, refused with a sentence, other."""
    lines = ["| kind | tried | resumed exactly | refused with a sentence | other |", "|---|---|---|---|---|"]
    kinds = [*dict.fromkeys(one.kind for one in outcomes)]
    counts = Counter((one.kind, one.came) for one in outcomes)
    for kind in sorted(kinds, key=lambda kind: list(KINDS).index(kind) if kind in KINDS else 99):
        row = [counts[kind, came] for came in (EXACT, REFUSED, OTHER)]
        lines.append(f"| {kind} | {sum(row)} | {row[0]} | {row[1]} | {row[2]} |")
    row = [sum(one.came == came for one in outcomes) for came in (EXACT, REFUSED, OTHER)]
    return "\n".join([*lines, f"| all | {sum(row)} | {row[0]} | {row[1]} | {row[2]} |"])


def main() -> None:
    """Parse the command line, torture, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, help="how many, spread over all kinds; default: all of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind, such as 'power cut'")
    parser.add_argument("--log", type=Path, help="file for the outcomes; with it, a torture that was stopped goes on")
    options = parser.parse_args()
    began = time.time()
    memory = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(prefix="torture-", dir=memory if memory.is_dir() else None))
    try:
        outcomes = torture(home, options.faults, options.workers, options.seed, options.only, options.log)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(table(outcomes))
    print(f"{len(outcomes)} faults in {(time.time() - began) / 60:.1f} minutes, seed {options.seed}", flush=True)
    os._exit(any(one.came == OTHER for one in outcomes))  # at once: what was imported has much to say at its end


if __name__ == "__main__":
    sys.exit(main())
