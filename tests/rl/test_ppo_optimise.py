"""The optimiser against AdamW written out, and the learning rate of every step."""

import math

import pytest
import torch
from torch import nn

from selfplay.errors import Diverged
from selfplay.rl import optimise
from selfplay.rl.optimise import Optimizer, check_norm, learning_rate_factor

pytestmark = pytest.mark.trains  # by hand, with nothing drawn


def test_schedules() -> None:
    def factors(schedule: str, steps: int, warmup: float) -> list[float]:
        return [learning_rate_factor(step, steps, schedule, warmup) for step in range(steps)]

    assert factors("constant", 4, 0.0) == [1, 1, 1, 1]
    assert factors("linear", 4, 0.0) == [1, 0.75, 0.5, 0.25]
    # Ten steps, of which 0.3 rise: 1/4, 2/4, 3/4; seven are left: 1 - 0/7 ... 1 - 6/7.
    assert factors("linear", 10, 0.3) == pytest.approx([0.25, 0.5, 0.75, *(1 - k / 7 for k in range(7))], abs=1e-15)
    # (1 + cos(pi k / 4)) / 2
    root = math.sqrt(0.5)
    assert factors("cosine", 4, 0.0) == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2], abs=1e-15)
    with pytest.raises(ValueError, match="use linear, constant or cosine"):
        learning_rate_factor(0, 4, "exponential", 0.0)


def test_adamw_with_clipping_written_out() -> None:
    rate, epsilon, decay, longest = 0.1, 1e-2, 0.3, 1.0
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimiser = Optimizer(nn.ParameterList([weight]), rate, epsilon, decay, longest)
    expected, first, second = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, (gradient, factor) in enumerate([((3.0, 4.0), 1.0), ((0.3, -0.4), 0.5), ((0.0, 6.0), 0.25)], start=1):
        assert optimiser.set_factor(factor) == rate * factor
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        norm = math.hypot(*gradient)
        assert float(optimiser.step()) == pytest.approx(norm, abs=1e-9) and weight.grad is None
        shrunk = min(1.0, longest / (norm + 1e-6))  # torch's clip_grad_norm_ adds 1e-6
        for place in range(2):
            g = gradient[place] * shrunk
            first[place] = 0.9 * first[place] + 0.1 * g
            second[place] = 0.999 * second[place] + 0.001 * g * g
            direction = first[place] / (1 - 0.9**step) / (math.sqrt(second[place] / (1 - 0.999**step)) + epsilon)
            expected[place] = expected[place] * (1 - rate * factor * decay) - rate * factor * direction
        torch.testing.assert_close(weight.detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_gradients_that_a_model_comes_with_are_not_applied() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 5.0)
    optimiser = Optimizer(nn.ParameterList([weight]), 0.1, 1e-5, 0.0, 100.0)
    (weight * torch.tensor([3.0, 4.0])).sum().backward()
    assert float(optimiser.step()) == pytest.approx(5.0, abs=1e-6)  # sqrt(3^2 + 4^2), without the fives of before


def test_what_is_frozen_is_left_alone() -> None:
    frozen, free = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    optimiser = Optimizer(nn.ParameterList([frozen, free]), 0.1, 1e-5, 0.5, 1.0)
    free.grad = torch.ones(1)
    optimiser.step()
    assert float(frozen) == 1.0 and float(free.detach()) < 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_leaves_the_weights_alone(bad: float) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimiser = Optimizer(nn.ParameterList([weight]), 0.1, 1e-5, 0.0, 1.0)
    weight.grad = torch.tensor([1.0, bad])
    norm = float(optimiser.step())
    assert weight.tolist() == [1.0, 1.0]
    with pytest.raises(Diverged, match="The last checkpoint is kept"):
        check_norm(norm)
    weight.grad = torch.tensor([3.0, 4.0])  # Adam has taken no step so far: its first is of the learning rate's length
    assert check_norm(float(optimiser.step())) == 5.0
    torch.testing.assert_close(weight.detach(), torch.tensor([0.9, 0.9]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e30])
def test_a_weight_that_no_model_computes_with_is_told_behind_the_last_step(bad: float) -> None:
    weights = nn.ParameterList([nn.Parameter(torch.tensor([1.0, 1e18])), nn.Parameter(torch.zeros(0))])
    optimiser = Optimizer(weights, 0.1, 1e-5, 0.0, 1.0)
    optimiser.check_weights()
    with torch.no_grad():
        weights[0][1] = bad
    with pytest.raises(Diverged, match="a weight is .* The last checkpoint is kept"):
        optimiser.check_weights()


def test_offloaded_moments_take_the_same_steps_and_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimise, "BUCKET_ELEMENTS", 5)
    torch.manual_seed(0)
    starts, gradients = ([torch.randn(size) for size in (3, 2, 7, 1)] for _ in range(2))
    found = []
    for offload in (False, True):
        weights = nn.ParameterList([nn.Parameter(start.clone()) for start in starts])
        optimiser = Optimizer(weights, 0.1, 1e-5, 0.3, 1.0, offload)
        before = optimiser.tensors()
        for factor in (1.0, 0.5):
            optimiser.set_factor(factor)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = factor * gradient
            optimiser.step()
        after = optimiser.tensors()
        assert [len(adam.param_groups[0]["params"]) for adam in optimiser.adams] == ([2, 1, 1] if offload else [4])
        for name, state in before.items():
            assert all(after[name][moment] is state[moment] for moment in optimise.MOMENTS)
            assert float(state["exp_avg_sq"].sum()) > 0 and int(after[name]["step"]) == 2
        found.append([*weights, *(state[moment] for state in after.values() for moment in optimise.MOMENTS)])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
