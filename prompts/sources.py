"""Prompts, demonstrations and corpora: from the built-in set, a file, a folder, or a dataset on the hub.

Left out: streaming. A source is read whole, since prompts are small beside what is sampled from them.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prompts import instructions, stories
from selfplay.config import PromptSource, read_text
from selfplay.errors import ConfigError
from selfplay.records import Message, Prompt

BUILT_IN = "stories"
BUILT_IN_PROMPTS = {"stories": stories.prompts, "instructions": instructions.prompts}
END_OF_DOCUMENT = "<|endoftext|>"
READABLE = (".jsonl", ".json", ".parquet", ".txt")


def load_prompts(source: PromptSource, seed: int) -> list[Prompt]:
    """Return all prompts of a source, each with an id of its own. Raises ConfigError for one that cannot be read."""
    if source.source in BUILT_IN_PROMPTS:
        try:
            return BUILT_IN_PROMPTS[source.source](source.split, source.limit or 1024, seed)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    rows = _rows(source.source, source.split)
    found: dict[str, Prompt] = {}
    for number, row in enumerate(rows, 1):
        prompt = _prompt(row, source.column, f"{source.source}, row {number}")
        if found.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise ConfigError(f"{source.source}, row {number}: the id {prompt.id!r} belongs to another prompt already")
        if source.limit is not None and len(found) == source.limit:
            break
    if not found:
        raise ConfigError(f"{source.source!r} holds no prompts")
    return list(found.values())


def _prompt(row: dict[str, Any], column: str, where: str) -> Prompt:
    """Return one row as a prompt; its id is its own, or a hash of its text, so that equal prompts are one."""
    value = row.get(column)
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ConfigError(
            f"{where}: column {column!r} holds no prompt (there are: {', '.join(sorted(row))}); name "
            "the column with `column`"
        )
    try:
        messages = tuple(Message(role=message["role"], content=message["content"]) for message in value)
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{where}: a message needs a `role` (system, user, assistant) and a `content`") from None
    if not messages[-1].content.strip():
        raise ConfigError(f"{where}: the prompt is empty")
    text = json.dumps([message.model_dump() for message in messages], sort_keys=True)
    meta = {key: item for key, item in row.items() if key not in (column, "id")}
    own = row.get("id")
    identifier = hashlib.sha256(text.encode()).hexdigest()[:16] if own in (None, "") else str(own)
    return Prompt(id=identifier, messages=messages, meta=meta)


def load_demonstrations(source: str, count: int, seed: int) -> list[tuple[Prompt, str]]:
    """At most `count` prompts with a response to each, from columns `prompt` and `completion`."""
    if source == BUILT_IN:
        return stories.demonstrations(count, seed)
    pairs = []
    for number, row in enumerate(_rows(source, "train"), 1):
        where = f"{source}, row {number}"
        completion = row.get("completion")
        if isinstance(completion, list) and completion:
            completion = completion[-1].get("content")
        if not isinstance(completion, str) or not completion:
            raise ConfigError(f"{where}: demonstrations need columns `prompt` and `completion`")
        pairs.append((_prompt(row, "prompt", where), completion))
        if len(pairs) == count:
            break
    if not pairs:
        raise ConfigError(f"{source!r} holds no demonstrations")
    return pairs


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
    if path.suffix == ".txt" and path.is_file():
        return _split_documents(read_text(path))[:count]
    texts = [row["text"] for row in _rows(source, "train") if isinstance(row.get("text"), str)][:count]
    if not texts:
        raise ConfigError(f"{source!r} has no column `text` to pretrain on")
    return texts


def _split_documents(text: str) -> list[str]:
    separator = END_OF_DOCUMENT if END_OF_DOCUMENT in text else "\n\n"
    return [part.strip() for part in text.split(separator) if part.strip()]


def _rows(source: str, split: str) -> Iterable[dict[str, Any]]:
    """Rows of a file or of a dataset on the hub."""
    path = Path(source)
    if path.suffix not in READABLE:
        return _hub_rows(source, split)
    if not path.is_file():
        raise ConfigError(f"there is no file {source!r}")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ConfigError(f"{source} is not a Parquet file that can be read: {error}") from None
    text = read_text(path)
    if path.suffix == ".txt":
        return [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return _objects([(f"{source}, entry {number}", entry) for number, entry in enumerate(_json(text, source), 1)])
    lines = [(f"{source}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _objects([(where, _json(line, where)) for where, line in lines])


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(
            f"{where} is not JSON; a .jsonl file holds one object per line, a .json file one list of objects"
        ) from None


def _objects(entries: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries, each of which must be a mapping. Raises ConfigError that names the place of the first that is not."""
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} is not an object with columns")
    return [entry for _, entry in entries]


def _hub_rows(source: str, split: str) -> Iterable[dict[str, Any]]:
    import datasets

    try:
        return datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub client raises errors of many kinds
        raise ConfigError(
            f"{source!r} is neither built in ({', '.join(BUILT_IN_PROMPTS)}), nor a file ({', '.join(READABLE)}), "
            "nor a dataset that "
            f"could be loaded with split {split!r}: {str(error).splitlines()[0]}"
        ) from None
