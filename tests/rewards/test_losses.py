"""Losses of reward models: by hand, against each other where they are the same, and against TRL's."""

import math
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfplay.errors import ConfigError
from selfplay.rewards.losses import LOSSES, Verdicts, best, pairwise, soft
from selfplay.rewards.python import PythonLoss
from selfplay.training.reward_model import collate, groups_of

EXACT = 1e-12


def verdicts(pairs: list[tuple[int, int]], probability: list[float] | None = None, margin: Any = 0.0) -> Verdicts:
    chosen, rejected = torch.tensor(pairs).unbind(1)
    sure = torch.tensor(probability or [1.0] * len(pairs), dtype=torch.float64)
    return Verdicts(chosen, rejected, sure, torch.zeros(len(pairs), dtype=torch.float64) + torch.tensor(margin))


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def softplus(value: float) -> float:
    """-log sigmoid(-value)."""
    return math.log1p(math.exp(value))


def test_pairwise_by_hand() -> None:
    """Gaps 1.0 - 0.25 = 0.75 and 1.0 - -0.5 = 1.5, and -0.5 - 0.25 = -0.75, less margins of 0.5, 1 and 0:
    -log sigmoid(0.25) = log(1 + e^-0.25), -log sigmoid(0.5), -log sigmoid(-0.75)."""
    found = pairwise(scores(1.0, 0.25, -0.5), verdicts([(0, 1), (0, 2), (2, 1)], margin=[0.5, 1.0, 0.0]))
    assert found.item() == pytest.approx((softplus(-0.25) + softplus(-0.5) + softplus(0.75)) / 3, abs=EXACT)


def test_best_by_hand() -> None:
    """0 wins .9 of its pair with 1 and .6 of that with 2, a share of .75; 2 wins .4 and 1, a share of .7; 1 wins .05. So the
    target is 0: log(e^1 + e^0.25 + e^-0.5) - 1."""
    values, said = scores(1.0, 0.25, -0.5), verdicts([(0, 1), (0, 2), (2, 1)], [0.9, 0.6, 1.0])
    assert best(values, said).item() == pytest.approx(math.log(math.e + math.exp(0.25) + math.exp(-0.5)) - 1, abs=EXACT)


def test_best_counts_shares_of_wins_and_splits_the_target_between_equals() -> None:
    """1 wins two pairs of three, 0 its only one: 0 is the best. With 3 as good as 0, each has half of the target."""
    values = scores(0.5, 2.0, -1.0, 0.0)
    total = math.log(sum(math.exp(value) for value in (0.5, 2.0, -1.0, 0.0)))
    said = verdicts([(0, 1), (1, 2), (1, 3)])
    assert best(values, said).item() == pytest.approx(total - 0.5, abs=EXACT)
    both = verdicts([(0, 1), (3, 1), (1, 2)])
    assert best(values, both).item() == pytest.approx(total - (0.5 + 0.0) / 2, abs=EXACT)


def test_soft_by_hand() -> None:
    """Gap 0.75 at 0.8: 0.8 log(1 + e^-0.75) + 0.2 log(1 + e^0.75)."""
    found = soft(scores(1.0, 0.25), verdicts([(0, 1)], [0.8]))
    assert found.item() == pytest.approx(0.8 * softplus(-0.75) + 0.2 * softplus(0.75), abs=EXACT)


def test_soft_is_least_at_the_judges_log_odds() -> None:
    """log(0.8 / 0.2) = log 4, where the gradient is 0."""
    values = scores(math.log(4.0), 0.0)
    soft(values, verdicts([(0, 1)], [0.8])).backward()
    assert values.grad is not None and values.grad.abs().max().item() < EXACT


@pytest.mark.parametrize("kind", ["best", "soft", "ranking"])
def test_of_two_completions_all_are_the_same(kind: str) -> None:
    one, other, said = scores(0.3, -0.9), scores(0.3, -0.9), verdicts([(1, 0)])
    LOSSES[kind](one, said).backward()
    pairwise(other, said).backward()
    assert LOSSES[kind](one, said).item() == pytest.approx(math.log1p(math.exp(1.2)), abs=EXACT)
    assert torch.allclose(one.grad, other.grad, atol=EXACT)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", LOSSES)
