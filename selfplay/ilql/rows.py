"""What ILQL learns from: completions as token ids, each with a reward; from rows of text, or from judged pairs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from prompts.files import rows_of
from prompts.sources import prompt_of
from selfplay.errors import ConfigError
from selfplay.models import encode_prompt
from selfplay.objects import LARGEST_SCORE, is_score, number, shown
from selfplay.records import Prompt
from selfplay.training.pairs import prompt_ids_of


@dataclass(frozen=True)
class ScoredText:
    """One row of a source: a prompt, what was said to it, and what that was worth."""

    prompt: Prompt
    completion: str
    reward: float


@dataclass(frozen=True)
class Row:
    """One completion as token ids, its end token included, and its reward, which falls on its last token."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    reward: float


def load_scored(source: str) -> list[ScoredText]:
    """Return the rows of a file or dataset with `prompt`, `completion` and `reward`. Raises ConfigError for a row without one."""
    found = []
    for place, row in enumerate(rows_of(source, "train", ()), 1):
        where = f"{source}, row {place}"
        completion, reward = row.get("completion"), number(row.get("reward"))
        if not isinstance(completion, str) or not completion:
            raise ConfigError(f"{where}: `completion` is {shown(completion)}; it must be a text")
        if reward is None or not is_score(reward):
            raise ConfigError(
                f"{where}: `reward` is {shown(row.get('reward'))}; it must be a finite number, of {LARGEST_SCORE:g} at most"
            )
        prompt = prompt_of({"prompt": row.get("prompt")}, "prompt", where)
        found.append(ScoredText(prompt, completion, reward))
    if not found:
        raise ConfigError(f"{source!r} holds no rows of prompt, completion and reward")
    return found


def encode_scored(rows: Iterable[ScoredText], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Return rows of text as token ids, with the end token behind each completion."""
    return [
        Row(
            tuple(encode_prompt(tokenizer, one.prompt)),
            (*tokenizer(one.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id),
            one.reward,
        )
        for one in rows
    ]


def rows_of_preferences(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Return the completions of preferences (see `read_preferences`), each with its mean preference over its pairs, in [0, 1]."""
    won: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
    for row in rows:
        prompt = tuple(prompt_ids_of(row, tokenizer))
        for key, preference in (("chosen_ids", row["confidence"]), ("rejected_ids", 1.0 - row["confidence"])):
            won.setdefault((prompt, tuple(row[key][len(prompt) :])), []).append(preference)
    return [Row(*key, sum(values) / len(values)) for key, values in won.items()]


def fitting(rows: Sequence[Row], longest: int) -> list[Row]:
    """Return the rows of at most `longest` tokens, with one at least in the response. Raises ConfigError if none is left."""
    kept = [row for row in rows if row.response and len(row.prompt) + len(row.response) <= longest]
    if not kept:
        raise ConfigError(f"none of {len(rows)} completions with a reward fits the model's context of {longest} tokens")
    return kept


def standardised(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with rewards of mean 0 and deviation 1 (divided by n - 1). Raises ConfigError if all are the same."""
    rewards = [row.reward for row in rows]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / max(len(rewards) - 1, 1))
    if deviation < 1e-12:
        raise ConfigError(f"all {len(rows)} completions have the reward {mean:g}: there is nothing to learn from that")
    return [replace(row, reward=(row.reward - mean) / deviation) for row in rows]
