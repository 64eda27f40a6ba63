"""Pairs: which prompts, against whom, and which completions stand side by side."""

import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from unittest.mock import ANY

import pytest
from staging import completion, open_run, prompts

from selfplay.stages import evaluate, generate, policy
from selfplay.stages.generate import (
    decided_shares,
    draw_prompts,
    make_pairs,
    most_decided,
    opponent,
    round_of,
    split_completions,
    stage_name,
)
from selfplay.stages.rows import pair_of, pair_row
from selfplay.storage.files import read_json, read_rows


def test_prompts_come_once_each_before_any_comes_again() -> None:
    pool = prompts(10)
    laps = [[prompt.id for start in (0, 4, 8) for prompt in draw_prompts(pool, 4, start, seed)][:12] for seed in (0, 1)]
    for drawn in laps:
        assert sorted(drawn[:10]) == sorted(prompt.id for prompt in pool)
    assert laps[0] != laps[1] and laps[0][:10] != [prompt.id for prompt in pool]
    assert draw_prompts(pool, 7, 3, 0) == draw_prompts(pool, 9, 1, 0)[2:9]


def test_a_draw_across_the_end_holds_no_prompt_twice() -> None:
    pool = prompts(10)
    for seed in range(20):
        drawn = [prompt.id for prompt in draw_prompts(pool, 6, 7, seed)]
        assert len(set(drawn)) == len(drawn) <= 6
    assert [prompt.id for prompt in draw_prompts(pool, 10, 10, 0)] != [
        prompt.id for prompt in draw_prompts(pool, 10, 0, 0)
    ]


def test_names_of_rounds() -> None:
    for number in (0, 1, 12):
        assert round_of(stage_name("generate", number)) == number
    assert (stage_name("label", 0), stage_name("label", 2)) == ("label", "label-extra-2")


@pytest.mark.parametrize(
    ("total", "has_rival", "expected"), [(4, False, (4, 0)), (4, True, (2, 2)), (5, True, (3, 2)), (2, True, (1, 1))]
)
def test_completions_are_shared_with_a_rival(total: int, has_rival: bool, expected: tuple[int, int]) -> None:
    assert split_completions(total, has_rival) == expected


def test_k_completions_give_all_pairs_of_different_texts() -> None:
    [prompt] = prompts(1)
    own = [completion(text, f"p0/{place}") for place, text in enumerate(["a", "b", "a", "c"])]
    found = make_pairs(prompt, own, [], seed=0)
    # Six pairs, less the one of the two texts "a".
    assert {frozenset((pair.first.id, pair.second.id)) for pair in found} == {
        frozenset((one.id, other.id)) for one, other in combinations(own, 2) if one.text != other.text
    }
    assert len(found) == 5 == len({pair.id for pair in found})
    assert make_pairs(prompt, [own[0], own[2]], [], seed=0) == []


def test_with_rivals_each_own_completion_meets_each_of_theirs() -> None:
    [prompt] = prompts(1)
    own = [completion("a", "p0/0/own"), completion("b", "p0/1/own")]
    rivals = [completion("c", "p0/0/r"), completion("a", "p0/1/r")]
    found = {frozenset((pair.first.id, pair.second.id)) for pair in make_pairs(prompt, own, rivals, seed=0)}
    assert found == {
        frozenset(names) for names in (("p0/0/own", "p0/0/r"), ("p0/1/own", "p0/0/r"), ("p0/1/own", "p0/1/r"))
    }


def test_a_coin_decides_who_stands_first() -> None:
    [prompt] = prompts(1)
    pairs = [make_pairs(prompt, [completion("a", f"p{n}/0")], [completion("b", f"p{n}/1")], seed=3) for n in range(400)]
    firsts = [pair.first.text for [pair] in pairs]
    # Binomial(400, 1/2): deviation 10; four deviations.
    assert 160 < firsts.count("a") < 240


@pytest.mark.parametrize(
    ("kind", "rivals"),
    [
        ("self", {1: {0}, 2: {1}, 4: {3}}),
        ("previous", {1: {0}, 2: {0}, 4: {2}}),
        ("start", {1: {0}, 2: {0}, 4: {0}}),
        ("pool", {1: {0}, 2: {0}, 4: {0, 1, 2}}),
    ],
)
def test_who_is_played_against(tiny_run: Path, kind: str, rivals: dict[int, set[int]]) -> None:
    """The current policy is that of the iteration before; the pool holds all before that one."""
    run = open_run(tiny_run, generate={"opponent": kind})
    for iteration, expected in rivals.items():
        assert {opponent(run, iteration, prompt) for prompt in prompts(60)} == expected


def test_the_pool_is_drawn_from_evenly_and_the_same_each_time(tiny_run: Path) -> None:
    run = open_run(tiny_run, generate={"opponent": "pool"})
    drawn = [opponent(run, 4, prompt) for prompt in prompts(600)]
    assert drawn == [opponent(run, 4, prompt) for prompt in prompts(600)]
    # Binomial(600, 1/3): 200 on average, deviation 11.5; four deviations are 46.
    assert all(154 < count < 246 for count in Counter(drawn).values())


