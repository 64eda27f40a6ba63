"""Advantages, losses and gradients on the same tensors as TRL 1.16's GRPOTrainer and RLOOTrainer, by their own methods."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_models import Maker, PolicyMaker, by_length, gradients, rollout, same, shift
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from selfplay.config import SamplingParams
from selfplay.rewards.sources import FunctionReward
from selfplay.rl.advantages import compare_in_groups
from selfplay.rl.rollouts import Episodes

GROUP, MAX_TOKENS = 4, 7
PLAIN_KL = {"use_bias_correction_kl": False}
"""TRL would weigh the KL in the loss by the ratio (DeepSeek-V3.2); GRPO as published does not."""


def build(kind: Any, settings: Any, policy: Any, tokenizer: Any, folder: Path, **options: Any) -> Any:
    """A trainer of TRL on the policy itself, one batch of twelve completions to three prompts."""
    args = settings(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=12,
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        temperature=0.8,
        beta=0.0,
        epsilon=0.2,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    rows = Dataset.from_list([{"prompt": f"{number} 2"} for number in range(3)])
    made = kind(policy, lambda completions, **_: [0.0] * len(completions), args, rows, processing_class=tokenizer)
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


REWARDS = [1.0, 2.5, -1.0, 0.5, 3.0, float("nan"), 3.5, 4.0, 1.0, float("nan"), float("nan"), float("nan")]
"""Of three prompts: all scored, one hole, and one alone."""


@pytest.mark.parametrize(
    ("kind", "settings", "options", "ours"),
    [
        (GRPOTrainer, GRPOConfig, {"scale_rewards": "group"}, ("mean", True)),
        (GRPOTrainer, GRPOConfig, {"scale_rewards": "none"}, ("mean", False)),
        (RLOOTrainer, RLOOConfig, {}, ("others", False)),
    ],
    ids=["grpo", "dr-grpo", "rloo"],
)
def test_advantages(
    make_policy: PolicyMaker,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    kind: Any,
    settings: Any,
    options: dict[str, Any],
    ours: tuple[str, bool],
) -> None:
    theirs = build(kind, settings, make_policy(dtype=torch.float32), tokenizer, tmp_path, **options)
    theirs._calculate_rewards = lambda *_, **__: torch.tensor(REWARDS)[:, None]
    asked = [{"prompt": f"{number // GROUP} 2"} for number in range(12)]
    expected = theirs._generate_and_score_completions(asked)["advantages"]
    scored = [place for place, reward in enumerate(REWARDS) if reward == reward]
    rewards = torch.tensor(REWARDS, dtype=torch.float64)[scored]
    found = compare_in_groups(rewards, torch.tensor(scored) // GROUP, *ours)
    torch.testing.assert_close(found, expected.double()[scored], rtol=1e-5, atol=1e-5)
    assert found.abs().max() > 0.5 and found[-1] == 0


def their_tensors(episodes: Episodes, advantages: torch.Tensor, old: torch.Tensor) -> dict[str, Any]:
    """The episodes as TRL's trainers take them: prompts padded on the left, completions on the right."""
    count, widest = len(episodes.prompts), int(episodes.prompt_lengths.max())
    prompts, completions = torch.zeros(count, widest, dtype=torch.long), torch.zeros(old.shape, dtype=torch.long)
    for row in range(count):
        prompt, response = int(episodes.prompt_lengths[row]), int(episodes.response_lengths[row])
        prompts[row, widest - prompt :] = episodes.tokens[row, :prompt]
        completions[row, :response] = episodes.tokens[row, prompt : prompt + response]
    mask = episodes.mask.long()
    return {
        "prompt_ids": prompts,
        "prompt_mask": (torch.arange(widest) >= widest - episodes.prompt_lengths[:, None]).long(),
        "completion_ids": completions,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1),
        "num_items_in_batch": mask.sum(),
    }


@pytest.mark.parametrize(
    ("kind", "settings", "options", "ours", "beta"),
    [
        (GRPOTrainer, GRPOConfig, {"loss_type": "grpo", **PLAIN_KL}, {"loss_average": "sequence"}, 0.3),
        (
            GRPOTrainer,
            GRPOConfig,
            {"loss_type": "dr_grpo"},
            {"loss_average": "constant", "divide_by_deviation": False},
            0.0,
        ),
        (GRPOTrainer, GRPOConfig, {"loss_type": "dapo", "epsilon_high": 0.28, **PLAIN_KL}, {"clip_high": 0.28}, 0.3),
        (
            GRPOTrainer,
            GRPOConfig,
            {"loss_type": "grpo", "importance_sampling_level": "sequence"},
            {"loss_average": "sequence", "ratio": "sequence"},
            0.0,
        ),
        (RLOOTrainer, RLOOConfig, {}, {"advantage": "rloo", "loss_average": "sequence", "ratio": "product"}, 0.0),
    ],
    ids=["grpo", "dr-grpo", "dapo", "gspo", "rloo"],
)
def test_losses_and_gradients(
    make_trainer: Maker,
    make_policy: PolicyMaker,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    kind: Any,
    settings: Any,
    options: dict[str, Any],
    ours: dict[str, Any],
    beta: float,
) -> None:
    ours = {**ours, "kl_in": "loss", "kl_estimator": "k3", "kl_coefficient": beta}
    reference = make_policy()
    shift(reference, 2, 0.05)  # not far, for TRL's log-probabilities are float32, and k3 has their exponential
    trainer = make_trainer(
        reference=reference,
        reward=FunctionReward(by_length),
        missing_eos_penalty=0.0,
        importance_cap=None,
        sampling=SamplingParams(max_tokens=MAX_TOKENS, temperature=0.8),
        **{"advantage": "grpo", "group": GROUP, **ours},
    )
    episodes, estimates, experience = rollout(trainer)
    policy = make_policy()
    for one in (trainer.policy, policy):
        shift(one, 1, 0.1)
    theirs = build(kind, settings, policy, tokenizer, tmp_path, **options)
    assert torch.equal(experience.advantages, experience.advantages[:, :1] * experience.mask)
    tensors = their_tensors(episodes, experience.advantages[:, 0], estimates.logprobs)
    if beta:
        theirs.beta, tensors["ref_per_token_logps"] = beta, estimates.reference_logprobs
    theirs._compute_loss(theirs.model, tensors).backward()
    expected = {"policy." + name: p.grad.clone() for name, p in policy.named_parameters()}
    row = trainer.learner.gradients(episodes, experience, list(range(12)))
    assert 0 < row["policy/clipfrac"] < 1
    same(gradients(trainer), expected, 1e-5)
    assert max(float(one.abs().max()) for one in expected.values()) > 0.01
