"""A small torture in every run of the suite: twenty faults of all kinds, each resumed exactly or refused with a sentence.

It runs in a process of its own, which forks the runs: a process that has computed with torch may not fork.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from faults import EXACT, OTHER, REFUSED, Outcome
from torture import table

ROOT = Path(__file__).parents[2]


def test_twenty_faults_are_resumed_exactly_or_refused_with_a_sentence(tmp_path: Path) -> None:
    log = tmp_path / "outcomes.jsonl"
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("torture.py")),
            "--faults",
            "20",
            "--workers",
            "1",
            "--log",
            str(log),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/engines")))},
        capture_output=True,
        text=True,
        check=False,
        timeout=570,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    outcomes = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(outcomes) == 20 and all(one["came"] in (EXACT, REFUSED) for one in outcomes)
    assert all(one["note"].startswith("error: ") for one in outcomes if one["came"] == REFUSED)
    assert "| all | 20 |" in done.stdout and len({one["kind"] for one in outcomes}) >= 4


def test_the_table_counts_each_outcome_once() -> None:
    outcomes = [Outcome("SIGKILL", "", EXACT), Outcome("SIGKILL", "", OTHER), Outcome("cut file", "", REFUSED)]
    assert table(outcomes).splitlines()[2:] == [
        "| SIGKILL | 2 | 1 | 0 | 1 |",
        "| cut file | 1 | 0 | 1 | 0 |",
        "| all | 3 | 1 | 1 | 1 |",
    ]
