"""ILQL's losses and targets against values by hand, in float64."""

import math

import pytest
import torch

from selfplay.ilql.losses import awac_weights, expectile_loss, next_values, q_loss, q_targets


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


LAST = torch.tensor([False, True, False, False, True])
"""Two responses, of two and of three tokens."""


def test_the_value_behind_the_last_token_is_0() -> None:
    assert next_values(tensor(0.5, 0.25, -1.0, 2.0, 3.0), LAST).tolist() == [0.25, 0.0, 2.0, 3.0, 0.0]
    assert next_values(tensor(), torch.tensor([], dtype=torch.bool)).tolist() == []


def test_what_q_is_drawn_to() -> None:
    values = tensor(0.5, 0.25, -1.0, 2.0, 3.0).requires_grad_()
    targets = q_targets(tensor(0, 1.5, 0, 0, -0.5), values, LAST, 0.9)
    # 0 + .9 x .25, 1.5 + 0, 0 + .9 x 2, 0 + .9 x 3, -.5 + 0
    torch.testing.assert_close(targets, tensor(0.225, 1.5, 1.8, 2.7, -0.5), rtol=0, atol=1e-12)
    assert not targets.requires_grad
    # (1 - .225)^2 = .600625, (1.5 - 1.5)^2, (2 - 1.8)^2 = .04, (2.7 - 2.7)^2, (.5 + .5)^2 = 1
    loss = q_loss(tensor(1.0, 1.5, 2.0, 2.7, 0.5), targets)
    torch.testing.assert_close(loss, tensor(0.600625, 0.0, 0.04, 0.0, 1.0), rtol=0, atol=1e-12)


def test_the_expectile_leans_to_the_better() -> None:
    values = tensor(1.0, 1.0, 1.0).requires_grad_()
    loss = expectile_loss(values, tensor(3.0, 0.0, 1.0), 0.8)
    # u = Q - V = 2, -1, 0: .8 x 4, .2 x 1, 0
    torch.testing.assert_close(loss, tensor(3.2, 0.2, 0.0), rtol=0, atol=1e-12)
    loss.sum().backward()
    # d/dV of .8 (3 - V)^2 = -1.6 x 2, of .2 (0 - V)^2 = .4 x 1
    torch.testing.assert_close(values.grad, tensor(-3.2, 0.4, 0.0), rtol=0, atol=1e-12)


def test_the_minimum_of_the_expectile_loss_is_the_expectile() -> None:
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    each = [expectile_loss(grid, outcome.expand_as(grid), 0.8) for outcome in tensor(0.0, 0.0, 1.0)]
    # .2 x 2 V = .8 (1 - V): V = .8 / 1.2 = 2 / 3, where the mean is 1 / 3
    assert float(grid[torch.stack(each).sum(0).argmin()]) == pytest.approx(2 / 3, abs=1e-5)


def test_imitation_is_weighted_by_the_advantage() -> None:
    values = tensor(1.0, 1.0, 0.0).requires_grad_()
    weights = awac_weights(tensor(1.5, 0.5, 100.0), values, 2.0)
    # exp(2 x .5), exp(2 x -.5), exp(200) held at exp(20)
    torch.testing.assert_close(weights, tensor(math.e, 1 / math.e, math.exp(20)), rtol=1e-12, atol=0)
    assert not weights.requires_grad
    assert awac_weights(tensor(3.0, -3.0), tensor(0.0, 0.0), 0.0).tolist() == [1.0, 1.0]
