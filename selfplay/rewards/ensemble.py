"""Several reward models as one: a score that is careful where they disagree (Coste et al. 2023, arXiv 2310.02743).

The members learn from the same preferences with seeds and heads of their own. The first is the reward model's folder
itself, a checkpoint like any other, with what the ensemble is in its config; the others are folders in it, `member-2`,
`member-3`, ...
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfplay.records import Completion, Prompt
from selfplay.rewards.reward_model import RewardModel


def conservative(scores: Tensor, how: str, uncertainty: float) -> Tensor:
    """Return one score per response, (B,), from those of M members, (M, B).

    `mean`; `worst`, the smallest; `uncertainty`: the mean less `uncertainty` times the members' variance (over M).
    """
    if how == "worst":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean - uncertainty * (scores - mean).square().mean(0) if how == "uncertainty" else mean


class RewardEnsemble:
    """Reward models that score together, each in deviations from its own mean on the start's samples."""

    def __init__(self, members: Sequence[RewardModel], how: str, uncertainty: float) -> None:
        self.members, self.how, self.uncertainty = tuple(members), how, uncertainty
        self.disagreement = 0.0
        """Mean over the responses scored last of the members' standard deviation, in deviations of the start's scores."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return one conservative score per response; see `conservative`."""
        return self._combine([member.score(prompts, responses) for member in self.members])

    def raw(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return conservative scores of token ids on the scale of the members' heads, for sigmoids of their differences."""
        scale = sum(member.deviation for member in self.members) / len(self.members)
        scores = self._combine([member.standardise(member.raw(sequences)) for member in self.members])
        return [score * scale for score in scores]

    def _combine(self, columns: Sequence[Sequence[float]]) -> list[float]:
        scores = torch.tensor(columns, dtype=torch.float64)
        self.disagreement = float(scores.std(0, correction=0).mean())
        combined: list[float] = conservative(scores, self.how, self.uncertainty).tolist()
        return combined

    def save(self, directory: Path) -> None:
        """Write the members; the first one's config says what the ensemble is."""
        first = self.members[0]
        first.model.config.selfplay_reward |= {
            "ensemble": {"members": len(self.members), "conservative": self.how, "uncertainty": self.uncertainty}
        }
        for place, member in enumerate(self.members):
            member.save(member_folder(directory, place))


def member_folder(directory: Path, place: int) -> Path:
    """Return the checkpoint of a member, counted from 0, in a reward model's folder."""
    return directory / f"member-{place + 1}" if place else directory


def load_reward_model(directory: str | Path, spread: bool = False) -> RewardModel | RewardEnsemble:
    """Read what the stage `reward` wrote: one reward model, or an ensemble; `spread` as in `RewardModel.load`."""
    first = RewardModel.load(directory, spread)
    known: dict[str, Any] = getattr(first.model.config, "selfplay_reward", {}).get("ensemble", {})
    if not known:
        return first
    others = [RewardModel.load(member_folder(Path(directory), place), spread) for place in range(1, known["members"])]
    return RewardEnsemble([first, *others], known["conservative"], known["uncertainty"])
