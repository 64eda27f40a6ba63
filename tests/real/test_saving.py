"""Checkpoints that others can read: transformers 4 sees what 5 sees, the precision stays, a padding token ends nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from older import Older
from tiny_llama import TEXT, tiny, tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from selfplay.models import load_policy, load_scalar_model, load_tokenizer, save
from selfplay.rewards.reward_model import RewardModel
from selfplay.storage.files import read_json, write_json
from selfplay.weights.saving import rounded

TEXTS = [TEXT, "<|user|>fox<|end|>"]
CHAT = [{"role": "system", "content": "Be brief ."}, {"role": "user", "content": "the fox"}]
ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_theta": 100.0, "rope_type": "default"},
    "linear": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_theta": 100.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.fixture(scope="module")
def seen(older: Older, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Checkpoints of ours, and what transformers 4 makes of them: one of each rotary embedding, and a reward model."""
    words, folder = tokenizer(), tmp_path_factory.mktemp("saved")
    ids = [words(TEXT)["input_ids"], words.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)]
    for name, rope in ROPES.items():
        save(tiny(words, rope), words, folder / name)
    RewardModel(load_scalar_model(folder / "yarn"), words).save(folder / "reward")
    return {
        "folder": folder,
        "ids": ids,
        "answers": older.ask([folder / name for name in (*ROPES, "reward")], ids, TEXTS, [CHAT]),
    }


@pytest.mark.parametrize("rope", list(ROPES))
def test_transformers_4_reads_a_checkpoint_as_5_does(seen: dict[str, Any], rope: str) -> None:
    checkpoint, ids = seen["folder"] / rope, seen["ids"]
    found = seen["answers"][list(ROPES).index(rope)]
    assert found["version"].startswith("4.57")
    model, newer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert model.config.rope_parameters == ROPES[rope]
    with torch.inference_mode():
        for row, top in zip(ids, found["top"], strict=True):
            logits = model(input_ids=torch.tensor([row])).logits[0]
            assert [place[2] for place in top] == logits.argmax(-1).tolist()
            assert [place[0] for place in top] == pytest.approx(logits.max(-1).values.tolist(), abs=1e-4)
    assert found["encoded"] == [newer(text)["input_ids"] for text in TEXTS]
    assert found["chats"] == [newer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)]
    assert found["decoded"] == [newer.decode(row) for row in ids] and found["decoded"][0] == TEXT
    assert found["special"] == sorted(newer.all_special_tokens) and found["ends"] == ["<|end|>", "<|pad|>"]
    assert found["keys"] == ["attention_mask", "input_ids"]  # what a causal model takes


def test_transformers_4_reads_a_reward_models_scores(seen: dict[str, Any]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(seen["folder"] / "reward")
    with torch.inference_mode():
        scores = [model(input_ids=torch.tensor([row])).logits[0].tolist() for row in seen["ids"]]
    assert [score for (score,) in seen["answers"][-1]["top"]] == pytest.approx([score for (score,) in scores], abs=1e-4)


def given(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A checkpoint of somebody's, in a precision, written without our `save`."""
    words = tokenizer()
    model = tiny(words, ROPES["plain"]).to(dtype)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_policy_is_saved_in_the_precision_that_it_came_in(tmp_path: Path, dtype: torch.dtype) -> None:
    before = given(tmp_path / "given", dtype)
    model = load_policy(tmp_path / "given")
    assert model.dtype == torch.float32  # what training works on
    save(model, load_tokenizer(tmp_path / "given"), tmp_path / "saved")
    assert model.dtype == torch.float32
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert after.dtype == dtype and read_json(tmp_path / "saved/config.json")["dtype"] == str(dtype)[6:]
    assert all(torch.equal(one, after.state_dict()[name]) for name, one in before.state_dict().items())
    assert load_policy(tmp_path / "saved").checkpoint_dtype == dtype  # and so the next iteration's too


def test_rounding_to_bfloat16_keeps_small_changes_on_average() -> None:
    """1 + 2^-10 lies an eighth of a step above 1 (steps of 2^-7 there): up with probability 1/8, which 40,000 draws show
    within 5 standard deviations, 5 sqrt(1/8 7/8 / 40000) = 0.0083. To the nearest it would be 1 always."""
    generator = torch.Generator().manual_seed(0)
    found = rounded(torch.full((40_000,), 1 + 2**-10), torch.bfloat16, generator)
    up = found == 1 + 2**-7
    assert torch.all(up | (found == 1)) and abs(float(up.float().mean()) - 1 / 8) < 0.0083
    exact = torch.tensor([0.0, -0.0, 1.5, -3.0, float("inf"), float("-inf"), float("nan")])
    assert torch.equal(rounded(exact, torch.bfloat16, generator)[:6].float(), exact[:6])
    assert rounded(exact, torch.bfloat16, generator)[6].isnan()
    below = rounded(torch.full((1000,), -1 - 2**-10), torch.bfloat16, generator)
    assert set(below.tolist()) == {-1.0, -1 - 2**-7}


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    given(tmp_path / "given", torch.bfloat16)
    model, words = load_policy(tmp_path / "given"), load_tokenizer(tmp_path / "given")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0001)
    for name in ("one", "two"):
        save(model, words, tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_padding_token_that_ends_a_response_is_replaced(tmp_path: Path) -> None:
    """As Qwen2.5's: it pads with <|endoftext|>, and its generation config stops there as well as at <|im_end|>."""
    given(tmp_path, torch.float32)
    words = AutoTokenizer.from_pretrained(tmp_path)
    settings = read_json(tmp_path / "generation_config.json")
    write_json(
        tmp_path / "generation_config.json", settings | {"eos_token_id": [words.eos_token_id, words.pad_token_id]}
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token not in ("<|end|>", "<|pad|>") and loaded.pad_token in words.all_special_tokens
    save(load_policy(tmp_path), loaded, tmp_path / "saved")
    assert read_json(tmp_path / "saved/config.json")["pad_token_id"] == loaded.pad_token_id
    assert read_json(tmp_path / "saved/generation_config.json")["pad_token_id"] == loaded.pad_token_id
    assert load_tokenizer(tmp_path / "saved").pad_token == loaded.pad_token
