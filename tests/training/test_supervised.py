"""Supervised training that learns nothing but NaN stops with a sentence, and leaves no checkpoint of it."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from prompts.stories import documents
from selfplay.config import Architecture, Optimisation, Reward
from selfplay.errors import Diverged
from selfplay.rewards.reward_model import RewardModel
from selfplay.stages.bootstrap import llama_config, train_tokenizer
from selfplay.training.reward_model import train_reward_model
from selfplay.training.supervised import document_rows, train_supervised

TOKENIZER = train_tokenizer(documents(50), 300)
CONFIG = llama_config(Architecture(layers=1, hidden_size=16, heads=1, intermediate_size=16, context=32), TOKENIZER)
CONFIG.num_labels = 1
TEXTS = [TOKENIZER(text)["input_ids"][:24] for text in documents(40)]


@pytest.mark.parametrize("rate", [1e-3, 1e30])
def test_a_loss_that_is_no_number_stops_the_training(rate: float, tmp_path: Path, training_seed: int) -> None:
    """A weight of the model's own is NaN, or one step throws all of them beyond what a float holds."""
    model = LlamaForCausalLM(CONFIG)
    if rate == 1e-3:
        torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    training = Optimisation(steps=30, batch_size=4, learning_rate=rate, warmup=0.0)
    sentence = (
        "pretrain diverged: at step [12] of 30 the (loss|gradient's norm) is nan. Lower its learning_rate or raise"
    )
    with pytest.raises(Diverged, match=sentence):
        train_supervised(model, TOKENIZER, document_rows(TEXTS, 24), training, tmp_path, training_seed, "pretrain")
    assert not list(tmp_path.glob("step-*"))


def test_it_stops_before_a_checkpoint_of_it_is_kept(tmp_path: Path, training_seed: int) -> None:
    """The loss of step 7, the last, is looked at too, although it is no tenth."""
    model = LlamaForSequenceClassification(CONFIG)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    rows = [{"chosen_ids": one, "rejected_ids": one[:9]} for one in TEXTS[:28]]
    with pytest.raises(Diverged, match="train reward model diverged: at step 1 of 7 the loss is nan"):
        train_reward_model(RewardModel(model, TOKENIZER), rows, Reward(batch_size=4, epochs=1), tmp_path, training_seed)
    assert not list(tmp_path.glob("step-*"))
