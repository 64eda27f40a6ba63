"""Rewards, advantages, whitening and running moments against arithmetic done by hand and against plain definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay.rl.advantages import (
    RunningMoments,
    advantages_and_returns,
    masked_mean,
    masked_variance,
    normalise_scores,
    penalise_missing_end,
    whiten,
)
from selfplay.rl.kl import token_rewards


def float64(rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(actual: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, float64(expected), rtol=0, atol=1e-12)


def test_the_score_enters_once_on_the_last_token_and_the_kl_on_every_token() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool()
    kl = float64([[0.1, -0.2, 0.3], [0.4, 0.5, 99.0], [7.0, 8.0, 9.0]])
    rewards = token_rewards(float64([10.0, -2.0, 5.0]), kl, 0.5, mask)
    # row 0: -0.05, 0.1, -0.15 + 10;  row 1: -0.2, -0.25 - 2, nothing on padding;  row 2 has no token, so no score
    close(rewards, [[-0.05, 0.1, 9.85], [-0.2, -2.25, 0.0], [0.0, 0.0, 0.0]])


def test_missing_end_is_subtracted_or_replaces_the_score() -> None:
    scores, truncated = float64([3.0, 4.0, -5.0]), torch.tensor([False, True, True])
    close(penalise_missing_end(scores, truncated, 1.5, "subtract"), [3.0, 2.5, -6.5])
    close(penalise_missing_end(scores, truncated, 1.5, "replace"), [3.0, -1.5, -1.5])
    with pytest.raises(ValueError, match="subtract or replace"):
        penalise_missing_end(scores, truncated, 1.5, "minus")


def test_advantages_by_hand() -> None:
    rewards, values = float64([[1.0, 2.0, 3.0]]), float64([[0.5, 0.25, 0.125]])
    mask = torch.ones(1, 3).bool()
    advantages, returns = advantages_and_returns(rewards, values, mask, discount=0.5, gae_lambda=0.5)
    # delta_2 = 3 + 0 - 0.125 = 2.875;  delta_1 = 2 + 0.0625 - 0.25 = 1.8125;  delta_0 = 1 + 0.125 - 0.5 = 0.625
    # A_2 = 2.875;  A_1 = 1.8125 + 0.25 * 2.875 = 2.53125;  A_0 = 0.625 + 0.25 * 2.53125 = 1.2578125
    close(advantages, [[1.2578125, 2.53125, 2.875]])
    close(returns, [[1.7578125, 2.78125, 3.0]])


def test_a_truncated_end_is_worth_nothing_or_the_final_value() -> None:
    rewards, values = float64([[0.0, 1.0]]), float64([[2.0, 4.0]])
    mask = torch.ones(1, 2).bool()
    advantages, _ = advantages_and_returns(rewards, values, mask, 0.5, 1.0)
    # delta_1 = 1 - 4 = -3;  delta_0 = 0 + 2 - 2 = 0;  A_0 = 0 + 0.5 * -3
    close(advantages, [[-1.5, -3.0]])
    advantages, returns = advantages_and_returns(rewards, values, mask, 0.5, 1.0, float64([8.0]))
    # delta_1 = 1 + 0.5 * 8 - 4 = 1;  A_0 = 0 + 0.5 * 1
    close(advantages, [[0.5, 1.0]])
    close(returns, [[2.5, 5.0]])


def definition(
    rewards: list[float], values: list[float], discount: float, gae_lambda: float, final: float
) -> list[float]:
    """A_t as the double sum over all later deltas, for a sequence without gaps."""
    padded = [*values, final]
    deltas = [reward + discount * padded[t + 1] - padded[t] for t, reward in enumerate(rewards)]
    return [
        sum((discount * gae_lambda) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


numbers = st.floats(-5, 5)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=9),
    discount=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
    final=numbers,
)
def test_masked_places_are_stepped_over(
    tokens: list[tuple[float, float, bool]], discount: float, gae_lambda: float, final: float
) -> None:
    rewards = float64([[reward if real else 0.0 for reward, _, real in tokens]])
    values, mask = float64([[value for _, value, _ in tokens]]), torch.tensor([[real for _, _, real in tokens]])
    advantages, returns = advantages_and_returns(rewards, values, mask, discount, gae_lambda, float64([final]))
    kept = [(reward, value) for reward, value, real in tokens if real]
    expected = definition([reward for reward, _ in kept], [value for _, value in kept], discount, gae_lambda, final)
    torch.testing.assert_close(advantages[mask], float64(expected), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(returns[mask], float64(expected) + values[mask], rtol=1e-9, atol=1e-9)
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_whitening_counts_real_tokens_only() -> None:
    values, mask = float64([[1.0, 3.0, 100.0], [5.0, -100.0, -100.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    # mean of 1, 3, 5 is 3; unbiased variance (4 + 0 + 4) / 2 = 4
    assert float(masked_mean(values, mask)) == pytest.approx(3.0, abs=1e-12)
    assert float(masked_variance(values, mask)) == pytest.approx(4.0, abs=1e-12)
    close(whiten(values, mask, epsilon=0.0), [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    # scale only: deviations from 3 are halved, the mean stays
    close(whiten(values, mask, shift_mean=False, epsilon=0.0), [[2.0, 3.0, 0.0], [4.0, 0.0, 0.0]])


def test_whitening_one_token_or_none_gives_no_nan() -> None:
    one = whiten(float64([[7.0, 3.0]]), torch.tensor([[True, False]]))
    close(one, [[0.0, 0.0]])
    assert float(masked_mean(float64([[7.0]]), torch.tensor([[False]]))) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=5))
def test_running_moments_are_those_of_everything_seen(batches: list[list[float]]) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments.update(float64(batch))
    everything = float64([value for batch in batches for value in batch])
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-9)
    assert moments.squares == pytest.approx(float((everything - everything.mean()).square().sum()), abs=1e-6)


def test_running_deviation_by_hand() -> None:
    moments = RunningMoments()
    assert moments.deviation == 1.0
    moments.update(float64([1.0, 3.0]))
    moments.update(float64([5.0]))
    # 1, 3, 5: mean 3, unbiased variance (4 + 0 + 4) / 2 = 4
    assert (moments.mean, moments.deviation) == (pytest.approx(3.0), pytest.approx(2.0))


def test_scores_are_normalised_then_clipped() -> None:
    seen = RunningMoments()
    close(normalise_scores(float64([1.0, 3.0, 5.0]), seen, "scale", None), [0.5, 1.5, 2.5])
    close(normalise_scores(float64([1.0, 3.0, 5.0]), RunningMoments(), "standardise", None), [-1.0, 0.0, 1.0])
    close(normalise_scores(float64([1.0, 3.0, 5.0]), RunningMoments(), "scale", 2.0), [0.5, 1.5, 2.0])
    close(normalise_scores(float64([-9.0, 1.0]), RunningMoments(), "none", 2.0), [-2.0, 1.0])
    with pytest.raises(ValueError, match="none, scale or standardise"):
        normalise_scores(float64([1.0]), RunningMoments(), "running", None)
    # the second batch is scaled by the deviation of both: 1, 3, 5, 7 has variance 20 / 3
    close(normalise_scores(float64([7.0]), seen, "scale", None), [7.0 / (20 / 3) ** 0.5])
