"""The task of random walks: its graph and rewards against values by hand, and PPO through `selfplay.train` at reduced size."""

from pathlib import Path

import pytest
import randomwalks
from randomwalks import PPO, make_start, make_tokenizer, make_walks, measure

import selfplay
from selfplay.config import Optimisation
from selfplay.errors import ConfigError


def test_the_graph_of_seed_1000_is_that_of_trlx() -> None:
    walks = make_walks()
    assert len(walks.samples) == 1000 and set("".join(walks.samples)) == set("abcdefghijklmnopqrstu")
    for walk in walks.samples:
        assert 2 <= len(walk) <= 10 and walk[0] != "a" and "a" not in walk[:-1]
        assert len(walk) == 10 or walk.endswith("a")
    data = [walks.optimality(walk) for walk in walks.samples]
    assert sum(data) / 1000 == pytest.approx(0.3515, abs=1e-4)
    # No walk in the samples is shorter than the shortest, and the shortest is a way there: each step has an edge behind it.
    best = {start: min(len(w) for w in walks.samples if w[0] == start and w.endswith("a")) for start in walks.starts}
    assert all(best[start] >= walks.shortest[place] for place, start in enumerate(walks.starts, 1))
    for node in range(1, 21):
        assert walks.shortest[node] == 1 + min(walks.shortest[after] for after in walks.edges[node])


def test_optimality_by_hand() -> None:
    # Edges b-a, c-b, d-c and c-d; shortest walks: b 2 nodes, c 3, d 4.
    walks = randomwalks.Walks(0, ((0,), (0,), (1, 3), (2,)), (), (1, 2, 3, 4))
    for walk, expected in {
        "ba": 1.0,  # (10 - 2) / (10 - 2)
        "cba": 1.0,  # (10 - 3) / (10 - 3)
        "cdcba": 5 / 7,  # (10 - 5) / (10 - 3)
        "dcdcba": 4 / 6,
        "cdcdcdcdcba": 0.0,  # 11 nodes
        "cdcdcd": 0.0,  # does not arrive
        "ca": 0.0,  # no such edge
        "cb?": 0.0,
        "baxyz": 1.0,  # what stands behind the goal does not count
    }.items():
        assert walks.optimality(walk) == pytest.approx(expected, abs=1e-12), walk
    assert walks.reward(["c", "b"], ["ba", "c"], [{}, {}]) == [1.0, 0.0]


def test_graphs_that_would_divide_by_zero_are_refused() -> None:
    refused = []
    for seed in range(1000, 1040):
        try:
            make_walks(seed, walks=1)
        except ConfigError:
            refused.append(seed)
    assert len(refused) == 11
    with pytest.raises(
        ConfigError, match=f"graph of seed {refused[0]} .* optimality would divide by zero: take another seed"
    ):
        make_walks(refused[0])


def test_what_best_of_n_predicts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Half of what is drawn scores 1: the best of n does with probability 1 - 1/2^n. All that is measured scores 1.
    def answers(walks: randomwalks.Walks, checkpoint: Path, each: int, seed: int) -> list[list[float]]:
        return [[float(place % 2 or seed == 8) for place in range(each)]] * 2

    monkeypatch.setattr(randomwalks, "answers", answers)
    walks = randomwalks.Walks(0, (), (), ())
    for n, mean, predicted, error in randomwalks.best_of(walks, Path(), (1, 2, 4), groups=10):
        assert mean == 1.0 and predicted == pytest.approx(1 - 0.5**n, abs=1e-9)
        # With p the share of ones among 1,000: d(1 - (1 - p)^n) = n (1 - p)^(n-1) dp, over two starts alike.
        assert error == pytest.approx(n * 0.5 ** (n - 1) * (0.25 / 1000 / 2) ** 0.5, rel=0.25)


def test_a_letter_is_a_token() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer("cab")["input_ids"] == [4, 2, 3] and tokenizer.decode([4, 2, 3]) == "cab"


def test_ppo_finds_shorter_walks(tmp_path: Path, training_seed: int) -> None:
    walks = make_walks()
    start = make_start(
        walks, tmp_path / "start", training_seed, Optimisation(steps=60, batch_size=64, learning_rate=2e-3)
    )
    trained = selfplay.train(
        start,
        reward=walks.reward,
        prompts=walks.starts,
        algorithm={**PPO, "steps": 5, "episodes": 96},
        output=tmp_path / "run",
        seed=training_seed,
        sampling={"max_tokens": 10},
    )
    assert [row["step"] for row in trained.metrics] == [1, 2, 3, 4, 5]
    before, after = (sum(one) / len(one) for one in (measure(walks, start, 400), measure(walks, trained.policy, 400)))
    assert after > before + 0.1  # seeds gave .32 to .34 before, and .6 to .7 after
    assert [len(group) for group in trained.sample(["b", "c"], n=3)] == [3, 3]
