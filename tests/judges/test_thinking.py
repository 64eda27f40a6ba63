"""Judges that think: only what stands behind the thinking is read, both are kept, and a thought cut off says so."""

from pathlib import Path
from typing import Any

import pytest
from judging import Scripted, pair, spec

from judges import build
from judges.audit.check import check
from judges.llm.parse import AnswerOptions
from judges.llm.thinking import hear, split
from judges.spec.sections import Output, Reasoning
from selfplay.engines import Answer, GuidedSampling
from selfplay.errors import ConfigError

TAGS = ("<think>", "</think>")
HEAD = """
mode: pairwise
model: some-model
order: fixed
messages: [{role: user, content: "{{ prompt }}\\n{{ responses[0] }}\\n{{ responses[1] }}"}]
on_error: {max_failure_rate: 1, retries: 0}
"""
REGEX = HEAD + "output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}\n"
JSON = HEAD + "output: {kind: json, labels: {A: 1, B: 0}}\n"
VERDICT_A = '{"reason": "kinder", "verdict": "A"}'
VERDICT_B = '{"reason": "longer", "verdict": "B"}'


@pytest.mark.parametrize(
    ("text", "thought", "answer", "ended"),
    [
        ("[[A]]", "", "[[A]]", True),
        ("<think>B? [[B]]</think>\n\nA it is. [[A]]", "B? [[B]]", "A it is. [[A]]", True),
        ("\n<think>\n\n</think>\n[[A]]", "", "[[A]]", True),
        ("B? [[B]]</think>[[A]]", "B? [[B]]", "[[A]]", True),  # the template wrote the first tag
        ("<think>it says </think>[[B]], a trick</think>[[A]]", "it says </think>[[B]], a trick", "[[A]]", True),
        ("<think>on and on [[B]]", "on and on [[B]]", "", False),
        ('{"reason": "it says </think>", "verdict": "A"}', "", '{"reason": "it says </think>", "verdict": "A"}', True),
        ('{"reason": "a \\"b\\" and </think> an', "", '{"reason": "a \\"b\\" and </think> an', True),  # cut off
        (f"{VERDICT_B} hmm, no.</think>\n\nI cannot say.", f"{VERDICT_B} hmm, no.", "I cannot say.", True),
        (f"{VERDICT_B} hmm</think>{VERDICT_A}", f"{VERDICT_B} hmm", VERDICT_A, True),
        ('{"says": "</think>"} hm "x</think>[[A]]', '{"says": "</think>"} hm "x', "[[A]]", True),
        ("I think that <think> is a tag. [[A]]", "", "I think that <think> is a tag. [[A]]", True),
    ],
)
def test_thought_and_answer_by_hand(text: str, thought: str, answer: str, ended: bool) -> None:
    assert split(text, TAGS) == (thought, answer, ended)


@pytest.mark.parametrize("kind", [REGEX, JSON])
@pytest.mark.parametrize("sent", [False, True])
def test_a_draft_of_a_verdict_in_the_thinking_is_none(kind: str, sent: bool) -> None:
    draft, final = (VERDICT_B, VERDICT_A) if kind == JSON else ("[[B]]", "[[A]]")
    engine = Thinker(f"Hm. {draft}", final, sent=sent)
    [row] = build(spec(kind), engine).judge([pair("a", "b")])
    assert row.preference == 1.0 and row.reason == ("kinder" if kind == JSON else "")
    assert row.raw == f"<think>\nHm. {draft}\n</think>\n\n{final}" if sent else f"<think>Hm. {draft}</think>{final}"


class Thinker(Scripted):
    """An engine that answers with thinking, in the text or in a field of its own as servers send it."""

    def __init__(self, thought: str, answer: str, sent: bool, finish_reason: str = "stop") -> None:
        super().__init__(finish_reason=finish_reason)
        self.thought, self.answer, self.sent = thought, answer, sent

    def stream(self, prompts: Any, sampling: Any, choices: Any = None) -> Any:
        self.prompts += prompts
        self.samplings += [sampling] * len(prompts)
        text = self.answer if self.sent else f"<think>{self.thought}</think>{self.answer}"
        for place in range(len(prompts)):
            yield place, Answer((text,), (self.finish_reason,), thoughts=(self.thought,) if self.sent else ()), ""


@pytest.mark.parametrize(
    ("text", "thought", "reason", "error"),
    [
        (
            "<think>on and on [[A]]",
            "",
            "length",
            "the thinking took all tokens: raise reasoning.budget, now 7, or turn",
        ),
        ("", "on and on [[A]]", "length", "the thinking took all tokens: raise reasoning.budget, now 7, or turn"),
        ("<think>on and on [[A]]", "", "stop", "the thinking never ends with '</think>': set reasoning.tags"),
        ("<think>done [[A]]</think>", "", "stop", "no answer behind 10 characters of thinking"),
        ("", "done [[A]]", "stop", "no answer behind 10 characters of thinking"),
        ("", "", "stop", "empty answer"),
        ("<think>done</think>A it is: [[", "", "length", "answer cut off at max_tokens"),
    ],
)
def test_without_an_answer_the_reason_names_the_setting(text: str, thought: str, reason: str, error: str) -> None:
    output = Output(kind="regex", pattern=r"\[\[(A|B)\]\]", labels={"A": 1.0, "B": 0.0})
    answer = Answer((text,), (reason,), thoughts=(thought,) if thought else ())
    [reading] = hear(output, AnswerOptions({"A": 1.0, "B": 0.0}), Reasoning(budget=7), answer)
    assert reading.value is None and reading.error.startswith(error)


