"""A conservative score by hand, and what an ensemble says of itself."""

from collections.abc import Sequence

import pytest
import torch

from selfplay.records import Completion, Prompt
from selfplay.rewards.ensemble import RewardEnsemble, conservative
from selfplay.rewards.sources import WeightedSum, disagreement

PROMPT = Prompt.plain("p", "Tell a story.")
ANSWERS = [Completion(id="p/0", prompt_id="p", text=text, finish_reason="stop", policy="test") for text in "ab"]


class Member:
    """Stands in for a reward model whose standard scores are given."""

    deviation = 2.0

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        return self.scores

    def raw(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        return [2 * score for score in self.scores]

    def standardise(self, raw_scores: Sequence[float]) -> list[float]:
        return [score / 2 for score in raw_scores]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [2.0, 1.0]),
        ("worst", [0.5, 1.0]),
        # The first response's scores 0.5, 2, 3.5: variance over three (2.25 + 0 + 2.25) / 3 = 1.5, of which 0.4 is 0.6.
        ("uncertainty", [1.4, 1.0]),
    ],
)
def test_conservative_scores_by_hand(how: str, expected: list[float]) -> None:
    scores = torch.tensor([[0.5, 1.0], [2.0, 1.0], [3.5, 1.0]], dtype=torch.float64)
    assert conservative(scores, how, 0.4).tolist() == pytest.approx(expected, abs=1e-12)
    ensemble = RewardEnsemble([Member(*row) for row in scores.tolist()], how, 0.4)  # type: ignore[misc]
    assert ensemble.score([PROMPT] * 2, ANSWERS) == pytest.approx(expected, abs=1e-12)
    assert ensemble.disagreement == pytest.approx((1.5**0.5 + 0) / 2, abs=1e-12)
    assert ensemble.raw([[1], [2]]) == pytest.approx([2 * value for value in expected], abs=1e-12)


def test_ppo_logs_the_disagreement_of_an_ensemble_wherever_it_stands() -> None:
    ensemble, single = RewardEnsemble([Member(0.0), Member(4.0)], "worst", 0.5), Member(1.0)  # type: ignore[list-item]
    ensemble.score([PROMPT], ANSWERS[:1])
    assert disagreement(ensemble) == disagreement(WeightedSum([(1.0, single), (2.0, ensemble)])) != {}
    assert disagreement(ensemble)["objective/disagreement"] == pytest.approx(2.0, abs=1e-12)
    assert disagreement(single) == {}
