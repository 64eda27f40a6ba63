"""Every metric of a step worked out by hand on two episodes, one of them cut off."""

import math

import pytest
import torch

from selfplay.config import PPO
from selfplay.records import Completion, Prompt
from selfplay.rl.experience import Experience
from selfplay.rl.metrics import rollout_metrics, samples, update_metrics
from selfplay.rl.rollouts import Episodes, Estimates

NAN = math.nan


def table(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def step() -> tuple[Episodes, Estimates, Experience]:
    """Responses of 3 tokens and 1; what stands where there is no token must not count, so it is large."""
    ends = Completion(id="a/0", prompt_id="a", text="x y", token_ids=(4, 5, 1), finish_reason="stop", policy="p")
    cut = Completion(id="b/0", prompt_id="b", text="z", token_ids=(6,), finish_reason="length", policy="p")
    episodes = Episodes(
        prompts=[Prompt.plain("a", "one"), Prompt.plain("b", "two")],
        completions=[ends, cut],
        tokens=torch.tensor([[3, 4, 5, 1], [3, 6, 0, 0]]),
        prompt_lengths=torch.tensor([1, 1]),
        response_lengths=torch.tensor([3, 1]),
        truncated=torch.tensor([False, True]),
        engine_logprobs=table([-1.1, -2.0, NAN], [-0.5, NAN, NAN]),
        scores=table([2.0], [1.0]).squeeze(1),
    )
    estimates = Estimates(
        logprobs=table([-1.0, -2.0, -0.5], [-0.3, 99, 99]),
        reference_logprobs=table([-1.5, -1.8, -0.5], [-0.4, 0, 0]),
        values=table([0.5, 1.0, 1.5], [0.2, 99, 99]),
        final_values=table([0.0], [0.0]).squeeze(1),
    )
    experience = Experience(
        mask=episodes.mask,
        old_logprobs=estimates.logprobs,
        reference_logprobs=estimates.reference_logprobs,
        old_values=estimates.values,
        advantages=table([0, 0, 0], [0, 0, 0]),
        returns=table([1.5, 2.0, 2.0], [0.7, 0, 0]),
        weights=table([1.1, 0.0, 1.0], [1.2, 0, 0]),
        scores=table([2.0], [0.0]).squeeze(1),
    )
    return episodes, estimates, experience


def test_every_metric_of_a_rollout() -> None:
    found = rollout_metrics(*step(), PPO(), coefficient=0.5)
    # log p - log p_reference: 0.5, -0.2, 0 in the first and 0.1 in the second
    assert found.pop("objective/kl") == pytest.approx((0.3 + 0.1) / 2, abs=1e-12)
    assert found.pop("objective/kl_per_token") == pytest.approx(0.4 / 4, abs=1e-12)
    assert found.pop("objective/kl_coefficient") == 0.5
    assert found.pop("objective/non_score_reward") == pytest.approx(-0.5 * (0.3 + 0.1) / 2, abs=1e-12)
    assert found.pop("objective/rlhf_reward") == pytest.approx((2.0 - 0.15 + 0.0 - 0.05) / 2, abs=1e-12)
    assert found.pop("objective/entropy") == pytest.approx((3.5 + 0.3) / 2, abs=1e-12)
    assert found.pop("objective/scores") == 1.5 and found.pop("objective/scores_std") == 0.5
    assert found.pop("val/num_eos_tokens") == 1
    # returns 1.5, 2, 2, 0.7: mean 1.55, squares of .05, .45, .45, .85: 1.13 / 4; residuals 1, 1, .5, .5: 4 * .0625 / 4
    assert found.pop("val/explained_variance") == pytest.approx(1 - 0.0625 / (1.13 / 4), abs=1e-12)
    assert found.pop("response/length") == 2 and found.pop("response/tokens") == 4
    assert found.pop("response/length_p95") == pytest.approx(1 + 0.95 * 2, abs=1e-12)
    assert found.pop("response/truncated") == 0.5
    # the engine spoke of three tokens: gaps 0.1, 0 and 0.2, weights 1.1, 0 and 1.2
    assert found.pop("engine/logprob_gap") == pytest.approx(0.1, abs=1e-12)
    assert found.pop("engine/logprob_gap_max") == pytest.approx(0.2, abs=1e-12)
    assert found.pop("engine/importance_weight") == pytest.approx(2.3 / 3, abs=1e-12)
    assert found.pop("engine/masked") == pytest.approx(1 / 3, abs=1e-12)
    assert found == {}


def test_a_kl_in_the_loss_takes_nothing_from_the_reward() -> None:
    found = rollout_metrics(*step(), PPO(kl_in="loss", kl_estimator="k2"), coefficient=0.5)
    assert found["objective/non_score_reward"] == 0 and found["objective/rlhf_reward"] == 1.0
    in_reward = rollout_metrics(*step(), PPO(kl_estimator="k2"), coefficient=0.5)
    # d^2 / 2: 0.125, 0.02, 0 and 0.005
    assert in_reward["objective/non_score_reward"] == pytest.approx(-0.5 * 0.15 / 2, abs=1e-12)


def test_means_over_minibatches() -> None:
    rows = [
        {"val/ratio": ratio, "policy/approxkl": kl, "policy/clipfrac": clip, "loss/value": 2 * kl}
        for ratio, kl, clip in ((1.0, 0.0, 0.0), (1.1, 0.2, 0.5), (0.9, 0.4, 0.25))
    ]
    rows[0]["policy/grad_norm"] = rows[1]["policy/grad_norm"] = 3.0  # the third was not learnt from
    found = update_metrics(rows, 2)
    expected = {
        "policy/approxkl_avg": 0.2,
        "policy/clipfrac_avg": 0.25,
        "loss/value_avg": 0.4,
        "policy/grad_norm_avg": 3,
        "val/ratio": 1.0,
        "val/ratio_var": 0.01,
        "policy/first_approxkl": 0,
        "policy/first_clipfrac": 0,
        "val/first_ratio": 1,
        "policy/minibatches": 2,
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_samples_say_why_they_ended() -> None:
    episodes, estimates, _ = step()
    assert samples(episodes, estimates, 7, 5) == [
        {
            "step": 7,
            "prompt_id": "a",
            "prompt": "one",
            "response": "x y",
            "score": 2.0,
            "kl": pytest.approx(0.3, abs=1e-12),
            "tokens": 3,
            "finish_reason": "stop",
        },
        {
            "step": 7,
            "prompt_id": "b",
            "prompt": "two",
            "response": "z",
            "score": 1.0,
            "kl": pytest.approx(0.1, abs=1e-12),
            "tokens": 1,
            "finish_reason": "length",
        },
    ]
