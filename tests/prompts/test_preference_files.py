"""Preferences in the shapes that public data has, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from prompts.preferences import load_preferences
from selfplay.errors import ConfigError
from selfplay.storage.files import write_json_lines, write_rows

SHARED = Path(__file__).parents[3] / "shared"
ASKED = {"role": "user", "content": "Is it late?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("It is.", "No."))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is it late?", "chosen": "It is.", "rejected": "No."},
        {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]},
        {
            "prompt": "Is it late?",
            "chosen": [ASKED, YES],
            "rejected": [ASKED, NO],
            "score_chosen": 8.0,
        },  # UltraFeedback
        {"chosen": [ASKED, YES], "rejected": [ASKED, NO]},
        {
            "chosen": "\n\nHuman: Is it late?\n\nAssistant: It is.",
            "rejected": "\n\nHuman: Is it late?\n\nAssistant: No.",
        },
        {"prompt": "Is it late?", "chosen": json.dumps([YES]), "rejected": "No."},
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_shape_is_the_same_pair(row: dict[str, Any], kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"pairs.{kind}"
    (write_json_lines if kind == "jsonl" else write_rows)(file, [row])
    [(prompt, chosen, rejected)], dropped = load_preferences(str(file))
    assert (prompt.text, chosen, rejected, dropped) == ("Is it late?", "It is.", "No.", 0)
    assert [message.role for message in prompt.messages] == ["user"]


def test_earlier_turns_belong_to_the_prompt_and_rows_that_are_no_pair_are_counted(tmp_path: Path) -> None:
    talk = [ASKED, YES, {"role": "user", "content": "Sure?"}]
    rows = [
        {"chosen": [*talk, YES], "rejected": [*talk, NO]},
        {"chosen": [*talk, YES], "rejected": [*talk, YES]},
        {"chosen": [*talk, YES], "rejected": [ASKED, NO]},
    ]
    write_json_lines(tmp_path / "pairs.jsonl", rows)
    [(prompt, *texts)], dropped = load_preferences(str(tmp_path / "pairs.jsonl"))
    assert (len(prompt.messages), texts, dropped) == (3, ["It is.", "No."], 2)
    write_json_lines(tmp_path / "pairs.jsonl", rows[1:])
    with pytest.raises(ConfigError, match="holds no preferences: all of 2 rows"):
        load_preferences(str(tmp_path / "pairs.jsonl"))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"prompt": "p", "chosen": "a"},
            r"pairs.jsonl, row 1: column 'rejected' is missing .*there are: chosen, prompt",
        ),
        ({"prompt": "p", "better": "a", "worse": "b"}, "column 'chosen' is missing or empty"),
        ({"chosen": "a", "rejected": "b"}, "there is no column `prompt`, and `chosen` is no conversation"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "`chosen` is a int; it must be a text or a list of messages"),
        ({"prompt": "p", "chosen": [ASKED], "rejected": [NO]}, "`chosen` is no conversation"),
    ],
)
def test_rows_that_are_no_preferences_are_named(row: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    write_json_lines(tmp_path / "pairs.jsonl", [row])
    with pytest.raises(ConfigError, match=sentence):
        load_preferences(str(tmp_path / "pairs.jsonl"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_hh_rlhf_is_read_as_it_is() -> None:
    found, dropped = load_preferences(str(SHARED / "data/preferences/hh_harmless_base_test.jsonl.gz"))
    assert len(found) + dropped == 2312 and len(found) > 2200
    assert all(prompt.messages[-1].role == "user" and one != other for prompt, one, other in found)
