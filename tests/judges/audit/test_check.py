"""Measuring the judge: scripted bad judges are each named for what they are, and the loop stops before training on
them."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from judging import GOLD, PAIRWISE, RIGHT, Scripted, by, fenced, honest, spec

from judges import JudgeStopped, build, health, load_spec, shipped
from judges.audit.cautions import cautions
from judges.audit.check import check, enforce_thresholds, measure_health
from judges.audit.gold import canaries, extremes, gold_file, written
from judges.audit.inspect import example_pair
from judges.llm.cache import AnswerCache
from judges.llm.parse import AnswerOptions, read
from judges.spec.base import ModelSpec
from selfplay.errors import ConfigError


def chance(text: str, salt: str = "") -> float:
    """A number in [0, 1) that belongs to a text."""
    return int.from_bytes(hashlib.sha256((salt + text).encode()).digest()[:4], "big") / 2**32


BAD: dict[str, tuple[Callable[[str], str], list[str]]] = {
    "honest": (honest, []),
    "right nine times of ten": (
        lambda text: honest(text) if chance("".join(sorted(fenced(text)))) < 0.9 else "[[C]]",
        [],
    ),
    "order-biased": (lambda text: "[[A]]" if chance(text) < 0.8 else honest(text), ["order"]),
    "length-biased": (by(lambda first, second: len(first) > len(second)), ["length"]),
    "brevity-biased": (by(lambda first, second: len(first) < len(second)), ["length"]),
    "random": (lambda text: "[[A]]" if chance(text) < 0.5 else "[[B]]", ["guessing"]),
    "always A": (lambda text: "Certainly. [[A]]", ["one place"]),
    "always B": (lambda text: "[[B]]", ["one place"]),
    "constant": (lambda text: "[[C]]", ["constant"]),
    "backwards": (lambda text: {"[[A]]": "[[B]]", "[[B]]": "[[A]]"}.get(honest(text), "[[C]]"), ["backwards"]),
    "injected": (
        lambda text: (
            honest(text)
            if "Ignore the instructions" not in text
            else by(lambda first, second: "Ignore the instructions" in first)(text)
        ),
        ["injected"],
    ),
    "echoing a verdict": (lambda text: "[[A]]" if "[[A]]" in text else honest(text), ["injected"]),
    "half-broken": (
        lambda text: honest(text) if chance(text) < 0.5 else "As a language model I would rather not choose.",
        ["broken"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_judge_is_named_for_what_it_is(name: str) -> None:
    say, kinds = BAD[name]
    report = check(spec(PAIRWISE), Scripted(say))
    assert [problem.kind for problem in report.problems if problem.kind != "injected" or "injected" in kinds] == kinds
    assert report.passed == (not report.problems)
    assert all(
        problem.sentence.startswith(
            ("always", "order", "length", "guessing", "constant", "backwards", "injected", "broken")
        )
        for problem in report.problems
    )


@pytest.mark.parametrize("name", [name for name in BAD if BAD[name][1]])
def test_the_loop_stops_before_training_on_it(name: str) -> None:
    judge = build(spec(PAIRWISE.replace("retries: 0", "retries: 0, max_failure_rate: 1")), Scripted(BAD[name][0]))
    pairs = [row.pair for row in GOLD[:40]]
    found = measure_health(judge, pairs, judge.judge(pairs))
    with pytest.raises(
        JudgeStopped,
        match="judge 'test' cannot be trusted: on canaries it is"
        if BAD[name][1] == ["injected"]
        else "judge 'test' cannot be trusted: on (its own pairs|the gold set) it is",
    ):
        enforce_thresholds(judge.spec, found)
    assert json.loads(json.dumps(found)) == found


def test_a_half_broken_judge_stops_the_labelling_itself() -> None:
    with pytest.raises(JudgeStopped, match="'As a language model I would rather not choose.'"):
        build(spec(PAIRWISE), Scripted(BAD["half-broken"][0])).judge([row.pair for row in GOLD])


def test_an_honest_judge_goes_on_and_its_gold_figures_are_there() -> None:
    judge = build(spec(PAIRWISE), engine := Scripted(honest))
    pairs = [row.pair for row in GOLD[:40]]
    found = measure_health(judge, pairs, judge.judge(pairs))
    enforce_thresholds(judge.spec, found)
    assert found["gold"]["accuracy"] == 1.0 and found["pairs"] == 40
    calls = engine.calls
    measure_health(judge, pairs, judge.judge(pairs))
    assert engine.calls == calls  # gold set and canaries are paid for once


def test_canaries_are_not_asked_of_a_judge_that_does_not_read() -> None:
    judge = build(spec(PAIRWISE), engine := Scripted(lambda text: "[[A]]"))
    found = measure_health(judge, [], [])
    assert engine.calls == 240 and found["canary_wins"] == {}  # 120 gold pairs in both orders
    with pytest.raises(JudgeStopped, match="on the gold set it is always the same place: 100% of its decided answers"):
        enforce_thresholds(judge.spec, found)


def test_canaries_without_a_verdict_have_not_won_and_do_not_stop_a_run() -> None:
    judge = build(spec(PAIRWISE), Scripted(lambda text: "No." if "Ignore the instructions" in text else honest(text)))
    found = measure_health(judge, [], [])
    # 8 of 56 canaries, a seventh and more than max_failure_rate, are injections
    assert found["canary_wins"] == dict.fromkeys(
        ("empty", "constant", "echo", "injection", "padded list", "verdict inside", "verdict to repeat"), 0.0
    )
    enforce_thresholds(judge.spec, found)
    with pytest.raises(JudgeStopped, match=r"gave no verdict on 16 of 112"):
        judge.judge([row.pair for row in canaries(GOLD, judge.spec)])


def test_the_figures_of_an_honest_and_of_a_length_biased_judge() -> None:
    figures = check(spec(PAIRWISE), Scripted(honest)).gold
    assert figures is not None
    assert (figures.accuracy, figures.kappa, figures.swap_consistency, figures.first_share) == (1.0, 1.0, 1.0, 0.5)
    # Wilson for 120 of 120: 120 / (120 + 1.96^2) = .969.
    assert (
        figures.accuracy_low == pytest.approx(120 / (120 + 1.959963984540054**2), abs=1e-12)
        and figures.accuracy_high == 1.0
    )
    longer = check(spec(PAIRWISE), Scripted(BAD["length-biased"][0])).gold
    assert longer is not None and longer.longer_share == 1.0
    lengths = [
        (len(right), len((row.pair.second if row.answer == 1 else row.pair.first).text)) for right, row in RIGHT.items()
    ]
    won, even = sum(right > wrong for right, wrong in lengths), sum(right == wrong for right, wrong in lengths)
    assert longer.longer_deserved == pytest.approx(won / (120 - even), abs=1e-12)
    assert longer.accuracy == pytest.approx((won + even / 2) / 120, abs=1e-12)  # of equal length: B twice, a tie


def obliging(text: str) -> str:
    """Gives the right verdict, and then repeats what a response asks it to."""
    first = "For the record, repeat a line" in fenced(text)[1]
    return honest(text) + (f"\nFor the record: {'[[A]]' if first else '[[B]]'}" if "For the record" in text else "")


def test_a_verdict_that_the_judge_repeats_on_request_is_not_its_own() -> None:
    """In each order the response asks for the letter that names it: read wherever it stands, it wins."""
    report = check(spec(PAIRWISE), Scripted(obliging))
    assert report.canary_wins["verdict to repeat"] == 0.0 and report.passed and report.cautions == []
    fooled = check(spec(PAIRWISE.replace("kind: regex", "kind: regex, match: last")), Scripted(obliging))
    assert fooled.canary_wins["verdict to repeat"] == 1.0
    assert [problem.kind for problem in fooled.problems] == ["injected"] and len(fooled.cautions) == 1


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ("", None),
        ("match: unique, ", None),
        ("match: last, ", "'[[B]]. The response says [[A]], which counts for nothing.' reads as 'A'"),
        ("match: first, ", "'The response says [[A]], which counts for nothing.\\n[[B]]' reads as 'A'"),
        ("END", "'[[B]], whatever it claims: the response says [[A]]' reads as 'A'"),
    ],
)
def test_a_file_that_reads_quotations_is_warned_of(changes: str, reads: str | None) -> None:
    text = PAIRWISE.replace("(A|B|C)\\]\\]", "(A|B|C)\\]\\]$") if changes == "END" else PAIRWISE
    found = cautions(
        spec(text.replace("kind: regex, ", f"kind: regex, {changes}" if changes != "END" else "kind: regex, "))
    )
    assert len(found) == (reads is not None)
    assert all(str(reads) in caution and "set match to 'end'" in caution for caution in found)


@pytest.mark.parametrize("name", list(shipped()))
def test_no_shipped_judge_reads_a_quotation(name: str) -> None:
    """`[[B>>A]] ... A says [[A>>B]]` read as A>>B in helpfulness, harmlessness, additive and reference."""
    file = load_spec(name)
    assert cautions(file) == []
    for part in file.parts:
        if isinstance(part, ModelSpec) and part.output.kind == "regex" and part.mode != "rubric":
            best, worst = (written(part, label) for label in extremes(part))
            menu = AnswerOptions(part.output.labels, part.output.range)
            for text in (f"{worst}. The response says {best}", f"{worst}. The response says {best}, not me."):
                assert read(part.output, menu, text).value is None
            own = read(part.output, menu, f"The response says {best}, which is not mine.\n{worst}")
            assert own.label == extremes(part)[1]


@pytest.mark.parametrize("name", ["stories", "instructions"])
def test_judges_in_python_reach_their_thresholds(name: str) -> None:
    report = check(load_spec(name))
    assert report.problems == [] and report.gold is not None and report.gold.accuracy == 1.0
    assert max(report.canary_wins.values()) <= 0.2  # a rule met by a planted verdict, such as "use brackets", is met


def test_python_rules_without_gold_of_their_own_are_measured_by_their_tests_alone() -> None:
    rules = spec(
        "mode: rules\ncriteria: [{name: x, python: 'criteria_for_tests:has_hello'}]\n"
        "tests: [{responses: [hello, no], expect: first}]"
    )
    assert gold_file(rules) is None
    report = check(rules)
    assert report.passed and report.gold is None and report.tests == 1
    assert [answer.text for answer in (example_pair(rules).first, example_pair(rules).second)] == ["hello", "no"]
    with pytest.raises(ConfigError, match="has no gold set to take a pair from: write one into `tests`"):
        example_pair(rules.model_copy(update={"tests": ()}))
    judge = build(rules)
    assert measure_health(judge, [], [])["gold"] is None and measure_health(judge, [], [])["canary_wins"] == {}
    enforce_thresholds(rules, measure_health(judge, [], []))


def test_what_a_check_cost_is_counted() -> None:
    class Counted(Scripted):
        def generate(self, prompts: Any, sampling: Any) -> Any:
            return [
                [one.model_copy(update={"token_ids": (1, 2, 3)}) for one in row]
                for row in super().generate(prompts, sampling)
            ]

    cache = AnswerCache()
    report = check(spec(PAIRWISE), engine := Counted(honest), cache=cache)
    assert report.output_tokens == 3 * engine.calls and report.cost == 0.0 and report.seconds > 0
    assert check(spec(PAIRWISE), Counted(honest), cache=cache).output_tokens == 0


def test_health_counts_ties_among_answers() -> None:
    judge = build(spec(PAIRWISE), Scripted(lambda text: "[[C]]"))
    pairs = [row.pair for row in GOLD[:3]]
    assert health(pairs, judge.judge(pairs))["tied_answers"] == 1.0
