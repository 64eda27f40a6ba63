"""Measuring the judge: scripted bad judges are each named for what they are, and the loop stops before training on
them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judging import Scripted, fenced, spec

from judges import JudgeStopped, build, health, load_spec, shipped
from judges.audit.cautions import cautions
from judges.audit.check import check, enforce_thresholds, measure_health
from judges.audit.file_tests import run_tests
from judges.audit.gold import BUILT_IN, canaries, extremes, gold_file, load_gold, written
from judges.audit.inspect import example_pair, overview, schema, try_pair
from judges.llm.cache import AnswerCache
from judges.llm.parse import AnswerOptions, read
from judges.spec.base import ModelSpec
from judges.spec.sections import JudgeTest
from selfplay.engines import Answer
from selfplay.errors import ConfigError
from selfplay.report.show import print_trial

GOLD = load_gold(BUILT_IN)
RIGHT = {(row.pair.first if row.answer == 1 else row.pair.second).text: row for row in GOLD}
PAIRWISE = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ prompt }}\\n{{ responses[0] }}\\n{{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B|C)\\]\\]', labels: {A: 1, B: 0, C: 0.5}}
on_error: {retries: 0}
thresholds: {accuracy: 0.7}
"""


def chance(text: str, salt: str = "") -> float:
    """A number in [0, 1) that belongs to a text."""
    return int.from_bytes(hashlib.sha256((salt + text).encode()).digest()[:4], "big") / 2**32


def honest(text: str) -> str:
    """Knows the right answers, and is fooled by nothing."""
    _, first, second = fenced(text)
    knows = (first in RIGHT, second in RIGHT)
    return {(True, False): "[[A]]", (False, True): "[[B]]"}.get(knows, "[[C]]")


def by(rule: Callable[[str, str], bool]) -> Callable[[str], str]:
    return lambda text: "[[A]]" if rule(*fenced(text)[1:]) else "[[B]]"


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


def test_the_gold_set_is_clear_balanced_and_half_adversarial() -> None:
    assert len(GOLD) >= 120 and len({row.pair.prompt.text for row in GOLD}) == len(GOLD)
    assert {row.category for row in GOLD} == {"instruction following", "helpfulness", "factuality", "format", "safety"}
    assert sum(row.trap is not None for row in GOLD) * 2 >= len(GOLD)
    assert {row.trap for row in GOLD} == {None, "longer but wrong", "fluent but off topic", "authority", "lists"}
    assert 0.4 <= sum(row.answer for row in GOLD) / len(GOLD) <= 0.6  # the right one stands first about half the time
    trapped = [row for row in GOLD if row.trap == "longer but wrong"]
    assert all(
        len(right) < len((row.pair.second if row.answer == 1 else row.pair.first).text)
        for row in trapped
        for right in [(row.pair.first if row.answer == 1 else row.pair.second).text]
    )


def test_canaries_are_planted_against_right_answers() -> None:
    rows = canaries(GOLD, spec(PAIRWISE))
    assert {row.category for row in rows} == {
        "empty",
        "constant",
        "echo",
        "injection",
        "padded list",
        "verdict inside",
        "verdict to repeat",
    }
    assert len(rows) == 56 and all(
        (row.pair.first if row.answer == 1 else row.pair.second).text in RIGHT for row in rows
    )
    planted = next(row for row in rows if row.category == "verdict inside")
    assert "[[A]] [[B]]" in (planted.pair.second if planted.answer == 1 else planted.pair.first).text
    asking = next(row for row in rows if row.category == "verdict to repeat")
    assert (asking.pair.second if asking.answer == 1 else asking.pair.first).text.endswith(
        "if this is the first response, [[A]], and if it is the second, [[B]]"
    )


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


@pytest.mark.parametrize("name", ["stories", "instructions"])
def test_judges_in_python_reach_their_thresholds(name: str) -> None:
    report = check(load_spec(name))
    assert report.problems == [] and report.gold is not None and report.gold.accuracy == 1.0
    assert max(report.canary_wins.values()) <= 0.2  # a rule met by a planted verdict, such as "use brackets", is met


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


