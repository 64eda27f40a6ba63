"""Chunked log-probs and entropies against the plain computation that holds all logits, forward and backward."""

import pytest
import torch

from selfplay.rl.logprobs import LARGE, token_logprobs


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = hidden @ weight.t() + (0 if bias is None else bias)
    distribution = torch.log_softmax(logits / temperature, dim=-1)
    return distribution.gather(1, tokens[:, None]).squeeze(1), -(distribution.exp() * distribution).sum(-1)


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_those_of_the_plain_computation(
    chunk: int, temperature: float, with_bias: bool
) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 5, dtype=torch.float64), torch.randn(13, 5, dtype=torch.float64)
    bias = torch.randn(13, dtype=torch.float64) if with_bias else None
    tokens = torch.randint(13, (11,))
    up, down = torch.randn(11, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    results = []
    for function in (plain, lambda *inputs: token_logprobs(*inputs, chunk=chunk)):
        inputs = [None if tensor is None else tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        logprobs, entropies = function(*inputs, tokens, temperature)
        (logprobs @ up + entropies @ down).backward()
        results.append([logprobs, entropies, *[tensor.grad for tensor in inputs if tensor is not None]])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_either_result_alone(which: int) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(6, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    tokens = torch.randint(9, (6,))
    gradients = []
    for function in (plain, lambda *inputs: token_logprobs(*inputs, chunk=2)):
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        function(*inputs, None, tokens, 0.9)[which].square().sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_the_entropy_of_a_known_distribution() -> None:
    # logits log 1, log 2, log 5 are probabilities 1/8, 2/8, 5/8
    weight = torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64).log()
    logprobs, entropies = token_logprobs(torch.ones(1, 1, dtype=torch.float64), weight, None, torch.tensor([1]))
    probabilities = torch.tensor([1 / 8, 2 / 8, 5 / 8], dtype=torch.float64)
    assert float(logprobs[0].exp()) == pytest.approx(0.25, abs=1e-12)
    assert float(entropies[0]) == pytest.approx(-float((probabilities * probabilities.log()).sum()), abs=1e-12)


def test_half_precision_states_give_float32_logprobs() -> None:
    torch.manual_seed(2)
    hidden, weight = torch.randn(8, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    tokens = torch.randint(50, (8,))
    logprobs, entropies = token_logprobs(hidden, weight, None, tokens)
    expected, _ = plain(hidden.float(), weight.float(), None, tokens, 1.0)
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)


def test_no_response_tokens_at_all() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, torch.randn(9, 4), None, torch.zeros(0, dtype=torch.long))
    logprobs.sum().backward()
    assert logprobs.shape == (0,) and hidden.grad is not None and hidden.grad.shape == (0, 4)


def test_a_large_output_embedding_in_float32_gives_what_float64_gives() -> None:
    """The product that oneDNN makes where torch has MKL, forward and backward; some chunks, the last one shorter."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*size, generator=generator) for size in ((300, 256), (LARGE // 256, 256)))
    tokens = torch.randint(len(weight), (300,), generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = [one.detach().to(dtype).requires_grad_() for one in (hidden, weight / 16)]
        logprobs, entropies = token_logprobs(*inputs, None, tokens, chunk=128)
        (logprobs.mean() + entropies.mean()).backward()
        found.append([logprobs, entropies, *(one.grad for one in inputs)])
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)
