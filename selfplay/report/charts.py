"""The kinds of chart: lines over iterations or steps, a matrix, ratings with intervals, stacked bars.

Each takes numbers and gives a `Figure`; what they mean is said by `panels`.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from html import escape

from selfplay.formatting import bounds_text, hundredths
from selfplay.report.svg import DASHES, MARKERS, Figure, Scale, Series, fitted, percent, plain, text_width, ticks


def words(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    """Return a line of text."""
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{round(x, 2)}" y="{round(y, 2)}" text-anchor="{anchor}">{escape(text)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, kind: str, dash: str = "") -> str:
    """Return a thin straight line."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="currentColor"{dashes}/>'


def box(x: float, y: float, width: float, height: float, paint: str) -> str:
    """Return a rectangle with slightly rounded corners."""
    return f'<rect x="{x}" y="{y}" width="{round(width, 2)}" height="{height}" rx="2" {paint}/>'


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_format: Callable[[float], str] = plain,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    reference: tuple[float, str] | None = None,
    include: Sequence[float] = (),
    breaks: Sequence[tuple[float, str]] = (),
    note: str = "",
) -> Figure:
    """Lines with markers and 95% bars. `include` are y values the axis must show; `breaks` are marked places on x."""
    width, height, right = 360, 216, 346
    top, bottom = 10 + 18 * (len(series) > 1) + 12 * bool(breaks), 180
    ys = [value for one in series for part in (one.y, one.low, one.high) for value in part if value is not None]
    ys += [*include, *([reference[0]] if reference else [])]
    y_ticks = ticks(min(ys), max(ys))
    left = max(36, 14 + 7 * max(len(y_format(tick)) for tick in y_ticks))
    xs = [value for one in series for value in one.x]
    marks = list(x_ticks) if x_ticks else [(t, plain(t)) for t in ticks(min(xs), max(xs)) if min(xs) <= t <= max(xs)]
    low, high = min([*xs, *(mark[0] for mark in marks)]), max([*xs, *(mark[0] for mark in marks)])
    padding = 0.06 * ((high - low) or 1.0) if series[0].markers else 0.0
    x, y = Scale(low - padding, high + padding, left, right), Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = []
    for tick in y_ticks:
        parts.append(rule(left, y(tick), right, y(tick), "grid"))
        parts.append(words(left - 6, y(tick) + 4, y_format(tick), "end", "muted"))
    parts += [words(at, bottom + 15, label, "middle", "muted") for at, label in apart(marks, x, 0.5)]
    parts += [rule(x(place), top, x(place), bottom, "muted", "1 3") for place, _ in breaks]
    parts += [words(at, top - 5, label, kind="muted") for at, label in apart(breaks, x, 0)]
    if reference:
        parts.append(rule(left, y(reference[0]), right, y(reference[0]), "muted", "4 3"))
        parts.append(words(right, y(reference[0]) - 4, reference[1], "end", "muted"))
    parts.append(words((left + right) / 2, height - 4, x_label, "middle", "muted"))
    cuts = [place for place, _ in breaks]
    parts += [_line(one, index, x, y, y_format, cuts) for index, one in enumerate(series)]
    if len(series) > 1:
        parts.append(_legend(series, left))
    return Figure(name, title, "".join(parts), width, height, note)


def apart(labels: Sequence[tuple[float, str]], x: Scale, share: float) -> list[tuple[float, str]]:
    """Places in drawing units of those labels that do not run into the one before; `share` of a label is left of it."""
    found: list[tuple[float, str]] = []
    free = -math.inf
    for place, label in labels:
        width = text_width(label)
        if x(place) - share * width >= free:
            found.append((x(place), label))
            free = x(place) + (1 - share) * width + 6
    return found


def _legend(series: Sequence[Series], at: float) -> str:
    """Names of the lines, in their colours, above the plot."""
    parts = []
    for index, one in enumerate(series):
        parts.append(f'<g class="c{one.colour}">{marker(index, at + 4, 10)}{words(at + 12, 14, one.name)}</g>')
        at += 30 + round(6.8 * len(one.name))
    return "".join(parts)


