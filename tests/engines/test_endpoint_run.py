"""A whole run whose judge is behind an endpoint: what it spends is kept, and its key is shown and written nowhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pyarrow.parquet
import pytest
from misbehaving import Server, serving, url
from tiny_run import tiny_recipe

from selfplay.storage.journal import entries

ROOT = Path(__file__).parents[2]
KEY = "sk-proj-4f9a7c21d0e8b653"
JUDGE = """\
    mode: pairwise
    model: judge-model
    endpoint: {url: "ADDRESS", key_variable: PLANTED_KEY, longest_wait: 0.01, input_price: 1, output_price: 1, max_cost: 50}
    messages:
      - role: user
        content: |
          {{ prompt }}
          First:
          {{ responses[0] }}
          Second:
          {{ responses[1] }}
    output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
    thresholds: {length_bias: 1, canary_wins: 1, unscored: 1, first_share: 1, swap_consistency: 0}
    on_error: {max_failure_rate: 0.5}
    gold: gold.jsonl
    """


def shorter(text: str) -> str:
    """The verdict for the shorter response, said by a judge that repeats the key it was given."""
    first, second = (part.partition("\n```\n")[2] for part in re.split(r"First:|Second:", text)[1:])
    return f"Your key is {KEY}. [[{'A' if len(first) < len(second) else 'B'}]]"


def strike(text: str, number: int) -> str:
    """Some calls go wrong the first time, each in a way that repeats the key."""
    return ("", "", "500", "400", "echo", "429")[len(text) % 6] if number == 0 else ""


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def run(server: Server, *overrides: str) -> "subprocess.CompletedProcess[str]":
        judge = tmp_path / "judge.yaml"
        judge.write_text(dedent(JUDGE).replace("ADDRESS", url(server)))
        pairs = [{"prompt": f"{n}?", "chosen": f"{n}.", "rejected": f"{n}, of course."} for n in range(16)]
        (tmp_path / "gold.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        (tmp_path / "tiny.yaml").write_text(tiny_recipe(judge))
        program = [sys.executable, "-c", "from selfplay.cli import main; main()"]
        return subprocess.run(
            [*program, "run", str(tmp_path / "tiny.yaml"), "iterations=1", *overrides],
            env={**os.environ, "PLANTED_KEY": KEY, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    return run


def everything(folder: Path) -> bytes:
    """All bytes of all files, and the rows of the packed ones as text."""
    parts = [file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()]
    tables = [
        json.dumps(pyarrow.parquet.read_table(file).to_pylist(), default=str) for file in folder.rglob("*.parquet")
    ]
    return b"\n".join(parts) + "\n".join(tables).encode()


def test_a_planted_key_is_shown_and_written_nowhere(
    tmp_path: Path, command: Callable[..., "subprocess.CompletedProcess[str]"], training_seed: int
) -> None:
    with serving(strike, shorter) as server:
        overrides = [f"output={tmp_path / 'run'}", f"seed={training_seed}"]
        done = command(server, *overrides)
        assert set(server.keys) == {f"Bearer {KEY}"}, "the key reaches the server, and the test its point"
        assert done.returncode == 0, done.stderr
        first = sum(server.tries.values())
        again = command(server, *overrides)
        assert sum(server.tries.values()) == first, "what was answered is not paid for again"
    assert again.returncode == 0, again.stderr
    written = everything(tmp_path)
    assert b"Your key is ***" in written, "what the server repeated was kept, without the key"
    said = "".join((done.stdout, done.stderr, again.stdout, again.stderr)).encode()
    for part in (KEY, KEY[:14], KEY[-14:]):
        assert part.encode() not in written and part.encode() not in said
    rows = [entry["rows"][0] for _, entry in entries(tmp_path / "run" / "spending.jsonl") if entry is not None]
    assert sum("worst" in row for row in rows) == sum("cost" in row for row in rows) == first
    # 100 tokens read and 10 written, at a dollar per million: the answers that came through.
    assert sum(row.get("cost") == pytest.approx(1.1e-4) for row in rows) > 100
