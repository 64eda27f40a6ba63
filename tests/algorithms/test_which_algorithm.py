"""The comparison of algorithms: equal budgets, tables of what is on disk, and one run whose process is cut off and goes on."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest
import which_algorithm
from which_algorithm import ALGORITHMS, COMPLETIONS, PAIRS, RECIPE, Iteration, Runner, in_a_row, read_run, tables, words

from prompts.sources import load_prompts
from selfplay.config import Recipe, load_recipe
from selfplay.loop import run
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json, read_json_lines, read_rows, write_json_lines


def budget(recipe: Recipe) -> tuple[int, int]:
    """Pairs and completions of an iteration, by the recipe's settings alone."""
    own, generate = recipe.algorithm, recipe.generate
    if own.kind == "dpo":
        assert generate.completions == 2
        return generate.prompts, 2 * generate.prompts
    assert recipe.reward.kind == "judge"
    episodes = own.steps_per_iteration * own.episodes_per_step
    return episodes, episodes + len(load_prompts(recipe.prompts.train, 0))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_all_ask_and_sample_alike(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, words(name, 1, tmp_path, tmp_path / "start"))
    assert budget(recipe) == (PAIRS, COMPLETIONS) == (800, 1600)
    assert (recipe.seed, recipe.directory) == (1, tmp_path / f"{name}-seed1")
    assert recipe.policy.model == str(tmp_path / "start/iteration-000/policy") and recipe.judge.bootstrap is None


def test_the_shipped_recipe_has_the_same_budget() -> None:
    assert budget(load_recipe(RECIPE)) == (PAIRS, COMPLETIONS)


def test_gains_in_a_row_by_hand() -> None:
    def one(low: float) -> Iteration:
        return Iteration((0.6, low, 0.7), (0.9, 0.8, 1.0), 1.0, 0.5, 1.0, 6, 12, 90)

    for lows, expected in (([0.51, 0.52, 0.50, 0.6], 2), ([0.49], 0), ([0.51, 0.6], 2), ([], 0)):
        assert in_a_row([one(low) for low in lows]) == expected, lows


def test_tables_say_what_is_on_disk(tiny_run: Path, tmp_path: Path) -> None:
    assert tables(tmp_path) == f"no iteration under {tmp_path} is evaluated yet"
    (tmp_path / "rloo-seed0").symlink_to(tiny_run)
    times = [{"run": "rloo-seed0", "cpu": 60.2, "code": 75}, {"run": "rloo-seed0", "cpu": 9.9, "code": 0}]
    write_json_lines(tmp_path / "times.jsonl", times)
    first, second = read_run(tmp_path / "rloo-seed0")
    told = read_json(tiny_run / "iteration-002/evaluate/evaluation.json")
    assert second.previous == tuple(told["win_rate_vs_previous"][key] for key in ("win_rate", "low", "high"))
    assert second.kl == told["kl_to_start"] and first.previous == first.start
    generated = read_rows(tiny_run / "iteration-001/generate/completions.parquet")
    steps = read_json_lines(tiny_run / "iteration-001/policy/metrics.jsonl")
    assert first.completions == 64 * 3 + 3 * 32 and first.pairs <= 64 * 3
    assert first.tokens == sum(len(row["token_ids"]) for row in generated) + sum(
        row["response/tokens"] for row in steps
    )
    lines = tables(tmp_path).splitlines()
    against = next(line for line in lines if line.startswith("| rloo-seed0 |"))
    assert against.startswith(f"| rloo-seed0 | {100 * first.previous[0]:.1f} [{100 * first.previous[1]:.1f}, ")
    assert lines[-1].endswith("| 70 |") and f"| {2 * first.completions:,} |" in lines[-1]


SMALL = [
    "iterations=1",
    "prompts.train.limit=64",
    "prompts.heldout.limit=16",
    "sampling.max_tokens=32",
    "generate.prompts=24",
    "judge.file=stories",
    "judge.model=null",
]


def test_the_limit_ends_a_run_however_little_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 20\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert Runner(tmp_path, time.monotonic() + 0.4, Lock()).run("dpo-seed0", []) == 124
    assert Runner(tmp_path, time.monotonic() - 1, Lock()).run("dpo-seed0", []) == 75, "none is begun behind it"


def test_a_run_that_is_cut_off_goes_on(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped once its first completions are there, keeps what is finished, and ends as one that never was."""
    arguments = words("dpo", 0, tmp_path, tiny_run, SMALL)
    whole = run(load_recipe(RECIPE, [*arguments, f"output={tmp_path / 'whole'}"]))
    cut, processes = RunDirectory(tmp_path / "dpo-seed0"), []
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        begin = subprocess.Popen
        patch.setattr(
            subprocess, "Popen", lambda *words, **more: processes.append(begin(*words, **more)) or processes[0]
        )
        runner = Runner(tmp_path, time.monotonic() + 9999, Lock())
        ended = pool.submit(runner.run, "dpo-seed0", [*arguments, "iterations=9"])
        while not (cut.finished(1, "generate") or ended.done()):
            time.sleep(0.02)
        assert not ended.done()
        os.kill(processes[0].pid, signal.SIGTERM)
        assert ended.result() == 75
    kept = {file: file.stat().st_mtime_ns for file in cut.path.glob("iteration-*/*/manifest.json")}
    monkeypatch.setattr(which_algorithm, "make_start", lambda start: None)
    options = ["--start", str(tiny_run), "--algorithms", "dpo", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["which", str(tmp_path), *options, *SMALL])
    capsys.readouterr()
    which_algorithm.main()
    said = capsys.readouterr().out
    assert said.startswith("dpo-seed0: done\n") and "| dpo-seed0 | " in said
    assert len(kept) > 2 and {file: file.stat().st_mtime_ns for file in kept} == kept
    assert read_run(cut.path)[0] == read_run(whole)[0]
    rows = read_json_lines(tmp_path / "times.jsonl")
    assert [(row["run"], row["code"]) for row in rows] == [("dpo-seed0", code) for code in (75, 0)]
    assert all(row["cpu"] > 0 for row in rows) and rows[-1]["cpu"] > 1
