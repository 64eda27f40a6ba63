"""Pairs and preferences as rows of Parquet files, and back."""

import json
from collections.abc import Mapping
from typing import Any

from selfplay.models import encode_prompt
from selfplay.records import Completion, Message, Pair, Preference, Prompt


def pair_row(pair: Pair) -> dict[str, Any]:
    """Return a pair as one flat row; `meta` becomes JSON text, since its keys may differ by prompt."""
    row = {
        "id": pair.id,
        "prompt_id": pair.prompt.id,
        "meta": json.dumps(pair.prompt.meta, default=str),
        "prompt": [message.model_dump() for message in pair.prompt.messages],
    }
    for place, completion in (("first", pair.first), ("second", pair.second)):
        row |= {
            f"{place}_{key}": value
            for key, value in completion.model_dump().items()
            if key not in ("prompt_id", "logprobs")
        }
    return row


def pair_of(row: dict[str, Any]) -> Pair:
    """Return the pair of a row."""
    prompt = Prompt(
        id=row["prompt_id"], meta=json.loads(row["meta"]), messages=tuple(map(Message.model_validate, row["prompt"]))
    )
    sides = [
        Completion(
            prompt_id=prompt.id,
            **{key: row[f"{place}_{key}"] for key in ("id", "text", "token_ids", "finish_reason", "policy")},
        )
        for place in ("first", "second")
    ]
    return Pair(id=row["id"], prompt=prompt, first=sides[0], second=sides[1])


def preference_row(preference: Preference, tokenizer: Any, wins: Mapping[str, float]) -> dict[str, Any]:
    """Return TRL's columns for conversations (`prompt`, `chosen`, `rejected`) and our own; see `selfplay.training.pairs`.

    `wins` is each completion's share of its pairs that it won, by the completion's id.
    """
    prompt_ids = encode_prompt(tokenizer, preference.prompt)
    return {
        "pair_id": preference.pair_id,
        "prompt_id": preference.prompt.id,
        "prompt": [message.model_dump() for message in preference.prompt.messages],
        "chosen": [{"role": "assistant", "content": preference.chosen.text}],
        "rejected": [{"role": "assistant", "content": preference.rejected.text}],
        "chosen_tokens": [*prompt_ids, *preference.chosen.token_ids],
        "rejected_tokens": [*prompt_ids, *preference.rejected.token_ids],
        "margin": preference.margin,
        "confidence": preference.confidence,
        "chosen_wins": wins[preference.chosen.id],
        "rejected_wins": wins[preference.rejected.id],
    }
