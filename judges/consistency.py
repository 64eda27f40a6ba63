"""How a judge behaved on pairs: swap consistency, the place shown first, length, what could not be read."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from judges.spec.base import JudgeSpec
from judges.verdicts import to_preferences, winner
from selfplay.records import Pair, Verdict


def health(pairs: Sequence[Pair], verdicts: Sequence[Verdict], spec: JudgeSpec | None = None) -> dict[str, Any]:
    """Return how the judge behaved on these pairs. Shares are in [0, 1], null where there is nothing to take a share of.

    `pairs`, `decided`, `ties`, `unscored`: counts of pairs, as in `to_preferences`, identical ones left out.
    `swap_consistency`: share of pairs with both orders read on which both say the same (first, second, or tie).
    `first_share`: share of decided answers that chose the place shown first; a judge without order has none.
    `longer_share`: share of decided pairs, of different length in characters, whose longer response was preferred.
    `unscored_answers`: share of single verdicts (each order by itself) that could not be read; `tied_answers`: share of
    the readable ones that are ties.
    """
    by_id = {pair.id: pair for pair in pairs if pair.first.text != pair.second.text}
    rows = [verdict for verdict in verdicts if verdict.pair_id in by_id]
    decided, counts = to_preferences(list(by_id.values()), rows, spec)
    unequal = [preference for preference in decided if len(preference.chosen.text) != len(preference.rejected.text)]
    longer = [len(preference.chosen.text) > len(preference.rejected.text) for preference in unequal]
    return {
        "pairs": counts["pairs"],
        "decided": counts["decided"],
        "ties": counts["ties"],
        "unscored": counts["unscored"],
        "swap_consistency": _share(_consistent(rows)),
        "first_share": _share(_chose_first(rows)),
        "longer_share": _share(longer),
        "unscored_answers": _share([row.preference is None for row in rows]),
        "tied_answers": _share([winner(row.preference) == "tie" for row in rows if row.preference is not None]),
    }


def _consistent(rows: Sequence[Verdict]) -> list[bool]:
    """For each pair with two readable orders, whether they name the same winner."""
    by_pair: dict[str, dict[str, Verdict]] = defaultdict(dict)
    for row in rows:
        if row.preference is not None:
            by_pair[row.pair_id][row.order] = row
    both = [orders for orders in by_pair.values() if {"forward", "reversed"} <= orders.keys()]
    return [winner(orders["forward"].preference) == winner(orders["reversed"].preference) for orders in both]


def _chose_first(rows: Sequence[Verdict]) -> list[bool]:
    """For each decided answer about two shown responses, whether it chose the one shown first."""
    return [
        (winner(row.preference) == "first") == (row.order == "forward")
        for row in rows
        if row.order != "none" and winner(row.preference) in ("first", "second")
    ]


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
