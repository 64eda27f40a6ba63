"""Prompts, demonstrations and corpora from every kind of source, and one sentence for each way to get one wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prompts.sources import load_demonstrations, load_documents, load_prompts
from selfplay.config import PromptSource
from selfplay.errors import ConfigError
from selfplay.records import Prompt

SHARED = Path(__file__).parents[3] / "shared" / "data"
DEEP = "[" * 100_000 + "]" * 100_000
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]


def write(path: Path, content: str | list[dict[str, Any]]) -> Path:
    """A file of rows in the format that its name says, or of text."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(content, indent=2))
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


def read(path: Path, **options: Any) -> list[Prompt]:
    return load_prompts(PromptSource(source=str(path), **options), seed=0)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        read(path, **options)
    return str(error.value).replace(str(path), path.name)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet"])
def test_rows_become_prompts_whose_other_columns_are_meta(tmp_path: Path, name: str) -> None:
    found = read(
        write(
            tmp_path / name,
            [
                {"id": "a", "prompt": "Hi", "animal": "fox", "count": 3},
                {"id": "b", "prompt": "Ho", "animal": None, "count": 4},
            ],
        )
    )
    assert [(one.id, one.text, one.meta) for one in found] == [
        ("a", "Hi", {"animal": "fox", "count": 3}),
        ("b", "Ho", {"animal": None, "count": 4}),
    ]
    assert [message.role for message in found[0].messages] == ["user"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet"])
def test_conversations(tmp_path: Path, name: str) -> None:
    [found] = read(write(tmp_path / name, [{"question": CHAT, "id": 7}]), column="question")
    assert [message.model_dump() for message in found.messages] == CHAT
    assert (found.id, found.text) == ("7", "Hello?")


def test_text_files_hold_a_prompt_per_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffOnce upon a time\r\n\n  A dog\u2028ran  \nOnce upon a time\n")
    found = read(path)
    assert [one.text for one in found] == ["Once upon a time", "A dog\u2028ran"], "the same line twice is one prompt"
    assert len({one.id for one in found}) == 2 and [one.id for one in read(path)] == [one.id for one in found]


def test_line_separators_inside_json_text_do_not_end_the_line(tmp_path: Path) -> None:
    """JSON allows U+2028, U+2029 and U+0085 in text as they are; `str.splitlines` would cut there."""
    text = "one\u2028two\u2029three\u0085four"
    [found] = read(write(tmp_path / "p.jsonl", [{"prompt": text}]))
    assert found.text == text


def test_an_id_of_zero_is_an_id(tmp_path: Path) -> None:
    assert [
        one.id for one in read(write(tmp_path / "p.jsonl", [{"id": 0, "prompt": "a"}, {"id": 1, "prompt": "b"}]))
    ] == ["0", "1"]


def test_the_limit_counts_prompts_not_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": text} for text in "aabbccdd"])
    assert [one.text for one in read(path, limit=3)] == ["a", "b", "c"]
    assert len(read(path)) == 4


def test_a_folder_of_the_users_own_loads_as_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "train.parquet", [{"prompt": "a", "n": 1}])
    write(tmp_path / "mine" / "test.parquet", [{"prompt": "b", "n": 2}])
    [found] = read(tmp_path / "mine", split="test")
    assert (found.text, found.meta) == ("b", {"n": 2})
    assert (
        refusal(tmp_path / "mine", split="dev") == "the folder 'mine' has no split 'dev'; its files are of: test, train"
    )