def test_a_whole_object_that_a_server_took_for_thinking_is_the_answer_and_prose_is_not() -> None:
    """vLLM with a reasoning parser files a guided answer under the thinking where the model was told not to think."""
    [row] = build(spec(JSON), Thinker(VERDICT_A, "", sent=True)).judge([pair("a", "b")])
    assert row.preference == 1.0
    for thought in (f"So: {VERDICT_A}", f"{VERDICT_B} {VERDICT_A}", "[1]", VERDICT_A[:-1]):
        [row] = build(spec(JSON), Thinker(thought, "", sent=True)).judge([pair("a", "b")])
        assert row.preference is None and "characters of thinking" in row.error
    [row] = build(spec(JSON), Thinker(VERDICT_A, "", sent=True, finish_reason="length")).judge([pair("a", "b")])
    assert row.preference is None and "took all tokens" in row.error


def test_budget_and_template_go_with_the_call_and_into_the_key(tmp_path: Path) -> None:
    thinking = "sampling: {max_tokens: 10}\nreasoning: {budget: 90, chat_template_kwargs: {enable_thinking: true}}\n"
    path = tmp_path / "cache.sqlite"
    for text, tokens, options in ((REGEX, 512, {}), (REGEX + thinking, 100, {"enable_thinking": True})):
        engine = Thinker("hm", "[[A]]", sent=True)
        build(spec(text), engine, path).judge([pair("a", "b")])
        assert engine.samplings[0].max_tokens == tokens
        assert getattr(engine.prompts[0], "options", {}) == options
        silent = Thinker("hm", "[[B]]", sent=True)
        assert build(spec(text), silent, path).judge([pair("a", "b")])[0].preference == 1.0 and silent.calls == 0
    off = spec(REGEX + thinking.replace("true", "false"))
    assert build(off, Thinker("", "[[B]]", sent=True), path).judge([pair("a", "b")])[0].preference == 0.0


def test_a_schema_guides_only_where_it_leaves_room_to_think() -> None:
    budget = "reasoning: {budget: 90}\n"
    server = 'endpoint: {url: "http://127.0.0.1:9/v1"}\n'
    for text, guided in ((JSON, True), (JSON + budget, False), (JSON + budget + server, True)):
        engine = Thinker("hm", VERDICT_A, sent=True)
        build(spec(text), engine).judge([pair("a", "b")])
        assert isinstance(engine.samplings[0], GuidedSampling) == guided


def test_a_repair_shows_the_judge_its_answer_and_not_its_thinking() -> None:
    repairing = REGEX.replace("retries: 0", "retries: 1, repair: 'End with [[A]] or [[B]].'")
    engine = Thinker("hm [[B]]", "The first.", sent=False)
    build(spec(repairing), engine).judge([pair("a", "b")])
    assert [message.content for message in engine.prompts[1].messages[1:]] == ["The first.", "End with [[A]] or [[B]]."]


def test_the_settings_of_an_endpoint_that_change_an_answer_are_in_the_key(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"

    def calls(endpoint: str) -> int:
        engine = Thinker("", "[[A]]", sent=True)
        build(spec(REGEX + f'endpoint: {{url: "http://127.0.0.1:9/v1"{endpoint}}}\n'), engine, path).judge(
            [pair("a", "b")]
        )
        return engine.calls

    assert [calls(""), calls(""), calls(", retries: 1, max_cost: 1, output_price: 1")] == [1, 0, 0]
    assert calls(", extra: {reasoning_effort: low}") == calls(", query: {v: '2'}") == calls(", guided: false") == 1


def test_check_gives_up_early_with_an_example_and_what_mends_it() -> None:
    text = REGEX.replace("retries: 0", "retries: 1").replace("order: fixed\n", "")
    engine = Thinker("", "", sent=False, finish_reason="length")
    engine.answer, engine.sent = "<think>Let me see, response A", True
    found = check(spec(text), engine)
    assert engine.calls == 32  # 8 pairs, 2 orders, 2 tries: and not the 672 of the whole gold set and all canaries
    assert found.gold is not None and found.gold.pairs == 8 and not found.passed
    [problem] = [one for one in found.problems if one.kind == "broken"]
    assert "none of the first 8 pairs has a readable verdict" in problem.sentence
    assert "raise reasoning.budget, now 0" in problem.sentence and "'<think>Let me see, response A" in problem.sentence
    assert problem.sentence.count("reasoning.budget") == 1
    engine = Thinker("", "I like the first.", sent=True)
    [problem] = [one for one in check(spec(text), engine).problems if one.kind == "broken"]
    assert "no verdict found" in problem.sentence and "say in the template how the answer must end" in problem.sentence


def test_a_judge_that_can_be_read_is_checked_to_the_end() -> None:
    found = check(spec(REGEX), Thinker("", "[[A]]", sent=True))
    assert found.gold is not None and found.gold.pairs == 120 and found.canary_wins


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tags: [x, x]", "reasoning: tags ['x', 'x']: two different texts"),
        ("tags: ['', y]", "two different texts"),
        ("budget: -1", "reasoning.budget"),
        (
            "chat_template_kwargs: {add_generation_prompt: false}",
            "'add_generation_prompt' is not an option of a template",
        ),
    ],
)
def test_settings_that_cannot_be(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        spec(REGEX + f"reasoning: {{{setting}}}\n")
    assert said in str(refusal.value)
