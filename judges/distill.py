"""What a judge model is taught: questions as judge files render them, with the answers that another judge would have given.

A lesson from any judge's verdict says who wins. One from rules also says what each response earns under each criterion: a
judge file whose question holds the rules' criteria, one after the other behind each response ("a sheet"), can be taught those
points where the criteria stand. Nobody reads them there when the judge is asked, but a small model learns to look things up
far sooner than from verdicts alone.
Left out: pairs that the rules call a tie, and gates, whose share in a verdict is not a number of points.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from judges.audit.check import gold_figures
from judges.audit.gold import GoldPair, written
from judges.build import Judge, build
from judges.llm.parse import AnswerOptions, read
from judges.llm.templates import NAMES, Conversation
from judges.modes.rules import RulesJudge
from judges.modes.scoring import SAME, Assessment
from judges.spec.base import JudgeSpec
from judges.spec.modes import PairwiseSpec, RulesSpec
from judges.verdicts import aggregate_verdicts, winner
from selfplay.errors import ConfigError
from selfplay.records import Message, Pair, Prompt


@dataclass(frozen=True)
class TrainingExample:
    """A question to the judge and what it should say.

    `winner` is the letter of the better response. `points` holds, for each response in the order shown, what it earns under
    each criterion, in the rules' own weights.
    """

    messages: tuple[Message, ...]
    answer: str
    winner: str
    prompt: Prompt
    points: tuple[tuple[float, ...], ...]


class VerdictTeacher:
    """Lessons from verdicts that a judge has given: any judge's, since nothing but the winner is taught."""

    def __init__(self, files: Sequence[JudgeSpec]) -> None:
        """Raise ConfigError for files that are not pairwise."""
        self.files = pairwise_files(files)
        self.conversations = [Conversation(file) for file in self.files]

    def lessons(self, rows: Iterable[GoldPair]) -> Iterator[TrainingExample]:
        """Yield two training examples for each pair and judge file, one per order."""
        for row in rows:
            texts = (row.pair.first.text, row.pair.second.text)
            for file, conversation in zip(self.files, self.conversations, strict=True):
                for shown, first_wins in ((texts, row.answer == 1), (texts[::-1], row.answer == 0)):
                    said = answer(file, first_wins, "")
                    messages = conversation.messages(row.pair.prompt, shown)
                    yield TrainingExample(messages, said, NAMES[0] if first_wins else NAMES[1], row.pair.prompt, ())


class RuleTeacher:
    """Rules that give lessons to the model of one or more judge files."""

    def __init__(self, rules: JudgeSpec, files: Sequence[JudgeSpec]) -> None:
        """Raise ConfigError for rules that are none or have a gate, and for files that are not pairwise."""
        if not isinstance(rules, RulesSpec) or any(criterion.gate for criterion in rules.criteria):
            raise ConfigError(f"judge {rules.name!r} cannot teach: it takes a judge of mode rules without gates")
        self.rules = RulesJudge(rules)
        self.criteria = tuple(criterion.name for criterion in rules.criteria)
        self.files = pairwise_files(files)
        self.conversations = [Conversation(file) for file in self.files]

    def lessons(self, pairs: Iterable[Pair]) -> Iterator[TrainingExample]:
        """Yield two lessons for each pair that the rules decide, one per order; the judge files take turns."""
        turn = 0
        for pair in pairs:
            one, other = self.rules.assess([pair.prompt] * 2, [pair.first, pair.second])
            if self.better(one, other) in (None, "tie"):
                continue
            file = turn % len(self.files)
            turn += 1
            yield self.lesson(file, pair.prompt, (pair.first.text, pair.second.text), (one, other))
            yield self.lesson(file, pair.prompt, (pair.second.text, pair.first.text), (other, one))

    def lesson(
        self, file: int, prompt: Prompt, shown: tuple[str, str], found: tuple[Assessment, Assessment]
    ) -> TrainingExample:
        """Return the question of one judge file about two responses, with its answer."""
        points = tuple(tuple(self.points(one)) for one in found)
        reasons = " ".join(
            f"{name} {in_points(first - second)}" for name, first, second in zip(self.criteria, *points, strict=True)
        )
        first_wins = self.better(*found) == "first"
        return TrainingExample(
            self.conversations[file].messages(prompt, shown),
            answer(self.files[file], first_wins, reasons),
            NAMES[0] if first_wins else NAMES[1],
            prompt,
            points,
        )

    def better(self, first: Assessment, second: Assessment) -> str | None:
        """Return the winner by the rules, None if one of the two cannot be scored."""
        if first.score is None or second.score is None:
            return None
        apart = first.score - second.score
        return winner(0.5 if abs(apart) <= self.rules.spec.margin + SAME else float(apart > 0))

    def points(self, found: Assessment) -> Iterator[float]:
        """Yield what a response earns under each criterion, to the nearest half point."""
        values = dict(found.parts)
        for criterion in self.rules.spec.criteria:
            met = 1 - values[criterion.name] if criterion.negative else values[criterion.name]
            yield round(2 * criterion.weight * met) / 2


