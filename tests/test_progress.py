"""What is seen while a stage works: plain lines without a terminal, a bar with one; never on standard output."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from selfplay import progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_hold_rate_and_time_left_and_come_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.meter("label", 100, "pairs") as bar:
        clock.now += 10
        bar.advance(20)  # too early for a line
        clock.now += 6
        bar.advance(12, "mean 0.5")  # 32 in 16 s: 2/s, and 68 are left: 34 s
        clock.now += 1
        bar.advance(2)  # too soon after the last line
        clock.now += 83
        bar.advance(66)  # done: the last line says so
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["  label: 32/100, 2 pairs/s mean 0.5, 34 s left", "  label: 100 pairs in 100.0 s"]


def test_nothing_done_yet_is_no_division_by_zero(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.meter("ppo", 10, "episodes") as bar:
        clock.now += 60
        bar.advance(0)
    assert capsys.readouterr().err.splitlines()[-1] == "  ppo: 0 episodes in 60.0 s"


def test_what_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress.log("choices [red] and [/nothing] " + "x" * 200)
    assert capsys.readouterr().err == "choices [red] and [/nothing] " + "x" * 200 + "\n"


def test_a_terminal_gets_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=120, highlight=False))
    with progress.meter("generate", 8, "completions") as bar:
        clock.now += 2
        bar.advance(4, "note")
        assert bar.bar is not None
        bar.bar.refresh()
        [task] = bar.bar.tasks
        assert (task.completed, task.total, task.fields["note"]) == (4, 8, "2 completions/s note")
    assert "4/8" in screen.getvalue() and "generate" in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("generate: 4 completions in 2.0 s")
