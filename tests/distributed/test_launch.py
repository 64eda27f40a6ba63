"""A run goes on on workers of Ray, one of which is killed, and ends with the weights of a single process."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from processes import apart
from safetensors.torch import load_file

from selfplay.config import Launch, load_recipe
from selfplay.distributed.cluster import connected
from selfplay.engines.vllm import _environment
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.rundir import RunDirectory
from selfplay.stages import launch
from selfplay.storage.files import read_json, read_json_lines

STAGES = ("reward", "policy", "evaluate")


@pytest.fixture
def begun(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, as it was behind the labels of its first iteration."""
    home = tmp_path / "run"
    shutil.copytree(tiny_run, home, symlinks=True)
    for name in STAGES:
        shutil.rmtree(home / "iteration-001" / name)
    shutil.rmtree(home / "iteration-002")
    (home / "outcome.json").unlink()
    return home


def workers() -> list[psutil.Process]:
    """Processes of Ray's that this process's cluster started, and that work on a stage."""
    return [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())]


def kill_one_behind_the_first_step(work: Path, killed: list[int]) -> None:
    """SIGKILL the last worker once a checkpoint of the first step is there."""
    while not list(work.glob("checkpoint-[0-9]")):
        time.sleep(0.01)
    victim = workers()[-1]
    killed.append(victim.pid)
    victim.kill()


def policies_apart(one: Path, other: Path) -> float:
    """Compare the policies of two runs. Rounding may change which token is sampled, and with it one answer of 32."""
    places = (one / "iteration-001", other / "iteration-001", other / "iteration-000")
    return apart(*(load_file(place / "policy" / "model.safetensors") for place in places))


def test_a_run_goes_on_on_workers_of_which_one_is_killed(
    begun: Path, tiny_run: Path, training_seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []
    work = begun / "iteration-001" / "policy.partial" / "work"
    threading.Thread(target=kill_one_behind_the_first_step, args=(work, killed), daemon=True).start()
    launch = "launch={workers: 2, restarts: 1}"
    run(
        load_recipe(tiny_run.parent / "tiny.yaml", [f"output={begun}", f"seed={training_seed}", "iterations=1", launch])
    )
    said = capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ray Train's handler is gone"
    assert killed and said.count("restart 1 of 1, from the last checkpoint") == 1
    assert said.count("reward model: held-out accuracy") == 1, "the first worker alone speaks"
    assert RunDirectory(begun).stages(1) == ["generate", "label", *STAGES]
    for folder in ("iteration-001-reward", "iteration-001-policy-1"):
        assert {path.name for path in (begun / "logs" / folder).iterdir()} == {"rank-0.txt", "rank-1.txt"}
    mine, theirs = (read_json_lines(home / "iteration-001/reward/metrics.jsonl") for home in (begun, tiny_run))
    full = (
        read_json(begun / "iteration-001/reward/metrics.json")["trained_on"] // 16
    )  # batches before one that is not full
    # Sums round otherwise on two workers, and Adam moves a weight whose gradient is all but nothing as far as any other.
    for row, other in list(zip(mine, theirs, strict=True))[:full]:
        assert row["reward/loss"] == pytest.approx(other["reward/loss"], rel=1e-3)
        assert row["reward/grad_norm"] == pytest.approx(other["reward/grad_norm"], rel=1e-2)
    assert [row["step"] for row in read_json_lines(begun / "iteration-001/policy/metrics.jsonl")] == [1, 2, 3]
    alone = begun.with_name("alone")
    shutil.copytree(begun, alone, symlinks=True)
    for name in STAGES[1:]:
        shutil.rmtree(alone / "iteration-001" / name)
    run(load_recipe(tiny_run.parent / "tiny.yaml", [f"output={alone}", f"seed={training_seed}", "iterations=1"]))
    assert policies_apart(begun, alone) < 0.5


def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(begun: Path, tiny_run: Path, training_seed: int) -> None:
    command = [str(tiny_run.parent / "tiny.yaml"), f"output={begun}", f"seed={training_seed}", "launch={workers: 2}"]
    running = subprocess.Popen(
        [sys.executable, "-m", "selfplay", "run", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    logs = begun / "logs" / "iteration-001-reward"
    while not any("reward model" in file.read_text() for file in logs.glob("rank-0.txt")):
        assert running.poll() is None
        time.sleep(0.1)
    started = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=300)[1].splitlines()
    assert running.returncode == 130 and said[-1].startswith("interrupted; what is finished is saved"), said
    assert not psutil.wait_procs(started, timeout=60)[1]


def test_torchrun_around_the_verb_does_the_same_and_refuses_what_is_one_processs_work(
    begun: Path, tiny_run: Path
) -> None:
    shutil.copytree(tiny_run / "iteration-001" / "reward", begun / "iteration-001" / "reward")

    def torchrun(stage: str) -> "subprocess.CompletedProcess[str]":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--log-dir={begun.parent}"]
        return subprocess.run(
            [sys.executable, *command, "-m", "selfplay", stage, str(begun), "-i", "1"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    done = torchrun("policy")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("ppo: 96 episodes in") == 1, "the first process alone speaks"
    assert not (begun / "iteration-001" / "policy" / "work").exists()
    assert policies_apart(begun, tiny_run) < 0.5
    refused = torchrun("evaluate")
    assert refused.returncode != 0
    assert (
        "the stage 'evaluate' is the work of one process, and WORLD_SIZE is 2: give the command without torchrun"
        in refused.stderr
    )


@pytest.mark.parametrize("left", ["", '{"time": 1700000000.5, "ra', "[1]"])
def test_a_failure_that_a_full_disk_cut_short_is_one_without_words(tmp_path: Path, left: str) -> None:
    (tmp_path / "rank-1.error").write_text(left)
    launch._raise_error_of(tmp_path)  # which has nothing to raise
    assert launch._first_failure(tmp_path) == "worker 1 failed with an error: no message (its log has the traceback)"


def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    absent = connected(Launch(workers=2, address="127.0.0.1:1"))
    with pytest.raises(ConfigError, match=r"no Ray cluster at launch.address '127.0.0.1:1'"), absent:
        pass


def test_each_workers_vllm_gets_its_own_gpus_and_knows_nothing_of_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    of_workers = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for shown, gpus, mine in (("4,6", 1, "6"), ("", 1, "1"), ("4,6,7", 2, "6,7"), ("", 2, "1,2")):
        for name, value in {**of_workers, "CUDA_VISIBLE_DEVICES": shown}.items():
            monkeypatch.setenv(name, value)
        with _environment(on_gpu=True, gpus=gpus, folder=""):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == mine and not set(of_workers) & set(os.environ)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == shown and of_workers.items() <= os.environ.items()
