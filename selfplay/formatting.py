"""How names, rates, durations and amounts are said, the same way in the report, the alarms and the model card."""

import re
from collections.abc import Mapping
from typing import Any

from selfplay.records import Comparison
from selfplay.stats.length_control import LengthControlled

DASH = "\N{EN DASH}"
"""Stands where there is no number."""


def display_name(name: str) -> str:
    """Return a checkpoint's name for people: `iteration-000` is the start, `iteration-001*16` the best of 16 of the first."""
    match = re.fullmatch(r"iteration-(\d+)(?:\*(\d+))?", name)
    if match is None:
        return name
    shown = "start" if int(match[1]) == 0 else f"iteration {int(match[1])}"
    return shown if match[2] is None else f"{shown}, best of {match[2]}"


def facts_text(facts: Mapping[str, Any]) -> str:
    """Return what a comparison rests on, in one line: `judge stories (version 1), prompts stories, n 256, temperature 0.7`."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def shortened(name: str, most: int) -> str:
    """Return a name of at most so many characters: what is left out is in the middle, since ends tell names apart."""
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}\N{HORIZONTAL ELLIPSIS}{name[-(most // 2) :]}"


def hundredths(share: float, places: int = 0) -> str:
    """Return a share in percent, with more decimals where fewer would read 0 or 100 and it is neither: 199 of 200 are `99.5`."""
    for more in range(places, 3):
        text = f"{100 * share:.{more}f}"
        if share in (0, 1) or float(text) not in (0, 100):
            return text
    return ">99.99" if share > 0.5 else "<0.01"


def interval_text(value: float, low: float, high: float) -> str:
    """Return a share and its interval: `81% [76, 86]`."""
    return f"{hundredths(value)}% [{hundredths(low)}, {hundredths(high)}]"


def points_text(share: float, low: float, high: float) -> str:
    """Return a difference of shares in percentage points, with its interval: `5 points [2, 8]`."""
    return f"{100 * share:z.0f} points [{100 * low:z.0f}, {100 * high:z.0f}]"


def bounds_text(low: float | None, high: float | None) -> str:
    """Return the interval of a rating, where a side without a bound is open: `[-8, \N{INFINITY})`."""
    left = "(-\N{INFINITY}" if low is None else f"[{low:z.0f}"
    return f"{left}, " + ("\N{INFINITY})" if high is None else f"{high:z.0f}]")


def rate_text(one: Comparison | None) -> str:
    """Return a win rate with its interval, or a dash."""
    if one is None or one.win_rate is None or one.low is None or one.high is None:
        return DASH
    return interval_text(one.win_rate, one.low, one.high)


def level_text(level: LengthControlled | None) -> str:
    """Return a win rate at equal length, with a sign where it is approximate, or a dash."""
    if level is None:
        return DASH
    mark = "\N{ALMOST EQUAL TO}\N{NO-BREAK SPACE}" if level.approximate else ""
    return mark + interval_text(level.win_rate, level.low, level.high)


def chance_text(p_value: float) -> str:
    """Return a p-value: `p = 0.012`, or `p < 0.0001`."""
    return f"p = {p_value:.2g}" if p_value >= 1e-4 else "p < 0.0001"


def duration(seconds: float) -> str:
    """Seconds as `4.2 s`, `48 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
