"""Reading verdicts: by hand, and under fuzzing, where nothing may become a verdict that was not given."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from judges.llm.parse import AnswerOptions, ParsedAnswer, answer_schema, average, read, read_logprobs
from judges.llm.quotations import without_quotations
from judges.spec.sections import Output
from selfplay.config import parse_yaml

AB = AnswerOptions({"A": 1.0, "B": 0.0, "C": 0.5})
REGEX = Output(kind="regex", pattern=r"\[\[(A|B|C)\]\]", labels={"A": 1.0, "B": 0.0, "C": 0.5})
LAST = REGEX.model_copy(update={"match": "last"})
NOT_AT_END = "the answer does not end with its verdict: behind"
OWN_LINE = "and the last has no line of its own"
UNIQUE = REGEX.model_copy(update={"match": "unique"})
FIRST = REGEX.model_copy(update={"match": "first"})
JSON = Output(kind="json", labels={"A": 1.0, "B": 0.0, "C": 0.5})
NUMBER = AnswerOptions(range=(1.0, 10.0))


@pytest.mark.parametrize(
    ("output", "text", "value", "error"),
    [
        (REGEX, "Both are good, but [[B]]", 0.0, ""),
        (LAST, "[[A]] at first sight; no, [[B]]", 0.0, ""),
        (REGEX, "[[A]] at first sight; no,\n [[B]]. ", 0.0, ""),
        (REGEX, "[[A]] at first sight; no,\n**[[B]]**\n", 0.0, ""),
        (REGEX, "It says [[A]].\nI say [[A]].", 1.0, ""),
        (REGEX, 'My verdict:\n"[[B]]"', 0.0, ""),
        (REGEX, "[[A]] at first sight; no, [[B]]", None, f"two different verdicts: 'A' and 'B', {OWN_LINE}"),
        (REGEX, "[[B]]. The response says [[A]]", None, f"two different verdicts: 'B' and 'A', {OWN_LINE}"),
        (REGEX, "[[B]]. It says [[A]], which is wrong", None, f"{NOT_AT_END} 'A' it says ', which is wrong'"),
        (REGEX, "[[B]] because it is kind.", None, f"{NOT_AT_END} 'B' it says 'because it is kind.'"),
        (REGEX, 'I was told to say "[[A]]".', None, "the verdict 'A' is a quotation"),
        (REGEX, "I was told to say `[[A]]`", None, "the verdict 'A' is a quotation"),
        (FIRST, "[[A]] at first sight; no, [[B]]", 1.0, ""),
        (UNIQUE, "[[A]] yes [[A]]", 1.0, ""),
        (UNIQUE, "[[A]] at first sight; no, [[B]]", None, "two different verdicts: 'A' and 'B'"),
        (REGEX, "A good answer.", None, "no verdict found"),
        (REGEX, "[[a]]", None, "no verdict found"),
        (REGEX, "[[A or B]]", None, "no verdict found"),
        (REGEX, "", None, "empty answer"),
    ],
)
def test_verdicts_by_pattern(output: Output, text: str, value: float | None, error: str) -> None:
    found = read(output, AB, text)
    assert (found.value, found.error, found.readable) == (value, error, not error)


SAYS = "Response A says:"


@pytest.mark.parametrize(
    ("text", "end", "line"),
    [
        (f"My verdict: [[B]].\n{SAYS}\n```\n[[A]]\n```", None, None),
        (f"[[B]]\n\n{SAYS}\n~~~\n[[A]]", None, None),
        (f"{SAYS}\n````\n```\n[[A]]\n```\n````\n[[B]]", 0.0, 0.0),
        (f"{SAYS}\n```text\n[[A]]\n```", None, None),
        (f"[[B]]\n\n{SAYS}\n> [[A]]", None, None),
        ("[[B]]\n\n> [[A]]\n", 0.0, 0.0),
        ("> [[A]]", None, None),
        ("```\nGood. [[A]]\n```", 1.0, 1.0),
        ("```\n[[A]]\n```</s>", 1.0, 1.0),
        (f"```\n[[B]]\n{SAYS}\n~~~\n[[A]]\n~~~\n```", None, None),
        (f"```\n[[B]]\n> {SAYS} [[A]]\n```", 0.0, 0.0),
        ("```\nprint()\n```\nIt runs.\n```\n[[A]]\n```", None, None),
        (f"{SAYS} [[A]]", 1.0, None),
        ("A's text:[[A]]", 1.0, None),
        ("I would ignore the text [[A]] !!!", 1.0, None),
        ("Not [[A]]", 1.0, None),
        ("[[B]]\n\nA also wrote\n[[A]]", 1.0, None),
        ("B is right. [[B]]", 0.0, 0.0),
        ("B is right! **[[B]]**", 0.0, 0.0),
        ("My final verdict is: [[B]]", 0.0, 0.0),
        ("**Verdict:** [[B]]", 0.0, 0.0),
        ("So be it. The verdict is [[B]].", 0.0, 0.0),
        (f"{SAYS} [[A]].\n[[B]]", 0.0, 0.0),
    ],
)
def test_what_is_quoted_is_not_the_verdict(text: str, end: float | None, line: float | None) -> None:
    alone = REGEX.model_copy(update={"match": "line"})
    assert (read(REGEX, AB, text).value, read(alone, AB, text).value) == (end, line)


def test_a_quoted_line_is_no_verdict_in_json_either() -> None:
    assert read(JSON, AB, 'I say {"verdict": "B"}\n> {"verdict": "A"}').value == 0.0
    assert read(JSON, AB, 'It says:\n> {"verdict": "A"}').error == "no JSON object ends the answer or begins it"


def test_quotations_take_their_own_length_in_blanks() -> None:
    assert without_quotations("a\n```x\nb\n```\n> c\nd") == "a\n    \n \n   \n   \nd"
    assert without_quotations("~~~\nb\n> c") == "   \nb\n   "
    for text in (
        "```\n" * 100_000,
        "`" * 400_000 + "x`\n",
        "> " * 200_000,
        "".join("`" * n + "\n" for n in range(500)),
    ):
        assert len(without_quotations(text)) == len(text)


def test_the_text_before_the_verdict_is_the_reason() -> None:
    assert read(REGEX, AB, "The first is right. \n[[A]]").reason == "The first is right."


@pytest.mark.parametrize(
    ("text", "value", "error"),
    [
        ('{"reason": "short", "verdict": "A"}', 1.0, ""),
        ('```json\n{"verdict": "B"}\n```', 0.0, ""),
        ('Let me think.\n```json\n{"verdict": "B"}\n```', 0.0, ""),
        ('I think so: {"verdict": "C"}', 0.5, ""),
        ('{"verdict": "A"}{"verdict": "A"}', 1.0, ""),
        ('{"a": {"verdict": "B"}, "verdict": "A"}', 1.0, ""),
        ('The response says {"verdict": "A"}, but {"verdict": "B"}', None, "two different verdicts: 'A' and 'B'"),
        ('{"verdict": "A"} I hope that helps.', 1.0, ""),
        ('{"verdict": "A"}\n\nExplanation: a {better} answer.', 1.0, ""),
        ('```json\n{"verdict": "B"}\n```\nB is shorter.', 0.0, ""),
        ('```\n{"verdict": "B"}\n``` ', 0.0, ""),
        ('{"verdict": "A"}</s>', 1.0, ""),
        ('So: {"verdict": "A"}<|im_end|>\n<|im_end|>\n', 1.0, ""),
        ('```json\n{"verdict": "B"}\n```<|eot_id|>', 0.0, ""),
        ('{"verdict": "A"}<end_of_turn> ', 1.0, ""),
        ('{"verdict": "B"}, although the first says {"verdict": "A"}!', None, "two different verdicts: 'A' and 'B'"),
        ('The response says {"verdict": "A"} and that is all.', None, "no JSON object ends the answer or begins it"),
        ('{"reason": broken, "x": {"verdict": "A"}}', None, "no JSON object ends the answer or begins it"),
        ('{"verdict": "A"', None, "no JSON object ends the answer or begins it"),
        ("A", None, "no JSON object ends the answer or begins it"),
        ('{"verdict": "A", "verdict": "B"}', None, "no JSON object ends the answer or begins it"),
        ('{"reason": "A"}', None, "no 'verdict' in the JSON object"),
        ('{"verdict": "D"}', None, "'D' is not one of A, B, C"),
        ('{"verdict": ["A"]}', None, "the verdict ['A'] is neither text nor a number nor true or false"),
        ('{"verdict": true}', None, "'true' is not one of A, B, C"),
        ('{"verdict": null}', None, "the verdict None is neither text nor a number nor true or false"),
        ('["A"]', None, "no JSON object ends the answer or begins it"),
    ],
)
def test_verdicts_in_json(text: str, value: float | None, error: str) -> None:
    found = read(JSON, AB, text)
    assert (found.value, found.error) == (value, error)


def test_half_a_surrogate_pair_in_json_is_a_question_mark() -> None:
    """What JSON escapes is no text that a journal can hold, and its cached answer stopped every restart again."""
    found = read(JSON, AB, r'{"reason": "cut \ud83d off, whole \ud83d\ude00", "verdict": "A"}')
    assert (found.value, found.reason) == (1.0, "cut ? off, whole \U0001f600")
    nested = read(JSON, AB, r'{"reason": ["\ud83d"], "verdict": "A"}')
    wrong = read(JSON, AB, r'{"reason": "x", "verdict": "\ud83d"}')
    assert nested.value == 1.0 and nested.reason.encode() and wrong.value is None and wrong.error.encode()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[1]]", 0.0),
        ("[[10]]", 1.0),
        ("[[5.5]]", 0.5),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[high]]", None),
        ("[[nan]]", None),
        ("[[-5]]", None),
        ("[[1e400]]", None),
    ],
)
def test_numbers_lie_on_their_range(text: str, value: float | None) -> None:
    anything = Output(kind="regex", pattern=r"\[\[([^\[\]]+)\]\]", range=(1, 10))
    assert read(anything, NUMBER, text).value == value


def test_json_numbers_and_number_texts_are_the_same() -> None:
    scale = Output(kind="json", range=(0, 4))
    assert [
        read(scale, AnswerOptions(range=(0, 4)), text).value
        for text in ('{"verdict": 3}', '{"verdict": "3"}', '{"verdict": 3.0}')
    ] == [0.75] * 3


@pytest.mark.parametrize(
    ("labels", "verdicts", "schema"),
    [
        (
            "{true: 1, false: 0}",
            {"true": 1.0, "false": 0.0, '"true"': 1.0, '"false"': 0.0, "1": None},
            {"type": "boolean"},
        ),
        (
            "{1: 1, 2: 0, 1.5: 0.5}",
            {"1": 1.0, "2.0": 0.0, '"2"': 0.0, "1.50": 0.5, "true": None, "3": None},
            {"type": "number", "enum": [1, 2, 1.5]},
        ),
        ("{1: 1, 2: 0}", {"1": 1.0, '" 2 "': 0.0}, {"type": "integer", "enum": [1, 2]}),
        ("{yes: 1, no: 0}", {'"yes"': 1.0, "true": None}, {"type": "string", "enum": ["yes", "no"]}),
        ("{-1: 0, 1: 1}", {"-1": 0.0, "1.0": 1.0}, {"type": "integer", "enum": [-1, 1]}),
    ],
)
def test_truth_values_and_numbers_are_labels(
    labels: str, verdicts: dict[str, float | None], schema: dict[str, Any]
) -> None:
    """In YAML `true` and `1` are no texts, and a judge answers `{"verdict": true}` or `{"verdict": "true"}`."""
    output = Output.model_validate(parse_yaml(f"{{kind: json, labels: {labels}}}"))
    menu = AnswerOptions(output.labels)
    assert {said: read(output, menu, f'{{"verdict": {said}}}').value for said in verdicts} == verdicts
    assert answer_schema(output, menu)["properties"]["verdict"] == schema


def test_an_end_token_behind_a_verdict_is_no_word() -> None:
    assert [
        read(REGEX, AB, f"[[A]]{end}").value for end in ("</s>", "<|im_end|>\n", " <eos><pad><pad>", "<|eot_id|>.")
    ] == [1.0] * 3 + [None]


def test_the_schema_follows_from_the_menu() -> None:
    assert answer_schema(JSON, AB)["properties"] == {
        "reason": {"type": "string"},
        "verdict": {"type": "string", "enum": ["A", "B", "C"]},
    }
    whole = answer_schema(Output(kind="json", range=(1, 10)), NUMBER)["properties"]["verdict"]
    assert whole == {"type": "integer", "minimum": 1, "maximum": 10}
    assert json.dumps(whole) == '{"type": "integer", "minimum": 1, "maximum": 10}'
    own = {"type": "object", "properties": {"verdict": {"type": "string"}}}
    assert answer_schema(Output(kind="json", labels={"A": 1, "B": 0}, json_schema=own), AB) == own


def test_log_probabilities_without_mass_are_no_verdict() -> None:
    logprob = Output(kind="logprob", labels={"A": 1, "B": 0})
    menu = AnswerOptions({"A": 1.0, "B": 0.0})
    for logprobs in ({"A": -math.inf, "B": -math.inf}, {"A": math.nan, "B": -1.0}):
        assert read_logprobs(logprob, menu, logprobs) == ParsedAnswer(
            None, error="the model gave no probabilities for the labels"
        )


def test_the_average_of_answers_needs_more_than_half() -> None:
    good, bad = ParsedAnswer(1.0, "A", "because"), ParsedAnswer(None, error="no verdict found")
    assert average([good, ParsedAnswer(0.0, "B"), good]).value == pytest.approx(2 / 3, abs=1e-12)
    assert average([good, bad]).value is None and average([good, good, bad]).value == 1.0
    assert average([bad]) == bad


prose = st.text(max_size=200)
pieces = st.lists(
    st.one_of(
        prose,
        st.sampled_from(
            ["[[A]]", "[[B]]", "[[", "]]", "{", "}", '{"verdict": "A"}', '"', "```", "\n", "A", "[[A", "\\"]
        ),
    ),
    max_size=12,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=pieces)
@example(text="{" * 5000)
@example(text='{"a":' * 3000)
@example(text='{"verdict": ' + "9" * 5000 + "}")
@example(text="\ud800[[A]]")
def test_no_text_crashes_a_parser_or_gives_a_verdict_that_is_not_there(text: str) -> None:
    for output in (REGEX, LAST, UNIQUE, FIRST, JSON):
        found = read(output, AB, text)
        assert (found.value is None) == bool(found.error)
        if output.kind == "regex" and found.readable:
            assert f"[[{found.label}]]" in text
        if output.kind == "json" and found.readable:
            assert re.search(rf'"verdict"\s*:\s*"{found.label}"', text)
            bare = text.strip().removesuffix("```").strip()
            assert bare.endswith("}") or re.match(r"(?:```\w*\s*)?\{", bare)


@settings(max_examples=300, deadline=None)
@given(quoted=pieces, own=st.sampled_from("ABC"), behind=st.sampled_from(["", ".", "**", "\n", " \n\n", "\n---\n"]))
def test_whatever_the_judge_quotes_its_own_verdict_is_the_line_that_ends_its_answer(
    quoted: str, own: str, behind: str
) -> None:
    values = {"A": 1.0, "B": 0.0, "C": 0.5}
    fenced = "```" in quoted or "~~~" in quoted  # and perhaps not closed
    assert read(REGEX, AB, f"The response says: {quoted}\n[[{own}]]{behind}").value in (values[own], None)[: 1 + fenced]
    other = "ABC"[("ABC".index(own) + 1) % 3]
    assert read(REGEX, AB, f"[[{own}]]{behind} The response says: {quoted}[[{other}]]").value in (None, values[other])
    assert read(REGEX, AB, f"[[{own}]]{behind} The response says: x [[{other}]]").error


@settings(max_examples=200, deadline=None)
@given(before=prose.filter(lambda text: not re.search(r"\[\[|[{>]|```|~~~", text)), label=st.sampled_from("ABC"))
def test_a_verdict_behind_any_prose_is_read(before: str, label: str) -> None:
    values = {"A": 1.0, "B": 0.0, "C": 0.5}
    assert read(REGEX, AB, f"{before}[[{label}]]").value == values[label]
    assert read(JSON, AB, f"{before}{json.dumps({'verdict': label})}").value == values[label]


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=6,
    )
)
def test_any_json_value_as_verdict_is_on_the_menu_or_refused(value: Any) -> None:
    found = read(JSON, AB, json.dumps({"verdict": value}))
    assert found.readable == (isinstance(value, str) and value.strip() in ("A", "B", "C"))
