"""Supervised training that learns nothing but NaN stops with a sentence, and leaves no checkpoint of it."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from prompts.stories import documents
from selfplay.config import Architecture, Optimisation, Reward
from selfplay.errors import Diverged
from selfplay.records import Prompt
from selfplay.rewards.reward_model import RewardModel
from selfplay.stages.bootstrap import llama_config, train_tokenizer
from selfplay.training.reward_model import train_reward_model
from selfplay.training.supervised import (
    demonstration_rows,
    document_rows,
    packed_collator,
    packed_rows,
    train_supervised,
)

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


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_last_step_that_throws_the_weights_away_is_told_too(rate: float, tmp_path: Path, training_seed: int) -> None:
    """No step follows whose loss would tell: Adam's first step changes each weight by the learning rate."""
    training = Optimisation(steps=1, batch_size=4, learning_rate=rate, warmup=0.0)
    with pytest.raises(
        Diverged, match=r"pretrain diverged: at step 1 of 1 a weight is -?(\d|inf|nan).*Lower its learning_rate"
    ):
        train_supervised(
            LlamaForCausalLM(CONFIG), TOKENIZER, document_rows(TEXTS, 24), training, tmp_path, training_seed, "pretrain"
        )
    assert not list(tmp_path.glob("step-*"))


def test_it_stops_before_a_checkpoint_of_it_is_kept(tmp_path: Path, training_seed: int) -> None:
    """The loss of step 7, the last, is looked at too, although it is no tenth."""
    model = LlamaForSequenceClassification(CONFIG)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    rows = [{"chosen_ids": one, "rejected_ids": one[:9]} for one in TEXTS[:28]]
    with pytest.raises(Diverged, match="train reward model diverged: at step 1 of 7 the loss is nan"):
        train_reward_model(RewardModel(model, TOKENIZER), rows, Reward(batch_size=4, epochs=1), tmp_path, training_seed)
    assert not list(tmp_path.glob("step-*"))


def test_packed_texts_do_not_see_one_another() -> None:
    """The loss and the gradient of packed rows are those of the same texts in rows of their own, in float64."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).double().eval()
    texts = [text[:size] for text, size in zip(TEXTS, (9, 14, 5, 12, 3), strict=False)]
    rows = [{"input_ids": text, "labels": [-100, *text[1:]]} for text in texts]
    packed = packed_rows(rows, 24)
    assert [len(row["input_ids"]) for row in packed] == [23, 20], "14 and 9, then 12, 5 and 3"
    assert packed[0]["position_ids"] == [*range(14), *range(9)]
    lengths = sum(len(row["labels"]) - 1 for row in rows)

    def loss_of(batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            labels = batch.pop("labels")
            logits = model(**batch).logits[:, :-1]
            total = total + torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
        return total / lengths

    alone = loss_of([{key: torch.tensor([row[key]]) for key in ("input_ids", "labels")} for row in rows])
    together = loss_of([packed_collator(model, TOKENIZER)(packed)])
    assert float(together.detach()) == pytest.approx(float(alone.detach()), abs=1e-9)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (alone, together)]
    assert max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) < 1e-9


def test_packed_demonstrations_are_trained_on(tmp_path: Path, training_seed: int) -> None:
    torch.manual_seed(training_seed)
    model = LlamaForCausalLM(CONFIG)
    rows = packed_rows([{"input_ids": text, "labels": text} for text in TEXTS], 32)
    training = Optimisation(steps=12, batch_size=4, learning_rate=1e-2)
    logged = train_supervised(model, TOKENIZER, rows, training, tmp_path, training_seed, "fine-tune")
    losses = [row["loss"] for row in logged if "loss" in row]
    assert len(losses) == 12 and losses[-1] < losses[0]


def test_the_loss_is_on_the_completion_or_on_all_of_it() -> None:
    prompt = Prompt.plain("p", "Why?")
    (only,) = demonstration_rows(TOKENIZER, [(prompt, "So.")], 64)
    (whole,) = demonstration_rows(TOKENIZER, [(prompt, "So.")], 64, completion_only=False)
    answer = [*TOKENIZER("So.")["input_ids"], TOKENIZER.eos_token_id]
    assert only["labels"] == [-100] * (len(only["input_ids"]) - len(answer)) + answer
    assert whole["labels"] == whole["input_ids"] == only["input_ids"]
    (text,) = demonstration_rows(TOKENIZER, [(None, "So.")], 64)
    assert text == {"input_ids": answer, "labels": answer}
