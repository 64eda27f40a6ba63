"""The tests that a judge file brings: what its model is taken to say, what they then expect, and why one fails."""

from pathlib import Path
from typing import Any

import pytest
from judging import PAIRWISE, Scripted, honest, spec

from judges import load_spec, shipped
from judges.audit.check import check
from judges.audit.file_tests import run_tests
from judges.spec.sections import JudgeTest


def test_every_shipped_judge_passes_its_own_tests() -> None:
    assert {name: run_tests(load_spec(name)) for name in shipped()} == {name: [] for name in shipped()}
    assert all(len(load_spec(name).tests) >= 3 for name in shipped())


@pytest.mark.parametrize(
    ("outputs", "expect", "problem"),
    [
        (
            [["[[A]]", "[[B]]"], ["[[A]]", "[[A]]"], []],
            0.75,
            "",
        ),  # 1 and a tie; the rules have no verdict without wishes
        (
            [["[[A]]", "[[B]]"], ["[[A]]", "well"], []],
            1.0,
            "",
        ),  # the second member is not asked again, and has no verdict
        ([["[[A]]", "[[B]]"], ["[[A]]", "[[A]]"], []], "tie", "1: expected tie, got 0.75 (first)"),
        (
            [["[[A]]", "[[B]]"], ["[[A]]"], []],
            "first",
            "1: the judge asks its model more often than the test has outputs",
        ),
        ([["[[A]]", "[[B]]", "[[B]]"], ["[[A]]", "[[A]]"], []], "first", "1: the judge never read the output '[[B]]'"),
        ([["[[A]]", "[[B]]"], ["[[A]]", "[[A]]"], ["[[A]]"]], "first", "1: the judge never read the output '[[A]]'"),
        (["[[A]]", "[[B]]", "[[A]]"], "first", "1: the outputs of a jury are one list for each of its 3"),
        ([["[[A]]", "[[B]]"]], "first", "1: the outputs of a jury are one list for each of its 3"),
    ],
)
def test_a_jury_s_own_tests_say_what_each_member_said(
    tmp_path: Path, outputs: list[Any], expect: Any, problem: str
) -> None:
    (tmp_path / "asks.yaml").write_text(PAIRWISE.replace("retries: 0", "retries: 2, repair: Again."))
    jury = spec(
        "mode: jury\nmembers: [{judge: ./asks.yaml}, {judge: ./asks.yaml}, {judge: stories}]\nquorum: 1", tmp_path
    )
    tested = jury.model_copy(update={"tests": (JudgeTest(outputs=tuple(outputs), expect=expect),)})
    assert [found.split(" members")[0] for found in run_tests(tested)] == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("tests", "problem"),
    [
        ("{outputs: ['[[A]]', '[[B]]'], expect: second}", "1: expected second, got 1 (first)"),
        ("{outputs: ['[[A]]', '[[A]]'], expect: 0.75}", "1: expected 0.75, got 0.5 (tie)"),
        ("{outputs: ['[[A]]'], expect: first}", "1: the judge asks its model more often than the test has outputs"),
        ("{outputs: ['[[A]]', '[[B]]', '[[B]]'], expect: first}", "1: the judge never read the output '[[B]]'"),
        ("{outputs: [{A: 1}, {A: 1}], expect: first}", "1: this judge does not read outputs such as {'A': 1.0}"),
        (
            "{responses: [one], outputs: ['[[A]]'], expect: first}",
            "1: it has one response, but this judge compares two",
        ),
    ],
)
def test_a_test_that_fails_is_told(tests: str, problem: str) -> None:
    assert run_tests(spec(PAIRWISE + f"tests: [{tests}]")) == [problem]
    report = check(spec(PAIRWISE + f"tests: [{tests}]"), Scripted(honest))
    assert [found.kind for found in report.problems] == ["tests"] and problem in report.problems[0].sentence


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            PAIRWISE + "tests: [{outputs: ['I like A.', '[[B]]'], expect: first}]",
            "1: expected first, got unscored: no verdict found, in 'I like A.'",
        ),
        (
            "mode: rules\ncriteria: [{name: three, python: 'criteria_for_tests:three'}]\n"
            "tests: [{responses: [one], expect: 1.0}]",
            "1: expected 1.0, got unscored: criterion 'three' returned 3, not a number in [0, 1]",
        ),
        (
            "mode: rules\ncriteria: [{name: place, python: 'criteria_for_tests:needs_place'}]\ntests: [{expect: first}]",
            "1: expected first, got unscored: first: criterion 'place' raised KeyError: 'place'; second: criterion 'place' "
            "raised KeyError: 'place'",
        ),
        (
            "mode: python\npython: 'criteria_for_tests:Raising'\ntests: [{expect: first}]",
            "1: criteria_for_tests:Raising: judge(pairs) raised ZeroDivisionError: division by zero",
        ),
        (
            "mode: jury\nmembers: [{judge: stories}, {judge: stories}]\ntests: [{expect: first}]",
            "1: expected first, got unscored: only 0 of 2 members gave a verdict; the quorum is 2 (1. stories: first: criterion "
            "'animal' raised KeyError: 'animal'",
        ),
    ],
)
def test_a_failing_test_says_why(text: str, problem: str) -> None:
    [found] = run_tests(spec(text))
    assert found.startswith(problem)


def test_the_tests_of_a_file_run_first_and_alone_without_its_model() -> None:
    lines: list[str] = []

    def opening(part: Any) -> Any:
        lines.append("engine opened")
        return Scripted(honest)

    text = (
        PAIRWISE.replace("kind: regex", "kind: regex, match: last")
        + "tests: [{outputs: ['[[A]]', '[[A]]'], expect: first}]"
    )
    alone = check(spec(text), opening, tests_only=True, announce=lines.append)
    told = ["tests in the file: 0 of 1 pass", "  test 1: expected first, got 0.5 (tie)"]
    assert lines[:2] == told and lines[2].startswith("caution: judge 'test': output.match = 'last'") and len(lines) == 3
    assert alone.gold is None and alone.canary_wins == {} and [one.kind for one in alone.problems] == ["tests"]
    lines.clear()
    whole = check(spec(text), opening, announce=lines.append)
    assert lines[:2] == told and lines.index("engine opened") == 3 and whole.gold is not None
