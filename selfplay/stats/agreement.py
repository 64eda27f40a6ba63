"""How far two sets of labels agree: chance-corrected, with intervals. Plain Python, for a few thousand labels."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import fmean

Z95 = 1.959963984540054


def wilson(value: float, count: float) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927) seen as `value` of `count`; (0, 1) for none. Half points are taken as they
    are."""
    if count == 0:
        return 0.0, 1.0
    centre = (value + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    spread = Z95 / (1 + Z95**2 / count) * math.sqrt(value * (1 - value) / count + Z95**2 / (4 * count**2))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def cohen_kappa(left: Sequence[Hashable], right: Sequence[Hashable]) -> float | None:
    """Cohen's kappa (1960): agreement of two raters beyond chance, 1 at best; None if chance alone explains all."""
    total = len(left)
    if total == 0 or len(right) != total:
        return None
    agreed = fmean(one == other for one, other in zip(left, right, strict=True))
    shares, others = Counter(left), Counter(right)
    expected = sum(shares[label] * others[label] for label in shares) / total**2
    return None if math.isclose(expected, 1.0) else (agreed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal labels (2011, "Computing Krippendorff's alpha-reliability").

    `units` holds, for each thing rated, the labels it was given; those with fewer than two count nowhere. None if there
    are none, or if all labels are the same.
    """
    rated = [list(labels) for labels in units if len(labels) > 1]
    totals: Counter[Hashable] = Counter(label for labels in rated for label in labels)
    count = sum(totals.values())
    observed = sum(_pairs_apart(Counter(labels)) / (len(labels) - 1) for labels in rated)
    expected = _pairs_apart(totals)
    return None if expected == 0 else 1 - (count - 1) * observed / expected


def _pairs_apart(counts: Counter[Hashable]) -> int:
    """Ordered pairs of labels that differ."""
    return sum(counts.values()) ** 2 - sum(value**2 for value in counts.values())


def macro_scores(truth: Sequence[Hashable], said: Sequence[Hashable]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the labels of the truth and of what was said, each alike."""
    pairs = list(zip(truth, said, strict=True))
    precision, recall, f1 = [], [], []
    for label in set(truth) | set(said):
        right = sum(one == other == label for one, other in pairs)
        claimed, real = sum(other == label for _, other in pairs), sum(one == label for one, _ in pairs)
        precision.append(right / claimed if claimed else 0.0)
        recall.append(right / real if real else 0.0)
        f1.append(2 * right / (claimed + real))
    return {
        "accuracy": fmean(one == other for one, other in pairs),
        "precision": fmean(precision),
        "recall": fmean(recall),
        "f1": fmean(f1),
    }
