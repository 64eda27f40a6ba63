"""A comparison on the terminal: one direction, the settings above, and numbers that are never cut."""

import re
from io import StringIO

import pytest
from rich.console import Console

from selfplay.records import Comparison
from selfplay.report.headline import headline_of
from selfplay.report.show import print_iterations
from selfplay.report.terminal import print_summary, print_table
from selfplay.stats.summary import Category, summarise
from selfplay.stats.votes import Vote, tabulate


def printed(width: int, *arguments, what=print_summary, terminal: bool = True) -> str:
    out = StringIO()
    console = Console(
        file=out, width=width, force_terminal=terminal or None, color_system=None, highlight=False, no_color=True
    )
    what(*arguments, console) if what is not print_summary else what(arguments[0], console, *arguments[1:])
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def summary_of(first: str, second: str, rate: float = 0.28):
    votes = [Vote(str(x), first, second, float(x < 200 * rate), 10 + x % 7, 12) for x in range(200)]
    return summarise(tabulate(votes))


def test_the_headline_says_what_the_row_says():
    """`a beats b 78%` and `b beats a 72%` of one pair were reported; now there is one direction and one number."""
    summary = summary_of("new", "old")
    assert headline_of(summary).verdict == "new loses to old: it wins 28% of the time"
    row = next(line for line in printed(200, summary).splitlines() if line.startswith("new against old"))
    assert row.split()[3] == "28%"
    turned = summarise(tabulate([Vote(str(x), "new", "old", float(x < 56)) for x in range(200)]), baseline="new")
    assert headline_of(turned).verdict == "old beats new 72% of the time"


def test_what_was_asked_of_whom_stands_above():
    facts = {"judge": "stories (version 1)", "prompts": "stories/heldout", "n": 200, "temperature": 0.7}
    text = printed(200, summary_of("x", "y"), facts)
    assert text.startswith("judge stories (version 1), prompts stories/heldout, n 200, temperature 0.7\n")


LONG = "organisation/a-model-with-a-name-that-goes-on-and-on-2026-11-27@revision-0123456789abcdef"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132])
def test_no_number_is_cut_at_any_width(width):
    summary = summary_of(LONG, f"{LONG}-b")
    category = Category(value="writing", prompts=10, pairs=[summary.pairs[0].comparison])
    text = printed(width, summary, None, (category,))
    assert max(map(len, text.splitlines())) <= width and "\N{HORIZONTAL ELLIPSIS}" not in text
    one = summary.pairs[0].comparison
    whole = f"{100 * one.win_rate:.0f}% [{100 * one.low:.0f}, {100 * one.high:.0f}]"
    for value in (whole, "200", "p < 0.0001", f"{summary.ratings[0].rating:.0f}"):
        assert value in text, value
    letters = re.sub(r"[^A-Za-z0-9@/-]", "", text)
    assert width < 80 or LONG in re.sub(r"\s", "", letters), "names wrap, and lose nothing"


def test_a_pipe_gets_each_row_on_one_line():
    summary = summary_of(LONG, f"{LONG}-b")
    lines = printed(80, summary, terminal=False).splitlines()
    row = next(line for line in lines if line.startswith(LONG) and "p < " in line)
    assert "28% [" in row and "p < 0.0001" in row and row.rstrip().endswith(f"{summary.pairs[0].prompts_needed}")


def test_the_table_of_a_run_keeps_its_numbers_too():
    rate = {"value": 0.995, "low": 0.972, "high": 1.0, "n": 200, "ties": 0, "unscored": 0}
    row = {
        "iteration": 1,
        "win_rate_vs_start": rate,
        "win_rate_vs_previous": rate,
        "mean_score": 0.5,
        "reward_accuracy": {"value": 0.75},
        "kl_to_start": 12.5,
        "mean_length": 100.0,
        "truncated": 0.001,
        "seconds": {"policy": 12345.0},
    }
    for width in (40, 80):
        text = printed(width, [row], what=print_iterations)
        assert max(map(len, text.splitlines())) <= width
        assert "99.5 [97.2, 100.0]" in text and "12345" in text and "0.1%" in text


def test_titles_wrap_between_words_and_columns_move_below():
    text = printed(
        30,
        ("who", "a long title", "b"),
        [("x" * 40, "1,234,567", "p = 0.012")],
        what=lambda *a: print_table(a[-1], *a[:-1]),
    )
    assert "1,234,567" in text and "p = 0.012" in text and "a long" in text
    assert max(map(len, text.splitlines())) <= 30


def test_a_pair_that_nobody_scored_has_a_dash():
    summary = summarise(
        tabulate([Vote("p", "x", "y", float("nan")), Vote("p", "x", "z", 1.0), Vote("q", "x", "z", 0.0)])
    )
    assert any(isinstance(pair.comparison, Comparison) and pair.comparison.win_rate is None for pair in summary.pairs)
    assert "y against x" in printed(100, summary) or "x against y" in printed(100, summary)
