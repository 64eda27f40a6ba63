"""From verdicts to what is done with them: a preference per pair, training pairs, and when to stop."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from judges.spec.base import JudgeSpec
from judges.spec.sections import OnError
from selfplay.errors import JudgeStopped
from selfplay.records import Pair, Preference, Prompt, Verdict, mean_preference

CERTAIN = 1e-3
"""Where odds are taken, nobody is surer than this: a judge that names a winner without a degree says 0.999."""
EVEN = 1e-9
"""A preference this close to one half is a tie."""
EXAMPLES = 3
"""What the judge said where it gave no verdict is shown so many times."""


def aggregate_verdicts(verdicts: Sequence[Verdict], spec: JudgeSpec | None = None) -> dict[str, float | None]:
    """Pair id -> the preference for its first response, over all verdicts on the pair; None if it is unscored.

    Two orders are averaged. With `spec`, its `disagreement`, `margin` and `verdict_temperature` apply: what two orders that
    name different winners give, how close to one half is a tie, and how sure the rest is. A pair of which one order could
    not be read is unscored.
    """
    by_pair: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_pair[verdict.pair_id].append(verdict)
    return {pair_id: _settle_one(rows, spec) for pair_id, rows in by_pair.items()}


def _settle_one(rows: Sequence[Verdict], spec: JudgeSpec | None) -> float | None:
    preference = mean_preference(rows)
    if preference is None:
        return None
    if disagree(rows):
        rule: Literal["mean", "tie", "drop"] = getattr(spec, "disagreement", "mean")
        if rule != "mean":
            return 0.5 if rule == "tie" else None
    if abs(2 * preference - 1) <= _margin(rows, spec) + EVEN:
        return 0.5
    if spec is None or spec.verdict_temperature is None or spec.compares_scores:  # scores were compared with it already
        return preference
    return tempered(preference, spec.verdict_temperature)


def tempered(preference: float, temperature: float) -> float:
    """Return the preference whose log-odds are those of `preference`, held off 0 and 1 by `CERTAIN`, divided by the
    temperature.
    """
    held = min(1 - CERTAIN, max(CERTAIN, preference))
    return logistic(math.log(held / (1 - held)) / temperature)


def logistic(odds: float) -> float:
    """1 / (1 + exp(-odds)), for log-odds of any size."""
    return 1 / (1 + math.exp(-odds)) if odds > 0 else 1 - 1 / (1 + math.exp(odds))


def _margin(rows: Sequence[Verdict], spec: JudgeSpec | None) -> float:
    """Return the margin of preferences: a judge that scores each response (order "none") applied its own to the scores."""
    return spec.margin if spec is not None and rows[0].order != "none" else 0.0


def disagree(rows: Sequence[Verdict]) -> bool:
    """Return whether verdicts on one pair name different winners (a tie names none)."""
    winners = {winner(row.preference) for row in rows}
    return {"first", "second"} <= winners


def winner(preference: float | None) -> Literal["first", "second", "tie"] | None:
    """Who is preferred."""
    if preference is None:
        return None
    return "tie" if abs(preference - 0.5) <= EVEN else "first" if preference > 0.5 else "second"


def to_preferences(
    pairs: Sequence[Pair], verdicts: Sequence[Verdict], spec: JudgeSpec | None = None
) -> tuple[list[Preference], dict[str, int]]:
    """Return the decided pairs as chosen and rejected, in the order of `pairs`, and what became of the rest.

    Counts: `pairs`, `decided`, `ties`, `unscored` (no verdict, or one that could not be read, or two orders that the
    judge's file drops), `identical` (the same text twice: no pair at all). They add up to `pairs`.
    """
    settled = aggregate_verdicts(verdicts, spec)
    counts = dict.fromkeys(("pairs", "decided", "ties", "unscored", "identical"), 0)
    counts["pairs"] = len(pairs)
    decided = []
    for pair in pairs:
        preference = settled.get(pair.id)
        if pair.first.text == pair.second.text:
            counts["identical"] += 1
        elif preference is None:
            counts["unscored"] += 1
        elif winner(preference) == "tie":
            counts["ties"] += 1
        else:
            counts["decided"] += 1
            chosen, rejected = (pair.first, pair.second) if preference > 0.5 else (pair.second, pair.first)
            decided.append(
                Preference(
                    pair_id=pair.id,
                    prompt=pair.prompt,
                    chosen=chosen,
                    rejected=rejected,
                    margin=abs(2 * preference - 1),
                    confidence=max(preference, 1 - preference),
                )
            )
    return decided, counts


def stop_if_failing(judge: str, verdicts: Sequence[Verdict], rule: OnError, expected: int | None = None) -> None:
    """Raise JudgeStopped if more verdicts are unscored than the judge's file allows.

    With `expected`, the number of verdicts there will be in the end, it can stop as soon as the end is certain.
    """
    failed = [verdict for verdict in verdicts if verdict.preference is None]
    total = expected or len(verdicts)
    if not failed or (rule.action == "drop" and len(failed) <= rule.max_failure_rate * total):
        return
    shown = "; ".join(
        f"{verdict.error}: {verdict.raw[:160]!r}" if verdict.raw else f"{verdict.error} ({verdict.pair_id})"
        for verdict in islice({verdict.error: verdict for verdict in failed}.values(), EXAMPLES)
    )
    allowed = f"on_error.max_failure_rate is {rule.max_failure_rate:g}"
    if rule.action == "abort":
        allowed = "on_error.action is abort"
    raise JudgeStopped(
        f"judge {judge!r} gave no verdict on {len(failed)} of {total} ({allowed}): {shown}; see what it "
        "is asked and says with `selfplay judge try`"
    )


def stop_if_unscored(spec: JudgeSpec, prompts: Sequence[Prompt], errors: Sequence[str]) -> None:
    """Raise JudgeStopped if more responses have no score than the judge's file allows; an empty error is a score."""
    verdicts = [
        Verdict(
            pair_id=f"response to {prompt.id}",
            judge=spec.name,
            order="none",
            preference=None if error else 0.5,
            error=error,
        )
        for prompt, error in zip(prompts, errors, strict=True)
    ]
    stop_if_failing(spec.name, verdicts, spec.on_error)
