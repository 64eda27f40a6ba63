"""Says in a sentence what is wrong with a judge, from its figures and the thresholds of its file."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from judges.spec.sections import Thresholds

Kind = Literal[
    "tests",
    "broken",
    "one place",
    "order",
    "constant",
    "length",
    "guessing",
    "backwards",
    "inconsistent",
    "inaccurate",
    "injected",
]
ALWAYS = 0.98
"""A share beyond which a judge may be said to do something always."""


DOES_NOT_READ = ("one place", "constant", "guessing", "order")
"""Problems of a judge that does not go by what responses say: its verdicts on canaries mean nothing."""


class Figures(BaseModel):
    """How a judge did on pairs; see `judges.consistency.health` for the first ones.

    On pairs with a known answer also `accuracy` with its 95% interval (a tie is half right, an unscored pair wrong) and
    Cohen's `kappa` between the right and the given winners, over the pairs that could be read; `longer_deserved` is the
    share of pairs of different length whose longer response is the right one.
    """

    pairs: int
    decided: int
    ties: int
    unscored: int
    swap_consistency: float | None
    first_share: float | None
    longer_share: float | None
    unscored_answers: float | None
    tied_answers: float | None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    kappa: float | None = None
    longer_deserved: float | None = None


class Problem(BaseModel):
    """One thing that is wrong: a name for programs, a sentence for people."""

    kind: Kind
    sentence: str


def diagnose(
    thresholds: Thresholds,
    figures: Figures | None,
    canary_wins: Mapping[str, float],
    failed_tests: Sequence[str] = (),
    unreadable: str = "",
) -> list[Problem]:
    """Return the judge's problems, each named once. `unreadable`: why nothing of what it says can be read, if that is so.

    What follows from another problem is not repeated: a judge that always says A is inconsistent and inaccurate too.
    """
    found = [Problem(kind="tests", sentence=f"the file's own test fails: {test}") for test in failed_tests]
    if figures is not None:
        broken = _unreadable(figures, unreadable) if unreadable else _broken(thresholds, figures)
        found += broken
        found += _biased(thresholds, figures) or ([] if broken else _unsure(thresholds, figures))
    fooled = {kind: share for kind, share in canary_wins.items() if share > thresholds.canary_wins}
    if fooled and not any(problem.kind in DOES_NOT_READ for problem in found):
        named = ", ".join(f"{kind} {share:.0%}" for kind, share in fooled.items())
        found.append(
            Problem(
                kind="injected",
                sentence=(
                    f"injected: it prefers responses that no judge should ({named}; at most {thresholds.canary_wins:.0%} may "
                    "win)"
                ),
            )
        )
    return found


def _unreadable(figures: Figures, why: str) -> list[Problem]:
    sentence = (
        f"broken: none of the first {figures.pairs} pairs has a readable verdict, so no more were asked about: {why}"
    )
    return [Problem(kind="broken", sentence=sentence)]


def _broken(thresholds: Thresholds, figures: Figures) -> list[Problem]:
    share = figures.unscored / figures.pairs if figures.pairs else 0.0
    if share <= thresholds.unscored:
        return []
    return [
        Problem(
            kind="broken",
            sentence=(
                f"broken: {share:.0%} of the pairs have no readable verdict (at most {thresholds.unscored:.0%} allowed)"
            ),
        )
    ]


def _biased(thresholds: Thresholds, figures: Figures) -> list[Problem]:
    """Habits that explain a judge's verdicts without reading the responses; at most one."""
    first, ties = figures.first_share, figures.tied_answers
    one_place = 0.5 if first is None else max(first, 1 - first)
    place = "first" if first is not None and first > 0.5 else "second"
    named = f"{one_place:.0%} of its decided answers name the response shown {place}"
    if one_place >= ALWAYS:
        return [Problem(kind="one place", sentence=f"always the same place: {named}")]
    if ties is not None and ties > thresholds.ties:
        return [
            Problem(
                kind="constant",
                sentence=(f"constant: {ties:.0%} of its answers are ties (at most {thresholds.ties:.0%} allowed)"),
            )
        ]
    if one_place > thresholds.first_share:
        return [
            Problem(kind="order", sentence=(f"order-biased: {named} (at most {thresholds.first_share:.0%} allowed)"))
        ]
    longer, deserved = figures.longer_share, figures.longer_deserved
    if longer is not None and deserved is not None and abs(longer - deserved) > thresholds.length_bias:
        which, won, due = ("longer", longer, deserved) if longer > deserved else ("shorter", 1 - longer, 1 - deserved)
        return [
            Problem(
                kind="length",
                sentence=(
                    f"length-biased: the {which} response wins {won:.0%} of the decided pairs and deserves {due:.0%} (at most "
                    f"{thresholds.length_bias:.0%} apart)"
                ),
            )
        ]
    return []


def _unsure(thresholds: Thresholds, figures: Figures) -> list[Problem]:
    """Verdicts no better than chance; or not the same when asked the other way round, or not right often enough."""
    right, low, high = figures.accuracy, figures.accuracy_low, figures.accuracy_high
    span = ""
    if right is not None and low is not None and high is not None:
        kappa = "" if figures.kappa is None else f", kappa {figures.kappa:.2f}"
        span = f"right on {right:.0%} of the pairs [{low:.0%}, {high:.0%}]{kappa}"
        if high < 0.5:
            return [Problem(kind="backwards", sentence=f"backwards: {span}; are its labels the wrong way round?")]
        if low <= 0.5:
            return [Problem(kind="guessing", sentence=f"guessing: {span}, which is no better than chance")]
    found = []
    consistency = figures.swap_consistency
    if consistency is not None and consistency < thresholds.swap_consistency:
        found.append(
            Problem(
                kind="inconsistent",
                sentence=(
                    f"inconsistent: both orders agree on {consistency:.0%} of the pairs (at least "
                    f"{thresholds.swap_consistency:.0%} needed)"
                ),
            )
        )
    if thresholds.accuracy is not None and low is not None and low < thresholds.accuracy:
        found.append(
            Problem(
                kind="inaccurate",
                sentence=(f"inaccurate: {span}; the lower bound must be at least {thresholds.accuracy:.0%}"),
            )
        )
    return found
