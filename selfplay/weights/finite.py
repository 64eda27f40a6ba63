"""Whether the weights that a training ends with are numbers that a model can compute with: no later step would notice."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

LARGEST = 2.0**63
"""Above it a weight's square is no number in float32 (at most 2^128), so no norm of a layer and no gradient is either."""


@torch.no_grad()
def unusable_weight(weights: Iterable[Tensor]) -> float | None:
    """Return the first weight that is not finite or beyond LARGEST, None if there is none. Reads each tensor once."""
    for weight in weights:
        if not weight.is_floating_point() or not weight.numel():
            continue
        for value in (float(one) for one in torch.aminmax(weight.detach())):  # of a tensor with NaN, both are NaN
            if not math.isfinite(value) or abs(value) > LARGEST:
                return value
    return None