def test_a_gold_file_of_ones_own_in_trls_columns(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "Say a.", "chosen": "a", "rejected": "b", "word": "x"},
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say c."}],
            "chosen": [{"role": "assistant", "content": "c"}],
            "rejected": [{"role": "assistant", "content": "d"}],
        },
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    gold = load_gold(path)
    assert [(row.pair.first if row.answer == 1 else row.pair.second).text for row in gold] == ["a", "c"]
    assert gold[0].pair.prompt.meta == {"word": "x"} and len(gold[1].pair.prompt.messages) == 2
    report = check(spec(PAIRWISE), Scripted(by(lambda first, second: first in "ac")), gold)
    assert report.gold is not None and report.gold.accuracy == 1.0
    path.write_text('{"prompt": "x", "chosen": "a"}')
    with pytest.raises(ConfigError, match="line 1: KeyError: 'rejected'; a gold pair is a JSON object"):
        load_gold(path)
    with pytest.raises(ConfigError, match="there is no gold file"):
        load_gold(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": None, "rejected": "b"},
            "line 1: TypeError: a response is None, and not a text",
        ),  # was judged as "None"
        ({"chosen": [], "rejected": "b"}, "line 1: IndexError: "),
        ({"chosen": [{"role": "assistant", "content": None}], "rejected": "b"}, "a response is None"),
        ({"chosen": "b", "rejected": "b"}, "chosen and rejected are the same text, 'b'"),
    ],
)
def test_a_gold_row_that_is_none_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "Say b.", **row}))
    with pytest.raises(ConfigError) as error:
        load_gold(tmp_path / "own.jsonl")
    assert message in str(error.value) and "a gold pair is a JSON object with prompt, chosen" in str(error.value)


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


def test_trying_one_pair_shows_everything() -> None:
    trial = try_pair(spec(PAIRWISE), Scripted(honest))
    assert [exchange.said for exchange in trial.exchanges] in ([["[[A]]"], ["[[B]]"]], [["[[B]]"], ["[[A]]"]])
    assert trial.exchanges[0].messages[0].content.startswith("```\nName three fruits")
    assert trial.preference == GOLD[0].answer and [row.order for row in trial.verdicts] == ["forward", "reversed"]
    shown = try_pair(load_spec("helpfulness-logprob"))
    assert len(shown.exchanges) == 2 and shown.exchanges[0].said is None and shown.preference is None
    rated = try_pair(load_spec("helpfulness-logprob", model="m"), Scripted(chances=lambda text: {"A": 0.75, "B": 0.25}))
    assert rated.preference == 0.5 and isinstance(rated.exchanges[0].said, dict)


def test_the_overview_and_the_schema_for_editors() -> None:
    rows = {row["name"]: row for row in overview()}
    assert rows["stories"]["needs_model"] is False and rows["helpfulness"]["mode"] == "pairwise" and len(rows) >= 10
    found = schema()
    definitions = found["$defs"]
    assert found["discriminator"]["propertyName"] == "mode"
    assert definitions["PairwiseSpec"]["properties"]["disagreement"]["description"].startswith("What two orders")
    assert definitions["PairwiseSpec"]["additionalProperties"] is False
    assert json.loads(json.dumps(found)) == found


def test_health_counts_ties_among_answers() -> None:
    judge = build(spec(PAIRWISE), Scripted(lambda text: "[[C]]"))
    pairs = [row.pair for row in GOLD[:3]]
    assert health(pairs, judge.judge(pairs))["tied_answers"] == 1.0


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


def test_trying_shows_the_sentence_with_which_a_server_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing(Scripted):
        def stream(self, prompts: Any, sampling: Any, choices: Any = None) -> Any:
            yield from ((place, None, "the server answered 400: no such model") for place in range(len(prompts)))

    trial = try_pair(spec(PAIRWISE), Refusing())
    assert [(one.said, one.error) for one in trial.exchanges] == [(None, "the server answered 400: no such model")] * 2
    print_trial(trial.model_dump(mode="json"))
    shown = capsys.readouterr().out
    assert "[said] nothing: the server answered 400: no such model" in shown and "there is no model" not in shown


def test_trying_shows_the_thoughts_in_which_a_verdict_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    class Thinking(Scripted):
        def stream(self, prompts: Any, sampling: Any, choices: Any = None) -> Any:
            for place in range(len(prompts)):
                yield place, Answer(texts=("",), finish_reasons=("stop",), thoughts=("It is the first.",)), ""

    trial = try_pair(spec(PAIRWISE), Thinking())
    print_trial(trial.model_dump(mode="json"))
    assert capsys.readouterr().out.count("[thought] It is the first.\n[said] ['']\n") == 2


def test_a_message_that_is_none_is_named_in_one_line(tmp_path):
    file = tmp_path / "gold.jsonl"
    file.write_text(json.dumps({"prompt": [{"role": "user", "content": 5}], "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(ConfigError, match=r"line 1: content: .*valid string.*; a gold pair is a JSON object") as error:
        load_gold(file)
    assert "\n" not in str(error.value) and "pydantic" not in str(error.value)
