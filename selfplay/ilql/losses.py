"""ILQL's losses, token by token: each takes tensors of one shape, (N,) response tokens, and gives the loss of each.

Nothing is averaged here: the caller sums and divides by the tokens of the whole batch. Sources: Snell et al. 2022, section
5; trlX `modeling_ilql.py`, whose losses these are. Left out: what needs a network.
"""

import torch
from torch import Tensor


def next_values(values: Tensor, last: Tensor) -> Tensor:
    """Value of the state behind each token: that before the next token, and 0 behind the `last` (true) of a response.

    Tokens stand response by response in the order in which they were said.
    """
    behind = torch.cat([values[1:], values.new_zeros(1)]) if values.numel() else values
    return torch.where(last, 0.0, behind)


def q_targets(rewards: Tensor, values: Tensor, last: Tensor, discount: float) -> Tensor:
    """r + discount V(next state), detached: what the Q value of each token is drawn to."""
    return (rewards + discount * next_values(values, last)).detach()


def q_loss(q_values: Tensor, targets: Tensor) -> Tensor:
    """(Q - target)^2, for one head."""
    return (q_values - targets).square()


def expectile_loss(values: Tensor, target_q: Tensor, expectile: float) -> Tensor:
    """|tau - 1(u < 0)| u^2 of u = Q - V, with Q detached (Kostrikov et al. 2021, "Implicit Q-Learning", equation 5).

    `target_q` is the smaller of the two target heads' values.
    """
    difference = target_q.detach() - values
    squares = difference.square()
    return torch.where(difference < 0, (1 - expectile) * squares, expectile * squares)


def awac_weights(target_q: Tensor, values: Tensor, beta: float) -> Tensor:
    """exp(beta (Q - V)), detached, the weight of imitating a token (Nair et al. 2020, AWAC); clamped at e^20."""
    return torch.exp((beta * (target_q - values)).detach().clamp(max=20.0))
