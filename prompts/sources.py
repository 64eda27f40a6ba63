"""Prompts, demonstrations and corpora: from the built-in set, a file, a folder, or a dataset on the hub.

How rows are read is in `prompts.files`, what they say in `prompts.shapes`.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompts import instructions, stories
from prompts.files import rows_of, suffix_of
from prompts.shapes import ANSWERS, CONVERSATIONS, TEXTS, UNSEEN, conversation_of
from selfplay.config import PromptSource, read_text
from selfplay.errors import ConfigError
from selfplay.progress import log_once
from selfplay.records import Message, Prompt

BUILT_IN = "stories"
BUILT_IN_PROMPTS = {"stories": stories.prompts, "instructions": instructions.prompts}
END_OF_DOCUMENT = "<|endoftext|>"

Demonstration = tuple[Prompt | None, str]
"""A prompt and an answer to it; or no prompt and a whole text."""


def load_prompts(source: PromptSource | Sequence[PromptSource], seed: int) -> list[Prompt]:
    """Return all prompts of a source, or of several mixed, each with an id of its own.

    Raises ConfigError for what cannot be read.
    """
    return _of_one(source, seed) if isinstance(source, PromptSource) else _mixed(source, seed)


def _of_one(source: PromptSource, seed: int) -> list[Prompt]:
    if source.source in BUILT_IN_PROMPTS:
        try:
            return BUILT_IN_PROMPTS[source.source](source.split, source.limit or 1024, seed)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    found: dict[str, Prompt] = {}
    left_out = 0
    for number, row in enumerate(rows_of(source.source, source.split, BUILT_IN_PROMPTS), 1):
        prompt = prompt_of(row, source.column, f"{source.source}, row {number}")
        if not _has_length(prompt, source):
            left_out += 1
            continue
        if found.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise ConfigError(f"{source.source}, row {number}: the id {prompt.id!r} belongs to another prompt already")
        if source.limit is not None and len(found) == source.limit:
            break
    if left_out:
        log_once(
            f"  {source.source}: {left_out} prompts left out, for they have fewer than {source.min_characters} or more than "
            f"{source.max_characters or 'any number of'} characters"
        )
    if not found:
        raise ConfigError(f"{source.source!r} holds no prompts" + (" of the length that is wanted" if left_out else ""))
    return list(found.values())


def _has_length(prompt: Prompt, source: PromptSource) -> bool:
    length = sum(len(message.content) for message in prompt.messages)
    return source.min_characters <= length and (source.max_characters is None or length <= source.max_characters)


def _mixed(sources: Sequence[PromptSource], seed: int) -> list[Prompt]:
    """Return the largest mixture of sources in the proportions of their weights that repeats no prompt.

    Of n_i prompts with share p_i of the weights, N p_i are drawn at random, N = min n_i / p_i. A prompt that two sources hold
    is the first's. `meta.source` says where one came from.
    """
    texts: set[tuple[Message, ...]] = set()
    identifiers: set[str] = set()
    each: list[list[Prompt]] = []
    for source in sources:
        own = []
        for prompt in _of_one(source, seed):
            if prompt.messages in texts:
                continue
            name = prompt.id if prompt.id not in identifiers else _hash(prompt.messages)
            texts.add(prompt.messages)
            identifiers.add(name)
            own.append(prompt.model_copy(update={"id": name, "meta": {"source": source.source, **prompt.meta}}))
        each.append(own)
    if any(source.weight is None for source in sources):
        return [prompt for own in each for prompt in own]
    total = sum(source.weight or 0.0 for source in sources)
    shares = [(source.weight or 0.0) / total for source in sources]
    whole = min(len(own) / share for own, share in zip(each, shares, strict=True))
    counts = [int(whole * share + 1e-9) for share in shares]
    told = ", ".join(f"{n} of {len(own)} from {one.source}" for n, own, one in zip(counts, each, sources, strict=True))
    log_once(f"  prompts mixed by weight: {told}")
    drawn: list[Prompt] = []
    for number, (own, count) in enumerate(zip(each, counts, strict=True)):
        chosen = random.Random(f"mixture/{seed}/{number}").sample(range(len(own)), count)
        drawn += [own[place] for place in sorted(chosen)]
    if not drawn:
        raise ConfigError(f"the mixture of {len(sources)} sources holds no prompt: one has too few for its weight")
    return drawn


def prompt_of(row: dict[str, Any], column: str, where: str) -> Prompt:
    """Return one row as a prompt; its id is its own, or a hash of its text, so that equal prompts are one.

    An answer that the row holds is `meta.reference`, unless it has such a column. Raises ConfigError naming `where`.
    """
    found = conversation_of(row, column, where)
    messages = found.request
    for name in UNSEEN:
        if row.get(name):
            log_once(f"  {where.rpartition(', row')[0]}: the column {name!r} is not shown to the model")
    meta = {key: item for key, item in row.items() if key not in found.columns and key != "id"}
    if found.answer is not None and meta.get("reference") is None:
        meta["reference"] = found.answer
    own = row.get("id")
    return Prompt(id=_hash(messages) if own in (None, "") else str(own), messages=messages, meta=meta)


def _hash(messages: Sequence[Message]) -> str:
    text = json.dumps([message.model_dump() for message in messages], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_demonstrations(source: str, count: int, seed: int) -> list[Demonstration]:
    """Return at most `count` prompts with an answer to each, or texts without a prompt.

    Rows are known by their columns, as those of prompts are; of a conversation, each of the assistant's turns is the answer
    to what stands before it; a row with nothing but a `text` is learned whole. Raises ConfigError.
    """
    if source == BUILT_IN:
        return list(stories.demonstrations(count, seed))
    found: list[Demonstration] = []
    unused: set[str] = set()
    for number, row in enumerate(rows_of(source, "train", [BUILT_IN]), 1):
        shown, read = _demonstrations_of(row, f"{source}, row {number}")
        found += shown
        unused |= {str(key) for key in row if key not in read}
        if len(found) >= count:
            break
    if not found:
        raise ConfigError(f"{source!r} holds no demonstrations")
    if unused - {"id"}:
        log_once(f"  {source}: columns that nothing is learned from: {', '.join(sorted(unused - {'id'}))}")
    return found[:count]


def _demonstrations_of(row: dict[str, Any], where: str) -> tuple[list[Demonstration], set[str]]:
    """Return what one row demonstrates, and the columns that this came from."""
    text = row.get("text")
    if isinstance(text, str) and text.strip() and not {"prompt", "chosen", *CONVERSATIONS, *TEXTS} & set(row):
        return [(None, text)], {"text"}
    found = conversation_of(row, "prompt", where)
    turns = found.messages
    pairs: list[Demonstration] = [
        (Prompt(id=f"{_hash(turns[:place])}", messages=turns[:place]), turn.content)
        for place, turn in enumerate(turns)
        if turn.role == "assistant" and turn.content.strip() and any(one.role == "user" for one in turns[:place])
    ]
    if not pairs or found.answer is None:
        raise ConfigError(
            f"{where}: demonstrations need an answer: `messages` that end with the assistant's, or columns `prompt` and "
            "`completion`, `instruction` and `output`, or a `text`"
        )
    answered = next((name for name in ANSWERS if row.get(name)), "") if turns[-1].role == "assistant" else ""
    return pairs, {*found.columns, answered}


def load_documents(source: str, count: int, seed: int) -> list[str]:
    """At most `count` texts: built in, a text file (split at `<|endoftext|>`, else at blank lines), a folder of .txt
    files, or a `text` column."""
    if source == BUILT_IN:
        return stories.documents(count, seed)
    path = Path(source)
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise ConfigError(f"the folder {source!r} holds no .txt files")
        return [text for file in files for text in _split_documents(read_text(file))][:count]
    if suffix_of(path) == ".txt" and path.is_file():
        return _split_documents(read_text(path))[:count]
    texts = [row["text"] for row in rows_of(source, "train", [BUILT_IN]) if isinstance(row.get("text"), str)][:count]
    if not texts:
        raise ConfigError(f"{source!r} has no column `text` to pretrain on")
    return texts


def _split_documents(text: str) -> list[str]:
    separator = END_OF_DOCUMENT if END_OF_DOCUMENT in text else "\n\n"
    return [part.strip() for part in text.split(separator) if part.strip()]
