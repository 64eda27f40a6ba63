"""NLPO: the mask by hand, in sampling, in the ratio and beside the checkpoint; whole distributions in the KL; exact resume."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from selfplay.compare.export import export
from selfplay.config import NLPO, PPO, Engine, SamplingParams, load_recipe
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.masking import TargetMask, load_mask, needs_mask, unlikely
from selfplay.engines.open import open_engine, reload_engine
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.models import encode_prompt
from selfplay.rewards.sources import FunctionReward
from selfplay.rl import PPOTrainer
from selfplay.rundir import RunDirectory

sys.path.append(str(Path(__file__).parents[1] / "rl"))
from tiny_models import build_policy, build_prompts, build_tokenizer, rollout

PROMPTS = build_prompts()
RECIPE = Path(__file__).parents[2] / "runs" / "nlpo.yaml"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def fives(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    return [float(response.split().count("5")) for response in responses]


def trainer(tokenizer: Any, seed: int, directory: Path | None = None, **settings: Any) -> PPOTrainer:
    nlpo = NLPO(top_p=0.5, every=2)
    common = {"steps": 5, "episodes": 8, "minibatches": 2, "checkpoint_every": 2, "learning_rate": 1e-2, "nlpo": nlpo}
    dtype = settings.pop("dtype", torch.float32)
    return PPOTrainer(
        build_policy(seed, dtype),
        tokenizer,
        FunctionReward(fives),
        PROMPTS,
        PPO(**{**common, **settings}),
        SamplingParams(max_tokens=6),
        directory=directory,
        seed=seed,
    )


def test_what_is_unlikely_by_hand() -> None:
    logprobs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64).log()
    # .4, then .3 (behind .4), then .2 (behind .7 >= .7: cut), then .1; and .97 alone
    assert unlikely(logprobs, 0.699).tolist() == [[True, False, True, False], [False, True, True, True]]
    assert unlikely(logprobs, 0.71).tolist() == [[True, False, False, False], [False, True, True, True]]


def test_special_and_sampled_tokens_are_kept(tokenizer: Any) -> None:
    target = torch.log(torch.tensor([[0.01, 0.01, 0.01, 0.6, 0.3, 0.07]]))
    mask = TargetMask(build_policy(0), 0.5, (1,))
    cut = torch.isinf(mask.masked(torch.zeros(1, 6), target))
    assert cut.tolist() == [[True, False, True, False, True, True]]  # 3 reaches .5; 1 is special
    assert torch.isinf(mask.masked(torch.zeros(1, 6), target, torch.tensor([5]))).tolist() == [
        [True, False, True, False, True, False]
    ]
    assert set(TargetMask.of(build_policy(0), tokenizer, 0.5).kept) == {0, 1, 2}  # <pad>, <eos>, <unk>


def masked_by_hand(
    policy: LlamaForCausalLM, target: LlamaForCausalLM, ids: list[int], start: int, top_p: float
) -> list[float]:
    """Log-probability of each token from `start` on among the target's likeliest, token by token, in plain Python."""
    with torch.no_grad():
        ours, theirs = (model(input_ids=torch.tensor([ids])).logits[0] for model in (policy, target))
    found = []
    for place in range(start, len(ids)):
        probabilities = torch.softmax(theirs[place - 1], -1).tolist()
        allowed, reached = {0, 1, 2, ids[place]}, 0.0
        for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
            if reached < top_p:
                allowed.add(token)
            reached += probabilities[token]
        kept = sorted(allowed)
        found.append(float(torch.log_softmax(ours[place - 1][kept], -1)[kept.index(ids[place])]))
    return found


