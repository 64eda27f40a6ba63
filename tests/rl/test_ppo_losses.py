"""Losses, importance weights, KL estimators and the KL controller against arithmetic done by hand."""

from math import exp, log

import pytest
import torch

from selfplay.rl.kl import KLController, kl_estimate
from selfplay.rl.losses import importance_weights, policy_loss, value_loss


def float64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, float64(expected), rtol=0, atol=1e-12)


def test_policy_loss_takes_the_worse_of_plain_and_clipped() -> None:
    ratios = [1.5, 0.5, 1.5, 0.5, 1.1]
    new = float64([log(ratio) for ratio in ratios]) - 3.0
    result = policy_loss(new + 3.0, float64([2.0, 2.0, -2.0, -2.0, 2.0]), clip=0.2)
    # A > 0: max(-2 * 1.5, -2 * 1.2) = -2.4;  max(-2 * .5, -2 * .8) = -1
    # A < 0: max(2 * 1.5, 2 * 1.2) = 3;        max(2 * .5, 2 * .8) = 1.6;   inside the clip: -2.2
    close(result.loss, [-2.4, -1.0, 3.0, 1.6, -2.2])
    close(result.ratio, ratios)
    assert result.clipped.tolist() == [True, False, False, True, False]


def test_policy_gradient_is_zero_where_clipped_and_minus_advantage_times_ratio_elsewhere() -> None:
    new = float64([log(1.5), log(0.5), log(1.1)]).requires_grad_()
    policy_loss(new, float64([2.0, 2.0, -3.0]), clip=0.2).loss.sum().backward()
    # d(-A ratio)/d log p = -A ratio: clipped 0;  -2 * .5 = -1;  3 * 1.1 = 3.3
    assert new.grad is not None
    close(new.grad, [0.0, -1.0, 3.3])


def test_dual_clip_bounds_the_loss_of_bad_tokens_only() -> None:
    new = float64([log(5.0), log(5.0), log(2.0)])
    advantages = float64([-2.0, 2.0, -2.0])
    close(policy_loss(new, advantages, 0.2).loss, [10.0, -2.4, 4.0])
    # c = 3: at most 2 * 3 = 6 where A < 0
    close(policy_loss(new, advantages, 0.2, dual_clip=3.0).loss, [6.0, -2.4, 4.0])


def test_log_ratio_cannot_overflow() -> None:
    result = policy_loss(float64([1000.0, -1000.0]), float64([-1.0, -1.0]), 0.2)
    close(result.ratio, [exp(20.0), exp(-20.0)])
    assert torch.isfinite(result.loss).all()


def test_value_loss_takes_the_worse_of_plain_and_clipped() -> None:
    values, old = float64([2.0, 2.0, 0.1, 0.0]), float64([1.0, 1.0, 0.0, 1.0])
    returns = float64([3.0, 0.0, 1.0, -1.0])
    result = value_loss(values, old, returns, clip=0.5)
    # clipped values 1.5, 1.5, 0.1, 0.5: (2-3)^2 = 1 < (1.5-3)^2 = 2.25;  (2-0)^2 = 4 > 1.5^2;  (0.1-1)^2 = 0.81 twice;
    # (0+1)^2 = 1 < (0.5+1)^2 = 2.25
    close(result.loss, [1.125, 2.0, 0.405, 1.125])
    assert result.clipped.tolist() == [True, False, False, True]
    close(value_loss(values, old, returns, clip=None).loss, [0.5, 2.0, 0.405, 0.5])


def test_value_gradient_is_the_error_or_zero_where_clipped() -> None:
    values = float64([2.0, 2.0]).requires_grad_()
    value_loss(values, float64([1.0, 1.0]), float64([3.0, 0.0]), clip=0.5).loss.sum().backward()
    assert values.grad is not None
    close(values.grad, [0.0, 2.0])


def test_importance_weights_are_capped_and_masked() -> None:
    old, engine = float64([log(0.2), log(0.9), log(0.1)]), float64([log(0.4), log(0.1), log(0.1)])
    # p_old / p_engine = 0.5, 9, 1
    close(importance_weights(old, engine, cap=2.0), [0.5, 2.0, 1.0])
    close(importance_weights(old, engine, cap=None), [1.0, 1.0, 1.0])
    close(importance_weights(old, engine, cap=2.0, bound=3.0), [0.5, 0.0, 1.0])
    close(importance_weights(old, engine, cap=None, bound=1.5), [0.0, 0.0, 1.0])
    assert not importance_weights(old.requires_grad_(), engine, 2.0).requires_grad


def test_kl_estimators_by_hand() -> None:
    new, reference = float64([log(0.5), log(0.2)]), float64([log(0.25), log(0.4)])
    # d = log 2 and -log 2;  exp(-d) - 1 + d = 0.5 - 1 + log 2 and 2 - 1 - log 2
    close(kl_estimate(new, reference, "k1"), [log(2), -log(2)])
    close(kl_estimate(new, reference, "k2"), [log(2) ** 2 / 2] * 2)
    close(kl_estimate(new, reference, "k3"), [log(2) - 0.5, 1 - log(2)])
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(new, reference, "k4")


def test_k1_and_k3_are_unbiased_and_k2_has_the_gradient_of_the_kl() -> None:
    policy, reference = float64([0.5, 0.3, 0.2]), float64([0.2, 0.2, 0.6])
    exact = float((policy * (policy / reference).log()).sum())
    for estimator in ("k1", "k3"):
        mean = float((policy * kl_estimate(policy.log(), reference.log(), estimator)).sum())
        assert mean == pytest.approx(exact, abs=1e-12)
    logits = policy.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    (policy * kl_estimate(logprobs, reference.log(), "k2")).sum().backward()
    # dKL/dlogit_i = p_i (log(p_i / q_i) - KL)
    assert logits.grad is not None
    close(logits.grad, (policy * ((policy / reference).log() - exact)).tolist())


def test_the_controller_steers_towards_its_target() -> None:
    controller = KLController(0.1, target=6.0, horizon=1000.0)
    controller.update(kl=6.6, episodes=50)
    # error = 6.6 / 6 - 1 = 0.1;  0.1 * (1 + 0.1 * 50 / 1000) = 0.1005
    assert controller.coefficient == pytest.approx(0.1005, abs=1e-12)
    controller.update(kl=60.0, episodes=100)
    # error clipped to 0.2: 0.1005 * 1.02 = 0.10251
    assert controller.coefficient == pytest.approx(0.10251, abs=1e-12)
    controller.update(kl=0.0, episodes=100)
    # error clipped to -0.2: 0.10251 * 0.98
    assert controller.coefficient == pytest.approx(0.1004598, abs=1e-12)


def test_without_a_target_the_coefficient_stays() -> None:
    controller = KLController(0.1)
    controller.update(kl=1e9, episodes=256)
    assert controller.coefficient == 0.1