def test_a_constant_added_to_all_scores_changes_nothing_and_the_gradient_sums_to_zero(kind: str) -> None:
    said = verdicts([(0, 1), (2, 0), (2, 1), (3, 1)], [0.9, 0.7, 1.0, 0.6])
    values = scores(0.4, -1.1, 0.7, 0.2)
    loss = LOSSES[kind](values, said)
    loss.backward()
    assert LOSSES[kind](values + 5, said).item() == pytest.approx(loss.item(), abs=EXACT)
    assert values.grad is not None and values.grad.sum().item() == pytest.approx(0, abs=EXACT)
    better = values - 0.01 * values.grad
    assert LOSSES[kind](better, said) < loss


def rows_of(prompt: str, order: list[list[int]], round: str = "1/label") -> list[dict[str, Any]]:
    """All pairs of completions that are given from best to worst."""
    return [
        {
            "prompt_id": prompt,
            "round": round,
            "chosen_ids": order[a],
            "rejected_ids": order[b],
            "confidence": 0.75,
            "margin": 0.5,
        }
        for a, b in combinations(range(len(order)), 2)
    ]


def test_a_group_holds_each_completion_once_however_many_pairs_it_is_in() -> None:
    """Four completions make six pairs, of twelve sequences: a third of them is forwarded."""
    rows = rows_of("p", [[7, 1], [7, 2, 2], [7, 3], [7]]) + rows_of("q", [[8, 1], [8]])
    first, second = groups_of(rows, margin=True)
    assert first["ids"] == [[7, 1], [7, 2, 2], [7, 3], [7]] and second["ids"] == [[8, 1], [8]]
    assert list(zip(first["chosen"], first["rejected"], strict=True)) == list(combinations(range(4), 2))
    assert first["margin"] == [0.5] * 6 and groups_of(rows)[0]["margin"] == [0.0] * 6
    batch = collate([first, second], pad=0)
    assert batch["input_ids"].tolist() == [[7, 1, 0], [7, 2, 2], [7, 3, 0], [7, 0, 0], [8, 1, 0], [8, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3, 2, 1, 2, 1]
    assert (batch["completions"].tolist(), batch["pairs"].tolist()) == ([4, 2], [6, 1])


def test_a_prompt_that_came_back_in_another_round_is_a_group_of_its_own() -> None:
    rows = rows_of("p", [[7, 1], [7]]) + rows_of("p", [[7, 2], [7]], round="2/label")
    assert [group["ids"] for group in groups_of(rows)] == [[[7, 1], [7]], [[7, 2], [7]]]


def test_ranking_is_pairwise_where_all_pairs_of_a_prompt_share_a_batch() -> None:
    """Scored once per completion or once per pair, loss and gradient are the same; TRL's own loss is among them."""
    from trl.trainer.reward_trainer import DataCollatorForPreference

    rows = rows_of("p", [[7, 1], [7, 2, 2], [7, 3], [7]])
    table = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def scored(ids: Tensor, weights: Tensor) -> Tensor:
        return weights[ids].sum(1)

    pairs = DataCollatorForPreference(pad_token_id=0)(rows)
    weights = [table.clone().requires_grad_() for _ in range(2)]
    chosen, rejected = scored(pairs["input_ids"], weights[0]).chunk(2)
    each = -torch.nn.functional.logsigmoid(chosen - rejected - pairs["margin"]).mean()
    group = collate(groups_of(rows, margin=True), pad=0)
    said = Verdicts(*(group[name] for name in ("chosen", "rejected", "probability", "margin")))
    ranked = LOSSES["ranking"](scored(group["input_ids"], weights[1]), said)
    assert (len(pairs["input_ids"]), len(group["input_ids"])) == (12, 4)
    assert ranked.item() == pytest.approx(each.item(), abs=1e-7)  # margins are float32
    each.backward()
    ranked.backward()
    assert torch.allclose(weights[0].grad, weights[1].grad, atol=1e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("returned", [None, 0.5, torch.tensor(1.0), torch.ones(2, requires_grad=True)])
def test_a_loss_of_ones_own_returns_a_scalar_that_can_be_learned_from(returned: Any) -> None:
    loss = PythonLoss(lambda scores, verdicts: returned, "own.py:loss")
    with pytest.raises(ConfigError, match="the loss own.py:loss returned .* for 2 scores; it must return a tensor"):
        loss(scores(0.0, 1.0), verdicts([(0, 1)]))


def test_a_loss_of_ones_own_that_raises_is_named() -> None:
    loss = PythonLoss(lambda scores, verdicts: SimpleNamespace().loss, "own.py:loss")
    with pytest.raises(ConfigError, match="the loss own.py:loss raised AttributeError"):
        loss(scores(0.0, 1.0), verdicts([(0, 1)]))
