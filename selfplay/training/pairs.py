"""Preferences as a file: TRL's columns with the text, and the policy's own token ids under names that TRL does not know.

TRL's trainers take `chosen_ids` and `rejected_ids`, where they are, for the token ids of whatever model they train, so the
file says `chosen_tokens` and `rejected_tokens`: with another model's tokenizer, TRL reads the text.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfplay.records import Message, Prompt
from selfplay.storage.files import read_rows

SIDES = ("chosen", "rejected")


def prompt_ids_of(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Return the prompt of a row of preferences.parquet as a tokenizer reads it now."""
    from selfplay.models import encode_prompt  # loads torch, which a dry run does not wait for

    messages = tuple(Message.model_validate(one) for one in row["prompt"])
    return encode_prompt(tokenizer, Prompt(id=row["prompt_id"], messages=messages))


def read_preferences(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a preferences.parquet, prompt and completion of both sides as `chosen_ids` and `rejected_ids`.

    Reads files of version 0.2 and before too, in which the columns have these names.
    """
    return [
        {f"{side}_ids": row[f"{side}_tokens"] for side in SIDES if f"{side}_tokens" in row}
        | {name: value for name, value in row.items() if name not in ("chosen_tokens", "rejected_tokens")}
        for row in read_rows(path)
    ]
