"""Losses on pairs of responses, from log-ratios to the reference: DPO and its family. Imports torch and nothing of ours.

r = log pi(y | x) - log pi_reference(y | x), summed over the tokens of a response y, and d = r(chosen) - r(rejected). Each
loss gives one number per pair; nothing is averaged here. Left out: losses that compare pairs of a batch (AOT), and BCO, whose
shift is a running mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class LogRatios:
    """A batch of B pairs, each tensor (B,). `target` is P(chosen is better), in (0, 1]: 1 for a hard label.

    `chosen`, `rejected`: log-ratios in nats (with gradient), over `chosen_tokens` and `rejected_tokens` tokens;
    `chosen_wins`, `rejected_wins`: P(the response beats one of the policy's), in [0, 1].
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    target: Tensor
    chosen_wins: Tensor
    rejected_wins: Tensor

    @property
    def difference(self) -> Tensor:
        """Return d, (B,)."""
        return self.chosen - self.rejected

    @property
    def difference_per_token(self) -> Tensor:
        """Return the difference of the two means over tokens, (B,)."""
        return self.chosen / self.chosen_tokens.clamp(min=1) - self.rejected / self.rejected_tokens.clamp(min=1)


def expected(loss: Callable[[Tensor], Tensor], difference: Tensor, target: Tensor) -> Tensor:
    """Return target loss(d) + (1 - target) loss(-d): the mean over the labels that the target expects."""
    return target * loss(difference) + (1 - target) * loss(-difference)


def sigmoid(pairs: LogRatios, beta: float) -> Tensor:
    """-log sigmoid(beta d) (Rafailov et al. 2023, equation 7); with a target below 1, conservative DPO (Mitchell 2023)."""
    return expected(lambda d: -logsigmoid(beta * d), pairs.difference, pairs.target)


def sigmoid_norm(pairs: LogRatios, beta: float) -> Tensor:
    """Return the same on means over tokens (Lambert et al. 2024, Tulu 3)."""
    return expected(lambda d: -logsigmoid(beta * d), pairs.difference_per_token, pairs.target)


def hinge(pairs: LogRatios, beta: float) -> Tensor:
    """max(0, 1 - beta d) (Zhao et al. 2023, SLiC-HF; Liu et al. 2023, RSO)."""
    return expected(lambda d: torch.relu(1 - beta * d), pairs.difference, pairs.target)


def ipo(pairs: LogRatios, beta: float) -> Tensor:
    """(d - 1 / (2 beta))^2 on means over tokens (Azar et al. 2023, equation 17; the means: TRL, with the authors)."""
    return expected(lambda d: (d - 1 / (2 * beta)).square(), pairs.difference_per_token, pairs.target)


def robust(pairs: LogRatios, beta: float) -> Tensor:
    """Return DPO's loss without the bias of labels flipped at the rate 1 - target (Chowdhury et al. 2024, equation 6)."""
    right, wrong = (-logsigmoid(sign * beta * pairs.difference) for sign in (1, -1))
    return (pairs.target * right - (1 - pairs.target) * wrong) / (2 * pairs.target - 1)


def exo_pair(pairs: LogRatios, beta: float) -> Tensor:
    """Return the reverse KL between sigmoid(beta d) and the target, which lies below 1 (Ji et al. 2024, equation 16)."""
    q = logsigmoid(beta * pairs.difference), logsigmoid(-beta * pairs.difference)
    return q[0].exp() * (q[0] - pairs.target.log()) + q[1].exp() * (q[1] - (1 - pairs.target).log())


def nca_pair(pairs: LogRatios, beta: float) -> Tensor:
    """Noise contrastive alignment of two responses (Chen et al. 2024, equation 12)."""
    chosen, rejected = beta * pairs.chosen, beta * pairs.rejected
    return -logsigmoid(chosen) - logsigmoid(-chosen) / 2 - logsigmoid(-rejected) / 2


def apo_zero(pairs: LogRatios, beta: float) -> Tensor:
    """Chosen up, rejected down: for answers better than the policy's (D'Oosterlinck et al. 2024, equation 7)."""
    return 1 - torch.sigmoid(beta * pairs.chosen) + torch.sigmoid(beta * pairs.rejected)


def apo_down(pairs: LogRatios, beta: float) -> Tensor:
    """Both down, the rejected more: for answers worse than the policy's (D'Oosterlinck et al. 2024, equation 8)."""
    return torch.sigmoid(beta * pairs.chosen) + 1 - torch.sigmoid(beta * pairs.difference)


def sppo(pairs: LogRatios, beta: float) -> Tensor:
    """Each response's (r - (P(it beats the policy) - 1/2) / beta)^2, summed (Wu et al. 2024, equation 4.7; eta = 1 / beta)."""
    chosen, rejected = (wins - 0.5 for wins in (pairs.chosen_wins, pairs.rejected_wins))
    return (pairs.chosen - chosen / beta).square() + (pairs.rejected - rejected / beta).square()


PAIR_LOSSES: dict[str, Callable[[LogRatios, float], Tensor]] = {
    loss.__name__: loss
    for loss in (sigmoid, sigmoid_norm, hinge, ipo, robust, exo_pair, nca_pair, apo_zero, apo_down, sppo)
}
"""`algorithm.loss` -> (pairs, beta) -> one loss per pair, (B,)."""
