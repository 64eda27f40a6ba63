"""A comparison on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfplay.formatting import DASH, bounds_text, chance_text, display_name, level_text, points_text, rate_text
from selfplay.report.headline import headline_of
from selfplay.report.tables import cycle_sentences
from selfplay.stats.summary import Summary

WIDEST_TABLE = 120


def print_summary(summary: Summary, console: Console) -> None:
    """The verdict, every pair, the ratings, differences against the baseline, and what does not fit."""
    console.width = max(console.width, WIDEST_TABLE)  # in a pipe or a narrow terminal no number is cut off
    found = headline_of(summary)
    console.print(Text.assemble((found.verdict, "bold"), f" {found.interval}\n"))
    rows = []
    for pair in summary.pairs:
        one = pair.comparison
        rows.append(
            (
                f"{display_name(one.a)} over {display_name(one.b)}",
                rate_text(one),
                level_text(pair.length_controlled),
                str(one.n),
                str(one.ties),
                str(one.unscored),
                chance_text(pair.p_adjusted),
                "yes" if pair.significant else "no",
                f"{pair.prompts_needed:,}" if pair.prompts_needed else DASH,
            )
        )
    console.print(
        _table(
            ("pair", "win rate", "at equal length", "prompts", "ties", "unscored", "sign test", "told apart", "needed"),
            rows,
        )
    )
    if summary.ratings:
        console.print(
            _table(
                ("rating", "points", "95% interval"),
                [
                    (display_name(one.model), f"{one.rating:.0f}", bounds_text(one.low, one.high))
                    for one in summary.ratings
                ],
            )
        )
    if summary.differences:
        console.print(
            _table(
                (f"against {display_name(summary.baseline)}, on the same prompts", "difference"),
                [
                    (
                        f"{display_name(one.a)} less {display_name(one.b)}",
                        points_text(one.difference, one.low, one.high),
                    )
                    for one in summary.differences
                ],
            )
        )
    notes = [f"no order fits: {sentence}" for sentence in cycle_sentences(summary)]
    notes += [f"ratings: {summary.ratings_note}"] if summary.ratings_note else []
    for note in notes:
        console.print(Text(note))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table whose first column is text and whose others are numbers; nothing in a cell is markup."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
