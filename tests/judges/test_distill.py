"""What a judge model is taught, and how its agreement with its teacher is counted, by hand."""

import json
from typing import Any

import pytest
from judging import Scripted, pair, spec

from judges import build, load_spec
from judges.distill import RuleTeacher, agreement, in_points
from judges.llm.parse import AnswerOptions, read, read_logprobs
from selfplay.errors import ConfigError
from selfplay.records import Pair

WISHES = {"trait": "shy", "animal": "fox", "place": "lake", "first_thing": "kite", "second_thing": "bell"}
ALL = (
    "One day a shy fox went to the lake. It found a kite under a tree. It took the kite home. A friend gave it a bell. "
    "The bell made it smile. It was happy. The end."
)
NOTHING = "A dog slept. A dog slept."
ASK = "messages: [{role: user, content: '{{ prompt }} {{ responses[0] }} | {{ responses[1] }}'}]\nuntrusted: {fence: none}\n"
LETTERS = "labels: {A: 1, B: 0}"
BARE = "{type: object, required: [verdict], additionalProperties: false, properties: {verdict: {type: string, enum: [A, B]}}}"
OUTPUTS = {
    "reasons": f"{{kind: regex, pattern: '\\[\\[(A|B)\\]\\]', {LETTERS}}}",
    "letter": f"{{kind: regex, pattern: '^\\s*(A|B)\\s*$', {LETTERS}}}",
    "scale": "{kind: regex, pattern: '\\[\\[(A>>B|A>B|A=B|B>A)\\]\\]', labels: {A>B: 0.75, A>>B: 1, A=B: 0.5, B>A: 0.25}}",
    "json": f"{{kind: json, {LETTERS}}}",
    "bare json": f"{{kind: json, {LETTERS}, json_schema: {BARE}}}",
    "chances": f"{{kind: logprob, {LETTERS}}}",
    "words": f"{{kind: logprob, {LETTERS}, tokens: {{A: [first, one], B: [second]}}}}",
}
REASONS = "animal A2 no other animal A1 place A2 things A3 ending A2 closing A1 friend A1 no repeats A1 length A1"


def file(output: str) -> Any:
    return spec(f"mode: pairwise\nmodel: m\n{ASK}output: {output}")


def asked(first: str, second: str, id: str = "p", **meta: Any) -> Pair:
    return pair(first, second, "Tell.", id, **(meta or WISHES))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("reasons", f"{REASONS} [[A]]", f"{REASONS.replace(' A', ' B')} [[B]]"),
        ("letter", "A", "B"),
        ("scale", f"{REASONS} [[A>>B]]", f"{REASONS.replace(' A', ' B')} [[B>A]]"),
        (
            "json",
            json.dumps({"reason": REASONS, "verdict": "A"}),
            json.dumps({"reason": REASONS.replace(" A", " B"), "verdict": "B"}),
        ),
        ("bare json", '{"verdict": "A"}', '{"verdict": "B"}'),
        ("chances", "A", "B"),
        ("words", "first", "second"),
    ],
)
def test_each_order_has_its_question_and_the_answer_its_file_reads(name: str, first: str, second: str) -> None:
    judge = file(OUTPUTS[name])
    one, other = RuleTeacher(load_spec("stories"), [judge]).lessons([asked(ALL, NOTHING)])
    assert [lesson.messages[0].content for lesson in (one, other)] == [
        f"Tell. {ALL} | {NOTHING}",
        f"Tell. {NOTHING} | {ALL}",
    ]
    assert (one.answer, other.answer) == (first, second)
    # in the rules' weights: animal 2, no other animal 1, place 2, things 3, ending 2, and 1 for each of the rest
    assert one.points == ((2, 1, 2, 3, 2, 1, 1, 1, 1), (0,) * 9) and other.points == one.points[::-1]
    menu = AnswerOptions(judge.output.labels)
    for lesson, right in ((one, 1.0), (other, min(menu.labels or {}, key=lambda key: (menu.labels or {})[key]))):
        if judge.output.kind == "logprob":
            tokens = [text for group in (judge.output.tokens or {"A": ("A",), "B": ("B",)}).values() for text in group]
            found = read_logprobs(
                judge.output, menu, {text: 0.0 if text == lesson.answer else -99.0 for text in tokens}
            )
        else:
            found = read(judge.output, menu, lesson.answer)
        assert found.readable and (found.value == right or found.label == right)


