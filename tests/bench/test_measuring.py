"""The benchmarks' own arithmetic: memory, tables, FLOP, when a score is reached, and that each script takes its options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import limits  # noqa: E402
import measuring  # noqa: E402
import ppo_vs_trl  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from selfplay.rl.rollouts import Episodes  # noqa: E402


def test_peak_memory_is_the_growth_and_stays_after_it_is_freed() -> None:
    """In a process of its own: one that has freed much before takes from that first."""
    script = """
import measuring
memory = measuring.PeakMemory()
held = bytearray(b"x") * (64 * 2**20)
del held
print(memory.growth())
"""
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, check=True, env=os.environ
    )
    assert 60 * 2**20 < int(found.stdout) < 100 * 2**20


def test_a_table_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "results")
    measuring.publish(
        "some",
        [{"name": "a", "rate": 12345.6, "share": 0.12345}, {"name": "longer", "rate": 1.0, "share": None}],
        seed=3,
    )
    assert capsys.readouterr().out.startswith(
        "name      rate   share\na       12,346  0.1235\nlonger       1       -\n"
    )
    kept = json.loads((tmp_path / "results" / "some.json").read_text())
    assert kept["rows"][0]["rate"] == 12345.6 and kept["seed"] == 3 and kept["machine"]["versions"]["torch"]


def test_flop_of_a_pass_by_hand() -> None:
    # One layer of width 4, two heads of size 2, MLP of 6, 10 words; one episode of 3 + 2 tokens.
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    episodes = Episodes(
        [],
        [],
        torch.zeros(1, 5),
        torch.tensor([3]),
        torch.tensor([2]),
        torch.tensor([False]),
        torch.zeros(1, 2),
        torch.zeros(1),
    )
    # Weights: queries and output 16 each, keys and values 8 each, MLP 3 * 24: 120. 2 * 120 * 5 tokens = 1,200.
    # Attention: scores and sums, 2 * 4 * 5^2 = 200. The head: 2 * 4 * 10 on 2 tokens = 160.
    assert limits.flop_of_pass(config, episodes, head=False) == 1400
    assert limits.flop_of_pass(config, episodes, head=True) == 1560


def test_when_a_score_is_reached() -> None:
    run = {"scores": [0.0, 0.4, 0.6, 0.5, 0.9]}
    # Means of two steps in a row: .2, .5, .55, .7, after 2, 3, 4 and 5 steps of 256 episodes.
    assert [ppo_vs_trl.episodes_to_reach(run, score) for score in (0.1, 0.5, 0.52, 0.71)] == [512, 768, 1024, None]


def test_the_benchmark_for_a_gpu_can_be_loaded() -> None:
    said = subprocess.run(
        [sys.executable, str(HERE / "ppo_gpu.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE.parents[1],
    )
    assert "--gpu-memory" in said.stdout
