"""The transcripts of a report: for each held-out prompt all checkpoints' answers side by side, with the verdicts.

Whatever a model wrote is hostile: it reaches the page as escaped text only, with characters that would not show, or
that would reorder what does, replaced by visible signs.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.formatting import display_name
from selfplay.results.run import Answer, Match, RunData, TrainingPair, agrees

LONGEST = 20_000
"""Most characters of one text that are shown."""
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but tab and newline, invisible and direction-changing ones, half surrogates; joiners, which some
scripts need, stay."""


def visible(text: str) -> str:
    """Return the text with invisible characters shown by their code points, and with an end where it is too long."""
    shown = INVISIBLE.sub(lambda match: f"\u27e8U+{ord(match[0]):04X}\u27e9", text[:LONGEST].replace("\r\n", "\n"))
    return shown + (f"\n[{len(text) - LONGEST:,} more characters are left out here]" if len(text) > LONGEST else "")


@dataclass(frozen=True)
class Side:
    """One checkpoint's answer to the prompt."""

    name: str
    text: str
    length: str
    truncated: bool
    reward: str


@dataclass(frozen=True)
class Ruling:
    """What the judge said of two of the answers."""

    text: str
    outcome: str
    orders: str
    disagree: bool
    reason: str
    judge: str


@dataclass(frozen=True)
class Transcript:
    """All about one prompt. `outcome` is that of the newest checkpoint against the oldest it met."""

    prompt_id: str
    prompt: str
    outcome: str
    flags: tuple[str, ...]
    sides: tuple[Side, ...]
    rulings: tuple[Ruling, ...]

    @property
    def size(self) -> int:
        """Bytes this takes in the page, about."""
        texts = (self.prompt, *(side.text for side in self.sides), *(ruling.reason for ruling in self.rulings))
        return 900 + sum(len(text.encode("utf-8")) for text in texts)


def transcripts(run: RunData) -> list[Transcript]:
    """Return one per prompt, in the order of the matches."""
    by_prompt: dict[str, list[Match]] = defaultdict(list)
    for match in run.matches:
        by_prompt[match.prompt_id].append(match)
    heldout = [transcript(prompt_id, matches, run.models) for prompt_id, matches in by_prompt.items()]
    return [*heldout, *map(training_transcript, run.training)]


def training_transcript(pair: TrainingPair) -> Transcript:
    """Return a pair that a reward model learned from, beside the held-out ones."""
    sides = tuple(
        Side(name, visible(text), f"{len(text)} characters", False, "")
        for name, text in (("rejected", pair.rejected), ("chosen", pair.chosen))
    )
    said = Ruling(f"chosen, by a margin of {pair.margin:.2f}", "win", "", False, visible(pair.reason), "")
    name = visible(f"{pair.prompt_id}, training pair of iteration {pair.iteration}")
    return Transcript(name, visible(pair.prompt), "training", (), sides, (said,))


def transcript(prompt_id: str, matches: Sequence[Match], order: Sequence[str] = ()) -> Transcript:
    """Return the matches on one prompt, put together; checkpoints stand in an order, by default that of their names."""
    names = list(order) or sorted({name for match in matches for name in (match.a, match.b)})
    place = {name: index for index, name in enumerate(names)}
    answers: dict[str, Answer] = {}
    for match in matches:
        for name, answer in match.sides():  # the first one, or the first with a reward: another run's match has none
            if name not in answers or answers[name].reward is None:
                answers[name] = answer
    deciding = max(matches, key=lambda match: (place[match.a], -place[match.b]))
    rulings = tuple(map(ruling, sorted(matches, key=lambda match: (place[match.a], place[match.b]), reverse=True)))
    flags = [
        flag
        for flag, raised in (
            ("truncated", any(answer.truncated for answer in answers.values())),
            ("disagree", any(one.disagree for one in rulings)),
            ("reward", any(agrees(match) == 0 for match in matches)),
        )
        if raised
    ]
    sides = tuple(
        Side(
            display_name(name),
            visible(answers[name].text),
            _length(answers[name]),
            answers[name].truncated,
            "" if answers[name].reward is None else f"{answers[name].reward:.2f}",
        )
        for name in sorted(answers, key=place.__getitem__)
    )
    return Transcript(
        visible(prompt_id), visible(matches[0].prompt), outcome(deciding.preference), tuple(flags), sides, rulings
    )


def _length(answer: Answer) -> str:
    return f"{answer.length} {'characters' if answer.tokens is None else 'token' if answer.tokens == 1 else 'tokens'}"


def outcome(preference: float | None) -> str:
    """win, loss, tie or unscored, seen from a."""
    return "unscored" if preference is None else "tie" if preference == 0.5 else "win" if preference > 0.5 else "loss"


def ruling(match: Match) -> Ruling:
    """Return one match in words."""
    a, b = display_name(match.a), display_name(match.b)
    result = outcome(match.preference)
    text = {
        "win": f"{a} beats {b}",
        "loss": f"{b} beats {a}",
        "tie": f"{a} and {b} are even",
        "unscored": f"{a} and {b}: no verdict",
    }[result]
    said = [
        f"with {a} shown {place}: {_order(value, a, b)}"
        for place, value in (("first", match.forward), ("second", match.reversed))
        if value is not None
    ]
    disagree = (
        match.forward is not None and match.reversed is not None and outcome(match.forward) != outcome(match.reversed)
    )
    return Ruling(text, result, "; ".join(said), disagree, visible(match.reason or match.error), visible(match.judge))


def _order(value: float, a: str, b: str) -> str:
    names = {"win": a, "loss": b, "tie": "even"}
    return f"{names[outcome(value)]} ({value:.2f})" if value not in (0, 0.5, 1) else names[outcome(value)]


def thinned(found: Sequence[Transcript], most_bytes: int) -> list[Transcript]:
    """As many transcripts as fit, evenly spread over all of them."""
    total = sum(one.size for one in found)
    if total <= most_bytes:
        return list(found)
    keep = max(1, int(len(found) * most_bytes / total))
    chosen = [found[index * len(found) // keep] for index in range(keep)]
    while len(chosen) > 1 and sum(one.size for one in chosen) > most_bytes:
        del chosen[:: max(2, len(chosen) // 16)]
    return chosen
