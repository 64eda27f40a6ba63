"""A server that answers badly while it labels: for one try of a call, or until someone fixes it."""

import random
from pathlib import Path

from faults import OTHER, Known, Outcome, settle
from misbehaving import FAULTS, HOSTILE, serving, url
from running import PAIRS_IN_A_BATCH, start
from tiny_project import write_project

ORDERS = 2
"""A pairwise judge is asked about each pair in both orders."""


def say(text: str) -> str:
    """The verdict of a good server: it prefers the shorter text, which is right on the gold set more often than not."""
    first, second = text.split("|||")
    return "[[A]]" if (len(first), first) < (len(second), second) else "[[B]]"


def bad_server(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """From some call on, one or all of the tries get an answer that is none; then the server is fixed."""
    fault = (*FAULTS, *HOSTILE)[number % len((*FAULTS, *HOSTILE))]
    begins, lasts = draw.randrange(2 * ORDERS * PAIRS_IN_A_BATCH), draw.choice((1, 2, 10_000))
    fixed, calls = [False], [0]

    def strike(text: str, tried: int) -> str:
        calls[0] += 1
        return fault if not fixed[0] and begins < calls[0] <= begins + lasts else ""

    detail = f"{fault}, from call {begins + 1} on, {lasts} time(s)"
    with serving(strike, say) as server:
        project = write_project(folder, url(server)).parent
        first = start(project)
        fixed[0] = True
        outcome = settle("bad server", detail, project, first, known.served)
        paid = max(server.answered.values())
    if outcome.came != OTHER and paid > 2:
        return Outcome("bad server", detail, OTHER, f"an answer that was read was asked for {paid} times")
    return outcome
