"""A2C as one epoch of one minibatch, the average of the weights, the warm-up, and the size of the pretraining batch."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_models import Maker, gradients, rollout, same

from selfplay.config import PPO, Pretraining
from selfplay.rl.optimise import Average, learning_rate_factor


def test_one_epoch_of_one_minibatch_has_the_gradient_of_a2c(make_trainer: Maker) -> None:
    """-A grad log p and (V - R) grad V, summed over tokens and divided by them: nothing of PPO's clips is left."""
    settings = {"epochs": 1, "minibatches": 1, "gae_lambda": 1.0, "whiten_advantages": False, "importance_cap": None}
    trainer = make_trainer(clip=0.01, value_clip=0.01, **settings)
    episodes, _, experience = rollout(trainer)
    policy, critic, learner = deepcopy(trainer.policy), deepcopy(trainer.learner.critic), trainer.learner
    learner.policy_optimiser.step = learner.critic_optimiser.step = lambda: 0.0  # the gradients stay
    assert learner.learn(episodes, experience, 0)["policy/minibatches"] == 1
    applied = gradients(trainer)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(episodes.prompts)):
        prompt, response = int(episodes.prompt_lengths[row]), int(episodes.response_lengths[row])
        ids = episodes.tokens[row, : prompt + response]
        table = (policy(input_ids=ids[None]).logits[0] / 0.8).log_softmax(-1)
        hidden = critic.body(input_ids=ids[None]).last_hidden_state[0]
        score = float(episodes.scores[row]) - (1.0 if episodes.truncated[row] else 0.0)
        for t in range(response):  # the reference is the policy itself, so no KL: the return is the score
            value = hidden[prompt + t - 1] @ critic.head.weight[0]
            total = total - (score - value.detach()) * table[prompt + t - 1, ids[prompt + t]] + (value - score) ** 2 / 2
    (total / int(episodes.mask.sum())).backward()
    expected = {"policy." + name: p.grad for name, p in policy.named_parameters()}
    expected |= {"critic." + name: p.grad for name, p in critic.named_parameters()}
    same(applied, expected, 1e-8)
    assert max(float(one.abs().max()) for one in expected.values()) > 0.01


def test_the_average_is_followed_and_handed_over(make_trainer: Maker) -> None:
    trainer = make_trainer(ema=0.9, steps=1, epochs=1, minibatches=2)
    name, parameter = next(iter(trainer.policy.named_parameters()))
    seen = [parameter.detach().clone()]
    step = trainer.learner.policy_optimiser.step

    def watched() -> float:
        norm = step()
        seen.append(parameter.detach().clone())
        return norm

    trainer.learner.policy_optimiser.step = watched
    trainer.train()
    start, first, second = seen
    # .9 (.9 start + .1 first) + .1 second
    torch.testing.assert_close(
        parameter.detach(), 0.81 * start + 0.09 * first + 0.1 * second, rtol=0, atol=1e-12, msg=name
    )
    assert not torch.equal(first, second)


def test_an_average_of_half_precision_is_kept_in_single() -> None:
    layer = torch.nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    average = Average(layer, 0.999)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    for _ in range(3):
        average.update()
    # 2 - .999^3 = 1.002997; bfloat16 has nothing between 1 and 1.0078
    assert average.tensors["weight"].tolist() == [[pytest.approx(2 - 0.999**3, abs=1e-6)] * 2]


def test_the_warm_up_begins_at_a_tenth() -> None:
    # 10 of 40 steps: .1, then .09 more a step, 1 at the eleventh, then linear over the 30 that are left
    found = [learning_rate_factor(step, 40, "linear", 0.25, 0.1) for step in (0, 1, 9, 10, 25)]
    assert found == pytest.approx([0.1, 0.19, 0.91, 1.0, 0.5], abs=1e-12)
    # without a start: equal steps from 0
    assert learning_rate_factor(0, 40, "linear", 0.25) == pytest.approx(1 / 11, abs=1e-12)


def test_the_pretraining_batch_may_follow_the_episodes(make_trainer: Maker) -> None:
    config = PPO(episodes=512, minibatches=8, pretraining=Pretraining(per_episode=8.0))
    assert config.pretraining_batch == 512 and PPO().pretraining_batch == 0
    assert PPO(pretraining=Pretraining(batch_size=3)).pretraining_batch == 3
    corpus = ["1 2 3 4 5", "7 8", "9 10 11"]
    losses: list[Any] = []
    for pretraining in (Pretraining(per_episode=8.0), Pretraining(batch_size=32)):  # 12 episodes in 3 minibatches
        trainer = make_trainer(corpus=corpus, pretraining=pretraining)
        mix = trainer.learner.pretraining
        losses.append(mix.add_gradients(trainer.learner.policy_network, trainer.config, seed=11))
    assert losses[0] == losses[1]
