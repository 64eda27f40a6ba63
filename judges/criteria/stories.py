"""Rules for the built-in stories (`prompts/stories.py`): one function per wish, each from (prompt, response) to [0, 1].

They read the wishes from `prompt.meta` and look at words only, so a policy could learn to please them without telling
a better story; `docs/judges.md` says how to notice that.
"""

import re
from itertools import pairwise

from prompts.stories import ANIMALS, CLOSINGS, END
from selfplay.records import Prompt

LONGEST = 75
SHORTEST = 20


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return re.findall(r"[a-z]+", text.lower())


def sentences(text: str) -> list[str]:
    """Sentences of a text, without the punctuation that ends them."""
    return [part.strip().lower() for part in re.split(r"[.!?]+", text) if part.strip()]


def names_animal(prompt: Prompt, response: str) -> float:
    """1 if the asked-for animal is there with its trait before it, 0.5 if only the animal is."""
    found = words(response)
    if prompt.meta["animal"] not in found:
        return 0.0
    return 1.0 if (prompt.meta["trait"], prompt.meta["animal"]) in set(pairwise(found)) else 0.5


def no_other_animal(prompt: Prompt, response: str) -> float:
    """1 if no animal but the asked-for one is in the story."""
    return float(not (set(words(response)) & set(ANIMALS)) - {prompt.meta["animal"]})


def names_place(prompt: Prompt, response: str) -> float:
    """1 if the asked-for place is there."""
    return float(prompt.meta["place"] in words(response))


def uses_things(prompt: Prompt, response: str) -> float:
    """Return each thing counts a third when it appears and a sixth when it comes back: two thirds and a third in all."""
    found = words(response)
    counts = [found.count(prompt.meta[name]) for name in ("first_thing", "second_thing")]
    return sum((count >= 1) / 3 + (count >= 2) / 6 for count in counts)


def ends(prompt: Prompt, response: str) -> float:
    """1 if the story closes with "The end." and holds it only once."""
    return float(response.rstrip().endswith(END) and response.count(END) == 1)


def closes_well(prompt: Prompt, response: str) -> float:
    """1 if one of the last two sentences says that all is well."""
    return float(any(closing.rstrip(".").lower() in sentences(response)[-2:] for closing in CLOSINGS))


def has_friend(prompt: Prompt, response: str) -> float:
    """1 if the story has a friend in it."""
    return float("friend" in words(response))


def repeats_nothing(prompt: Prompt, response: str) -> float:
    """1 if no sentence stands twice."""
    told = sentences(response)
    return float(len(told) == len(set(told)) and bool(told))


def fitting_length(prompt: Prompt, response: str) -> float:
    """1 between SHORTEST and LONGEST words."""
    return float(SHORTEST <= len(words(response)) <= LONGEST)