def _line(
    one: Series, index: int, x: Scale, y: Scale, y_format: Callable[[float], str], cuts: Sequence[float] = ()
) -> str:
    """Return one line with its bars and markers, not joined across a cut on x; each marker tells its value."""
    dash = f' stroke-dasharray="{DASHES[index % 4]}"' if DASHES[index % 4] else ""
    pieces: dict[int, list[str]] = {}
    for a, b in zip(one.x, one.y, strict=True):
        pieces.setdefault(bisect(cuts, a), []).append(f"{x(a)},{y(b)}")
    parts = [
        f'<polyline points="{" ".join(points)}" fill="none" stroke="currentColor" stroke-width="1.8" '
        f'stroke-linejoin="round"{dash}/>'
        for points in pieces.values()
    ]
    for k, (a, b) in enumerate(zip(one.x, one.y, strict=True)):
        low, high = (one.low[k], one.high[k]) if k < len(one.low) else (None, None)
        value = f"{one.name}: {y_format(b)}"
        if low is not None and high is not None:
            value += f" [{y_format(low)}, {y_format(high)}]"
            parts.append(
                f'<path d="M{x(a)} {y(low)}V{y(high)}M{x(a) - 4} {y(low)}h8M{x(a) - 4} {y(high)}h8" '
                f'stroke="currentColor" stroke-width="1.3" fill="none"/>'
            )
        if one.markers:
            parts.append(f"<g><title>{escape(value)}</title>{marker(index, x(a), y(b))}</g>")
    return f'<g class="c{one.colour}">{"".join(parts)}</g>'


