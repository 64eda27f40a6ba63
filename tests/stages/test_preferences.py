"""What a run leaves is plain: its preferences train with TRL as they are, its reward model loads with transformers."""

from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from selfplay.rewards.reward_model import RewardModel
from selfplay.storage.files import read_json, read_rows

PREFERENCES = "iteration-001/label/preferences.parquet"


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


@pytest.mark.parametrize("columns", [["prompt", "chosen", "rejected"], ["chosen_ids", "rejected_ids"]])
def test_preferences_train_with_a_plain_reward_trainer(tiny_run: Path, tmp_path: Path, columns: list[str]) -> None:
    rows = datasets.load_dataset(
        "parquet", data_files=str(tiny_run / PREFERENCES), split="train", cache_dir=str(tmp_path)
    )
    policy = tiny_run / "iteration-000/policy"
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    before = model.score.weight.detach().clone()
    arguments = RewardConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=rows.select_columns(columns),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    trainer.train()
    assert not torch.equal(model.score.weight, before)


def test_a_reward_model_loads_with_transformers_and_its_scores_are_the_runs(tiny_run: Path) -> None:
    """Ours is (raw - mean) / deviation, both from the checkpoint's config; 0 and 1 on the start's own samples."""
    folder = tiny_run / "iteration-001/reward"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ours = RewardModel.load(folder)
    row = read_rows(tiny_run / PREFERENCES)[0]
    with torch.inference_mode():
        raw = float(model(input_ids=torch.tensor([row["chosen_ids"]])).logits[0, 0])
    assert ours.raw([row["chosen_ids"]])[0] == pytest.approx(raw, abs=1e-5)
    assert ours.mean == model.config.selfplay_reward["mean"] and ours.deviation > 0