def pairwise_files(files: Sequence[JudgeSpec]) -> list[PairwiseSpec]:
    """Return the judge files that a model is to be taught. Raises ConfigError for one that is not pairwise."""
    for file in files:
        if not isinstance(file, PairwiseSpec):
            raise ConfigError(f"judge {file.name!r} of mode {file.mode} cannot be taught: only pairwise judges can")
    return [file for file in files if isinstance(file, PairwiseSpec)]


def in_points(difference: float) -> str:
    """Who wins a criterion and by how many points: `A2`, `B0.5`, `=`."""
    return "=" if difference == 0 else f"{NAMES[0] if difference > 0 else NAMES[1]}{abs(difference):g}"


def answer(file: PairwiseSpec, first_wins: bool, reasons: str) -> str:
    """Return what the judge should say so that its file reads the winner: with reasons, where the file has room for them."""
    output, labels = file.output, file.output.labels or {}
    label = (max if first_wins else min)(labels, key=lambda name: labels[name])
    if output.kind == "logprob":
        return (output.tokens or {}).get(label, (label,))[0]
    if output.kind == "json":
        reasoned = output.json_schema is None or output.reason_key in output.json_schema.get("properties", {})
        return json.dumps({**({output.reason_key: reasons} if reasoned else {}), output.key: label})
    verdict = written(file, label)
    reasoned_verdict = f"{reasons} {verdict}".strip()
    return reasoned_verdict if read(output, AnswerOptions(labels), reasoned_verdict).label == label else verdict


def decided_by(judge: Judge, pairs: Sequence[Pair]) -> list[GoldPair]:
    """Return the pairs for which a judge names a winner, with that winner as the known answer."""
    decided = {name: winner(value) for name, value in aggregate_verdicts(judge.judge(pairs), judge.spec).items()}
    return [
        GoldPair(pair, float(decided[pair.id] == "first"), f"decided by {judge.spec.name}")
        for pair in pairs
        if decided[pair.id] in ("first", "second")
    ]


def agreement(rules: JudgeSpec, judge: Judge, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return how often a judge names the winner that the rules name, over the pairs that the rules decide.

    `agreement` with its 95% interval `low`, `high`: both orders averaged; a tie is half right, no verdict is wrong.
    The rest are those of `judges.audit.check.gold_figures`, to which the rules' verdicts are the known answers.
    """
    rows = decided_by(build(rules), pairs)
    found = gold_figures(rows, judge.judge([row.pair for row in rows]), judge.spec)
    return {
        "pairs": len(rows),
        "agreement": found.accuracy,
        "low": found.accuracy_low,
        "high": found.accuracy_high,
        **found.model_dump(include={"unscored", "swap_consistency", "first_share", "longer_share", "longer_deserved"}),
    }
