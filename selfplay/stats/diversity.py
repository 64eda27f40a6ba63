"""Diversity of sampled text: distinct n-grams, unique outputs, likeness of the answers to one prompt.

Words are runs of letters and digits, case ignored; scripts written without spaces count each run as one word. Left
out on purpose: embeddings, which would need a model, and self-BLEU, which a plain overlap of bigrams stands in for.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return all runs of n words, in order, repeats included."""
    tokens = words(text)
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams over all n-grams of all texts, in (0, 1] (Li et al. 2016); `None` if there is no n-gram.

    Falls as more text is looked at, so compare equal amounts of text only (see `cut_alike`).
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        grams = ngrams(text, n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else None


def cut_alike(texts: Sequence[str]) -> list[str]:
    """Return the words of each text, all cut to the number that the shortest has."""
    tokens = [words(text) for text in texts]
    shortest = min(map(len, tokens), default=0)
    return [" ".join(one[:shortest]) for one in tokens]


def unique_share(texts: Sequence[str]) -> float | None:
    """Different texts over all texts, in (0, 1]; surrounding white space is ignored; `None` for no texts."""
    return len({text.strip() for text in texts}) / len(texts) if texts else None


def similarity(first: str, second: str, n: int = 2) -> float:
    """Dice overlap 2 |A and B| / (|A| + |B|) of two texts' n-grams, counted with repeats, in [0, 1].

    Two texts too short to have an n-gram are alike (1) if they are the same words, and else not at all (0).
    """
    one, two = Counter(ngrams(first, n)), Counter(ngrams(second, n))
    total = one.total() + two.total()
    if not total:
        return float(words(first) == words(second))
    return 2 * (one & two).total() / total


def self_similarity(groups: Iterable[Sequence[str]], n: int = 2) -> float | None:
    """Mean over prompts of the mean `similarity` of all pairs of answers to one prompt, in [0, 1].

    `groups` holds the answers of each prompt; those with fewer than two are passed over; `None` if all are.
    """
    means = []
    for texts in groups:
        values = [similarity(one, two, n) for one, two in combinations(texts, 2)]
        if values:
            means.append(sum(values) / len(values))
    return sum(means) / len(means) if means else None
