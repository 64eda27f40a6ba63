"""Blanks out what a judge only quotes: blocks between fences, and lines that begin with `>`.

A verdict in them is not the judge's own. Left out: code that is indented, which small judges do to their verdict too.
"""

import re
from typing import NamedTuple

FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})(.*)")
QUOTED_LINE = re.compile(r"^[ \t]*>.*$", re.MULTILINE)


class Block(NamedTuple):
    """Places of a fenced block in a text, and of what is inside it."""

    start: int
    inside: int
    inside_end: int
    end: int


def without_quotations(text: str) -> str:
    """Return a text of the same length, with blanks for fenced blocks and quoted lines.

    Where one fenced block is all there is, as some judges fence what they say, its inside is read instead.
    """
    blocks = fenced_blocks(text)
    if len(blocks) == 1 and not (text[: blocks[0].start] + text[blocks[0].end :]).strip():
        only = blocks[0]
        inside = without_quotations(text[only.inside : only.inside_end])
        return blank(text[: only.inside]) + inside + blank(text[only.inside_end :])
    parts, place = [], 0
    for block in blocks:
        parts += [text[place : block.start], blank(text[block.start : block.end])]
        place = block.end
    return without_quoted_lines("".join([*parts, text[place:]]))


def without_quoted_lines(text: str) -> str:
    """Return a text of the same length, with blanks for the lines that begin with `>`."""
    return QUOTED_LINE.sub(lambda line: blank(line[0]), text)


def fenced_blocks(text: str) -> list[Block]:
    """Return the blocks between fences, as in CommonMark: one that is not closed goes on to the end."""
    found: list[Block] = []
    opened, bar, place = (0, 0), "", 0
    for line in text.split("\n"):
        end = place + len(line)
        fence = FENCE.match(line)
        if fence and not bar and "`" not in fence[2]:
            opened, bar = (place, min(end + 1, len(text))), fence[1]
        elif fence and bar and fence[1].startswith(bar) and not fence[2].strip():
            found.append(Block(*opened, place, end))
            bar = ""
        place = end + 1
    return [*found, Block(*opened, len(text), len(text))] if bar else found


def blank(text: str) -> str:
    """Return as many blanks, line ends kept."""
    return re.sub(r"[^\n]", " ", text)