@pytest.mark.parametrize("iteration", [1, 2])
def test_the_files_of_a_real_run(tiny_run: Path, iteration: int) -> None:
    folder = tiny_run / f"iteration-00{iteration}" / "generate"
    completions = read_rows(folder / "completions.parquet")
    pairs = [pair_of(row) for row in read_rows(folder / "pairs.parquet")]
    assert len(completions) == 192 == len({row["id"] for row in completions}), "64 prompts, 3 completions each"
    assert {row["policy"] for row in completions} == {f"iteration-00{iteration - 1}"}
    assert set(Counter(row["prompt_id"] for row in completions).values()) == {3}
    by_id = {row["id"]: row for row in completions}
    for pair in pairs:
        assert pair.first.text != pair.second.text and pair.first.prompt_id == pair.second.prompt_id == pair.prompt.id
        assert all(side.text == by_id[side.id]["text"] for side in (pair.first, pair.second))
        assert list(pair.first.token_ids) == by_id[pair.first.id]["token_ids"] and pair.prompt.meta["animal"]
    order = [pair.prompt.id for pair in pairs]
    assert order == sorted(order, key=order.index), "all pairs of a prompt stand together"
    assert set(Counter(order).values()) <= {2, 3}
    assert read_json(folder / "generate.json") == {
        "prompts": 64,
        "used_up_to": 64 * iteration,
        "focused": 0,
        "pairs": len(pairs),
        "opponents": [iteration - 1],
    }
    assert pair_of(pair_row(pairs[0])) == pairs[0]


def test_iterations_use_up_the_prompts_before_any_comes_again(tiny_run: Path) -> None:
    used = [
        {row["prompt_id"] for row in read_rows(tiny_run / f"iteration-00{number}" / "generate" / "completions.parquet")}
        for number in (1, 2)
    ]
    assert not used[0] & used[1] and len(used[0] | used[1]) == 128


def test_an_extra_round_samples_anew_even_where_prompts_come_again(copied: Path) -> None:
    """All 128 prompts are used up after two iterations; the same random numbers would give the same completions."""
    run = open_run(copied, generate={"prompts": 8})
    for extra in (1, 2):
        generate.run(run, 2, extra)
    folders = [copied / "iteration-002" / stage_name("generate", extra) for extra in range(3)]
    first, *extras = (read_rows(folder / "completions.parquet") for folder in folders)
    texts: dict[str, set[tuple[int, ...]]] = {row["prompt_id"]: set() for row in first}
    for row in first:
        texts[row["prompt_id"]].add(tuple(row["token_ids"]))
    repeated = [row for extra in extras for row in extra if row["prompt_id"] in texts]
    assert len(repeated) >= 6, "prompts do come again"
    assert not any(tuple(row["token_ids"]) in texts[row["prompt_id"]] for row in repeated)
    names = [row["id"] for rows in (first, *extras) for row in rows]
    assert len(set(names)) == len(names)
    assert not {row["prompt_id"] for row in extras[0]} & {row["prompt_id"] for row in extras[1]}


def test_against_the_start_both_policies_answer(copied: Path) -> None:
    run = open_run(copied, generate={"prompts": 6, "opponent": "start", "completions": 3})
    shutil.rmtree(copied / "iteration-002")
    generate.run(run, 2)
    rows = read_rows(copied / "iteration-002" / "generate" / "completions.parquet")
    assert Counter(row["policy"] for row in rows) == {"iteration-001": 12, "iteration-000": 6}
    pairs = [pair_of(row) for row in read_rows(copied / "iteration-002" / "generate" / "pairs.parquet")]
    assert pairs and all(
        {pair.first.policy, pair.second.policy} == {"iteration-000", "iteration-001"} for pair in pairs
    )
    assert read_json(copied / "iteration-002" / "generate" / "generate.json")["opponents"] == [0]


def test_a_stage_made_again_is_the_same(copied: Path) -> None:
    before = read_rows(copied / "iteration-001" / "generate" / "completions.parquet")
    shutil.rmtree(copied / "iteration-001" / "generate")
    generate.run(open_run(copied), 1)
    assert read_rows(copied / "iteration-001" / "generate" / "completions.parquet") == before


def test_prompts_that_changed_under_the_same_name_make_other_stages(copied: Path) -> None:
    run = open_run(copied)
    before = [stage.fingerprint(run, 1) for stage in (generate, evaluate, policy)]
    other = open_run(copied)
    other.heldout = [*other.heldout[1:], other.heldout[0]]
    assert [stage.fingerprint(other, 1) for stage in (generate, evaluate, policy)] == [before[0], ANY, before[2]]
    assert evaluate.fingerprint(other, 1) != before[1]
    other = open_run(copied)
    other.train = [*other.train[1:], other.train[0]]
    assert evaluate.fingerprint(other, 1) == before[1]
    assert generate.fingerprint(other, 1) != before[0] and policy.fingerprint(other, 1) != before[2]


def test_prompts_on_which_pairs_were_decided_come_again(tiny_run: Path) -> None:
    """Share of decided pairs by prompt, counted by hand over the first iteration; the largest come first."""
    run = open_run(tiny_run)
    folder = tiny_run / "iteration-001"
    asked = [row["prompt_id"] for row in read_rows(folder / "generate" / "pairs.parquet")]
    decided = [row["prompt_id"] for row in read_rows(folder / "label" / "preferences.parquet")]
    shares = decided_shares(run, 2)
    assert shares == {prompt: decided.count(prompt) / asked.count(prompt) for prompt in set(decided)}
    assert decided_shares(run, 1) == {}
    some = {"p1": 0.5, "p2": 1.0, "p3": 1.0, "p4": 0.25}
    chosen = [prompt.id for prompt in most_decided(prompts(6), some, prompts(2)[1:], 3, 7)]
    assert set(chosen[:2]) == {"p2", "p3"} and chosen[2] == "p4", "p1 is asked in turn already"
    assert most_decided(prompts(6), some, [], 2, 7) == most_decided(prompts(6), some, [], 2, 7)
