"""Every answer a model gave, in one sqlite file: asked once, paid once, read again whenever the parser changes.

Keyed by everything the answer depends on. Safe under several processes: each write is one short transaction, and a
reader sees whole rows. Each row has the checksum of all its values, which is compared when it is read; rows of files that
were begun before there were checksums may have none. What is kept is the raw answer; whether it can be read is decided anew
each time.
"""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfplay.engines import Answer
from selfplay.errors import ConfigError
from selfplay.storage.checksums import Damaged, fast_hash
from selfplay.storage.durable import NotWritten, make_folder

CACHE = "judge_cache.sqlite"
"""The file's name in a run, and in a folder of a comparison."""
SCHEMA = """create table if not exists answers (
    key text primary key, answer text not null, model text not null, input_tokens integer not null,
    output_tokens integer not null, cost real not null, created real not null, checksum text)"""
COLUMNS = "key, answer, model, input_tokens, output_tokens, cost, created"
WITH_CHECKSUMS = 2
"""The `user_version` of files all of whose rows have a checksum."""
MOST_KEYS = 500


def key_of(**parts: Any) -> str:
    """sha256 of everything an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by key, in a file or, without a path, in memory."""

    def __init__(self, path: Path | None = None) -> None:
        if path is not None:
            make_folder(path.parent)
        self.path = path
        with self._naming():
            self.database = sqlite3.connect(
                path or ":memory:", timeout=120, isolation_level=None, check_same_thread=False
            )
        with self._naming(), self._writing():
            begun = self.database.execute("select name from sqlite_master where name = 'answers'").fetchone()
            self.database.execute(SCHEMA)
            if not begun:
                self.database.execute(f"pragma user_version = {WITH_CHECKSUMS}")
            elif "checksum" not in {row[1] for row in self.database.execute("pragma table_info(answers)")}:
                self.database.execute("alter table answers add column checksum text")

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Return the answers there are, by key. Raises Damaged for one that is not what was kept."""
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), MOST_KEYS):
            some = keys[start : start + MOST_KEYS]
            places = ",".join("?" * len(some))
            with self._naming():
                rows = self.database.execute(
                    f"select {COLUMNS}, checksum from answers where key in ({places})", some
                ).fetchall()
            for row in rows:
                if is_damaged(row, self._strict):
                    raise Damaged(
                        Path(str(self.path)), f"the answer {row[0]} is not what was kept", _way_out(self.path)
                    )
                found[row[0]] = _decode(row[1])
        return found

    def put(self, answers: Iterable[tuple[str, Answer]], model: str = "") -> None:
        """Keep answers. A later one replaces one with the same key; what the earlier one took still counts."""
        now = time.time()
        with self._naming(), self._writing():
            for key, answer in answers:
                before = self.database.execute(
                    "select input_tokens, output_tokens, cost from answers where key = ?", [key]
                ).fetchone() or (0, 0, 0.0)
                row = (
                    key,
                    json.dumps(asdict(answer)),
                    model,
                    before[0] + answer.input_tokens,
                    before[1] + answer.output_tokens,
                    float(before[2] + answer.cost),
                    now,
                )
                self.database.execute(
                    f"insert or replace into answers ({COLUMNS}, checksum) values (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, checksum(row)),
                )

    def spent(self) -> dict[str, float]:
        """Return what all answers took, replaced ones included: `input_tokens`, `output_tokens`, `cost` (dollars).

        `answers` is the number kept.
        """
        with self._naming():
            row = self.database.execute(
                "select count(*), sum(input_tokens), sum(output_tokens), sum(cost) from answers"
            ).fetchone()
        return dict(
            zip(("answers", "input_tokens", "output_tokens", "cost"), (value or 0 for value in row), strict=True)
        )

    def check(self, repair: bool = False) -> tuple[int, int, list[str]]:
        """Return how many rows there are, how many of them have no checksum, and the keys of those that are damaged.

        `repair` removes the damaged ones. Raises ConfigError for a file whose structure is damaged.
        """
        with self._naming():
            problem = self.database.execute("pragma integrity_check(1)").fetchone()[0]
            if problem != "ok":
                raise sqlite3.DatabaseError(" ".join(str(problem).split()))
            rows = self.database.execute(f"select {COLUMNS}, checksum from answers").fetchall()
        damaged = [str(row[0]) for row in rows if is_damaged(row, self._strict)]
        if repair and damaged:
            with self._naming(), self._writing():
                self.database.executemany("delete from answers where key = ?", [[key] for key in damaged])
        return len(rows), sum(row[-1] is None for row in rows), damaged

    def close(self) -> None:
        """Give the file back."""
        self.database.close()

    @property
    def _strict(self) -> bool:
        """Whether every row must have a checksum."""
        return bool(self.database.execute("pragma user_version").fetchone()[0] == WITH_CHECKSUMS)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Open one transaction, undone if the block fails."""
        self.database.execute("begin immediate")
        try:
            yield
            self.database.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.database.execute("rollback")
            raise

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Turn sqlite's errors into sentences."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise NotWritten(
                f"the judge cache {str(self.path)!r} cannot be written: {error}; fix that (free some space, or let the "
                "other process end) and give the same command again: the answers so far are kept"
            ) from None
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"the judge cache {str(self.path)!r} cannot be used: {error}; remove the file to begin a new one, for "
                "which its answers are asked for again"
            ) from None


def checksum(row: Sequence[Any]) -> str:
    """Return the checksum of a row's values, in the order of `COLUMNS`."""
    return fast_hash(json.dumps(list(row[:7])).encode())


def is_damaged(row: Sequence[Any], strict: bool) -> bool:
    """Return whether a row, its checksum last, is not what was kept; one without a checksum is, if `strict`."""
    try:
        return strict if row[-1] is None else row[-1] != checksum(row)
    except TypeError:  # bytes, where there was text
        return True


def _way_out(path: Path | None) -> str:
    home = path.parent if path is not None else Path()
    if (home / "config.yaml").is_file():
        return f"`selfplay verify {home} --repair` removes it, and it is asked for again"
    return "remove the file, and its answers are asked for again"


def _decode(text: str) -> Answer:
    fields = json.loads(text)
    for name in ("texts", "finish_reasons", "thoughts"):
        fields[name] = tuple(fields.get(name, ()))
    return Answer(**fields)
