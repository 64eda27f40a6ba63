"""What a run leaves is plain: its preferences train with TRL as they are, its reward model loads with transformers."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from selfplay.rewards.reward_model import RewardModel
from selfplay.stages.bootstrap import train_tokenizer
from selfplay.storage.files import read_json, read_rows, write_rows
from selfplay.training.pairs import read_preferences

PREFERENCES = "iteration-001/label/preferences.parquet"
PLAIN: Any = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}


def test_preferences_load_as_a_dataset_with_trls_columns(tiny_run: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset(
        "parquet", data_files=str(tiny_run / PREFERENCES), split="train", cache_dir=str(tmp_path)
    )
    assert len(rows) == read_json(tiny_run / "iteration-001/label/judge_health.json")["decided"]
    assert {"prompt", "chosen", "rejected", "margin", "pair_id"} <= set(rows.column_names)
    first = rows[0]
    assert [message["role"] for message in first["prompt"] + first["chosen"] + first["rejected"]] == [
        "user",
        "assistant",
        "assistant",
    ]
    assert first["chosen"] != first["rejected"]


@pytest.fixture
def rows(tiny_run: Path, tmp_path: Path) -> datasets.Dataset:
    """All columns of a run's preferences, as a user would load them."""
    return datasets.load_dataset(
        "parquet", data_files=str(tiny_run / PREFERENCES), split="train", cache_dir=str(tmp_path / "cache")
    )


def test_preferences_train_with_a_plain_reward_trainer(rows: datasets.Dataset, tiny_run: Path, tmp_path: Path) -> None:
    policy = tiny_run / "iteration-000/policy"
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    before = model.score.weight.detach().clone()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, **PLAIN),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    trainer.train()
    assert not torch.equal(model.score.weight, before)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_trls_trainers_read_the_text_with_another_models_tokenizer(
    rows: datasets.Dataset, tmp_path: Path, kind: str
) -> None:
    """Under a tokenizer with other ids than the policy's, what is trained on decodes to the conversation of the row."""
    foreign = train_tokenizer([row["prompt"][0]["content"] + row["chosen"][0]["content"] for row in rows], 700)
    config = LlamaConfig(
        vocab_size=len(foreign), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    config.pad_token_id, config.num_labels = foreign.pad_token_id, 1
    common = {"train_dataset": rows, "processing_class": foreign}
    if kind == "reward":
        settings: Any = RewardConfig(output_dir=str(tmp_path / "out"), **PLAIN)
        trainer: Any = RewardTrainer(model=LlamaForSequenceClassification(config), args=settings, **common)
    else:
        settings = DPOConfig(output_dir=str(tmp_path / "out"), **PLAIN)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "foreign")  # the reference is loaded by TRL
        trainer = DPOTrainer(model=str(tmp_path / "foreign"), args=settings, **common)
    for row, seen in zip(rows, trainer.train_dataset, strict=True):
        for side in ("chosen", "rejected"):
            text = foreign.decode([*seen.get("prompt_ids", []), *seen[f"{side}_ids"]])
            assert text == foreign.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            assert seen[f"{side}_ids"] != row[f"{side}_tokens"]


def test_files_of_older_versions_are_read_too(tiny_run: Path, tmp_path: Path) -> None:
    """Up to version 0.2 the columns of token ids were called as TRL calls its own."""
    now = read_rows(tiny_run / PREFERENCES)
    older = [{("chosen_ids" if name == "chosen_tokens" else name): value for name, value in row.items()} for row in now]
    for row in older:
        row["rejected_ids"] = row.pop("rejected_tokens")
    write_rows(tmp_path / "preferences.parquet", older)
    assert read_preferences(tmp_path / "preferences.parquet") == read_preferences(tiny_run / PREFERENCES)
    assert read_preferences(tiny_run / PREFERENCES)[0]["chosen_ids"] == now[0]["chosen_tokens"]


def test_a_reward_model_loads_with_transformers_and_its_scores_are_the_runs(tiny_run: Path) -> None:
    """Ours is (raw - mean) / deviation, both from the checkpoint's config; 0 and 1 on the start's own samples."""
    folder = tiny_run / "iteration-001/reward"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ours = RewardModel.load(folder)
    row = read_rows(tiny_run / PREFERENCES)[0]
    with torch.inference_mode():
        raw = float(model(input_ids=torch.tensor([row["chosen_tokens"]])).logits[0, 0])
    assert ours.raw([row["chosen_tokens"]])[0] == pytest.approx(raw, abs=1e-5)
    assert ours.mean == model.config.selfplay_reward["mean"] and ours.deviation > 0
