"""A comparison on the terminal, and tables that keep their numbers however narrow it is."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfplay.formatting import (
    DASH,
    bounds_text,
    chance_text,
    display_name,
    facts_text,
    level_text,
    points_text,
    rate_text,
)
from selfplay.records import Comparison
from selfplay.report.headline import headline_of
from selfplay.report.tables import SEEDS_TITLES, cycle_sentences, group_sentences, seeds_table
from selfplay.results.seeds import BetweenSeeds
from selfplay.stats.summary import Category, Summary

GAP = 2
"""Spaces between two columns."""
UNBOUNDED = 10_000
"""Width of what is not a terminal: every row on one line."""
NARROWEST_NAME = 16
"""Least width of the first column, whose names wrap where they are longer."""


def print_summary(
    summary: Summary,
    console: Console,
    facts: Mapping[str, Any] | None = None,
    categories: Iterable[Category] = (),
) -> None:
    """Print what was asked of whom, the verdict, every pair, the ratings, differences against the baseline, what does not fit."""
    if not console.is_terminal:
        console.width = UNBOUNDED
    if facts:
        console.print(Text(facts_text(facts)))
    found = headline_of(summary)
    console.print(Text.assemble((found.verdict, "bold"), f" {found.interval}\n"))
    titles = ("row against column", "wins", "at equal length", "prompts", "ties", "unscored")
    rows: list[tuple[str, ...]] = []
    for pair in summary.pairs:
        one = pair.comparison
        counts = (f"{one.n:,}", f"{one.ties:,}", f"{one.unscored:,}")
        told = (chance_text(pair.p_adjusted), "yes" if pair.significant else "no")
        needed = f"{pair.prompts_needed:,}" if pair.prompts_needed else DASH
        rows.append((against(one), rate_text(one), level_text(pair.length_controlled), *counts, *told, needed))
    print_table(console, (*titles, "sign test, Holm", "significant", "prompts needed"), rows)
    console.print()
    for category in categories:
        rows = [(against(one), rate_text(one), f"{one.n:,}") for one in category.pairs if one.n]
        print_table(console, (f"{category.value}: row against column", "wins", "prompts"), rows)
        console.print()
    if summary.ratings:
        rows = [
            (display_name(one.model), f"{one.rating:z.0f}", bounds_text(one.low, one.high)) for one in summary.ratings
        ]
        print_table(console, ("rating", "points", "95% interval"), rows)
        console.print()
    if summary.differences:
        title = f"wins against {display_name(summary.baseline)}: row less column"
        rows = [
            (f"{display_name(one.a)} less {display_name(one.b)}", points_text(one.difference, one.low, one.high))
            for one in summary.differences
        ]
        print_table(console, (title, "difference"), rows)
        console.print()
    notes = [f"not significantly different: {sentence}" for sentence in group_sentences(summary)]
    notes += [f"no order fits: {sentence}" for sentence in cycle_sentences(summary)]
    notes += [f"ratings: {summary.ratings_note}"] if summary.ratings_note else []
    for note in notes:
        console.print(Text(note))


def print_seeds(found: Iterable[BetweenSeeds], console: Console) -> None:
    """Print win rates between seeds, if there are any."""
    rows = [(label, *cells) for label, cells in seeds_table(found)]
    if rows:
        print_table(console, SEEDS_TITLES, rows)


def against(one: Comparison) -> str:
    """Return the row of a pair: whom its numbers speak of, and against whom."""
    return f"{display_name(one.a)} against {display_name(one.b)}"


def print_table(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column names what a row is about; nothing in a cell is markup.

    Numbers are never cut: on a terminal that is too narrow, names and titles wrap, and columns that do not fit stand in
    a further table beneath. What is not a terminal gets every row on one line.
    """
    if not console.is_terminal:
        console.width = UNBOUNDED
    widest = console.width
    cells = [max(len(row[place]) for row in rows) if rows else 0 for place in range(len(titles))]
    widths = [max(cell, len(title)) for cell, title in zip(cells, titles, strict=True)]
    name = widths[0]
    if sum(widths) + GAP * len(widths) > widest:
        widths = [max(cell, *map(len, title.split())) for cell, title in zip(cells, titles, strict=True)]
    if name + sum(width + GAP for width in widths[1:]) > widest:
        most = max(NARROWEST_NAME, widest // 3, widest - sum(width + GAP for width in widths[1:]))
        name = min(name, max(min(most, widest - GAP - max(widths[1:], default=0)), 8))
    for part in _parts(widths, widest - name):
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        table.add_column(Text(titles[0]), width=name, overflow="fold", vertical="top")
        for place in part:
            title = textwrap.fill(titles[place], widths[place], break_long_words=False)
            table.add_column(Text(title, justify="right"), justify="right", no_wrap=True, min_width=widths[place])
        for row in rows:
            table.add_row(Text(row[0]), *(Text(row[place]) for place in part))
        if part[0] > 1:
            console.print()
        console.print(table)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Places of the number columns, in as many groups as it takes for each to fit beside the names."""
    parts: list[list[int]] = [[]]
    for place in range(1, len(widths)):
        if parts[-1] and sum(widths[one] + GAP for one in (*parts[-1], place)) > room:
            parts.append([])
        parts[-1].append(place)
    return parts