def test_sampling_and_ratio_are_masked_and_the_kl_is_not(tokenizer: Any, training_seed: int) -> None:
    made = trainer(tokenizer, training_seed, dtype=torch.float64)
    with torch.no_grad():  # a policy that is no longer its target
        for parameter in made.policy.parameters():
            parameter += (
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(training_seed)).double()
            )
    mask = made.learner.mask
    assert mask is not None
    episodes, estimates, _ = rollout(made)
    for row, completion in enumerate(episodes.completions):
        prompt = encode_prompt(tokenizer, episodes.prompts[row])
        ids = [*prompt, *completion.token_ids]
        expected = masked_by_hand(made.policy, mask.model, ids, len(prompt), 0.5)
        count = len(completion.token_ids)
        assert estimates.logprobs[row, :count].tolist() == pytest.approx(expected, abs=1e-6)
        assert list(completion.logprobs or ()) == pytest.approx(expected, abs=1e-5)
        with torch.no_grad():
            whole = torch.log_softmax(made.policy(input_ids=torch.tensor([ids])).logits[0], -1)
        plain = [float(whole[len(prompt) - 1 + place, token]) for place, token in enumerate(completion.token_ids)]
        assert estimates.whole_logprobs[row, :count].tolist() == pytest.approx(plain, abs=1e-6)
        assert all(one >= other - 1e-9 for one, other in zip(expected, plain, strict=True))
    first = made.learner.gradients(episodes, rollout(made)[2], range(len(episodes.prompts)))
    assert first["policy/approxkl"] == pytest.approx(0.0, abs=1e-9), "old and new are masked alike"


def test_the_target_follows_every_second_step(tokenizer: Any, training_seed: int) -> None:
    made = trainer(tokenizer, training_seed, steps=3)
    mask = made.learner.mask
    assert mask is not None
    start = [one.clone() for one in mask.model.parameters()]
    made._step(0)
    made._step(1)
    assert all(map(torch.equal, mask.model.parameters(), start))
    kept = [one.detach().clone() for one in made.policy.parameters()]
    made._step(2)
    assert all(map(torch.equal, mask.model.parameters(), kept)) and not all(map(torch.equal, kept, start))


def test_killed_and_resumed_is_bitwise_the_same(
    tokenizer: Any, training_seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(tokenizer, training_seed, tmp_path / "whole")
    whole.train()
    cut = trainer(tokenizer, training_seed, tmp_path / "cut")
    kept = cut._step

    def killed(step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return kept(step)

    monkeypatch.setattr(cut, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = trainer(tokenizer, training_seed, tmp_path / "cut")
    resumed.train()
    for one, other in ((whole.policy, resumed.policy), (whole.learner.mask, resumed.learner.mask)):
        ours, theirs = (getattr(part, "model", part).state_dict() for part in (one, other))
        names = [name for name in ours if torch.is_tensor(ours[name])]
        assert names and all(torch.equal(ours[name], theirs[name]) for name in names)


def test_a_run_leaves_the_mask_beside_its_checkpoint(tiny_run: Path, tmp_path: Path, training_seed: int) -> None:
    changes = [
        "iterations=1",
        "policy.bootstrap=null",
        f"policy.model={tiny_run / 'iteration-000' / 'policy'}",
        "prompts.train.limit=64",
        "prompts.heldout.limit=16",
        "sampling.max_tokens=32",
        "algorithm.steps=3",
        "algorithm.episodes=16",
        "algorithm.nlpo.every=2",
        "threads=1",
        f"output={tmp_path / 'run'}",
        f"seed={training_seed}",
    ]
    directory = run(load_recipe(RECIPE, changes))
    policy = RunDirectory(directory).policy(1)
    assert needs_mask(policy) and not needs_mask(RunDirectory(directory).policy(0))
    mask = load_mask(policy)
    assert mask is not None and mask.top_p == 0.98
    assert needs_mask(export(f"{directory}@1", tmp_path / "exported"))
    engine = open_engine(Engine(), policy, "policy")
    assert isinstance(engine, TransformersEngine) and engine.mask is not None
    reload_engine(engine, RunDirectory(directory).policy(0), "start")
    assert engine.mask is None
    with pytest.raises(ConfigError, match=r"with the mask beside it \(NLPO\), and the engine vllm cannot mask"):
        open_engine(Engine(kind="vllm"), policy, "policy")
    for more, said in (
        ("engine.kind=vllm", "algorithm.nlpo masks tokens in sampling, which engine.kind vllm cannot do"),
        ("policy.lora={}", "algorithm.nlpo copies the whole policy into its target: leave policy.lora out"),
        ("algorithm={nlpo: {}, async_rollouts: true}", "nlpo moves its mask between steps"),
        ("algorithm={nlpo: {}, kl_in: loss, kl_estimator: k3}", "nlpo has its KL between whole distributions"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_recipe(RECIPE, [*changes, more])
