"""The answer cache: whole rows under two processes, and every dollar counted once."""

import subprocess
import sys
from pathlib import Path

import pytest

from judges.llm.cache import AnswerCache, key_of
from selfplay.engines import Answer
from selfplay.errors import ConfigError

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
