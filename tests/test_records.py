"""The rows: strict, frozen, and the same again after a trip through JSON."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from selfplay.records import Completion, Message, Pair, Preference, Prompt, Record, Verdict, mean_preference

PROMPT = Prompt(
    id="p",
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hello?")),
    meta={"animal": "fox", "nested": {"n": [1, None]}},
)
COMPLETION = Completion(
    id="p/0",
    prompt_id="p",
    text="Hi \u2028 é",
    token_ids=(1, 2),
    finish_reason="stop",
    policy="iteration-000",
    logprobs=(-0.5, -1.25),
)
PAIR = Pair(id="x", prompt=PROMPT, first=COMPLETION, second=COMPLETION)
VERDICT = Verdict(pair_id="x", judge="j", order="reversed", preference=0.25)
PREFERENCE = Preference(pair_id="x", prompt=PROMPT, chosen=COMPLETION, rejected=COMPLETION, margin=0.5, confidence=0.75)


@pytest.mark.parametrize("row", [PROMPT, COMPLETION, PAIR, VERDICT, PREFERENCE], ids=lambda row: type(row).__name__)
def test_a_row_survives_json_and_python_dumps(row: Record) -> None:
    assert type(row).model_validate_json(row.model_dump_json()) == row
    assert type(row).model_validate(row.model_dump()) == row


@pytest.mark.parametrize("row", [COMPLETION, VERDICT], ids=lambda row: type(row).__name__)
def test_a_row_as_json_values_is_read_back(row: Record) -> None:
    """As journals keep it: tuples have become lists."""
    assert type(row).model_validate(row.model_dump(mode="json")) == row


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        COMPLETION.text = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (COMPLETION, {"token_ids": ("1",)}),
        (COMPLETION, {"finish_reason": "eos"}),
        (COMPLETION, {"score": 1.0}),
        (COMPLETION, {"text": None}),
        (VERDICT, {"preference": 1.01}),
        (VERDICT, {"preference": -0.01}),
        (VERDICT, {"preference": math.nan}),
        (VERDICT, {"preference": "0.5"}),
        (VERDICT, {"order": "backward"}),
        (PROMPT, {"messages": ()}),
        (PROMPT, {"messages": [{"role": "human", "content": "x"}]}),
        (PROMPT, {"id": 7}),
    ],
)
def test_what_does_not_fit_is_refused(kind: Record, changes: dict[str, Any]) -> None:
    tree = kind.model_dump() | changes
    with pytest.raises(ValidationError):
        type(kind).model_validate(tree)


def test_a_plain_prompt_is_one_user_message() -> None:
    prompt = Prompt.plain("p", "Hello?", animal="fox")
    assert (prompt.text, prompt.meta) == ("Hello?", {"animal": "fox"})
    assert [message.model_dump() for message in prompt.messages] == [{"role": "user", "content": "Hello?"}]
    assert PROMPT.text == "Hello?", "the instruction is the last message"


@pytest.mark.parametrize(
    ("preferences", "mean"),
    [([1.0], 1.0), ([1.0, 0.5], 0.75), ([1.0, 0.0], 0.5), ([1.0, None], None), ([None], None), ([], None)],
)
def test_the_mean_preference_needs_every_order(preferences: list[float | None], mean: float | None) -> None:
    assert mean_preference([VERDICT.model_copy(update={"preference": one}) for one in preferences]) == mean
