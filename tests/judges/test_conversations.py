"""Judges of conversations: shipped templates show the earlier turns, and one that does not is named before it is asked."""

from typing import Any

import pytest
from judging import Scripted, pair, spec

from judges import build, load_spec, shipped
from judges.audit.cautions import cautions
from judges.audit.check import check
from judges.audit.file_tests import Script
from judges.audit.gold import GoldPair
from judges.audit.inspect import try_pair
from judges.spec.base import ModelSpec
from selfplay.records import Message, Prompt

LAST_TURN = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ prompt }} {{ responses[0] }} {{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
"""
TURNS = Prompt(
    id="talk",
    messages=(
        Message(role="system", content="You are a gardener."),
        Message(role="user", content="My roses have spots."),
        Message(role="assistant", content="Black or brown ones?"),
        Message(role="user", content="Black."),
    ),
    meta={"reference": "Fungus."},
)
TALK = pair("Fungus.", "Sun.").model_copy(update={"prompt": TURNS})
SENTENCE = (
    "judge 'test': its template shows only the last turn of a conversation, but prompt 'talk' has 4 turns; show the earlier "
    "ones with {% for turn in history %}{{ turn.role }}: {{ turn.content }}{% endfor %}"
)


@pytest.mark.parametrize("name", [name for name in shipped() if load_spec(name).needs_model])
def test_shipped_judges_show_every_turn(name: str) -> None:
    file = load_spec(name, model="m")
    assert cautions(file, [TURNS]) == []
    shown = try_pair(file, pair=TALK).exchanges
    members = [part for part in file.parts if isinstance(part, ModelSpec)]
    assert len(shown) >= len(members) >= 1
    for exchange in shown:
        text = "\n".join(message.content for message in exchange.messages)
        places = [text.find(message.content) for message in TURNS.messages]
        assert -1 not in places and places == sorted(places)


@pytest.mark.parametrize("name", [name for name in shipped() if load_spec(name).needs_model])
def test_without_earlier_turns_nothing_is_said_of_them(name: str) -> None:
    for exchange in try_pair(load_spec(name, model="m"), pair=pair("a", "b", reference="r")).exchanges:
        text = exchange.messages[-1].content
        assert "Earlier" not in text and not text.startswith("\n") and "\n\n\n" not in text


def test_a_template_that_leaves_turns_out_is_named_before_a_call() -> None:
    lines: list[str] = []

    def say(text: str) -> str:
        lines.append("asked")
        return "[[A]]"

    gold = [GoldPair(TALK, 1.0, "all")]
    report = check(spec(LAST_TURN), Scripted(say), gold, announce=lines.append)
    assert report.cautions == [SENTENCE] and lines[1] == f"caution: {SENTENCE}" and lines[2] == "asked"
    lines.clear()
    try_pair(spec(LAST_TURN), Scripted(say), TALK, announce=lines.append)
    assert lines[:2] == [f"caution: {SENTENCE}", "asked"]
    assert cautions(spec(LAST_TURN), [Prompt.plain("one", "turn")]) == []


def test_the_turns_come_in_order_with_their_roles() -> None:
    judge: Any = build(load_spec("helpfulness", model="m"), Script([]))
    text = judge.question(TALK, "forward").messages[-1].content
    assert text.startswith(
        "Earlier, the system said:\n```\nYou are a gardener.\n```\nEarlier, the user said:\n```\nMy roses"
    )
    assert "Earlier, the assistant said:\n```\nBlack or brown ones?\n```\nThe request:\n```\nBlack.\n```" in text
