"""Gradients of the trainer, on real tiny models: those of a naive PPO, however they are split, compiled or kept in half."""

import functools
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import SAMPLING, Maker, PolicyMaker, gradients, rollout, same, shift
from transformers import PreTrainedTokenizerFast

from selfplay.config import Lora, Pretraining
from selfplay.lora import add_adapter
from selfplay.rl import PPOTrainer
from selfplay.rl.experience import build_experience
from selfplay.rl.logprobs import compiled_once
from selfplay.rl.metrics import read_numbers
from selfplay.rl.rollouts import Episodes


def naive_loss(
    trainer: PPOTrainer, episodes: Episodes, rows: list[int], beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses of a minibatch from the definitions, token by token in Python, with all logits of one row at a time.

    Knows nothing of masks, chunks and batches; recomputes old log-probs with `trainer.start` and values with
    `trainer.start_critic`, copies from before the weights were shifted.
    """
    config, temperature = trainer.config, 0.8

    def tokens_of(row: int) -> tuple[torch.Tensor, int]:
        prompt = int(episodes.prompt_lengths[row])
        return episodes.tokens[row, : prompt + int(episodes.response_lengths[row])], prompt

    def logprobs_of(model: Any, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, prompt = tokens_of(row)
        logits = model(input_ids=ids[None]).logits[0] / temperature
        table = logits.log_softmax(-1)
        places = range(prompt, len(ids))
        return (
            torch.stack([table[place - 1, ids[place]] for place in places]),
            torch.stack([-(table[place - 1].exp() * table[place - 1]).sum() for place in places]),
        )

    def values_of(critic: Any, row: int) -> torch.Tensor:
        ids, prompt = tokens_of(row)
        hidden = critic.body(input_ids=ids[None]).last_hidden_state[0]
        return torch.stack([hidden[place - 1] @ critic.head.weight[0] for place in range(prompt, len(ids))])

    advantages: dict[int, list[float]] = {}
    returns: dict[int, list[float]] = {}
    for row in range(len(episodes.prompts)):
        old, ref = logprobs_of(trainer.start, row)[0].tolist(), logprobs_of(trainer.base, row)[0].tolist()
        values = values_of(trainer.start_critic, row).tolist()
        reward = [-beta * (a - b) for a, b in zip(old, ref, strict=True)]
        reward[-1] += float(episodes.scores[row]) - (config.missing_eos_penalty if episodes.truncated[row] else 0.0)
        carried, advantages[row] = 0.0, [0.0] * len(old)
        for t in reversed(range(len(old))):
            following = values[t + 1] if t + 1 < len(old) else 0.0
            delta = reward[t] + config.discount * following - values[t]
            carried = delta + config.discount * config.gae_lambda * carried
            advantages[row][t] = carried
        returns[row] = [a + v for a, v in zip(advantages[row], values, strict=True)]
    flat = torch.tensor([a for row in sorted(advantages) for a in advantages[row]], dtype=torch.float64)
    mean, deviation = float(flat.mean()), float((flat.var() + 1e-8).sqrt())
    policy_losses, value_losses = [], []
    for row in rows:
        new, entropy = logprobs_of(trainer.policy, row)
        old, ref = logprobs_of(trainer.start, row)[0].detach(), logprobs_of(trainer.base, row)[0].detach()
        values, old_values = values_of(trainer.learner.critic, row), values_of(trainer.start_critic, row).detach()
        for t in range(len(new)):
            advantage = (advantages[row][t] - mean) / deviation
            ratio = (new[t] - old[t]).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
            if config.dual_clip is not None and advantage < 0:
                loss = torch.minimum(loss, torch.tensor(-config.dual_clip * advantage, dtype=torch.float64))
            said = episodes.completions[row].logprobs
            weight = min(float((old[t] - said[t]).exp()), config.importance_cap)
            if config.importance_mask is not None and abs(float(old[t] - said[t])) > math.log(config.importance_mask):
                weight = 0.0
            loss = weight * loss - config.entropy_coefficient * entropy[t]
            if config.kl_in == "loss":
                k2 = (new[t] - ref[t]) ** 2 / 2
                k3 = torch.exp(ref[t] - new[t]) - 1 + new[t] - ref[t]
                loss = loss + 0.3 * (k2 if config.kl_estimator == "k2" else k3)
            policy_losses.append(loss)
            clipped = old_values[t] + (values[t] - old_values[t]).clamp(-config.value_clip, config.value_clip)
            goal = returns[row][t]
            value_losses.append(0.5 * torch.maximum((values[t] - goal) ** 2, (clipped - goal) ** 2))
    return torch.stack(policy_losses).mean(), torch.stack(value_losses).mean()


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"entropy_coefficient": 0.2, "dual_clip": 1.05, "discount": 0.9, "gae_lambda": 0.8},
        {"kl_in": "loss", "kl_estimator": "k3", "kl_coefficient": 0.3, "importance_cap": 1.01},
        {"kl_in": "loss", "kl_estimator": "k2", "kl_coefficient": 0.3, "importance_mask": 1.06},
    ],
)
def test_gradients_are_those_of_naive_ppo(make_trainer: Maker, make_policy: PolicyMaker, knobs: dict[str, Any]) -> None:
    trainer = make_trainer(reference=make_policy(seed=7), **knobs)
    trainer.base = make_policy(seed=7)
    episodes, _, experience = rollout(trainer, 0.3)
    noise = torch.Generator().manual_seed(3)
    said = [
        answer.model_copy(
            update={
                "logprobs": tuple(value + 0.05 * float(torch.randn((), generator=noise)) for value in answer.logprobs)
            }
        )
        for answer in episodes.completions
    ]
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(answer.logprobs, dtype=torch.float64) for answer in said], batch_first=True
    )
    episodes = replace(episodes, completions=said, engine_logprobs=padded)
    estimates = trainer.learner.estimate(episodes)
    experience = build_experience(episodes, estimates, trainer.config, 0.3, trainer.moments, SAMPLING.max_tokens)
    trainer.start, trainer.start_critic = deepcopy(trainer.policy), deepcopy(trainer.learner.critic)
    shift(trainer.policy, 1)
    shift(trainer.learner.critic, 2, 0.1)
    rows = [1, 4, 5, 9]
    metrics = trainer.learner.gradients(episodes, experience, rows)
    actual = gradients(trainer)
    policy, value = naive_loss(trainer, episodes, rows, 0.0 if knobs.get("kl_in") == "loss" else 0.3)
    (policy + value).backward()
    same(actual, gradients(trainer))
    assert float(metrics["loss/value"]) == pytest.approx(float(value.detach()), abs=1e-8)
    assert 0 < metrics["policy/clipfrac"] < 1 and 0 < metrics["val/clipfrac"] < 1


def test_gradients_do_not_depend_on_the_split_into_micro_batches(make_trainer: Maker) -> None:
    found = []
    for budget in (1, 9, 25, 10_000):
        trainer = make_trainer(micro_batch_tokens=budget)
        episodes, _, experience = rollout(trainer)
        shift(trainer.policy, 1)
        shift(trainer.learner.critic, 2)
        metrics = read_numbers([trainer.learner.gradients(episodes, experience, list(range(12)))])[0]
        found.append((gradients(trainer), metrics))
    for gradient, metrics in found[1:]:
        same(gradient, found[0][0], 1e-9)
        assert metrics == pytest.approx(found[0][1], abs=1e-9)


def test_pretraining_adds_the_gradient_of_the_language_model_loss(
    make_trainer: Maker, make_policy: PolicyMaker, tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = ["1 2 3 4 5", "7 8", "9 10 11"]
    trainer = make_trainer(
        corpus=corpus, pretraining=Pretraining(coefficient=27.8, batch_size=5, length=4), micro_batch_tokens=6
    )
    assert trainer.learner.pretraining is not None
    loss = trainer.learner.pretraining.add_gradients(trainer.learner.policy_network, trainer.config, seed=11)
    actual = gradients(trainer)
    drawn = torch.randint(3, (5,), generator=torch.Generator().manual_seed(11)).tolist()
    model, parts = make_policy(), []
    for row in drawn:
        ids = torch.tensor([tokenizer(corpus[row])["input_ids"][:4]])
        table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        parts.append(-table.gather(1, ids[0, 1:, None]).squeeze(1))
    expected = torch.cat(parts).mean()
    (27.8 * expected).backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-9)
    same(actual, {"policy." + name: p.grad for name, p in model.named_parameters()}, 1e-8)


def test_frozen_weights_in_bfloat16_give_the_same_gradients_and_what_is_sampled_is_on_policy(
    make_trainer: Maker, make_policy: PolicyMaker
) -> None:
    trainers = []
    for half_base in (False, True):
        policy = add_adapter(make_policy(dtype=torch.float32), Lora(rank=2, alpha=4.0))
        trainer = make_trainer(policy=policy, precision="bfloat16", half_base=half_base)
        with torch.no_grad():  # an adapter that is new adds nothing
            for network in (policy, trainer.learner.critic):
                for name, parameter in network.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        trainers.append(trainer)
    plain, halved = trainers
    of_blocks = {p.dtype for name, p in halved.policy.named_parameters() if "proj.base_layer" in name}
    assert of_blocks == {torch.bfloat16}
    assert {p.dtype for name, p in halved.policy.named_parameters() if "base_layer" not in name} == {torch.float32}
    episodes, estimates, experience = rollout(halved)
    for trainer in trainers:
        trainer.learner.gradients(episodes, experience, list(range(12)))
    expected, found = gradients(plain), gradients(halved)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    gaps = (estimates.logprobs - episodes.engine_logprobs)[experience.mask].abs()
    assert 0 < float(gaps.max()) < 0.1  # another batch, rounded to eight bits


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Nothing that was compiled before, nor anything of this test's behind it."""
    compiled_once.cache_clear()
    yield
    compiled_once.cache_clear()


@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiled_trainer_has_the_same_gradients(make_trainer: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    # The graphs are those that inductor would get; making its kernels takes a minute and is torch's own matter.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
    found = []
    for compiled in (False, True):
        trainer = make_trainer(compile=compiled, entropy_coefficient=0.1)
        episodes, _, experience = rollout(trainer)
        assert (graphs > 0) == compiled
        shift(trainer.policy, 1)
        with trainer.learner.computing():
            trainer.learner.gradients(episodes, experience, list(range(12)))
        found.append(gradients(trainer))
        assert not any("forward" in vars(module) for module in trainer.policy.modules())
    same(found[1], found[0], 1e-9)
    assert graphs >= 4  # a block's and the log-probs', forward and backward
