"""Preferences as a file: TRL's columns with the text, and the policy's own token ids under names that TRL does not know.

TRL's trainers take `chosen_ids` and `rejected_ids`, where they are, for the token ids of whatever model they train, so the
file says `chosen_tokens` and `rejected_tokens`: with another model's tokenizer, TRL reads the text.
"""

from pathlib import Path
from typing import Any

from selfplay.storage.files import read_rows

SIDES = ("chosen", "rejected")


def read_preferences(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a preferences.parquet, prompt and completion of both sides as `chosen_ids` and `rejected_ids`.

    Reads files of version 0.2 and before too, in which the columns have these names.
    """
    return [
        {f"{side}_ids": row[f"{side}_tokens"] for side in SIDES if f"{side}_tokens" in row}
        | {name: value for name, value in row.items() if name not in ("chosen_tokens", "rejected_tokens")}
        for row in read_rows(path)
    ]
