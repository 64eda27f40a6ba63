"""`selfplay prompts`: the first prompts of a file or a recipe, as the model will see them."""

import json
from pathlib import Path

import pytest
from tiny_run import write_recipe
from typer.testing import CliRunner

from selfplay.cli import app
from selfplay.stages.bootstrap import train_tokenizer

ROWS = [{"instruction": "Sum.", "input": str(number), "output": "x" * 200} for number in range(5)]


def said(*words: object) -> str:
    result = CliRunner().invoke(app, ["prompts", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "rows.jsonl"


def test_the_first_three_under_their_roles(file: Path) -> None:
    text = said(file)
    assert text.startswith(f"5 prompts in {file}\n") and text.count("\n--- ") == 3
    assert "[user]\nSum.\n\n0\n    meta.output: " + "x" * 100 + " ...\n" in text
    assert text.endswith("Give --model to see them in a model's chat template, with their tokens.\n")


def test_in_the_chat_template_of_a_model(file: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["Sum up the words."] * 9, 300)
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    found = json.loads(said(file, "--model", tmp_path / "model", "--count", 1, "--json"))
    [row] = found["first"]
    assert row["text"] == "<|user|>Sum.\n\n0<|end|><|assistant|>"
    assert row["tokens"] == found["longest_tokens"] == len(tokenizer(row["text"])["input_ids"])
    assert f"5 prompts in {file}, as model sees them; {row['tokens']} tokens" in said(
        file, "--model", tmp_path / "model"
    )


def test_a_recipes_own_prompts(tmp_path: Path) -> None:
    found = json.loads(said(write_recipe(tmp_path), "--json"))
    assert found["prompts"] > 3 and found["model"] is None and len(found["first"]) == 3
