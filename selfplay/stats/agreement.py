"""How far two sets of labels agree: chance-corrected, with intervals. Plain Python, for a few thousand labels."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import fmean

Z95 = 1.959963984540054


def wilson(value: float, count: float) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927) seen as `value` of `count`; (0, 1) for none. Half points are taken as they
    are; for a share of 0 the lower bound is exactly 0, and for 1 the upper one exactly 1."""
    if count == 0:
        return 0.0, 1.0
    centre = (value + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    spread = Z95 / (1 + Z95**2 / count) * math.sqrt(value * (1 - value) / count + Z95**2 / (4 * count**2))
    low = max(0.0, centre - spread) if value > 0 else 0.0
    return low, min(1.0, centre + spread) if value < 1 else 1.0


def cohen_kappa(left: Sequence[Hashable], right: Sequence[Hashable]) -> float | None:
    """Cohen's kappa (1960): agreement of two raters beyond chance, 1 at best; None if chance alone explains all."""
    total = len(left)
    if total == 0 or len(right) != total:
        return None
    agreed = fmean(one == other for one, other in zip(left, right, strict=True))
    shares, others = Counter(left), Counter(right)
    expected = sum(shares[label] * others[label] for label in shares) / total**2
    return None if math.isclose(expected, 1.0) else (agreed - expected) / (1 - expected)
