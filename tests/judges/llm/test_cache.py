"""The answer cache: whole rows under two processes, and every dollar counted once."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from judges.llm.cache import AnswerCache, key_of
from selfplay.engines import Answer
from selfplay.errors import ConfigError
from selfplay.storage.checksums import Damaged
from selfplay.storage.durable import NotWritten

WRITER = """
import sys
from pathlib import Path
from judges.llm.cache import AnswerCache
from selfplay.engines import Answer
cache, name = AnswerCache(Path(sys.argv[1])), sys.argv[2]
for number in range(100):
    cache.put([(f"shared {number}", Answer(texts=(name * 50,), finish_reasons=("stop",), output_tokens=1)),
               (f"{name} {number}", Answer(texts=(name,), finish_reasons=("stop",), output_tokens=1))])
    found = cache.get([f"shared {n}" for n in range(number + 1)])
    assert len(found) == number + 1 and all(len(set(answer.texts[0])) == 1 for answer in found.values())
"""


def test_two_processes_write_and_read_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for name in "ab"
    ]
    problems = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], problems
    cache = AnswerCache(path)
    # 100 shared keys and 100 of each process; every one of the 400 answers written took a token.
    assert cache.spent() == {"answers": 300, "input_tokens": 0, "output_tokens": 400, "cost": 0}


def test_what_is_kept_comes_back_whole() -> None:
    cache = AnswerCache()
    said = Answer(("été\n{", ""), ("stop", "length"), input_tokens=3, output_tokens=5, cost=0.25)
    odds = Answer(logprobs={"A": -0.5, " B": float("-inf")})
    cache.put([("one", said), ("two", odds)])
    assert cache.get(["one", "two", "three"]) == {"one": said, "two": odds}
    cache.put([(f"key {number}", said) for number in range(1200)])
    assert len(cache.get([f"key {number}" for number in range(1200)])) == 1200


def test_an_answer_that_is_replaced_still_cost_what_it_cost() -> None:
    cache = AnswerCache()
    cache.put([("key", Answer(("no verdict",), ("stop",), input_tokens=10, output_tokens=2, cost=0.5))])
    cache.put([("key", Answer(("[[A]]",), ("stop",), input_tokens=10, output_tokens=3, cost=0.75))])
    assert cache.get(["key"])["key"].texts == ("[[A]]",)
    assert cache.spent() == {"answers": 1, "input_tokens": 20, "output_tokens": 5, "cost": 1.25}


def test_keys_depend_on_every_part_and_not_on_their_order() -> None:
    assert key_of(a=1, b="x") == key_of(b="x", a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1"), key_of(a=[1])}) == 5


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_text("this is not a database, and long enough to be seen as none. " * 20)
    with pytest.raises(ConfigError, match="the judge cache .* cannot be used: .*; remove the file to begin a new one"):
        AnswerCache(tmp_path / "cache.sqlite")


OLD_SCHEMA = """create table answers (
    key text primary key, answer text not null, model text not null, input_tokens integer not null,
    output_tokens integer not null, cost real not null, created real not null)"""


def some_answers(path: Path) -> AnswerCache:
    cache = AnswerCache(path)
    for number in range(30):
        cache.put([(f"key {number}", Answer((f"[[{number}]]",), ("stop",), output_tokens=number, cost=0.5))], "model")
    return cache


@pytest.mark.parametrize(
    "change",
    [
        "answer = replace(answer, '[[3]]', '[[4]]')",
        "model = 'another'",
        "input_tokens = 1",
        "output_tokens = 2",
        "cost = 0.25",
        "created = created + 1",
        "checksum = null",
        "checksum = '0'",
        "answer = cast(answer as blob)",
    ],
)
def test_an_answer_that_was_changed_is_not_read(tmp_path: Path, change: str) -> None:
    cache = some_answers(tmp_path / "cache.sqlite")
    cache.database.execute(f"update answers set {change} where key = 'key 3'")
    assert cache.get(["key 2"])["key 2"].texts == ("[[2]]",)
    with pytest.raises(
        Damaged, match="cache.sqlite' is damaged: the answer key 3 is not what was kept; remove the file"
    ):
        cache.get(["key 2", "key 3"])
    assert cache.check() == (30, change.count("null"), ["key 3"])
    assert cache.check(repair=True)[2] == ["key 3"] and cache.check() == (29, 0, [])
    assert cache.get(["key 3"]) == {}


def test_every_byte_of_an_answer_counts(tmp_path: Path) -> None:
    """Changed in the file itself, as a disk would; sqlite has free space and empty pages, whose bytes say nothing."""
    path = tmp_path / "cache.sqlite"
    some_answers(path).close()
    data = path.read_bytes()
    start = data.index(b"[[17]]") - 40
    for place in range(start, start + 160):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        cache = AnswerCache(path)
        try:
            found = cache.check()[2]
        except ConfigError:  # sqlite itself sees it
            found = ["the file"]
        assert found, f"byte {place}"
        cache.close()


def test_a_file_from_before_there_were_checksums_is_read_and_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.execute(OLD_SCHEMA)
        text = json.dumps(asdict(Answer(("[[A]]",), ("stop",), input_tokens=1, output_tokens=2, cost=0.5)))
        old.execute("insert into answers values ('old', ?, 'm', 1, 2, 0.5, 0.0)", [text])
        old.commit()
    cache = AnswerCache(path)
    cache.put([("new", Answer(("[[B]]",), ("stop",)))])
    assert cache.get(["old", "new"])["old"].texts == ("[[A]]",) and cache.check() == (2, 1, [])
    cache.put([("old", Answer(("[[A]]",), ("stop",), cost=0.25))])
    assert cache.spent()["cost"] == 0.75 and AnswerCache(path).check() == (2, 0, [])


@pytest.mark.parametrize("path", ["/proc/none.sqlite", "/proc/none/cache.sqlite"])
def test_a_cache_that_cannot_be_made_is_a_sentence(path: str) -> None:
    with pytest.raises(NotWritten, match="'/proc/none.* (cannot|could not) be written: "):
        AnswerCache(Path(path))