def marker(index: int, x: float, y: float) -> str:
    """Return a filled mark of about 7 units, of one shape per line."""
    shape = MARKERS[index % 4]
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="3.6" fill="currentColor"/>'
    paths = {
        "square": f"M{x - 3.3} {y - 3.3}h6.6v6.6h-6.6z",
        "triangle": f"M{x} {y - 4.2}l4 7h-8z",
        "diamond": f"M{x} {y - 4.6}l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    }
    return f'<path d="{paths[shape]}" fill="currentColor"/>'


def matrix_chart(
    name: str, title: str, labels: Sequence[str], rates: Sequence[Sequence[float | None]], note: str = ""
) -> Figure:
    """Win rates of rows over columns: blue where the row wins, orange where it loses, the number in every cell.

    Names too long to stand above a column are numbered, and shortened in the middle.
    """
    wide = max(map(text_width, labels)) > 90
    rows = [f"{fitted(label, 240)} ({place})" if wide else label for place, label in enumerate(labels, 1)]
    columns = [f"({place})" if wide else label for place, label in enumerate(labels, 1)]
    cell_w, cell_h, left, top = max(70, 10 + max(map(text_width, columns))), 36, 12 + max(map(text_width, rows)), 26
    parts = []
    for row, label in enumerate(rows):
        middle = top + cell_h * (row + 0.5) + 4
        parts.append(words(left + cell_w * (row + 0.5), top - 9, columns[row], "middle", "muted"))
        parts.append(words(left - 8, middle, label, "end"))
        for column, rate in enumerate(rates[row]):
            x, y = left + cell_w * column, top + cell_h * row
            place = (x + 1, y + 1, cell_w - 2, cell_h - 2)
            if rate is None:
                parts.append(box(*place, 'class="grid" fill="currentColor" fill-opacity="0.35"'))
                continue
            strength = round(min(1.0, abs(rate - 0.5) * 2) ** 0.8 * 0.6, 3)
            colour = "c0" if rate >= 0.5 else "c1"
            parts.append(box(*place, f'class="{colour}" fill="currentColor" fill-opacity="{strength}"'))
            parts.append(box(*place, 'class="grid" fill="none" stroke="currentColor"'))
            parts.append(words(x + cell_w / 2, middle, f"{hundredths(rate)}%", "middle"))
    return Figure(name, title, "".join(parts), left + cell_w * len(labels) + 8, top + cell_h * len(labels) + 8, note)


def interval_chart(
    name: str,
    title: str,
    rows: Sequence[tuple[str, float, float | None, float | None]],
    x_label: str,
    note: str = "",
) -> Figure:
    """Rows of (label, value, low, high) as dots with bars over one axis, 0 marked; a side without a bound is an arrow."""
    width, row_h, top = 360, 30, 8
    names = [fitted(row[0], 160) for row in rows]
    left, base = 16 + max(map(text_width, names)), top + row_h * len(rows)
    ends = [value for row in rows for value in row[1:] if value is not None]
    marks = ticks(min(0.0, *ends), max(0.0, *ends))
    x = Scale(marks[0], marks[-1], left, width - 18)
    parts = []
    parts += [rule(x(tick), top, x(tick), base, "muted" if tick == 0 else "grid") for tick in marks]
    said = apart([(tick, plain(tick)) for tick in marks], x, 0.5)
    parts += [words(at, base + 14, label, "middle", "muted") for at, label in said]
    for index, (label, value, low, high) in enumerate(rows):
        y = top + row_h * (index + 0.5)
        left_end, right_end = x(marks[0] if low is None else low), x(marks[-1] if high is None else high)
        left_tip = f"M{left_end + 5} {y - 4}l-5 4l5 4" if low is None else f"M{left_end} {y - 4}v8"
        right_tip = f"M{right_end - 5} {y - 4}l5 4l-5 4" if high is None else f"M{right_end} {y - 4}v8"
        bar = f"M{left_end} {y}H{right_end}{left_tip}{right_tip}"
        parts.append(words(left - 10, y + 4, names[index], "end"))
        parts.append(
            f'<g class="c0"><title>{escape(label)}: {plain(value)} {bounds_text(low, high)}</title><path '
            f'd="{bar}" stroke="currentColor" stroke-width="1.6" fill="none"/>{marker(0, x(value), y)}</g>'
        )
    parts.append(
        words(min((left + width) / 2, width - 4 - text_width(x_label) / 2), base + 30, x_label, "middle", "muted")
    )
    return Figure(name, title, "".join(parts), width, base + 36, note)


def bar_chart(
    name: str,
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    pieces: Sequence[str],
    label: Callable[[float], str] = percent,
    note: str = "",
) -> Figure:
    """Stacked bars: for each row its label and one length per piece; pieces are named above, `label` says a length."""
    width, row_h, left = 480, 30, 78
    parts, at, line = [], float(left), 0
    paints = [
        f'class="c{index % 6}" fill="currentColor" fill-opacity="{0.85 - 0.3 * (index // 6 % 2)}"'
        for index in range(len(pieces))
    ]
    for piece, paint in zip(pieces, paints, strict=True):
        if at + 20 + 7 * len(piece) > width:
            at, line = float(left), line + 1
        parts += [box(at, 4 + 18 * line, 10, 10, paint), words(at + 15, 13 + 18 * line, piece)]
        at += 28 + 7 * len(piece)
    top = 28 + 18 * line
    x = Scale(0, max((sum(values) for _, values in rows), default=0) or 1.0, left, width - 90)
    for row, (row_label, values) in enumerate(rows):
        y, position = top + row_h * row, 0.0
        parts.append(words(left - 8, y + 16, row_label, "end"))
        for piece, value, paint in zip(pieces, values, paints, strict=True):
            begin, end = x(position), x(position + value)
            position += value
            if end - begin > 0.3:
                bar = box(begin, y + 2, max(0.3, end - begin - 1), row_h - 8, paint)
                parts.append(f"<g><title>{escape(f'{piece}: {label(value)}')}</title>{bar}</g>")
        parts.append(words(x(position) + 6, y + 16, label(position), kind="muted"))
    return Figure(name, title, "".join(parts), width, top + row_h * len(rows) + 4, note)
