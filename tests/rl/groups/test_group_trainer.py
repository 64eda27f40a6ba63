"""The trainer without a critic: what it holds and logs, whose scores are compared, what is sampled again, what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SAMPLING, Maker, PolicyMaker, by_length, gradients, rollout, same, shift

from selfplay.config import PPO, SamplingParams
from selfplay.errors import ConfigError
from selfplay.records import Prompt
from selfplay.rewards.sources import FunctionReward
from selfplay.rl.metrics import read_numbers
from selfplay.rl.networks import Critic
from selfplay.rl.sampler import collect, without_signal

LEARNING = ("reinforce", "rloo", "grpo", "reinforce++")


@pytest.mark.parametrize("advantage", LEARNING)
def test_no_critic_is_made_logged_or_saved(make_trainer: Maker, tmp_path: Path, advantage: str) -> None:
    rows: list[dict[str, Any]] = []
    reward = FunctionReward(by_length)
    trainer = make_trainer(
        advantage=advantage, group=4, steps=1, directory=tmp_path, on_step=rows.append, reward=reward
    )
    held = sum(p.numel() for p in trainer.policy.parameters())
    critic = sum(p.numel() for p in Critic.from_policy(trainer.policy, 0).parameters())
    networks = [one for one in vars(trainer.learner).values() if isinstance(one, torch.nn.Module)]
    parameters = {id(p): p.numel() for one in networks for p in one.parameters()}
    assert sum(parameters.values()) == 2 * held and critic > held, "the policy and its reference alone"
    assert trainer.learner.critic is trainer.learner.critic_network is trainer.learner.critic_optimiser is None
    trainer.train()
    assert not [name for name in rows[0] if "critic" in name or "loss/value" in name or name.startswith("val/expl")]
    assert "val/clipfrac_avg" not in rows[0] and rows[0]["policy/grad_norm_avg"] > 0
    assert 0 <= rows[0]["group/without_signal"] < 1 and rows[0]["group/scores_std"] > 0
    assert not [name for name in trainer.learner.tensors() if "critic" in name]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()).keys() == rows[0].keys()


def test_each_prompt_of_a_step_gets_its_group_of_different_answers(make_trainer: Maker) -> None:
    trainer = make_trainer(advantage="rloo", group=4, sampling=SamplingParams(max_tokens=20))
    answers = trainer.sampler.answers(0)
    assert Counter(number for number, _ in answers) == dict.fromkeys(trainer.sampler.order(0), 4)
    assert len(set(trainer.sampler.order(0))) == 3
    # Short ones may be alike by chance; with five seeds none of more than five tokens were.
    long = [answer.token_ids for _, answer in answers if len(answer.token_ids) > 5]
    assert len(set(long)) == len(long) > 3
    order = [number for step in range(4) for number in trainer.sampler.order(step)]
    assert sorted(order) == list(range(12)), "four steps of three prompts go through all twelve"


def holes(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """A score for the even lengths, so that groups have holes."""
    return [float("nan") if len(one) % 2 else float(len(one)) for one in responses]


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_groups_go_by_prompt_and_leave_out_who_has_no_score(make_trainer: Maker, advantage: str) -> None:
    trainer = make_trainer(
        advantage=advantage, group=6, reward=FunctionReward(holes), missing_eos_penalty=0.0, sampling=SAMPLING
    )
    episodes, _, experience = rollout(trainer, 0.0)
    by_prompt: dict[str, list[float]] = {}
    for prompt, score in zip(episodes.prompts, episodes.scores.tolist(), strict=True):
        by_prompt.setdefault(prompt.id, []).append(score)
    assert sum(map(len, by_prompt.values())) < 12 and max(map(len, by_prompt.values())) > 1
    for row, prompt in enumerate(episodes.prompts):
        scores, own = by_prompt[prompt.id], float(episodes.scores[row])
        if len(scores) < 2:
            expected = 0.0
        elif advantage == "rloo":
            expected = own - (sum(scores) - own) / (len(scores) - 1)
        else:
            mean = sum(scores) / len(scores)
            expected = (own - mean) / ((sum((one - mean) ** 2 for one in scores) / (len(scores) - 1)) ** 0.5 + 1e-4)
        assert experience.advantages[row][experience.mask[row]].tolist() == pytest.approx(
            [expected] * sum(episodes.mask[row].tolist()), abs=1e-6
        )


def test_the_baseline_is_one_of_scores_and_the_kl_comes_behind_it(
    make_trainer: Maker, make_policy: PolicyMaker
) -> None:
    trainer = make_trainer(advantage="rloo", group=4, reference=make_policy(seed=7), missing_eos_penalty=0.0)
    episodes, estimates, experience = rollout(trainer, 0.3)
    scores = episodes.scores.double().tolist()
    kl = (estimates.logprobs - estimates.reference_logprobs) * episodes.mask
    groups = episodes.groups.tolist()
    for row in range(12):
        others = [score for place, score in enumerate(scores) if groups[place] == groups[row] and place != row]
        for t in range(int(episodes.response_lengths[row])):
            expected = scores[row] - sum(others) / 3 - 0.3 * float(kl[row, t:].sum())
            assert float(experience.advantages[row, t]) == pytest.approx(expected, abs=1e-6)


def test_reinforce_has_no_baseline_and_plus_plus_whitens(make_trainer: Maker) -> None:
    common = {"missing_eos_penalty": 0.0, "kl_coefficient": 0.0}
    episodes, _, plain = rollout(make_trainer(advantage="reinforce", **common), 0.0)
    scores = episodes.scores.double()
    torch.testing.assert_close(plain.advantages, scores[:, None] * episodes.mask, rtol=0, atol=1e-9)
    for group in (1, 4):
        episodes, _, experience = rollout(make_trainer(advantage="reinforce++", group=group, **common), 0.0)
        raw = episodes.scores.double()
        if group > 1:
            raw = raw - torch.stack([raw[episodes.groups == one].mean() for one in episodes.groups])
        flat = (raw[:, None] * episodes.mask)[episodes.mask]
        expected = (flat - flat.mean()) / (flat.var() + 1e-8).sqrt()
        torch.testing.assert_close(experience.advantages[episodes.mask], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "knobs",
    [
        {"advantage": "grpo", "loss_average": "sequence", "kl_in": "loss", "kl_estimator": "k3"},
        {"advantage": "grpo", "loss_average": "constant", "divide_by_deviation": False, "clip_high": 0.28},
        {"advantage": "grpo", "loss_average": "sequence", "ratio": "sequence", "entropy_coefficient": 0.1},
        {"advantage": "rloo", "ratio": "product"},
    ],
)
def test_gradients_do_not_depend_on_the_split_into_micro_batches(make_trainer: Maker, knobs: dict[str, Any]) -> None:
    found = []
    for budget in (1, 9, 25, 10_000):
        trainer = make_trainer(micro_batch_tokens=budget, group=4, **knobs)
        episodes, _, experience = rollout(trainer)
        shift(trainer.policy, 1)
        metrics = read_numbers([trainer.learner.gradients(episodes, experience, [0, 2, 3, 5, 7, 8, 11])])[0]
        found.append((gradients(trainer), metrics))
    for gradient, metrics in found[1:]:
        same(gradient, found[0][0], 1e-9)
        assert metrics == pytest.approx(found[0][1], abs=1e-9)


def mostly_equal(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """Scores that differ for every third prompt only."""
    return [float(len(one)) if row["number"] % 3 == 0 else 1.0 for one, row in zip(responses, meta, strict=True)]


def test_groups_without_signal_make_room_for_fresh_prompts(make_trainer: Maker) -> None:
    plain = make_trainer(advantage="grpo", group=4, reward=FunctionReward(mostly_equal))
    before, _, replaced = collect(plain.sampler, 0, plain.reward)
    assert replaced == 0 and without_signal(before)
    rows: list[dict[str, Any]] = []
    trainer = make_trainer(
        advantage="grpo", group=4, reward=FunctionReward(mostly_equal), resample=20, on_step=rows.append
    )
    found, _, replaced = collect(trainer.sampler, 0, trainer.reward)
    counts = Counter(number for number, _, _ in found)
    assert set(counts.values()) == {4} and len(counts) == 3 and replaced >= len(without_signal(before))
    assert not without_signal(found) and all(number % 3 == 0 for number in counts)
    kept = {number for number, _, _ in before} - without_signal(before)
    assert kept <= set(counts)
    trainer.train()
    assert [row["group/resampled"] > 0 for row in rows] == [True, True] and rows[0]["group/without_signal"] == 0


def test_when_all_prompts_were_tried_the_rest_is_kept(make_trainer: Maker) -> None:
    reward = FunctionReward(lambda prompts, responses, meta: [1.0] * len(responses))
    trainer = make_trainer(advantage="rloo", group=4, reward=reward, resample=50)
    found, _, replaced = collect(trainer.sampler, 0, trainer.reward)
    assert replaced == 9 and len(found) == 12 and len(without_signal(found)) == 3
    assert trainer._step(0)["group/without_signal"] == 1


def test_an_engine_that_sleeps_is_put_to_sleep_behind_the_last_sample(make_trainer: Maker) -> None:
    trainer = make_trainer(advantage="rloo", group=4, reward=FunctionReward(mostly_equal), resample=2)
    engine, seen = trainer.sampler.engine, []
    generate = engine.generate
    engine.sleep = lambda: seen.append("sleep")  # type: ignore[attr-defined]
    engine.generate = lambda *given: seen.append("generate") or generate(*given)  # type: ignore[func-returns-value,method-assign]
    collect(trainer.sampler, 0, trainer.reward)
    assert seen[-1] == "sleep" and seen.count("sleep") == 1 and seen.count("generate") >= 2


@pytest.mark.parametrize("advantage", LEARNING)
def test_training_raises_the_reward(make_trainer: Maker, advantage: str) -> None:
    rows: list[dict[str, Any]] = []
    knobs = {} if advantage in ("rloo", "grpo") else {"group": 4}
    make_trainer(
        advantage=advantage,
        on_step=rows.append,
        steps=12,
        episodes=48,
        minibatches=2,
        kl_coefficient=0.0,
        missing_eos_penalty=0.0,
        **knobs,
    ).train()
    # Of seven fives five seeds wrote .2 to .9 at first, and 5.7 to 6.8 at last; eight with plain REINFORCE, which settles on
    # what it finds first, 1.2 to 6.1: a gain of 1.0 at least.
    assert rows[-1]["objective/scores"] > rows[0]["objective/scores"] + 0.5


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"advantage": "rloo", "critic_warmup": 2}, "without a critic, so critic_warmup would do nothing"),
        ({"advantage": "grpo", "critic_learning_rate": 1e-4, "value_clip": 0.1}, "critic_learning_rate and value_clip"),
        ({"advantage": "rloo", "group": 1}, "compares the completions of a prompt, and group is 1"),
        ({"advantage": "rloo", "episodes": 20, "minibatches": 1}, "episodes 20 is not divisible by group 8"),
        ({"advantage": "rloo", "divide_by_deviation": False}, "belongs to advantage grpo, and advantage is rloo"),
        ({"resample": 2}, "group is 1"),
        ({"advantage": "rloo", "resample": 2, "async_rollouts": True}, "use one of them"),
        ({"overlong_buffer": 8, "missing_eos": "replace"}, "use missing_eos subtract"),
        ({"overlong_buffer": 8, "missing_eos_penalty": 0.0}, "a penalty above 0"),
        ({"warmup_start": 0.1}, "warmup is 0"),
        ({"pretraining": {"per_episode": 8.0, "batch_size": 4}}, "keep one"),
    ],
)
def test_settings_that_do_nothing_together_are_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PPO(**knobs)


def test_what_is_left_at_its_default_is_no_mistake() -> None:
    whole = PPO(**PPO(advantage="rloo", gae_lambda=0.9).model_dump())
    assert (whole.group_size, whole.prompts_per_step, whole.whiten_advantages, whole.has_critic) == (
        8,
        32,
        False,
        False,
    )
    assert PPO().whiten_advantages and PPO().group_size == 1 and PPO(advantage="reinforce++").whiten_advantages


def test_a_critic_that_nobody_needs_is_refused(make_trainer: Maker, make_policy: PolicyMaker) -> None:
    with pytest.raises(ConfigError, match="advantage rloo learns without a critic, and one was passed"):
        make_trainer(advantage="rloo", group=4, critic=make_policy())


def test_overlong_answers_lose_part_of_the_penalty(make_trainer: Maker, prompts: list[Prompt]) -> None:
    trainer = make_trainer(overlong_buffer=4, missing_eos_penalty=2.0, episodes=96)
    episodes, _, experience = rollout(trainer)
    # of 7 tokens the last 4: half a point for each beyond 3
    expected = episodes.scores.double() - 0.5 * (episodes.response_lengths - 3).clamp(min=0)
    torch.testing.assert_close(experience.scores, expected, rtol=0, atol=1e-9)
    assert len(set(episodes.response_lengths.tolist())) > 3  # six at least with five seeds
