"""Prompts computed once: what a batch shares is found, costs one pass, and changes neither completions nor log-probs."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from selfplay.config import SamplingParams
from selfplay.engines.cache import LEAST_SHARED, SharedPrompts, can_share_prefix
from selfplay.engines.hf import TransformersEngine
from selfplay.models import encode_prompt, load_policy, load_tokenizer
from selfplay.records import Prompt
from selfplay.weights.attention import behind, float32_attention

OPENING = "Once upon a time there was a big red box in the park, and in it lived a very small dog. "
ENDS = ("Tom saw it.", "The dog", "One day, a boy named Tim found the box and", "It was sad.", "Lily")
PROMPTS = [Prompt.plain(f"p{number}", OPENING + end) for number, end in enumerate(ENDS)]


@pytest.fixture
def engine(tiny_run: Path) -> TransformersEngine:
    """In float64, so that no rounding decides which token is drawn."""
    start = tiny_run / "iteration-000" / "policy"
    return TransformersEngine(load_policy(start).double(), load_tokenizer(start))


@pytest.fixture
def passes(engine: TransformersEngine) -> Iterator[list[tuple[int, int]]]:
    """(rows, places) of each forward pass that the engine makes."""
    seen: list[tuple[int, int]] = []
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_what_prompts_share_is_found() -> None:
    opening = tuple(range(100, 100 + LEAST_SHARED))
    found = SharedPrompts.of([[*opening, 1, 2], [*opening, 1], [*opening, 1, 2], [*opening, 1, 3, 4]])
    # The second prompt ends in 1, from which its next token is predicted: only what is before it can be shared.
    assert found == SharedPrompts(opening, ((1, 2), (1,), (1, 3, 4)), (0, 1, 0, 2))
    assert found.width == LEAST_SHARED + 3 and found.lengths == [LEAST_SHARED + more for more in (2, 1, 2, 3)]
    assert SharedPrompts.of([opening, opening]) == SharedPrompts(
        (), (opening,), (0, 0)
    )  # one prompt has no second to share
    assert not SharedPrompts.of([opening, [*opening, 1]]).prefix  # too short by the token that has to be left
    assert not SharedPrompts.of([[*opening, 1], [*opening, 2]], share_prefix=False).prefix


def test_shared_tokens_are_computed_once_and_completions_are_the_same(
    engine: TransformersEngine, passes: list[tuple[int, int]]
) -> None:
    sampling = SamplingParams(max_tokens=6, n=3, seed=2)
    together = engine.generate(PROMPTS, sampling)
    encoded = [encode_prompt(engine.tokenizer, prompt) for prompt in PROMPTS]
    shared = SharedPrompts.of(encoded)
    assert len(shared.prefix) >= LEAST_SHARED and len(shared.rests) == 5
    assert passes[:2] == [(1, len(shared.prefix)), (5, max(map(len, encoded)) - len(shared.prefix))]
    assert passes[2] == (15, 1) and len(passes) <= 2 + 5  # the last token is sampled, and nothing follows it
    alone = [engine.generate([prompt], sampling)[0] for prompt in PROMPTS]
    assert [[one.token_ids for one in group] for group in together] == [
        [one.token_ids for one in group] for group in alone
    ]
    said = [value for group in together for one in group for value in one.logprobs or ()]
    assert said == pytest.approx([value for group in alone for one in group for value in one.logprobs or ()], abs=1e-6)


def test_choices_after_a_shared_opening_have_the_log_probs_that_they_have_alone(
    engine: TransformersEngine, passes: list[tuple[int, int]]
) -> None:
    together = engine.choice_logprobs(PROMPTS, ["A", "B"])
    assert len(passes) == 2 and passes[0][0] == 1
    alone = [engine.choice_logprobs([prompt], ["A", "B"])[0] for prompt in PROMPTS]
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), atol=1e-6)


@pytest.mark.parametrize("limit", ["sliding_window", "attention_chunk_size"])
def test_a_window_or_chunk_that_could_be_exceeded_shares_no_opening(engine: TransformersEngine, limit: str) -> None:
    assert can_share_prefix(engine.model, 10**6)
    setattr(engine.model.config, limit, 64)
    assert can_share_prefix(engine.model, 64) and not can_share_prefix(engine.model, 65)


@pytest.mark.parametrize("masked", [True, False])
def test_one_new_token_attends_as_in_transformers(masked: bool) -> None:
    """Six heads on two of keys and values: the third is the first one's, the fourth the second one's."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, places, 8).double() for heads, places in ((6, 1), (2, 5), (2, 5)))
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()[:, None, None] if masked else None
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    ours, theirs = (
        attend(module, query, key, value, mask, scaling=0.3)[0]
        for attend in (float32_attention, sdpa_attention_forward)
    )
    assert ours.shape == (3, 1, 6, 8) and torch.allclose(ours, theirs, atol=1e-12)
    scores = 0.3 * query[0, 3, 0] @ key[0, 1].T
    if masked:
        scores[0] = -torch.inf
    assert torch.allclose(ours[0, 0, 3], torch.softmax(scores, -1) @ value[0, 1], atol=1e-12)


@pytest.mark.parametrize("heads", [6, 2])
@pytest.mark.parametrize("places", [1, 3])
def test_attention_behind_a_shared_prefix_is_that_to_a_copy_of_it_in_every_row(heads: int, places: int) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(3, count, length, 8).double() for count, length in ((heads, places), (2, 5), (2, 5))
    )
    prefix = torch.randn(1, 2, 4, 8).double(), torch.randn(1, 2, 4, 8).double()
    own = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    mask = torch.cat([torch.ones(3, 4).bool(), own], dim=1)[:, None, None].expand(3, 1, places, 9)
    module = SimpleNamespace(num_key_value_groups=heads // 2, is_causal=False)
    whole = [
        torch.cat([shared.expand(3, -1, -1, -1), rest], 2) for shared, rest in zip(prefix, (key, value), strict=True)
    ]
    theirs = sdpa_attention_forward(module, query, *whole, mask, scaling=0.3)[0]
    ours = float32_attention(module, query, *behind(prefix, key, value), mask, scaling=0.3)[0]
    assert ours.shape == (3, places, heads, 8) and torch.allclose(ours, theirs, atol=1e-12)
