"""Baselines of groups, the losses' ratios and shares, and the penalty of overlong answers, against arithmetic by hand."""

from math import exp, log

import pytest
import torch

from selfplay.rl.advantages import Groups, advantages_and_returns, compare_in_groups, penalise_overlong
from selfplay.rl.kl import token_rewards
from selfplay.rl.losses import loss_shares, policy_loss, pool_log_ratios

PROMPTS = torch.tensor([7, 2, 7, 2, 7, 5])
"""Three completions of prompt 7, two of prompt 2, and one of prompt 5, whose others were not scored."""


def float64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


SCORES = float64([1.0, 10.0, 4.0, 14.0, 7.0, 3.0])


def close(actual: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, float64(expected), rtol=0, atol=1e-9)


def test_rloo_takes_the_mean_of_the_others() -> None:
    # prompt 7: 1 - (4 + 7) / 2 = -4.5;  4 - (1 + 7) / 2 = 0;  7 - (1 + 4) / 2 = 4.5.  prompt 2: 10 - 14, 14 - 10
    close(compare_in_groups(SCORES, PROMPTS, "others"), [-4.5, -4.0, 0.0, 4.0, 4.5, 0.0])


def test_grpo_takes_the_mean_of_all_over_their_deviation() -> None:
    # prompt 7: mean 4, deviation sqrt((9 + 0 + 9) / 2) = 3;  prompt 2: mean 12, deviation sqrt((4 + 4) / 1) = sqrt 8
    close(compare_in_groups(SCORES, PROMPTS, "mean"), [-3.0, -2.0, 0.0, 2.0, 3.0, 0.0])
    root = 8**0.5 + 1e-4
    expected = [-3 / 3.0001, -2 / root, 0.0, 2 / root, 3 / 3.0001, 0.0]
    close(compare_in_groups(SCORES, PROMPTS, "mean", divide=True), expected)
    with pytest.raises(ValueError, match="use mean or others"):
        compare_in_groups(SCORES, PROMPTS, "median")


def test_a_group_of_one_and_a_group_of_equals_have_no_signal() -> None:
    prompts, scores = torch.tensor([0, 1, 1, 1]), float64([5.0, 0.1, 0.1, 0.1])
    for baseline, divide in (("others", False), ("mean", False), ("mean", True)):
        close(compare_in_groups(scores, prompts, baseline, divide), [0.0] * 4)
    groups = Groups.of(prompts)
    assert groups.equal(scores).tolist() == [True, True] and groups.counts.tolist() == [1, 3]
    assert Groups.of(PROMPTS).equal(SCORES).tolist() == [False, True, False]  # prompts 2, 5, 7
    close(Groups.of(PROMPTS).deviations(SCORES), [8**0.5, 0.0, 3.0])


def test_without_values_the_advantage_is_what_is_left_of_the_reward() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    rewards = token_rewards(float64([2.0, -1.0]), float64([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]]), 0.5, mask)
    advantages, _ = advantages_and_returns(rewards, torch.zeros_like(rewards), mask, 1.0, 1.0)
    # row 0: 2 - .5 (.1 + .2 + .3) = 1.7, then 2 - .5 (.2 + .3), 2 - .5 * .3;  row 1: -1 - .5 (.4 + .5), -1 - .5 * .5
    close(advantages, [[1.7, 1.75, 1.85], [-1.45, -1.25, 0.0]])
    advantages, _ = advantages_and_returns(rewards, torch.zeros_like(rewards), mask, 0.5, 1.0)
    # row 1, discount .5: -1.25, then -.2 + .5 * -1.25
    close(advantages[1], [-0.825, -1.25, 0.0])


def test_the_penalty_of_an_overlong_answer_sets_in_over_the_buffer() -> None:
    lengths = torch.tensor([3, 6, 7, 9, 10])
    # of 10 tokens the last 4: nothing up to 6, then a quarter of 2 for each token
    close(penalise_overlong(float64([1.0] * 5), lengths, 10, 4, 2.0), [1.0, 1.0, 0.5, -0.5, -1.0])


def test_ratios_of_tokens_sequences_and_whole_responses() -> None:
    ratios, responses = float64([0.1, 0.3, -0.2, 0.4, 0.6]), torch.tensor([4, 4, 1, 1, 1])
    close(pool_log_ratios(ratios, responses, "token"), [0.1, 0.3, -0.2, 0.4, 0.6])
    # response 4: (.1 + .3) / 2;  response 1: (-.2 + .4 + .6) / 3
    close(pool_log_ratios(ratios, responses, "sequence"), [0.2, 0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3])
    close(pool_log_ratios(ratios, responses, "product"), [0.4, 0.4, 0.8, 0.8, 0.8])
    with pytest.raises(ValueError, match="use token, sequence or product"):
        pool_log_ratios(ratios, responses, "word")
    assert pool_log_ratios(ratios[:0], responses[:0], "sequence").shape == (0,)


def test_gspo_s_gradient_is_that_of_the_mean_log_ratio() -> None:
    ratios = float64([0.1, 0.3, -0.2]).requires_grad_()
    responses, advantages = torch.tensor([0, 0, 1]), float64([2.0, 2.0, -1.0])
    pooled = pool_log_ratios(ratios, responses, "sequence")
    shares = loss_shares("sequence", torch.tensor([2, 2, 1]), 3, 2, 7)
    (policy_loss(pooled, advantages, 0.5).loss * shares).sum().backward()
    # 1/2 [-2 s + 1 s'], s = e^.2 with ds / d each of its two log-ratios = s / 2;  s' = e^-.2
    assert ratios.grad is not None
    close(ratios.grad, [-exp(0.2) / 2, -exp(0.2) / 2, exp(-0.2) / 2])


def test_shares_of_a_minibatch_s_loss() -> None:
    lengths = torch.tensor([2, 2, 3, 3, 3])
    close(loss_shares("token", lengths, 5, 2, 10), [0.2] * 5)
    close(loss_shares("sequence", lengths, 5, 2, 10), [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6])
    close(loss_shares("constant", lengths, 5, 2, 10), [1 / 20] * 5)
    with pytest.raises(ValueError, match="use token, sequence or constant"):
        loss_shares("mean", lengths, 5, 2, 10)


def test_the_upper_clip_may_be_wider() -> None:
    ratios, advantages = float64([log(1.5), log(1.25), log(0.5)]), float64([2.0, 2.0, -2.0])
    # up to 1.28: max(-3, -2.56), -2.5 inside;  below .8 as ever: max(2 * .5, 2 * .8)
    result = policy_loss(ratios, advantages, clip=0.2, clip_high=0.28)
    close(result.loss, [-2.56, -2.5, 1.6])
    assert result.clipped.tolist() == [True, False, True]
