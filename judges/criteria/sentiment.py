"""How glad a short text sounds, by two word lists that were made apart: one to label with, one to measure with.

Left out: negation and irony. "not happy" counts as glad, which a policy may learn to use.
"""

import re

GLAD = (
    "happy happily glad smile smiled smiles laugh laughed laughing love loved loves fun funny good nice best kind sweet"
)
SAD = "sad sadly cry cried crying scared afraid angry bad hurt lost mean tired alone cold broke broken"
POLARITY = dict.fromkeys(GLAD.split(), 1) | dict.fromkeys(SAD.split(), -1)
"""Words of the list that labels, each 1 or -1."""
VALENCE = {
    **dict.fromkeys(("wonderful", "amazing", "joy", "joyful"), 4),
    **dict.fromkeys(("happy", "excited", "beautiful", "great", "fun", "love", "loved"), 3),
    **dict.fromkeys(("proud", "hug", "hugged", "hugs", "thank", "thanked", "laughed", "smiled", "cheered"), 2),
    **dict.fromkeys(("friend", "friends", "play", "played", "playing", "help", "helped", "safe", "warm", "pretty"), 1),
    **dict.fromkeys(("stop", "no", "hard", "wrong", "rain", "hungry", "nobody"), -1),
    **dict.fromkeys(("sorry", "dark", "worried", "upset", "fell", "sick", "trouble", "lonely"), -2),
    **dict.fromkeys(("sad", "cried", "scared", "angry", "hurt", "mad", "afraid"), -3),
    **dict.fromkeys(("terrible", "horrible", "hate", "died"), -4),
}
"""Words of the list that measures, each from -4 to 4; it shares 14 of its 53 words with the other."""
WORD = re.compile(r"[a-z]+")


def polarity(prompt: str, response: str) -> float:
    """Return 0.5 plus a tenth of the glad words less the sad ones in POLARITY, within [0, 1]."""
    return _score(response, POLARITY, 10)


def valence(prompt: str, response: str) -> float:
    """Return 0.5 plus a thirtieth of the sum over the words in VALENCE, within [0, 1]."""
    return _score(response, VALENCE, 30)


def _score(text: str, words: dict[str, int], scale: int) -> float:
    total = sum(words.get(word, 0) for word in WORD.findall(text.lower()))
    return min(1.0, max(0.0, 0.5 + total / scale))
