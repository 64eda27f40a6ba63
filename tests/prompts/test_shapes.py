"""Each shape that people's data has, made up in small: the prompt as a model sees it, and the answer that is kept."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from prompts.shapes import conversation_of
from prompts.sources import load_demonstrations, load_documents, load_prompts
from selfplay.config import PromptSource
from selfplay.errors import ConfigError
from selfplay.models import encode_prompt
from selfplay.records import Prompt
from selfplay.stages.bootstrap import train_tokenizer

HH = Path(__file__).parents[3] / "shared" / "data" / "preferences" / "hh_harmless_base_test.jsonl.gz"
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}
TALK = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Why?"},
]
SEEN_TALK = "<|user|>Hi.<|end|><|assistant|>Hello!<|end|><|user|>Why?<|end|><|assistant|>"
ANSWERED = [*TALK, {"role": "assistant", "content": "Because."}]

SHAPES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "prompt": ({"prompt": "Why?", "topic": "x"}, "<|user|>Why?<|end|><|assistant|>", {"topic": "x"}),
    "prompt and completion": (
        {"prompt": "Why?", "completion": "So."},
        "<|user|>Why?<|end|><|assistant|>",
        {"completion": "So.", "reference": "So."},
    ),
    "prompt as messages": ({"prompt": TALK}, SEEN_TALK, {}),
    "UltraFeedback": (
        {
            "prompt": "Why?",
            "prompt_id": "f0",
            "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Good."}],
            "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Bad."}],
            "score_chosen": 8.0,
        },
        "<|user|>Why?<|end|><|assistant|>",
        {"reference": "Good.", "score_chosen": 8.0, "prompt_id": "f0"},
    ),
    "messages that end with the user": ({"messages": TALK}, SEEN_TALK, {}),
    "messages that end with an answer": ({"messages": ANSWERED}, SEEN_TALK, {"reference": "Because."}),
    "OpenAI's parts": (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Read:"}, {"type": "input_text", "text": "abc"}]},
            ]
        },
        "<|system|>Be brief.<|end|><|user|>Read:\nabc<|end|><|assistant|>",
        {},
    ),
    "OpenAI's tools": (
        {
            "messages": [
                {"role": "user", "content": "Rain?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "dry"},
                {"role": "assistant", "content": "No."},
            ]
        },
        '<|user|>Rain?<|end|><|assistant|><tool_call>\n{"name": "weather", "arguments": {"town": "Ulm"}}\n</tool_call><|end|>'
        "<|tool|>dry<|end|><|assistant|>",
        {"reference": "No."},
    ),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "Hi."},
                {"from": "gpt", "value": "Hello!"},
            ]
        },
        "<|system|>Be kind.<|end|><|user|>Hi.<|end|><|assistant|>",
        {"reference": "Hello!"},
    ),
    "ShareGPT with tools": (
        {
            "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "function_call", "value": "weather()"},
                {"from": "observation", "value": "dry"},
            ]
        },
        "<|user|>Rain?<|end|><|assistant|>weather()<|end|><|tool|>dry<|end|><|assistant|>",
        {},
    ),
    "Alpaca": (
        {"instruction": "Translate.", "input": "a dog", "output": "ein Hund", "text": "Below is ..."},
        "<|user|>Translate.\n\na dog<|end|><|assistant|>",
        {"output": "ein Hund", "reference": "ein Hund", "text": "Below is ..."},
    ),
    "Alpaca without input": ({"instruction": "Sing.", "input": ""}, "<|user|>Sing.<|end|><|assistant|>", {"input": ""}),
    "question and answer": (
        {"question": "2 + 2?", "answer": "#### 4"},
        "<|user|>2 + 2?<|end|><|assistant|>",
        {"answer": "#### 4", "reference": "#### 4"},
    ),
    "a system prompt in a column": (
        {"system_prompt": "Be brief.", "question": "Why?", "response": "So."},
        "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>",
        {"reference": "So.", "response": "So."},
    ),
    "HH": (
        {
            "chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant: Good.",
            "rejected": "\n\nHuman: Hi.",
        },
        SEEN_TALK,
        {"reference": "Good.", "rejected": "\n\nHuman: Hi."},
    ),
    "preferences as messages": (
        {"chosen": ANSWERED, "rejected": [*TALK, {"role": "assistant", "content": "No."}]},
        SEEN_TALK,
        {"reference": "Because."},
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["Hello, why is it so?"] * 9, 300)


def prompts_of(path: Path, **options: Any) -> list[Prompt]:
    return load_prompts(PromptSource(source=str(path), **options), seed=0)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_model_sees_the_request_and_the_answer_is_the_reference(
    shape: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    row, seen, meta = SHAPES[shape]
    [prompt] = prompts_of(written(tmp_path / "rows.jsonl", [row]))
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)) == seen
    assert {key: prompt.meta.get(key) for key in meta} == meta
    assert "reference" in prompt.meta or "reference" not in meta
    assert not {"messages", "conversations", "instruction"} & set(prompt.meta), "what is asked is not told twice"


def test_rows_that_differ_in_their_input_are_prompts_of_their_own(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate.", "input": word, "output": word.upper()} for word in ("a", "b", "c")]
    found = prompts_of(written(tmp_path / "alpaca.jsonl", rows))
    assert [prompt.meta["reference"] for prompt in found] == ["A", "B", "C"] and len(
        {prompt.id for prompt in found}
    ) == 3


def test_a_rows_own_reference_is_kept() -> None:
    found = conversation_of({"messages": ANSWERED, "reference": "mine"}, "prompt", "row 1")
    assert (found.answer, found.shape) == ("Because.", "messages")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "What is this?", "images": ["a.png"]}, "row 1: column 'images' holds more than text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "row 1: a message has a part of type 'image_url', and models here read text alone: leave such rows out",
        ),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, "row 1: the conversation has no turn of the user's"),
        ({"messages": [{"role": "robot", "content": "Hi."}]}, "assistant, tool or developer, not 'robot'"),
        ({"messages": [{"role": "user", "content": None}]}, "row 1: the message of role 'user' has no `content`"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "row 1: a message's `content` is a text or a list of parts, not int",
        ),
        ({"chosen": "better", "rejected": "worse"}, "column 'prompt' holds no prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(row: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 1: ") as error:
        prompts_of(written(tmp_path / "rows.jsonl", [row]))
    assert sentence in str(error.value)


def test_tables_of_any_separator_packed_or_not(tmp_path: Path) -> None:
    """Cells may hold lines and separators, and a conversation as JSON."""
    rows = [["instruction", "input", "messages"], ["Read, then\nsay.", 'a "b"', ""], ["Go.", "", ""]]
    for name, separator in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows(rows)
        assert [prompt.text for prompt in prompts_of(tmp_path / name)] == ['Read, then\nsay.\n\na "b"', "Go."]
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert prompts_of(tmp_path / f"{name}.gz") == prompts_of(tmp_path / name)
    with (tmp_path / "talk.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(ANSWERED)]])
    [talk] = prompts_of(tmp_path / "talk.csv")
    assert (len(talk.messages), talk.meta) == (3, {"reference": "Because."})
    (tmp_path / "broken.csv").write_text("prompt,n\na,1\nb, c,2\n")
    with pytest.raises(ConfigError, match=r"broken.csv, line 3 has more cells than the header \(prompt, n\)"):
        prompts_of(tmp_path / "broken.csv")


def test_json_documents_and_packed_files(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    (tmp_path / "within.json").write_text(json.dumps({"version": 1, "data": rows}, indent=1))
    (tmp_path / "one.json").write_text(json.dumps({"messages": ANSWERED}, indent=1))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(written(tmp_path / "rows.jsonl", rows).read_bytes()))
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "rows.jsonl.gz").read_bytes()[:-9])
    assert [prompt.text for prompt in prompts_of(tmp_path / "within.json")] == ["a", "b"]
    assert [prompt.text for prompt in prompts_of(tmp_path / "one.json")] == ["Why?"]
    assert [prompt.text for prompt in prompts_of(tmp_path / "rows.jsonl.gz")] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"cut.jsonl.gz is a damaged gzip file"):
        prompts_of(tmp_path / "cut.jsonl.gz")


def test_folders_hold_splits_where_names_say_so(tmp_path: Path) -> None:
    for folder, names in (
        ("plain", ("b.jsonl", "a.jsonl")),
        ("split", ("train-0.jsonl", "train-1.jsonl", "test/x.jsonl")),
    ):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            written(tmp_path / folder / name, [{"prompt": name}])
    (tmp_path / "plain" / "README.md").write_text("# Not data")
    assert [prompt.text for prompt in prompts_of(tmp_path / "plain")] == ["a.jsonl", "b.jsonl"]
    assert [prompt.text for prompt in prompts_of(tmp_path / "split")] == ["train-0.jsonl", "train-1.jsonl"]
    assert [prompt.text for prompt in prompts_of(tmp_path / "split", split="test")] == ["test/x.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="the folder '.*empty' holds no files that can be read"):
        prompts_of(tmp_path / "empty")


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": "a"}])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "splits")
    assert prompts_of(tmp_path / "one") == prompts_of(tmp_path / "splits", split="test")
    with pytest.raises(ConfigError, match="has no split 'train'; there are: test"):
        prompts_of(tmp_path / "splits")


def test_prompts_of_another_length_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": "a" * count} for count in (1, 3, 5, 7)])
    assert [len(one.text) for one in prompts_of(path, min_characters=3, max_characters=5)] == [3, 5]
    assert [len(one.text) for one in prompts_of(path, min_characters=3, limit=1)] == [3], (
        "the limit counts what is kept"
    )
    said = "2 prompts left out, for they have fewer than 3 or more than 5 characters"
    assert said in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigError, match="holds no prompts of the length that is wanted"):
        prompts_of(path, min_characters=8)


def mixture(tmp_path: Path, weights: tuple[float | None, float | None]) -> list[Prompt]:
    """60 prompts of a, 20 of b, mixed."""
    sources = []
    for name, count, weight in zip("ab", (60, 20), weights, strict=True):
        path = written(tmp_path / f"{name}.jsonl", [{"id": n, "prompt": f"{name}{n}"} for n in range(count)])
        sources.append(PromptSource(source=str(path), weight=weight))
    return load_prompts(sources, seed=3)


def test_sources_are_mixed_by_weight_without_repeats(tmp_path: Path) -> None:
    """Equal weights: min(60 / .5, 20 / .5) = 40 prompts, 20 of each. 3 : 1 takes all 80. 1 : 3 takes 26.7, 6 and 20."""

    def counts(weights: tuple[float | None, float | None]) -> tuple[int, int]:
        found = mixture(tmp_path, weights)
        assert len({prompt.id for prompt in found}) == len({prompt.text for prompt in found}) == len(found)
        assert all(prompt.meta["source"].endswith(f"{prompt.text[0]}.jsonl") for prompt in found)
        return sum(prompt.text[0] == "a" for prompt in found), sum(prompt.text[0] == "b" for prompt in found)

    assert counts((1, 1)) == (20, 20)
    assert counts((3, 1)) == (60, 20)
    assert counts((1, 3)) == (6, 20)
    assert counts((None, None)) == (60, 20)
    assert mixture(tmp_path, (1, 1)) == mixture(tmp_path, (1, 1)), "the same seed draws the same"


def test_demonstrations_of_every_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"messages": ANSWERED, "score": 3},
        {"prompt": "p", "completion": "c"},
        {"instruction": "i", "input": "x", "output": "o", "text": "Below is ..."},
        {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        {"text": "a whole text", "score": 1},
    ]
    path = written(tmp_path / "demos.jsonl", rows)
    found = [
        (prompt and [one.content for one in prompt.messages], text)
        for prompt, text in load_demonstrations(str(path), 9, 0)
    ]
    assert found == [
        (["Hi."], "Hello!"),
        (["Hi.", "Hello!", "Why?"], "Because."),
        (["p"], "c"),
        (["i\n\nx"], "o"),
        (["h"], "g"),
        (["q"], "good"),
        (None, "a whole text"),
    ]
    load_demonstrations(str(path), 9, 0)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("columns that nothing is learned from: rejected, score, text") == 1
    assert len(load_demonstrations(str(path), 3, 0)) == 3


def test_documents_of_a_gzipped_text(tmp_path: Path) -> None:
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    assert load_documents(str(tmp_path / "d.txt.gz"), 9, 0) == ["one", "two"]


def test_what_is_not_shown_to_the_model_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": text, "tools": [{"name": "f"}]} for text in "ab"])
    prompts_of(path)
    prompts_of(path)
    assert " ".join(capsys.readouterr().err.split()).count("the column 'tools' is not shown to the model") == 1


@pytest.mark.skipif(not HH.is_file(), reason=f"{HH} is absent: real preferences stay unread")
def test_real_preferences_have_their_prompts() -> None:
    """2,312 pairs (shared/data/README.md), of which each ends with the assistant's answer to the person's last words."""
    found = prompts_of(HH)
    assert 2200 < len(found) <= 2312
    assert all(prompt.messages[-1].role == "user" and isinstance(prompt.meta["reference"], str) for prompt in found)
