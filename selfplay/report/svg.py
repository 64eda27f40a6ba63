"""Charts as SVG: drawn once, shown in the report in the reader's theme, or saved by themselves for a paper.

A figure holds plain SVG elements whose colours are classes (`c0` to `c5`, `muted`, `grid`), so the page decides them.
The palette is Okabe and Ito's (2008), which colour-blind readers can tell apart; lines differ in marker and dash too.
Left out on purpose: interaction. Every point carries its value as a tooltip, and the tables hold all numbers.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from selfplay.formatting import hundredths, shortened

PALETTE = ("#0072b2", "#d55e00", "#008f6a", "#a8579b", "#8a6d00", "#4a4a4a")
"""Okabe-Ito, darkened where needed for text on white (contrast of at least 4.5)."""
MARKERS = ("circle", "square", "triangle", "diamond")
DASHES = ("", "5 3", "2 2", "8 3 2 3")
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Figure:
    """One drawing: `body` is SVG in a box of width x height units."""

    name: str
    title: str
    body: str
    width: int
    height: int
    note: str = ""

    def inline(self) -> str:
        """Return the drawing for a page that brings the colours."""
        return (
            f'<svg class="figure" width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-label="{escape(self.title)}">'
            f"{self.body}</svg>"
        )

    def standalone(self) -> str:
        """Return a whole SVG file on white, with its title."""
        colours = "".join(f".c{index}{{color:{colour}}}" for index, colour in enumerate(PALETTE))
        style = (
            f"svg{{font-family:{FONT};color:#1a1a1a}}text{{fill:currentColor;font-size:12px}}.muted{{color:#5f5f5f}}"
            f".grid{{color:#dcdcdc}}.bold{{font-weight:600}}{colours}"
        )
        size = f'width="{self.width}" height="{self.height + 24}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 -24 {self.width} {self.height + 24}">'
            f'<style>{style}</style><rect y="-24" {size} fill="#ffffff"/>'
            f'<text class="bold" x="8" y="-8">{escape(self.title)}</text>{self.body}</svg>\n'
        )


@dataclass(frozen=True)
class Series:
    """Points of one line, in the order of x; `low` and `high` bound each point's 95% interval where known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    colour: int = 0
    markers: bool = True


def text_width(text: str) -> int:
    """Return an upper bound of the width of a text at 12 px, in drawing units: after DejaVu Sans, the widest font of `FONT`."""
    return math.ceil(sum(map(_letter_width, text)))


def _letter_width(letter: str) -> float:
    """Return an upper bound of one letter's width at 12 px."""
    if not letter.isascii():
        return 17.0 if unicodedata.east_asian_width(letter) in "WF" else 12.1
    if letter in "mwMW@%":
        return 12.1
    if letter in " .,:;'|!iIjJlftr()[]/-\\":
        return 5.0
    if letter in '*_"?${}0123456789' or letter.islower():
        return 7.8
    return 10.2  # the other capitals, and + < = > & #


def fitted(name: str, most: float) -> str:
    """Return a name, shortened in the middle where it would be wider than so many drawing units."""
    return next(
        (short for count in range(len(name), 2, -1) if text_width(short := shortened(name, count)) <= most),
        shortened(name, 2),
    )


def percent(value: float) -> str:
    """Return a share as a percentage of at most three digits; more where it would else read 0 or 100 and is neither."""
    text = f"{100 * value:.3g}"
    return f"{hundredths(value) if float(text) in (0, 100) else text}%"


def plain(value: float) -> str:
    """Return a number with three significant digits, without an exponent where it can be avoided."""
    if value == 0:
        return "0"
    if abs(value) >= 100_000 or abs(value) < 1e-4:
        return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-")
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that span low to high in about `count` steps."""
    if high - low < 1e-12 * abs(high):  # a flat line: half as much above and below
        low, high = low - abs(low) / 2, high + abs(high) / 2
    high = high if high > low else low + 1
    span = high - low
    rough = span / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class Scale:
    """From data to drawing units."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value is drawn."""
        span = (self.high - self.low) or 1.0
        return round(self.begin + (value - self.low) / span * (self.end - self.begin), 2)
