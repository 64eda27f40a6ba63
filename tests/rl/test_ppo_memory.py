"""What an update needs besides weights and gradients does not grow with vocabulary x length."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from selfplay.rl.logprobs import CHUNK_ELEMENTS, token_logprobs

WIDTH = 8


def peak_beyond_gradients(vocabulary: int, tokens: int) -> int:
    """Most bytes held at once by a forward and backward pass of the head, less the gradient of its weight.

    Counted from the allocations and frees that torch's own profiler records, in their order.
    """
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        logprobs, entropies = token_logprobs(hidden, weight, None, targets)
        (logprobs.sum() + entropies.sum()).backward()
        del logprobs, entropies
    held, most = 0, 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most - weight.numel() * 4


def test_peak_memory_is_a_few_chunks_for_any_vocabulary() -> None:
    chunk = 4 * CHUNK_ELEMENTS["cpu"]
    small, large = peak_beyond_gradients(512, 256), peak_beyond_gradients(151_936, 256)
    # All logits at once would be 4 * 256 * 151,936 = 156 MB, and twice that with their gradient.
    weights = 151_936 * WIDTH * 4
    assert large < 4 * chunk + 2 * weights < 4 * 256 * 151_936 / 4
    assert small < 4 * chunk
    assert peak_beyond_gradients(151_936, 512) - large < chunk / 2


def test_the_count_sees_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 2**40)
    assert peak_beyond_gradients(20_000, 256) > 2 * 4 * 256 * 20_000
