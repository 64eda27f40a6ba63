"""A jury: several judges vote on each pair. Where too few of them can be read, there is no verdict."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from judges.spec.modes import JurySpec
from judges.verdicts import EVEN, aggregate_verdicts, stop_if_failing, winner
from selfplay.records import Completion, Pair, Prompt, Verdict


class JuryJudge:
    """Aggregates the verdicts of its members, whose own files say how each of them judges."""

    def __init__(self, spec: JurySpec, judges: Sequence[Any]) -> None:
        self.spec, self.judges = spec, judges
        self.names = [f"{place}. {judge.spec.name}" for place, judge in enumerate(judges, 1)]
        self.weights = [member.weight for member in spec.members]

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair, of order "none"; `raw` holds each member's preference as JSON."""
        said_by = [judge.judge(pairs) for judge in self.judges]
        settled = [aggregate_verdicts(rows, judge.spec) for rows, judge in zip(said_by, self.judges, strict=True)]
        errors = [{row.pair_id: row.error for row in rows if row.error} for rows in said_by]
        verdicts = []
        for pair in pairs:
            votes = [one.get(pair.id) for one in settled]
            preference = self._aggregate(votes)
            said = dict(zip(self.names, votes, strict=True))
            verdicts.append(
                Verdict(
                    pair_id=pair.id,
                    judge=self.spec.name,
                    order="none",
                    preference=preference,
                    reason=in_words(said),
                    raw=json.dumps(said),
                    error=""
                    if preference is not None
                    else self._too_few(votes, [one.get(pair.id, "") for one in errors]),
                )
            )
        stop_if_failing(self.spec.name, verdicts, self.spec.on_error)
        return verdicts

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        """Return the members' scores, aggregated; a majority of scores is their median."""
        columns = [judge.score(prompts, completions) for judge in self.judges]
        return [self._aggregate(list(votes), of_scores=True) for votes in zip(*columns, strict=True)]

    def _too_few(self, votes: Sequence[float | None], errors: Sequence[str]) -> str:
        given = sum(vote is not None for vote in votes)
        why = "; ".join(f"{name}: {error}" for name, error in zip(self.names, errors, strict=True) if error)
        return (
            f"only {given} of {len(votes)} members gave a verdict; the quorum is {self.spec.least}{why and f' ({why})'}"
        )

    def _aggregate(self, votes: Sequence[float | None], of_scores: bool = False) -> float | None:
        weighed = [(vote, weight) for vote, weight in zip(votes, self.weights, strict=True) if vote is not None]
        if len(weighed) < self.spec.least:
            return None
        if self.spec.aggregation == "mean":
            return sum(vote * weight for vote, weight in weighed) / sum(weight for _, weight in weighed)
        if self.spec.aggregation == "minimum":
            return min(vote for vote, _ in weighed) if of_scores else least_decided([vote for vote, _ in weighed])
        return majority(weighed) if self.spec.aggregation == "majority" and not of_scores else median(weighed)


def median(weighed: Sequence[tuple[float, float]]) -> float:
    """Weighted median of (value, weight); halfway between two values that have half the weight on each side."""
    ordered = sorted(weighed)
    half, before = sum(weight for _, weight in ordered) / 2, 0.0
    for place, (value, weight) in enumerate(ordered):
        before += weight
        if abs(before - half) <= EVEN:
            return (value + ordered[place + 1][0]) / 2
        if before > half:
            return value
    raise ValueError("a median needs a value")


def majority(weighed: Sequence[tuple[float, float]]) -> float:
    """1 or 0 if that winner has more weight than the other and than the ties, else 0.5."""
    weight_of = {"first": 0.0, "second": 0.0, "tie": 0.0}
    for vote, weight in weighed:
        weight_of[winner(vote) or "tie"] += weight
    for name, preference in (("first", 1.0), ("second", 0.0)):
        if all(weight_of[name] > weight + EVEN for other, weight in weight_of.items() if other != name):
            return preference
    return 0.5


def least_decided(votes: Sequence[float]) -> float:
    """Return the preference closest to one half if all prefer the same response, else a tie."""
    winners = {winner(vote) for vote in votes}
    return min(votes, key=lambda vote: abs(vote - 0.5)) if len(winners) == 1 else 0.5


def in_words(said: Mapping[str, float | None]) -> str:
    """Return how each member voted."""
    return ", ".join(
        f"{name}: " + ("no verdict" if vote is None else f"{winner(vote)} ({vote:.2f})") for name, vote in said.items()
    )


def disagreement(verdicts: Sequence[Verdict]) -> float | None:
    """Share of all pairs of members' readable votes on the same pair that name different winners; None without any."""
    apart = []
    for verdict in verdicts:
        votes = [winner(vote) for vote in json.loads(verdict.raw or "{}").values() if vote is not None]
        apart += [one != other for one, other in combinations(votes, 2)]
    return fmean(apart) if apart else None
