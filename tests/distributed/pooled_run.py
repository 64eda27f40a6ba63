"""`generate` and `label` on two workers of Ray: the rows of one process, also when a worker or the driver is killed."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "rl"))
from tiny_models import build_policy, build_tokenizer

from selfplay.config import Launch, load_recipe
from selfplay.distributed.cluster import connected
from selfplay.loop import run, run_stage
from selfplay.storage.files import read_rows

ROOT = Path(__file__).parents[2]
JUDGE = '''\
"""Asks its model about each pair, keeps what it says, and prefers the shorter response, which is right more often than not."""

from selfplay.config import SamplingParams
from selfplay.records import Prompt, Verdict


def score(pair):
    return float((len(pair.first.text), pair.first.text) < (len(pair.second.text), pair.second.text))


class Asking:
    def __init__(self, engine):
        self.engine = engine

    def judge(self, pairs):
        prompts = [Prompt.plain(pair.id, pair.first.text + " 3 " + pair.second.text) for pair in pairs]
        said = self.engine.generate(prompts, SamplingParams(max_tokens=5, seed=7))
        return [
            Verdict(pair_id=pair.id, judge="asking", order="none", preference=score(pair), raw=one.text)
            for pair, (one,) in zip(pairs, said, strict=True)
        ]
'''
BATCHES = 24


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few words, a judge in Python that asks another such model, and 96 prompts in batches of four."""
    folder = tmp_path_factory.mktemp("pooled")
    for name, seed in (("policy", 0), ("asked", 1)):
        build_policy(seed, dtype=torch.float32, max_position_embeddings=512).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    for split in ("train", "heldout"):
        lines = [json.dumps({"id": f"{split}-{n}", "prompt": f"{n % 10} {n // 10} {len(split)}"}) for n in range(96)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "asking.py").write_text(JUDGE)
    (folder / "judge.yaml").write_text(
        f"name: asking\nmode: python\npython: {folder}/asking.py:Asking\nmodel: {folder}/asked\n"
        "thresholds: {length_bias: 1.0, canary_wins: 1.0}\n"
    )
    (folder / "pooled.yaml").write_text(
        dedent(f"""\
        threads: 1
        policy: {{model: {folder}/policy}}
        prompts: {{train: {{source: {folder}/train.jsonl}}, heldout: {{source: {folder}/heldout.jsonl}}}}
        sampling: {{max_tokens: 12}}
        engine: {{batch_size: 8}}
        generate: {{prompts: 96, completions: 2}}
        judge: {{file: {folder}/judge.yaml}}
        algorithm: {{episodes: 96}}
        """)
    )
    return folder / "pooled.yaml"


def begun(recipe: Path, output: Path, *overrides: str) -> Path:
    """A run that has its start and no more."""
    return run(load_recipe(recipe, [f"output={output}", *overrides]), only_start=True)


def rows(directory: Path, stage: str, table: str) -> list[dict]:
    return read_rows(directory / "iteration-001" / stage / f"{table}.parquet")


WITHOUT_RAY = """\
import sys
sys.modules["ray"] = None  # as if it were not installed
from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run, run_stage
recipe, output = sys.argv[1:]
try:
    run(load_recipe(recipe, [f"output={output}", "launch.workers=2"]))
except ConfigError as error:
    print(error)
directory = run(load_recipe(recipe, [f"output={output}"]), only_start=True)
for stage in ("generate", "label"):
    run_stage(directory, stage, 1)
"""


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two stages in one process, where there is no Ray; `launch` is refused there in one sentence."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, "-c", WITHOUT_RAY, str(recipe), str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "the recipe needs the package ray, which is not installed: pip install 'selfplay-loop[ray]', or leave launch out"
    )
    assert len(rows(directory, "generate", "completions")) == 192 and len(rows(directory, "label", "verdicts")) > 50
    return directory


@pytest.fixture
def ray_here() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    with connected(Launch(workers=2)):
        assert signal.getsignal(signal.SIGTERM) is before, "a run still stops where all is saved"
        yield


def journal_lines(directory: Path) -> int:
    file = directory / "iteration-001" / "generate.partial" / "work" / "journal.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def kill_a_worker(directory: Path, killed: list[int]) -> None:
    """Kill one of the workers that generate with -9 as soon as the journal has four batches."""
    while journal_lines(directory) < 4:
        time.sleep(0.002)
    workers = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Holder")]
    killed += [workers[0].pid]
    workers[0].kill()


def test_rows_are_those_of_one_process_also_after_a_worker_was_killed(
    recipe: Path, alone: Path, tmp_path: Path, ray_here: None
) -> None:
    directory = begun(recipe, tmp_path / "run", "launch.workers=2")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(directory, killed), daemon=True)
    killer.start()
    run_stage(directory, "generate", 1)
    killer.join(10)
    assert killed, "a worker was killed in the middle"
    run_stage(directory, "label", 1)
    for stage, table in (
        ("generate", "completions"),
        ("generate", "pairs"),
        ("label", "verdicts"),
        ("label", "preferences"),
    ):
        assert rows(directory, stage, table) == rows(alone, stage, table)
    holders = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Holder")]
    assert all(one.status() == psutil.STATUS_ZOMBIE for one in holders), "none works on"


def test_a_killed_driver_leaves_no_process_and_goes_on_without_workers(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    directory = begun(recipe, tmp_path / "run", "launch.workers=2")
    driver = subprocess.Popen(
        [sys.executable, "-m", "selfplay", "generate", str(directory), "-i", "1"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while journal_lines(directory) < 3:
        assert driver.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.002)
    started = psutil.Process(driver.pid).children(recursive=True)
    assert any(one.name().startswith("ray::Holder") for one in started)
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs(started, timeout=240)  # its agents look now and then for who started them
    assert not left, "no process of Ray is left"
    kept = journal_lines(directory)
    assert 3 <= kept < BATCHES
    run(load_recipe(recipe, [f"output={directory}"]), only_start=True)  # `launch` may change
    run_stage(directory, "generate", 1)
    assert rows(directory, "generate", "completions") == rows(alone, "generate", "completions"), "none is there twice"
