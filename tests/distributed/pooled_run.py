"""`generate` and `label` on two workers of Ray: the rows of one process, also when a worker, a machine or the driver is lost."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from machines import SECONDS_UNTIL_DEAD, two_machines, wait_for
from pooling import BATCHES, ROOT, begun, journal_lines, rows
from safetensors.torch import load_file

from selfplay.compare.head_to_head import compare
from selfplay.compare.score import score
from selfplay.compare.settings import Given
from selfplay.config import Launch, PromptSource, load_recipe
from selfplay.distributed.cluster import connected
from selfplay.loop import run, run_stage


@pytest.fixture
def ray_here() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    with connected(Launch(workers=2)):
        assert signal.getsignal(signal.SIGTERM) is before, "a run still stops where all is saved"
        yield


def kill_a_worker(directory: Path, killed: list[int]) -> None:
    """Kill one of the workers that generate with -9 as soon as the journal has four batches."""
    while journal_lines(directory) < 4:
        time.sleep(0.002)
    workers = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Holder")]
    killed += [workers[0].pid]
    workers[0].kill()


def test_rows_are_those_of_one_process_also_after_a_worker_was_killed(
    pooled_recipe: Path, pooled_alone: Path, tmp_path: Path, ray_here: None
) -> None:
    directory = begun(pooled_recipe, tmp_path / "run", "launch.workers=2")
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
        assert rows(directory, stage, table) == rows(pooled_alone, stage, table)
    holders = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Holder")]
    assert all(one.status() == psutil.STATUS_ZOMBIE for one in holders), "none works on"


def test_a_killed_driver_leaves_no_process_and_goes_on_without_workers(
    pooled_recipe: Path, pooled_alone: Path, tmp_path: Path
) -> None:
    directory = begun(pooled_recipe, tmp_path / "run", "launch.workers=2")
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
    run(load_recipe(pooled_recipe, [f"output={directory}"]), only_start=True)  # `launch` may change
    run_stage(directory, "generate", 1)
    assert rows(directory, "generate", "completions") == rows(pooled_alone, "generate", "completions"), (
        "none is there twice"
    )


ON_TWO_MACHINES = """\
import sys
from selfplay.config import load_recipe
from selfplay.loop import run, run_stage
recipe, output, address = sys.argv[1:]
launch = f"launch={{nodes: 2, workers: 1, address: '{address}'}}"
directory = run(load_recipe(recipe, [f"output={output}", launch]), only_start=True)
for stage in ("generate", "label"):
    run_stage(directory, stage, 1)
"""


@pytest.mark.parametrize("away", [SECONDS_UNTIL_DEAD / 3, 3 * SECONDS_UNTIL_DEAD, None], ids=["blink", "while", "gone"])
def test_a_machine_that_is_cut_off_costs_its_batches_once(
    pooled_recipe: Path, pooled_alone: Path, tmp_path: Path, away: float | None
) -> None:
    """Cut off for less than it takes to give it up; for longer, so that it comes back to a cluster without it; for good."""
    directory = begun(pooled_recipe, tmp_path / "run")
    with two_machines() as machines:
        command = [sys.executable, "-c", ON_TWO_MACHINES, str(pooled_recipe), str(directory), machines.address]
        driver = machines.open(0, command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_for("batches", lambda: driver.poll() is not None or journal_lines(directory) >= 4)
        workers = [machines.processes(number, "ray::Holder") for number in (0, 1)]
        machines.cable("down")
        kept = journal_lines(directory)
        if away is not None:
            time.sleep(away)
            machines.cable("up")
        said, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
        assert all(workers), "both machines worked"
        assert 4 <= kept < BATCHES, "cut off in the middle"
    for stage, table in (("generate", "completions"), ("label", "verdicts")):
        assert rows(directory, stage, table) == rows(pooled_alone, stage, table), "the same rows, none twice"


def test_rejection_sampling_fine_tunes_without_the_workers(
    pooled_recipe: Path, tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch, training_seed: int
) -> None:
    """Two rounds, scored by a judge whose model is on the pool too; the new policy is that of one process, to the last bit."""
    from selfplay.training import supervised

    beside: list[list[int]] = []

    def train(*arguments: object, **options: object) -> object:
        holders = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Holder")]
        _, alive = psutil.wait_procs(holders, timeout=30)  # killed ones need a moment
        beside.append([one.pid for one in alive if one.status() != psutil.STATUS_ZOMBIE])
        return real(*arguments, **options)  # type: ignore[arg-type]

    real = supervised.train_supervised
    monkeypatch.setattr(supervised, "train_supervised", train)
    algorithm = "algorithm={kind: rejection, rounds: 2, prompts: 16, completions: 4, epochs: 1, batch_size: 8}"
    common = [algorithm, f"seed={training_seed}", "reward.kind=judge", "iterations=1"]
    made = []
    for name, launch in (("alone", []), ("pooled", ["launch.workers=2"])):
        directory = begun(pooled_recipe, tmp_path / name, *common, *launch)
        run_stage(directory, "policy", 1)
        made.append(load_file(directory / "iteration-001/policy/model.safetensors"))
    assert beside[2:] == [[], []], "no worker is there while the policy learns"
    assert all(bool((made[0][name] == made[1][name]).all()) for name in made[0])


SCORING = """\
name: digits
mode: pointwise
model: {model}
messages: [{{role: user, content: "{{{{ response }}}}"}}]
output: {{kind: logprob, labels: {{"1": 1.0, "2": 0.0}}, least_mass: 0.0}}
"""


def test_compare_and_score_on_workers_say_what_they_say_alone(
    pooled_recipe: Path, pooled_alone: Path, tmp_path: Path, ray_here: None
) -> None:
    """Two checkpoints sampled on the pool, and judged by models on it."""
    folder, two = pooled_recipe.parent, Launch(workers=2)
    source, judge = PromptSource(source=str(folder / "heldout.jsonl")), tmp_path / "digits.yaml"
    judge.write_text(SCORING.format(model=folder / "asked"))
    targets = [f"{pooled_alone}@start", str(folder / "asked")]
    given = Given(source, str(folder / "judge.yaml"))
    alone, pooled = (compare(targets, given, folder=tmp_path / f"c{one}", launch=one) for one in (None, two))
    assert pooled.matches == alone.matches and len(alone.matches) == 96
    given = Given(source, str(judge))
    found = [score(targets, given, folder=tmp_path / f"s{one}", launch=one).checkpoints for one in (None, two)]
    for mine, theirs in zip(*found, strict=True):
        assert mine.score.mean == pytest.approx(theirs.score.mean, abs=1e-5) and mine.score.n == 96
        assert mine.mean_tokens == theirs.mean_tokens