def test_built_in_sets_and_their_splits() -> None:
    assert len(load_prompts(PromptSource(limit=10), 0)) == 10 and len(load_prompts(PromptSource(), 0)) == 1024
    instructions = load_prompts(PromptSource(source="instructions", split="heldout", limit=5), 0)
    assert all(prompt.meta["instruction_id_list"] for prompt in instructions)
    with pytest.raises(ConfigError, match="the splits 'train' and 'heldout', not 'test'"):
        load_prompts(PromptSource(split="test"), 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: real prompt files stay unread")
@pytest.mark.parametrize(
    ("name", "column", "count"), [("ifeval.jsonl", "prompt", 541), ("user_oriented.jsonl", "instruction", None)]
)
def test_real_prompt_files(name: str, column: str, count: int | None) -> None:
    found = read(SHARED / "prompts" / name, column=column)
    assert len(found) == (count or len(found)) > 200
    assert all(prompt.meta for prompt in found)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "p.jsonl",
            '{"prompt": "a"}\n\n{"prompt": \n',
            "p.jsonl, line 3 is not JSON; a .jsonl file holds one object per line",
        ),
        ("p.jsonl", '{"prompt": "a"}\n[1]\n', "p.jsonl, line 2 is not an object with columns"),
        ("p.json", '[{"prompt": "a"}, 3]', "p.json, entry 2 is not an object with columns"),
        ("p.json", '[{"prompt": "a"}', "p.json is not JSON"),
        (
            "p.jsonl",
            '{"text": "a", "id": 1}\n',
            "p.jsonl, row 1: column 'prompt' holds no prompt (there are: id, text); name the column with `column`",
        ),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": 3}\n',
            "p.jsonl, row 2: column 'prompt' holds no prompt (there are: prompt)",
        ),
        ("p.jsonl", '{"prompt": []}\n', "p.jsonl, row 1: column 'prompt' holds no prompt"),
        ("p.jsonl", '{"prompt": " "}\n', "p.jsonl, row 1: the prompt is empty"),
        (
            "p.jsonl",
            '{"prompt": [{"role": "robot", "content": "a"}]}\n',
            "p.jsonl, row 1: a message needs a `role` (system, user, assistant, tool or developer, not 'robot') and a `content`",
        ),
        ("p.jsonl", '{"prompt": [{"role": "user"}]}\n', "p.jsonl, row 1: the message of role 'user' has no `content`"),
        ("p.jsonl", '{"prompt": ["a"]}\n', "p.jsonl, row 1: a message needs a `role`"),
        (
            "p.jsonl",
            '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n',
            "p.jsonl, row 2: the id '1' belongs to another prompt already",
        ),
        ("p.jsonl", "\n\n", "'p.jsonl' holds no prompts"),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": "hi \\ud83d there"}\n',
            "p.jsonl, line 2: column 'prompt' holds half of a surrogate pair ('hi \\ud83d there'), which no file can hold: write",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "tag": ["\\uDC00"]}',
            "p.jsonl, line 1: column 'tag' holds half of a surrogate pair",
        ),
        ("p.jsonl", '{"prompt": "a", "id": "x\\ud83d"}', "p.jsonl, line 1: column 'id' holds half of a surrogate pair"),
        (
            "p.jsonl",
            '{"prompt": "a", "x\\ud83d": 1}',
            "p.jsonl, line 1: the name of a column holds half of a surrogate",
        ),
        (
            "p.json",
            '[{"prompt": "a"}, {"prompt": "\\ud83d"}]',
            "p.json, entry 2: column 'prompt' holds half of a surrogate pair",
        ),
        (
            "p.csv",
            'prompt\n"[{""role"": ""user"", ""content"": ""\\ud83d""}]"\n',
            "p.csv, row 1, column 'prompt': it holds half of a surrogate pair",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "m": ' + DEEP + "}",
            "p.jsonl, line 1: it is nested more than 100 deep: leave it out",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "m": ' + "[" * 101 + "]" * 101 + "}",
            "p.jsonl, line 1: column 'm' is nested more",
        ),
        ("p.json", DEEP, "p.json: it is nested more than 100 deep: leave it out"),
        ("p.csv", 'prompt\n"[{""a"":' + DEEP + '"\n', "p.csv, row 1, column 'prompt': it is nested more than 100 deep"),
        (
            "p.jsonl",
            json.dumps({"prompt": '[{"a":' + "[" * 100_000}),
            "p.jsonl, row 1, column 'prompt': it is nested more than 100 deep",
        ),
        (
            "p.jsonl",
            '{"messages": [{"role": "user", "content": "x", "tool_calls": 3}]}',
            "p.jsonl, row 1: a message's `tool_calls` is a list of calls, not int",
        ),
        (
            "p.jsonl",
            '{"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": "f"}]}]}',
            "p.jsonl, row 1: a call in `tool_calls` has the `function` 'f'; it must be a mapping with `name` and `arguments`",
        ),
        (
            "p.jsonl",
            json.dumps(
                {"messages": [{"role": "user", "tool_calls": [{"name": "f", "arguments": '{"a": "\\ud83d"}'}]}]}
            ),
            "p.jsonl, row 1, the arguments of a tool call: column 'a' holds half of a surrogate pair",
        ),
        ("p.parquet", None, "p.parquet is not a Parquet file that can be read"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str, content: str | None, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PAR0" * 9) if content is None else path.write_text(content)
    assert refusal(path).startswith(sentence)


def test_what_is_no_half_is_read_as_it_is(tmp_path: Path) -> None:
    """Two escaped halves are one character, and 100 brackets in a row are only many."""
    row = {"prompt": "\U0001f600 [[[{{{", "tags": [[["x"]]] * 60}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    assert "\\ud83d\\ude00" in path.read_text()
    [prompt] = load_prompts(PromptSource(source=str(path)), 0)
    assert prompt.text == row["prompt"] and prompt.meta == {"tags": row["tags"]}


def test_demonstrations_with_half_a_character_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b\\ud83d"}')
    with pytest.raises(ConfigError, match="line 1: column 'completion' holds half of a surrogate pair"):
        load_demonstrations(str(path), 5, 0)


def test_a_text_in_parquet_that_is_no_utf8_is_a_sentence(tmp_path: Path) -> None:
    wrong = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": wrong}), tmp_path / "p.parquet")
    assert refusal(tmp_path / "p.parquet").startswith("p.parquet is not a Parquet file that can be read")


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl") == "there is no file 'none.jsonl'"
    (tmp_path / "latin.txt").write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    assert refusal(tmp_path / "latin.txt") == "latin.txt is not text in UTF-8 or UTF-16; save it as such"


def test_a_name_that_is_nothing_names_what_it_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refusal(tmp_path / "nothing")
    assert (
        "is neither built in (stories, instructions), nor a file (.jsonl, .json, .ndjson, .csv, .tsv, .parquet, .txt), nor a "
        "folder, nor a dataset that could be loaded" in said
    )


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_demonstrations_plain_and_as_conversations(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"prompt": "a", "completion": "A"}, {"prompt": "b", "completion": "B"}])
    assert [(prompt.text, answer) for prompt, answer in load_demonstrations(str(path), 1, 0)] == [("a", "A")]
    talks = write(tmp_path / f"t{name}", [{"prompt": CHAT, "completion": [{"role": "assistant", "content": "Hi."}]}])
    [(prompt, answer)] = load_demonstrations(str(talks), 9, 0)
    assert (len(prompt.messages), answer) == (2, "Hi.")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"prompt": "a"}\n', "row 1: demonstrations need an answer: `messages` that end"),
        ('{"prompt": "a", "completion": "A"}\n{"completion": "A"}\n', "row 2: column 'prompt' holds no prompt"),
        ("\n", "holds no demonstrations"),
    ],
)
def test_demonstrations_that_are_none(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_demonstrations(str(write(tmp_path / "d.jsonl", content)), 9, 0)


def test_documents_of_a_text_file_a_folder_and_a_column(tmp_path: Path) -> None:
    ended = write(tmp_path / "ended.txt", "one\n\nstill one<|endoftext|> two \n<|endoftext|>\n")
    blank = write(tmp_path / "blank.txt", "three\nstill three\n\n\nfour\n")
    assert load_documents(str(ended), 9, 0) == ["one\n\nstill one", "two"]
    assert load_documents(str(blank), 1, 0) == ["three\nstill three"]
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    write(tmp_path / "folder" / "b.txt", "B1\n\nB2")
    write(tmp_path / "folder" / "inner" / "a.txt", "A")
    assert load_documents(str(tmp_path / "folder"), 9, 0) == ["B1", "B2", "A"], "in the order of their paths"
    rows = write(tmp_path / "rows.parquet", [{"text": "x"}, {"text": "y"}, {"text": "z"}])
    assert load_documents(str(rows), 2, 0) == ["x", "y"]
    assert len(load_documents("stories", 7, 0)) == 7


def test_documents_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, sentence in (
        (tmp_path / "empty", "holds no .txt files"),
        (tmp_path / "no.txt", "there is no file"),
        (write(tmp_path / "d.jsonl", '{"prompt": "a"}\n'), "has no column `text` to pretrain on"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load_documents(str(source), 9, 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: the real corpus stays unread")
def test_the_real_corpus_has_its_stories() -> None:
    """10,000 lines hold 1,728 stories (shared/data/README.md)."""
    found = load_documents(str(SHARED / "corpora" / "tinystories_10k.txt"), 100_000, 0)
    assert len(found) == 1728 and not any("<|endoftext|>" in text for text in found)
