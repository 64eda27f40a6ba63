"""Losses of reward models: from the scores of one prompt's completions and the judge's verdicts to a number.

Pure maths: imports torch and nothing of ours. A new loss is a function here and an entry in LOSSES; one of a user's own is
`reward: {loss: python, python: ./file.py:name}`. All of them see differences of scores only, so that a constant
added to every score changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

EVEN = 1e-9
"""Two completions whose shares of wins are this close are equally good."""


@dataclass(frozen=True)
class Verdicts:
    """What the judge said of P pairs among the K completions of one prompt; each tensor is (P,), and K >= 2, P >= 1."""

    chosen: Tensor
    """Place of the preferred completion among the scores, int64."""
    rejected: Tensor
    """Place of the other one, int64."""
    probability: Tensor
    """The judge's probability that `chosen` is the better one, in (0.5, 1]."""
    margin: Tensor
    """How far apart the scores should be at least, in units of score; 0 without `reward.margin`."""


RewardLoss = Callable[[Tensor, Verdicts], Tensor]
"""(scores of a group, (K,); its verdicts) -> loss, a scalar. A batch's loss is the mean over its groups."""


def pairwise(scores: Tensor, verdicts: Verdicts) -> Tensor:
    """Return the mean over pairs of -log sigmoid(chosen - rejected - margin) (Bradley and Terry 1952).

    With all pairs of a prompt in one group this is InstructGPT's loss (Ouyang et al. 2022, equation 1): the sum over the
    C(K, 2) pairs divided by C(K, 2). Pairs that the judge called a tie are in neither, so K completions may have fewer.
    """
    return -logsigmoid(scores[verdicts.chosen] - scores[verdicts.rejected] - verdicts.margin).mean()


def best(scores: Tensor, verdicts: Verdicts) -> Tensor:
    """Return the cross-entropy of softmax(scores) on the completion that the judge likes best (Ziegler et al. 2019).

    The best one wins the largest share of its own pairs; several that do share the target evenly. With K = 2 this is
    `pairwise`.
    """
    wins, pairs = (torch.zeros(len(scores), dtype=torch.float64, device=scores.device) for _ in range(2))
    probability = verdicts.probability.double()
    for place, won in ((verdicts.chosen, probability), (verdicts.rejected, 1 - probability)):
        wins.index_add_(0, place, won)
        pairs.index_add_(0, place, torch.ones_like(won))
    share = wins / pairs.clamp_min(1)
    target = (share >= share.max() - EVEN).to(scores.dtype)
    return -(target / target.sum() * log_softmax(scores, 0)).sum()


def soft(scores: Tensor, verdicts: Verdicts) -> Tensor:
    """Return the mean over pairs of the cross-entropy between the judge's probability and sigmoid(chosen - rejected).

    It is `pairwise` where the judge is certain, and least where the difference of scores is the judge's log-odds.
    """
    gap, probability = scores[verdicts.chosen] - scores[verdicts.rejected], verdicts.probability.to(scores.dtype)
    return -(probability * logsigmoid(gap) + (1 - probability) * logsigmoid(-gap)).mean()


LOSSES: dict[str, RewardLoss] = {"pairwise": pairwise, "ranking": pairwise, "best": best, "soft": soft}
"""`reward.loss` -> the loss of a group. The group of `pairwise` is one pair; that of the others is a prompt with all its
completions, each of which is then forwarded once however many pairs it is in."""
