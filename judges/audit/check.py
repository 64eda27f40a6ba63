"""Measures a judge: its file's tests, pairs with a known answer, canaries; and says what is wrong with it.

`check` is behind `selfplay judge check`; the loop calls `watch` after each labelling and `enforce_thresholds` before it trains
on what the judge said, so that a judge which canaries fool stops a run too. All return data and print nothing.
"""

import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from pydantic import BaseModel

from judges.audit.cautions import cautions
from judges.audit.diagnosis import DOES_NOT_READ, Figures, Problem, diagnose
from judges.audit.file_tests import run_tests
from judges.audit.gold import GoldPair, canaries, gold_file, load_gold
from judges.build import Judge, Opener, build
from judges.consistency import health
from judges.llm.cache import AnswerCache
from judges.llm.thinking import example
from judges.spec.base import JudgeSpec
from judges.verdicts import aggregate_verdicts, winner
from selfplay.engines import Engine
from selfplay.errors import JudgeStopped
from selfplay.records import Pair, Verdict
from selfplay.stats.agreement import cohen_kappa, wilson

FIRST = 8
"""Pairs after which a judge of which nothing can be read is asked no more."""


class CheckReport(BaseModel):
    """What `judge check` found. Shares are in [0, 1], null where there was nothing to measure."""

    judge: str
    version: int
    model: str | None
    tests: int
    """Tests in the judge's file."""
    failed_tests: list[str]
    cautions: list[str]
    """What to beware of in the file, see `judges.audit.cautions`; no reason to distrust the judge yet."""
    gold: Figures | None
    """Figures on pairs with a known answer; null for Python rules without a gold file of their own."""
    gold_by_category: dict[str, float]
    gold_by_trap: dict[str, float]
    canary_wins: dict[str, float]
    """Kind of canary -> share that beat the right answer, a tie being half a win."""
    input_tokens: int
    output_tokens: int
    cost: float
    """Dollars."""
    seconds: float
    problems: list[Problem]

    @property
    def passed(self) -> bool:
        """Whether the judge may be trusted as far as its file asks."""
        return not self.problems


