"""Weights in bfloat16 to compute with beside those in float32 that learn: as on a GPU, forced on a CPU."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Maker, PolicyMaker
from torch import Tensor, nn

import selfplay.rl.learner
from selfplay.config import Lora
from selfplay.lora import add_adapter
from selfplay.weights.half import HalfWeights, to_half

pytestmark = pytest.mark.trains


class Tied(nn.Module):
    """An embedding that is also the head, a norm's weight, and a layer that is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.scale, self.apart = nn.Parameter(torch.rand(4)), nn.Linear(5, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return one number for each id."""
        logits = self.head(self.embedding(ids) * self.scale)
        values: Tensor = self.apart(logits.float())
        return values.squeeze(-1)


def test_gradients_are_those_of_a_bfloat16_network_added_up_in_float32(training_seed: int) -> None:
    torch.manual_seed(training_seed)
    network = Tied()
    rounded = deepcopy(network)
    to_half(rounded.embedding)
    rounded.scale.data = rounded.scale.data.bfloat16()
    batches = [torch.tensor([0, 1, 1]), torch.tensor([4, 2, 0])]
    expected: dict[str, Tensor] = {}
    for batch in batches:
        rounded(batch).sum().backward()
        for name, weight in rounded.named_parameters():
            assert weight.grad is not None
            expected[name] = expected.get(name, torch.zeros(())) + weight.grad.float()
        rounded.zero_grad()
    own, half = dict(network.named_parameters()), HalfWeights(network, [network.apart])
    with half.in_use():
        assert network.head.weight is network.embedding.weight and network.head.weight.dtype == torch.bfloat16
        assert network.apart.weight is own["apart.weight"]
        for batch in batches:
            network(batch).sum().backward()
        assert all(copy.grad is None for copy in network.parameters() if copy.dtype == torch.bfloat16)
    assert all(weight is own[name] for name, weight in network.named_parameters())
    assert network.head.weight is network.embedding.weight
    for name, weight in own.items():
        assert weight.grad is not None and weight.grad.dtype == torch.float32
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-6, atol=1e-6, msg=name)


def test_copies_follow_the_weights_that_an_optimizer_changed() -> None:
    network = nn.Linear(2, 1, bias=False)
    half = HalfWeights(network)
    with torch.no_grad(), half.in_use():
        half_before = network.weight
        network_weight = next(iter(half._copies))
        network_weight.fill_(0.1)
        half.refresh()
        assert network.weight is half_before
        assert network.weight.tolist() == torch.full((1, 2), 0.1, dtype=torch.bfloat16).tolist()
    assert network.weight is network_weight and network.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"lora": True, "half_base": True},
        {"gradient_checkpointing": True, "ema": 0.5},
        {"advantage": "rloo", "group": 4},
    ],
)
def test_a_run_that_computes_in_half_is_resumed_exactly_and_hands_over_float32(
    knobs: dict[str, Any],
    make_policy: PolicyMaker,
    make_trainer: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selfplay.rl.learner, "prefers_half_weights", lambda where: True)
    knobs = dict(knobs)
    lora = knobs.pop("lora", False)

    def trained(folder: str, steps: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        policy, rows = make_policy(dtype=torch.float32), []
        policy.set_attn_implementation("sdpa")
        if lora:
            policy = add_adapter(policy, Lora(rank=2, alpha=4.0))
        trainer = make_trainer(
            policy=policy, precision="bfloat16", directory=tmp_path / folder, on_step=rows.append, steps=4, checkpoint_every=1,
            learning_rate=1e-3, **knobs,
        )  # fmt: skip
        assert trainer.learner.computes_in_half
        kept = trainer._step
        if steps < 4:

            def cut(step: int) -> dict[str, Any]:
                if step == steps:
                    raise KeyboardInterrupt
                return kept(step)

            monkeypatch.setattr(trainer, "_step", cut)
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train()
        learning = {name: one for name, one in trainer.policy.named_parameters() if one.requires_grad}
        return {name: one.detach().clone() for name, one in learning.items()}, rows

    start = {name: one.detach().clone() for name, one in make_policy(dtype=torch.float32).named_parameters()}
    whole, rows = trained("whole", 4)
    trained("cut", 2)
    again, _ = trained("cut", 4)
    assert {one.dtype for one in whole.values()} == {torch.float32}
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert lora or not all(torch.equal(whole[name], start[name]) for name in start)
    assert rows[0]["objective/kl"] == 0.0  # policy and reference compute in the same way
    assert rows[-1]["objective/kl"] != 0.0 and 0 < rows[0]["engine/logprob_gap"] < 0.1


def test_what_transformers_keeps_in_float32_is_kept(make_policy: PolicyMaker) -> None:
    policy = make_policy(dtype=torch.float32)
    policy._keep_in_fp32_modules_strict = {"input_layernorm"}
    with HalfWeights(policy).in_use():
        kept = {name for name, weight in policy.named_parameters() if weight.dtype == torch.float32}
    assert kept == {f"model.layers.{number}.input_layernorm.weight" for number in range(2)}
    to_half(policy)
    assert kept == {name for name, weight in policy.named_parameters() if weight.dtype == torch.float32}
