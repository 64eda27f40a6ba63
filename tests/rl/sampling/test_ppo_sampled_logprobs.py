"""What the transformers engine samples with: log-probs taken as the old ones where they are the trainer's own, and bfloat16."""

from typing import Any

import pytest
import torch
from tiny_models import Maker, PolicyMaker
from torch import nn

from selfplay.config import Lora
from selfplay.engines.hf import TransformersEngine
from selfplay.lora import add_adapter
from selfplay.rl import PPOTrainer, learner
from selfplay.rl.rollouts import Estimates, estimate


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, float]]:
    """For each training step: whether the engine's log-probs are taken, and how far those used are from a pass of the policy.

    Two passes over the same ids may differ in the last digit: where memory lies decides how a product is summed.
    """
    found: list[tuple[bool, float]] = []

    def watching(*arguments: Any) -> Estimates:
        made, own = estimate(*arguments), estimate(*arguments[:-1])
        mask = arguments[0].mask
        assert bool((made.logprobs[~mask] == 0).all())
        torch.testing.assert_close(made.reference_logprobs, own.reference_logprobs, rtol=0, atol=1e-5)
        taken = bool((made.logprobs[mask] == arguments[0].engine_logprobs[mask]).all())
        found.append((taken, float((made.logprobs - own.logprobs).abs().max())))
        return made

    monkeypatch.setattr(learner, "estimate", watching)
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_after_the_first_step_a_policy_in_float32_is_not_asked_again(
    make_trainer: Maker, make_policy: PolicyMaker, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    found, rows = watched(monkeypatch), []
    policy = make_policy(dtype=torch.float32)
    adapted = add_adapter(policy, Lora(rank=2, alpha=4.0)) if lora else policy
    make_trainer(policy=adapted, steps=3, on_step=rows.append).train()
    assert [taken for taken, _ in found] == [False, True, True]
    assert max(gap for _, gap in found) < 1e-5
    assert 0 < rows[0]["engine/logprob_gap"] < 1e-5, "the first step has both, and tells whether they agree"
    for row in rows[1:]:
        assert row["engine/logprob_gap"] == 0 and row["engine/importance_weight"] == 1
        assert row["val/first_ratio"] == pytest.approx(1, abs=1e-5) and row["policy/first_clipfrac"] == 0


class Careful(TransformersEngine):
    """May draw from what it likes."""


@pytest.mark.parametrize(
    "why", ["float64", "bfloat16", "ahead", "another engine's weights", "another engine", "no logprobs", "rotations"]
)
def test_elsewhere_the_trainer_computes_its_own(
    make_trainer: Maker, make_policy: PolicyMaker, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    shape = (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}} if why == "rotations" else {}
    )
    policy = make_policy(dtype=torch.float64 if why == "float64" else torch.float32, **shape)
    knobs: dict[str, Any] = {"ahead": {"async_rollouts": True}, "bfloat16": {"precision": "bfloat16"}}.get(why, {})
    trainer = make_trainer(policy=policy, **knobs)
    if why == "another engine's weights":
        monkeypatch.setattr(TransformersEngine, "update_weights", lambda self, model: None)
        trainer.sampler.engine = TransformersEngine(make_policy(dtype=torch.float32), trainer.tokenizer)
    if why == "another engine":
        trainer.sampler.engine = Careful(policy, trainer.tokenizer)
    if why == "no logprobs":
        drawn = trainer.sampler.answers
        monkeypatch.setattr(
            trainer.sampler,
            "answers",
            lambda step: [(number, one.model_copy(update={"logprobs": None})) for number, one in drawn(step)],
        )
    found = watched(monkeypatch)
    trainer.train()
    assert [taken for taken, _ in found] == [False, False] and max(gap for _, gap in found) < 1e-5


def precisions(trainer: PPOTrainer) -> set[torch.dtype]:
    """Train, and return the precisions of the weights that products of sampling ran with."""
    found: set[torch.dtype] = set()
    inner, drawn = trainer.policy, TransformersEngine.generate

    def generate(self: TransformersEngine, *arguments: Any) -> Any:
        linears = [one for name, one in inner.named_modules() if isinstance(one, nn.Linear) and name != "lm_head"]
        found.update(one.weight.dtype for one in linears)
        others = inner.lm_head, inner.model.norm, inner.model.embed_tokens
        assert {one.weight.dtype for one in others} == {torch.float32}
        answers = drawn(self, *arguments)
        assert answers[0][0].logprobs is not None
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", generate)
        trainer.train()
    return found


def test_a_policy_that_learns_in_bfloat16_samples_in_it(make_trainer: Maker, make_policy: PolicyMaker) -> None:
    rows: list[dict[str, Any]] = []
    policy = make_policy(dtype=torch.float32, tie_word_embeddings=False)
    own = dict(policy.named_parameters())
    trainer = make_trainer(policy=policy, precision="bfloat16", steps=3, on_step=rows.append)
    assert precisions(trainer) == {torch.bfloat16}
    assert all(weight is own[name] and weight.dtype == torch.float32 for name, weight in policy.named_parameters())
    assert all(0 < row["engine/logprob_gap"] < 2e-2 for row in rows), "other sums, so not the same to the last bit"
    assert trainer.sampler.engine.products == "float32"
    assert rows[-1]["policy/grad_norm_avg"] > 0


@pytest.mark.parametrize("why", ["float32", "ahead"])
def test_others_sample_in_float32(make_trainer: Maker, make_policy: PolicyMaker, why: str) -> None:
    knobs = {"precision": "float32"} if why == "float32" else {"precision": "bfloat16", "async_rollouts": True}
    assert precisions(make_trainer(policy=make_policy(dtype=torch.float32), **knobs)) == {torch.float32}


def test_a_sampling_that_fails_leaves_the_policy_as_it_was(
    make_trainer: Maker, make_policy: PolicyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(policy=make_policy(dtype=torch.float32), precision="bfloat16")

    def fail(*_: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(TransformersEngine, "generate", fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        trainer.train()
    assert {weight.dtype for weight in trainer.policy.parameters()} == {torch.float32}
    assert trainer.sampler.engine.products == "float32"
