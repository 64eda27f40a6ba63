"""Signals: a run saves, leaves with a code that says how to go on, and ends bit for bit as one that was never stopped."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import Moment, in_process, selfplay
from test_kill_resume import metrics, outputs
from tiny_run import write_recipe

from selfplay import stopping
from selfplay.errors import EngineFailed, Stopped
from selfplay.storage.files import read_json
from selfplay.storage.journal import Journal

TERM, WARNING = signal.SIGTERM, signal.SIGUSR1
STOP_OF_A_STEP = "selfplay.training.supervised", "Watcher.on_step_end"
STOP_OF_A_BATCH = "selfplay.storage.durable", "append"
STOPS = {
    "pretraining, in step 7": (Moment(*STOP_OF_A_STEP, 7, signal=WARNING), "000/policy.partial/work/pretrain/step-7"),
    "pretraining, in step 31": (Moment(*STOP_OF_A_STEP, 24, signal=TERM), "000/policy.partial/work/pretrain/step-31"),
    "fine-tuning, in step 3": (Moment(*STOP_OF_A_STEP, 12, signal=TERM), "000/policy.partial/work/sft/step-3"),
    "the start's answers": (
        Moment(*STOP_OF_A_BATCH, 1, signal=TERM),
        "000/evaluate.partial/work/journal-samples.jsonl",
    ),
    "generating": (Moment(*STOP_OF_A_BATCH, 1, signal=WARNING), "001/generate.partial/work/journal.jsonl"),
    "labelling": (Moment(*STOP_OF_A_BATCH, 2, signal=TERM), "001/label.partial/work/journal.jsonl"),
    "the reward model, in step 5": (Moment(*STOP_OF_A_STEP, 5, signal=TERM), "001/reward.partial/work/step-5"),
    "PPO": (
        Moment("selfplay.rl.trainer", "rollout_metrics", 1, signal=WARNING),
        "001/policy.partial/work/checkpoint-1/state.json",
    ),
}
"""When a signal comes, and what must then be saved under `iteration-`."""


def test_stopped_in_every_stage_it_ends_as_if_it_never_was(tiny_run: Path, training_seed: int, tmp_path: Path) -> None:
    """Checkpoints of PPO would come every 10 steps only; its 3 steps are stopped behind the first."""
    command = ("run", write_recipe(tmp_path), f"output={tmp_path / 'run'}", f"seed={training_seed}")
    for name, (moment, saved) in STOPS.items():
        assert in_process(selfplay, *command, moment=moment) == 75, f"not stopped politely: {name}"
        assert (tmp_path / "run" / f"iteration-{saved}").exists(), f"not saved: {name}"
    assert in_process(selfplay, *command) == 0
    assert outputs(tmp_path / "run") == outputs(tiny_run)
    assert "iteration-002/policy/model.safetensors" in outputs(tiny_run)
    assert metrics(tmp_path / "run") == metrics(tiny_run)
    assert read_json(tmp_path / "run" / "outcome.json") == read_json(tiny_run / "outcome.json")


def test_a_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    moment = Moment(*STOP_OF_A_STEP, 2, signal=TERM, times=2)
    assert in_process(selfplay, "run", write_recipe(tmp_path), f"output={tmp_path / 'run'}", moment=moment) == -TERM
    assert not list((tmp_path / "run").rglob("step-*")), "nothing was written on the way out"


def test_a_warning_and_then_the_first_sigterm_still_save(tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom selfplay import stopping\n"
        "with stopping.listening():\n"
        "    os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    try: stopping.check()\n"
        "    except stopping.Stopped as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(
        "stopped by SIGUSR1; what is finished is saved: give the same"
    )
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["SIGUSR1", "SIGTERM"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (TERM, 75)])
def test_one_sentence_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    """A signal from outside, sent once the run has begun its first stage."""
    command = [sys.executable, "-m", "selfplay", "run", str(write_recipe(tmp_path)), f"output={tmp_path / 'run'}"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    begun = running.stderr.readline()
    running.send_signal(number)
    out, err = running.communicate()
    assert begun == "iteration 0: start\n" and running.returncode == code and out == ""
    assert err.splitlines()[-1].endswith("; what is finished is saved: give the same command again to go on")
    assert "Traceback" not in err and "Aborted" not in err


def test_ctrl_c_in_a_verb_that_saves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("selfplay.report.show.iterations", interrupted)
    with pytest.raises(SystemExit) as ended:
        selfplay("show", "anything")
    assert ended.value.code == 130 and capsys.readouterr() == ("", "interrupted\n")


def test_an_engine_that_the_signal_ended_too_is_no_failure() -> None:
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM; what is finished is saved"), stopping.listening():
        os.kill(os.getpid(), TERM)
        raise EngineFailed("vLLM's process died")
    with pytest.raises(EngineFailed), stopping.listening():
        raise EngineFailed("vLLM's process died")


def test_signals_are_as_before_behind_a_run(tmp_path: Path) -> None:
    before = signal.getsignal(TERM), signal.getsignal(WARNING)
    with pytest.raises(Stopped), stopping.listening():
        os.kill(os.getpid(), WARNING)
        Journal(tmp_path / "journal.jsonl").append("key", [1])
    assert (signal.getsignal(TERM), signal.getsignal(WARNING)) == before
    assert Journal(tmp_path / "journal.jsonl").batches == {"key": [1]}, "what was done is saved first"
    Journal(tmp_path / "journal.jsonl").append("next", [2])


def test_a_process_forked_off_is_ended_as_ever() -> None:
    """A pool of processes ends its workers with SIGTERM, and waits for them."""
    with stopping.listening():
        child = multiprocessing.get_context("fork").Process(
            target=lambda: [os.kill(os.getpid(), TERM), time.sleep(300)]
        )
        child.start()
        child.join(120)
    assert child.exitcode == -TERM
