"""Every answer a model gave, in one sqlite file: asked once, paid once, read again whenever the parser changes.

Keyed by everything the answer depends on. Safe under several processes: each write is one short transaction, and a
reader sees whole rows. What is kept is the raw answer; whether it can be read is decided anew each time.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfplay.engines import Answer
from selfplay.errors import ConfigError

SCHEMA = """create table if not exists answers (
    key text primary key, answer text not null, model text not null, input_tokens integer not null,
    output_tokens integer not null, cost real not null, created real not null)"""
KEEP = """insert into answers values (?, ?, ?, ?, ?, ?, ?) on conflict (key) do update set
    answer = excluded.answer, created = excluded.created, input_tokens = input_tokens + excluded.input_tokens,
    output_tokens = output_tokens + excluded.output_tokens, cost = cost + excluded.cost"""
MOST_KEYS = 500


def key_of(**parts: Any) -> str:
    """sha256 of everything an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by key, in a file or, without a path, in memory."""

    def __init__(self, path: Path | None = None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(path or ":memory:", timeout=120, isolation_level=None, check_same_thread=False)
        try:
            self.database.execute(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"the judge cache {str(path)!r} cannot be used: {error}; remove the file to begin a new one"
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers there are, by key."""
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), MOST_KEYS):
            some = keys[start : start + MOST_KEYS]
            places = ",".join("?" * len(some))
            rows = self.database.execute(f"select key, answer from answers where key in ({places})", some)
            found.update((key, _decode(text)) for key, text in rows)
        return found

    def put(self, answers: Iterable[tuple[str, Answer]], model: str = "") -> None:
        """Keep answers. A later one replaces one with the same key; what the earlier one took still counts."""
        now = time.time()
        rows = [
            (key, json.dumps(asdict(answer)), model, answer.input_tokens, answer.output_tokens, answer.cost, now)
            for key, answer in answers
        ]
        self.database.execute("begin immediate")
        try:
            self.database.executemany(KEEP, rows)
        finally:
            self.database.execute("commit")

    def spent(self) -> dict[str, float]:
        """What all answers took, replaced ones included: `input_tokens`, `output_tokens`, `cost` (dollars).

        `answers` is the number kept.
        """
        row = self.database.execute(
            "select count(*), sum(input_tokens), sum(output_tokens), sum(cost) from answers"
        ).fetchone()
        return dict(
            zip(("answers", "input_tokens", "output_tokens", "cost"), (value or 0 for value in row), strict=True)
        )

    def close(self) -> None:
        """Give the file back."""
        self.database.close()


def _decode(text: str) -> Answer:
    fields = json.loads(text)
    return Answer(**{**fields, "texts": tuple(fields["texts"]), "finish_reasons": tuple(fields["finish_reasons"])})
