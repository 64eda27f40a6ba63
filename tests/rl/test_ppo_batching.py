"""Which episodes share a pass, and where the tensors of a pass point to."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay.models import split_by_tokens
from selfplay.rl.batching import collate, minibatches, prompt_order, shard_by_tokens

TOKENS = torch.tensor([[11, 12, 21, 22, 23], [13, 24, 0, 0, 0], [14, 15, 16, 25, 0]])
PROMPT_LENGTHS, RESPONSE_LENGTHS = torch.tensor([2, 1, 3]), torch.tensor([3, 1, 1])


def test_a_padded_micro_batch_by_hand() -> None:
    batch = collate(TOKENS, PROMPT_LENGTHS, RESPONSE_LENGTHS, [2, 1])
    assert batch.input_ids.tolist() == [[14, 15, 16, 25], [13, 24, 0, 0]]
    assert batch.position_ids is None
    # Row 2's only response token, 25, follows place 2; row 1's, 24, follows place 0 of the second row: 4 + 0.
    assert batch.states.tolist() == [2, 4] and batch.tokens.tolist() == [25, 24]
    assert batch.ends.tolist() == [3, 5] and batch.rows.tolist() == [2, 1]


def test_a_packed_micro_batch_by_hand() -> None:
    batch = collate(TOKENS, PROMPT_LENGTHS, RESPONSE_LENGTHS, [0, 1], packed=True)
    assert batch.input_ids.tolist() == [[11, 12, 21, 22, 23, 13, 24]]
    assert batch.position_ids is not None and batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert batch.states.tolist() == [1, 2, 3, 5] and batch.tokens.tolist() == [21, 22, 23, 24]
    assert batch.ends.tolist() == [4, 6]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), budget=st.integers(1, 200), players=st.integers(1, 5)
)
def test_every_row_is_used_once_within_the_budget(lengths: list[int], budget: int, players: int) -> None:
    parts = split_by_tokens(range(len(lengths)), lengths, budget)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= budget
    hands = shard_by_tokens(range(len(lengths)), lengths, players)
    assert sorted(row for hand in hands for row in hand) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(lengths)


def test_micro_batches_are_sorted_by_length_and_full() -> None:
    assert split_by_tokens([0, 1, 2, 3, 4], [2, 9, 4, 5, 1], budget=10) == [[1], [3, 2], [0, 4]]


def test_minibatches_cover_the_episodes_in_an_order_of_their_own() -> None:
    first, second = minibatches(10, 3, seed=1), minibatches(10, 3, seed=2)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(10))
    assert [len(part) for part in first] == [4, 3, 3]
    assert first != second and first == minibatches(10, 3, seed=1)
    assert minibatches(2, 4, seed=0) in ([[0], [1]], [[1], [0]])


def test_prompts_come_without_repeats_until_all_were_used() -> None:
    stream = [number for step in range(6) for number in prompt_order(step, 4, 6, seed=3)]
    assert all(sorted(stream[start : start + 6]) == list(range(6)) for start in (0, 6, 12, 18))
    assert stream[:6] != stream[6:12]
    assert stream[8:12] == prompt_order(2, 4, 6, seed=3) != prompt_order(2, 4, 6, seed=4)