def check(
    spec: JudgeSpec,
    engine: Engine | Opener | None = None,
    gold: Sequence[GoldPair] | None = None,
    cache: AnswerCache | None = None,
    *,
    seed: int = 0,
    tests_only: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> CheckReport:
    """Run the file's tests, then ask about gold pairs and canaries, and compare with the file's thresholds.

    `gold` is `load_gold(path)`; by default the file's own set, or the built-in one for a judge that asks a model. With
    `tests_only` nothing is asked and no engine needed. `announce` gets what is known before the first call, line by line:
    how the tests went, and what to beware of. Raises ConfigError as `build` does; whatever the judge says wrong is a
    problem in the report. If none of the first pairs can be read, no more are asked about.
    """
    failed = run_tests(spec)
    file = gold_file(spec)
    rows = list(gold) if gold is not None else load_gold(file) if file is not None else []
    beware = cautions(spec, [row.pair.prompt for row in rows])
    announce(f"tests in the file: {len(spec.tests) - len(failed)} of {len(spec.tests)} pass")
    for line in (*(f"  test {test}" for test in failed), *(f"caution: {caution}" for caution in beware)):
        announce(line)
    if not rows and not tests_only:
        announce("no pairs with a known answer (`gold` in the file, or --gold FILE): nothing else is measured")
    answers = cache or AnswerCache()
    before, started = answers.spent(), time.monotonic()
    figures, by_category, by_trap = None, {}, {}
    wins: dict[str, float] = {}
    unreadable = ""
    if not tests_only:
        judge = build(spec.lenient(), engine, answers, seed=seed)
    if rows and not tests_only:
        first = judge.judge([row.pair for row in rows[:FIRST]])
        if all(verdict.preference is None for verdict in first):
            rows, unreadable = rows[:FIRST], example([(verdict.error, verdict.raw) for verdict in first])
        verdicts = first if unreadable else judge.judge([row.pair for row in rows])
        figures = gold_figures(rows, verdicts, spec)
        by_category, by_trap = accuracy_by(rows, verdicts, spec, "category"), accuracy_by(rows, verdicts, spec, "trap")
        planted = [] if unreadable else canaries(rows, spec)
        wins = canary_wins(planted, judge.judge([row.pair for row in planted]), spec) if planted else {}
    spent = {name: value - before[name] for name, value in answers.spent().items()}
    return CheckReport(
        judge=spec.name,
        version=spec.version,
        model=getattr(spec, "model", None),
        tests=len(spec.tests),
        failed_tests=failed,
        cautions=beware,
        gold=figures,
        gold_by_category=by_category,
        gold_by_trap=by_trap,
        canary_wins=wins,
        input_tokens=int(spent["input_tokens"]),
        output_tokens=int(spent["output_tokens"]),
        cost=spent["cost"],
        seconds=time.monotonic() - started,
        problems=diagnose(spec.thresholds, figures, wins, failed, unreadable),
    )


def gold_figures(rows: Sequence[GoldPair], verdicts: Sequence[Verdict], spec: JudgeSpec) -> Figures:
    """Return the figures of `health` on gold pairs, with accuracy (a tie is half right, an unscored pair wrong) and kappa."""
    settled = aggregate_verdicts(verdicts, spec)
    accuracy = sum(points(row, settled) for row in rows) / len(rows)
    low, high = wilson(accuracy, len(rows))
    said = [(row, winner(settled.get(row.pair.id))) for row in rows]
    readable = [("first" if row.answer == 1 else "second", label) for row, label in said if label is not None]
    return Figures(
        **{
            **health([row.pair for row in rows], verdicts, spec),
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "kappa": cohen_kappa([truth for truth, _ in readable], [label for _, label in readable]),
            "longer_deserved": longer_deserved(rows),
        }
    )


def longer_deserved(rows: Sequence[GoldPair]) -> float | None:
    """Share of pairs of different length whose longer response is the right one; None without any."""
    differences = [(len(row.pair.first.text) - len(row.pair.second.text)) * (row.answer - 0.5) for row in rows]
    unequal = [difference > 0 for difference in differences if difference]
    return sum(unequal) / len(unequal) if unequal else None


def points(row: GoldPair, settled: dict[str, float | None]) -> float:
    """1 for the right winner, half for a tie, nothing for the wrong one or no verdict."""
    said, right = winner(settled.get(row.pair.id)), "first" if row.answer == 1 else "second"
    return 1.0 if said == right else 0.5 if said == "tie" else 0.0


def accuracy_by(rows: Sequence[GoldPair], verdicts: Sequence[Verdict], spec: JudgeSpec, what: str) -> dict[str, float]:
    """Accuracy per category, or per kind of trap."""
    settled = aggregate_verdicts(verdicts, spec)
    groups: dict[str, list[float]] = {}
    for row in rows:
        if (name := getattr(row, what)) is not None:
            groups.setdefault(name, []).append(points(row, settled))
    return {name: sum(values) / len(values) for name, values in sorted(groups.items())}


def canary_wins(rows: Sequence[GoldPair], verdicts: Sequence[Verdict], spec: JudgeSpec) -> dict[str, float]:
    """Kind of canary -> share preferred to the right answer; a tie with it is half a win, no verdict is none.

    (A judge that repeats a verdict it finds in a response says the same letter in both orders, which is a tie.)
    """
    settled = aggregate_verdicts(verdicts, spec)
    groups: dict[str, list[float]] = {}
    for row in rows:
        wins = 1 - points(row, settled) if settled.get(row.pair.id) is not None else 0.0
        groups.setdefault(row.category, []).append(wins)
    return {kind: sum(wins) / len(wins) for kind, wins in groups.items()}


def measure_health(judge: Judge, pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the judge's figures on a run's own pairs; and on the frozen gold set and its canaries, so that drift shows.

    `judge` is the one that gave the verdicts: through its cache, gold set and canaries are paid for once. What goes into
    `judge_health.json`: the figures of `health`, under `gold` those of `Figures` and under `canary_wins` the share of
    each kind that won; without a gold set (Python rules that name none) `gold` is null and no canary is asked about. A
    canary that gets no verdict has not won, however many of them get none.
    """
    return {**health(pairs, verdicts, judge.spec), **measure_on_gold(judge)}


def measure_on_gold(judge: Judge) -> dict[str, Any]:
    """Return the part of `measure_health` that needs no pairs of a run: `gold` and `canary_wins`.

    No canary is asked about if the gold set shows that the judge does not read the responses: it would change no verdict on it.
    """
    file = gold_file(judge.spec)
    if file is None:
        return {"gold": None, "canary_wins": {}}
    rows = load_gold(file)
    figures = gold_figures(rows, judge.judge([row.pair for row in rows]), judge.spec)
    found = {"gold": figures.model_dump(), "canary_wins": {}}
    if not any(problem.kind in DOES_NOT_READ for problem in diagnose(judge.spec.thresholds, figures, {})):
        planted = canaries(rows, judge.spec)
        forgiving: Any = copy(judge)
        forgiving.spec = judge.spec.lenient()
        found["canary_wins"] = canary_wins(planted, forgiving.judge([row.pair for row in planted]), judge.spec)
    return found


def enforce_thresholds(spec: JudgeSpec, found: dict[str, Any]) -> None:
    """Raise JudgeStopped, naming what is wrong, if the figures from `watch` are beyond the thresholds of the judge's
    file.

    On a run's own pairs nobody knows who is right, and longer may be better, so only failures, ties and order count
    there; on the gold set everything does.
    """
    problems = []
    if found.get("pairs"):
        own = Figures(**{name: value for name, value in found.items() if name in Figures.model_fields})
        problems = [("its own pairs", problem) for problem in diagnose(spec.thresholds, own, {})]
    if found.get("gold"):
        known = diagnose(spec.thresholds, Figures(**found["gold"]), found.get("canary_wins", {}))
        problems += [("canaries" if problem.kind == "injected" else "the gold set", problem) for problem in known]
    if problems:
        said = "; ".join(f"on {where} it is {problem.sentence}" for where, problem in problems)
        raise JudgeStopped(
            f"judge {spec.name!r} cannot be trusted: {said}. Fix the judge, or set other thresholds in "
            "its file if you know better"
        )
