"""Losses on pairs: each by hand in float64, and against TRL's on the same batch of the same two models."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from prompts.stories import documents
from selfplay.config import DPO
from selfplay.stages.bootstrap import train_tokenizer
from selfplay.training.pair_losses import PAIR_LOSSES, LogRatios
from selfplay.training.preference import PairRow, PairTrainer, collator, pair_trainer

TOKENIZER = train_tokenizer(documents(50), 300)
E = math.exp


def pairs(target: float = 1.0, wins: tuple[float, float] = (1.0, 0.0)) -> LogRatios:
    """One pair: r = 1.2 over 4 tokens chosen, -0.8 over 2 rejected; d = 2, per token 0.3 - (-0.4) = 0.7."""
    numbers = (1.2, -0.8, 4.0, 2.0, target, *wins)
    return LogRatios(*(tensor([number], dtype=torch.float64) for number in numbers))


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log(1 + E(x))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [  # beta = 0.5, so beta d = 1 and, per token, 0.35
        ("sigmoid", pairs(), softplus(-1)),
        ("sigmoid", pairs(0.8), 0.8 * softplus(-1) + 0.2 * softplus(1)),
        ("sigmoid_norm", pairs(), softplus(-0.35)),
        ("sigmoid_norm", pairs(0.6), 0.6 * softplus(-0.35) + 0.4 * softplus(0.35)),
        ("hinge", pairs(), 0.0),  # 1 - 1
        ("hinge", pairs(0.75), 0.25 * 2),  # the other way round: 1 + 1
        ("ipo", pairs(), (0.7 - 1) ** 2),  # 1 / (2 beta) = 1
        ("ipo", pairs(0.9), 0.9 * 0.09 + 0.1 * (-0.7 - 1) ** 2),
        ("robust", pairs(0.9), (0.9 * softplus(-1) - 0.1 * softplus(1)) / 0.8),
        # sigmoid(1) = 1 / (1 + 1/e) = e / (1 + e), sigmoid(-1) = 1 / (1 + e); their logs less those of 0.9 and 0.1
        (
            "exo_pair",
            pairs(0.9),
            (E(1) * (1 - softplus(1) - math.log(0.9)) + (-softplus(1) - math.log(0.1))) / (1 + E(1)),
        ),
        ("nca_pair", pairs(), softplus(-0.6) + softplus(0.6) / 2 + softplus(-0.4) / 2),  # beta r: 0.6 and -0.4
        ("apo_zero", pairs(), 1 - 1 / (1 + E(-0.6)) + 1 / (1 + E(0.4))),
        ("apo_down", pairs(), 1 / (1 + E(-0.6)) + 1 - 1 / (1 + E(-1))),
        ("sppo", pairs(), (1.2 - 1) ** 2 + (-0.8 + 1) ** 2),  # (1 - 1/2) / 0.5 = 1
        ("sppo", pairs(wins=(0.75, 0.25)), (1.2 - 0.5) ** 2 + (-0.8 + 0.5) ** 2),
    ],
)
def test_by_hand(name: str, given: LogRatios, expected: float) -> None:
    assert PAIR_LOSSES[name](given, 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_a_setting_for_each_loss_and_a_loss_for_each_setting() -> None:
    assert list(PAIR_LOSSES) == list(get_args(DPO.model_fields["loss"].annotation))


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    made = LlamaForCausalLM(shape)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # so that two models differ by nats
    return made


def row(place: int) -> PairRow:
    """Answers of different lengths."""
    return {
        "prompt_ids": [5, 6, 7 + place],
        "chosen_ids": [20 + place, 21, 22][: 3 - place % 2],
        "rejected_ids": [40 + place] * (1 + place),
        "target": 0.9 if place % 2 else 1.0,
        "chosen_wins": 1.0,
        "rejected_wins": 0.0,
    }


class OnIds(DPOTrainer):
    """TRL's own, for rows that hold token ids."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        return dataset


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> tuple[PairTrainer, DPOTrainer]:
    """Ours and TRL's, with one policy, one reference and the same four pairs."""
    folder = tmp_path_factory.mktemp("trainers")
    ours = pair_trainer(model(1), model(2), TOKENIZER, [row(n) for n in range(4)], settings(), None, folder, 0)
    theirs = OnIds(
        model=model(1),
        ref_model=model(2),
        args=DPOConfig(str(folder), use_cpu=True, bf16=False, report_to="none", max_length=None),
        train_dataset=ours.train_dataset,
        processing_class=TOKENIZER,
    )
    return ours, theirs


def settings(loss: Any = "sigmoid", beta: float = 0.5, **more: Any) -> DPO:
    return DPO(kind="dpo", loss=loss, beta=beta, **more)


TRLS_NAMES = {"sppo": "sppo_hard"}


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_against_trl(trainers: tuple[PairTrainer, DPOTrainer], loss: str, tmp_path: Path) -> None:
    ours, theirs = trainers
    smoothing = 0.1 if loss in ("robust", "exo_pair") else 0.0
    rows = [{**one, "target": 1 - smoothing} for one in ours.train_dataset]
    batch = collator(TOKENIZER.pad_token_id)(rows)
    ours.settings = settings(loss, label_smoothing=smoothing)
    theirs.beta, theirs.label_smoothing, theirs.loss_types = 0.5, smoothing, [TRLS_NAMES.get(loss, loss)]
    found = ours._compute_loss(ours.model, batch, False)
    plain = {key: batch[key] for key in ("input_ids", "attention_mask", "completion_mask")}
    expected = theirs._compute_loss(theirs.model, plain, False)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    gradients = [
        torch.autograd.grad(value, made.lm_head.weight)[0]
        for value, made in ((found, ours.model), (expected, theirs.model))
    ]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5) and gradients[0].abs().max() > 1e-3


def test_the_likelihood_of_chosen_answers_is_added(trainers: tuple[PairTrainer, DPOTrainer]) -> None:
    """TRL's `sft` is the same mean over tokens."""
    ours, theirs = trainers
    batch = collator(TOKENIZER.pad_token_id)(list(ours.train_dataset))
    ours.settings = settings(sft_coefficient=0.0)
    without = ours._compute_loss(ours.model, batch, False)
    ours.settings = settings(sft_coefficient=0.2)
    theirs.loss_types = ["sft"]
    plain = {key: batch[key] for key in ("input_ids", "attention_mask", "completion_mask")}
    added = 0.2 * theirs._compute_loss(theirs.model, plain, False)
    assert ours._compute_loss(ours.model, batch, False).item() == pytest.approx((without + added).item(), abs=1e-5)