def test_files_take_turns_and_what_the_rules_do_not_decide_is_no_lesson() -> None:
    teacher = RuleTeacher(load_spec("stories"), [file(OUTPUTS["letter"]), file(OUTPUTS["json"])])
    rows = [
        asked(ALL, NOTHING),
        asked(ALL, ALL + " "),
        asked(ALL, NOTHING, place=1),
        asked(NOTHING, ALL),
        asked(ALL, ""),
    ]
    answers = [lesson.answer for lesson in teacher.lessons(rows)]
    assert [text if len(text) == 1 else json.loads(text)["verdict"] for text in answers] == [
        "A",
        "B",
        "B",
        "A",
        "A",
        "B",
    ]
    assert [len(text) == 1 for text in answers] == [True, True, False, False, True, True]


def test_points_are_to_the_nearest_half_and_a_negative_criterion_earns_what_is_not_met() -> None:
    rules = spec(
        "mode: rules\ncriteria:\n"
        "  - {name: third, weight: 1, python: 'criteria_for_tests:third'}\n"
        "  - {name: hello, weight: 2, negative: true, python: 'criteria_for_tests:has_hello'}\n"
    )
    lesson = next(RuleTeacher(rules, [file(OUTPUTS["reasons"])]).lessons([pair("hello", "x")]))
    # third: 1 * 1/3, to the nearest half .5, for both; hello: 2 * (1 - 1) = 0 against 2 * (1 - 0) = 2
    assert lesson.points == ((0.5, 0.0), (0.5, 2.0)) and lesson.answer == "third = hello B2 [[B]]"
    assert [in_points(value) for value in (1.5, -0.5, 0.0, 3.0)] == ["A1.5", "B0.5", "=", "A3"]


@pytest.mark.parametrize(
    ("rules", "files", "sentence"),
    [
        ("summary", ["summary"], "judge 'summary' cannot teach: it takes a judge of mode rules without gates"),
        (
            "stories",
            ["summary", "additive"],
            "judge 'additive' of mode pointwise cannot be taught: only pairwise judges can",
        ),
    ],
)
def test_who_cannot_teach_or_be_taught_is_named(rules: str, files: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RuleTeacher(load_spec(rules), [load_spec(name) for name in files])


def test_rules_with_a_gate_cannot_teach() -> None:
    gated = spec(
        "mode: rules\ncriteria:\n  - {name: gate, gate: true, python: 'criteria_for_tests:has_hello'}\n"
        "  - {name: third, python: 'criteria_for_tests:third'}"
    )
    with pytest.raises(ConfigError, match="judge 'test' cannot teach"):
        RuleTeacher(gated, [file(OUTPUTS["letter"])])


def test_agreement_counts_decided_pairs_a_tie_as_half_and_no_verdict_as_wrong() -> None:
    rules, judge = load_spec("stories"), file(OUTPUTS["letter"])
    rows = [
        asked(ALL, NOTHING, "right"),
        asked("A dog.", f"{ALL} Torn.", "torn"),
        asked("", f"{ALL} Mute.", "mute"),
        asked(f"{ALL} Wrong.", NOTHING, "wrong"),
        asked("One.", "Two.", "even"),
    ]

    def say(text: str) -> str:
        better_first = text.startswith("Tell. One day") != ("Wrong." in text)
        return "A" if "Torn." in text else "well" if "Mute." in text else "A" if better_first else "B"

    lenient = judge.model_copy(
        update={"on_error": judge.on_error.model_copy(update={"retries": 0, "max_failure_rate": 1.0})}
    )
    found = agreement(rules, build(lenient, Scripted(say)), rows)
    # the rules decide four: right 1, torn a tie 1/2, mute no verdict 0, wrong 0
    assert (found["pairs"], found["agreement"], found["unscored"]) == (4, 0.375, 1)
    assert found["swap_consistency"] == pytest.approx(2 / 3, abs=1e-12)  # of right, torn and wrong
    assert found["first_share"] == pytest.approx(4 / 6, abs=1e-12)  # right 1 of 2, torn 2 of 2, wrong 1 of 2
    assert (found["longer_share"], found["longer_deserved"]) == (0.5, 1.0)  # right yes, wrong no; it deserves all four
