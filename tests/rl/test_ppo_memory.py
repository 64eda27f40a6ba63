"""What an update needs besides weights and gradients does not grow with vocabulary x length."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import PolicyMaker, count_of_fives, rollout
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerFast

from selfplay.config import PPO, SamplingParams
from selfplay.records import Prompt
from selfplay.rewards.sources import FunctionReward
from selfplay.rl import PPOTrainer
from selfplay.rl.logprobs import CHUNK_ELEMENTS, CHUNK_TOKENS, token_logprobs

WIDTH = 8


def most_held(work: Callable[[], object]) -> int:
    """Most bytes held at once, from the allocations and frees that torch's own profiler records, in their order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held, most = 0, 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def chunk_of_logits(vocabulary: int) -> int:
    """Bytes of one chunk of logits."""
    return 4 * max(CHUNK_ELEMENTS["cpu"], CHUNK_TOKENS * vocabulary)


def peak_beyond_gradients(vocabulary: int, tokens: int) -> int:
    """Most bytes held at once by a forward and backward pass of the head, less the gradient of its weight."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))

    def forward_and_backward() -> None:
        logprobs, entropies = token_logprobs(hidden, weight, None, targets)
        (logprobs.sum() + entropies.sum()).backward()

    return most_held(forward_and_backward) - weight.numel() * 4


def test_peak_memory_is_a_few_chunks_for_any_vocabulary() -> None:
    chunk = chunk_of_logits(30_000)
    small, large = peak_beyond_gradients(512, 2048), peak_beyond_gradients(30_000, 2048)
    # All logits at once would be 4 * 2048 * 30,000 = 246 MB, and twice that with their gradient.
    weights = 30_000 * WIDTH * 4
    assert large < 4 * chunk + weights / 2 < 4 * 2048 * 30_000 / 3
    assert small < 4 * chunk_of_logits(512)
    assert peak_beyond_gradients(30_000, 4096) - large < chunk / 2


def test_the_count_sees_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 2**40)
    assert peak_beyond_gradients(20_000, 512) > 2 * 4 * 512 * 20_000


def test_an_update_of_the_whole_trainer_needs_as_little(
    make_policy: PolicyMaker, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt]
) -> None:
    def peak(vocabulary: int, length: int) -> int:
        """Most bytes that one minibatch of 12 episodes holds beyond the gradients of both networks."""
        policy = make_policy(
            dtype=torch.float32,
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            num_hidden_layers=1,
            max_position_embeddings=512,
            eos_token_id=None,
            initializer_range=0.02,
        )
        trainer = PPOTrainer(
            policy,
            tokenizer,
            FunctionReward(count_of_fives),
            prompts,
            PPO(steps=1, episodes=12, minibatches=1, micro_batch_tokens=10**6),
            SamplingParams(max_tokens=length),
        )
        episodes, _, experience = rollout(trainer)
        held = most_held(lambda: trainer.learner.gradients(episodes, experience, list(range(12))))
        return held - 4 * sum(p.numel() for network in (policy, trainer.learner.critic) for p in network.parameters())

    small, large = peak(512, 128), peak(30_000, 128)
    # 12 x 128 tokens: all logits at once would be 4 * 1536 * 30,000 = 184 MB. The head's products hold two gradients of
    # the embedding (1 MB each) for a moment, and some chunks of 15 MB.
    weights, chunk = 4 * 30_000 * WIDTH, chunk_of_logits(30_000)
    assert large < small + 4 * chunk + 2 * weights < 4 * 1536 * 30_000 / 2
    # With twice the tokens, what grows is what grows with a vocabulary of 512 as well.
    assert peak(30_000, 256) - large < peak(512, 256) - small + chunk / 2
