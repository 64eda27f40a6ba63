"""Pairs of stories told to one instruction, as unlike each other as a judge will ever meet them: to teach one, or to test one.

Half are by two authors of different care, half are one story and the same story changed in a few places. Some are no
stories at all: empty, the instruction echoed, words that nobody knows. Nothing here says which story is better.
"""

import random
import string
from collections.abc import Iterator

from prompts.stories import (
    ANIMALS,
    CLOSINGS,
    END,
    FILLERS,
    FINDS,
    PLACES,
    THINGS,
    TRAITS,
    USES,
    Wishes,
    tell,
    wishes_of_split,
)
from selfplay.records import Prompt

KINDS = (TRAITS, ANIMALS, PLACES, THINGS)
OTHERWISE = 0.05
"""Share of the stories in whose place something else stands."""


def story_pairs(split: str, seed: int = 0) -> Iterator[tuple[Prompt, str, str]]:
    """Endless (instruction, story, other story), each instruction once; `split` is `train` or `heldout`."""
    generator = random.Random(f"pairs/{split}/{seed}")
    for wishes in wishes_of_split(split, seed + 2):
        first = told(wishes, generator)
        second = changed(first, wishes, generator, 3) if generator.random() < 0.5 else told(wishes, generator)
        if first != second:
            shown = generator.sample((first, second), 2)
            yield wishes.prompt(), shown[0], shown[1]


def told(wishes: Wishes, generator: random.Random) -> str:
    """Return a story of any care, left as it is or changed a little; rarely, something that is not a story."""
    if generator.random() < OTHERWISE:
        return generator.choice(
            ("", wishes.instruction, " ".join(generator.sample(FILLERS, 4)), unknown(generator), listed(generator))
        )
    return changed(tell(wishes, generator.random(), generator), wishes, generator, generator.choice((0, 0, 1, 2)))


def changed(story: str, wishes: Wishes, generator: random.Random, most: int) -> str:
    """Return the story with up to `most` changes: sentences dropped, doubled, moved or added, words exchanged, an end cut off."""
    for _ in range(generator.randint(min(1, most), most)):
        story = generator.choice(CHANGES)(story, wishes, generator)
    return story


def sentences(story: str) -> list[str]:
    """Return the story's sentences, each with its full stop."""
    return [f"{part.strip()}." for part in story.split(".") if part.strip()]


def drop(story: str, wishes: Wishes, generator: random.Random) -> str:
    """Without one of its sentences."""
    told = sentences(story)
    place = generator.randrange(len(told)) if told else 0
    return " ".join(told[:place] + told[place + 1 :])


def double(story: str, wishes: Wishes, generator: random.Random) -> str:
    """With one of its sentences once more, somewhere."""
    told = sentences(story)
    return insert(story, generator.choice(told), generator) if told else story


def move(story: str, wishes: Wishes, generator: random.Random) -> str:
    """With two sentences exchanged."""
    told = sentences(story)
    if len(told) > 1:
        one, other = generator.sample(range(len(told)), 2)
        told[one], told[other] = told[other], told[one]
    return " ".join(told)


def add(story: str, wishes: Wishes, generator: random.Random) -> str:
    """With one more sentence: about a thing that was asked for or another, a filler, a closing or an end."""
    thing = generator.choice((wishes.first_thing, wishes.second_thing, generator.choice(THINGS)))
    kind = generator.choice((FINDS, USES, FILLERS, CLOSINGS, (END,)))
    sentence = generator.choice(kind).format(thing=thing)
    return f"{story} {sentence}" if kind in (CLOSINGS, (END,)) else insert(story, sentence, generator)


def exchange(story: str, wishes: Wishes, generator: random.Random) -> str:
    """With one trait, animal, place or thing turned into another of its kind, asked for or not."""
    kind = generator.choice(KINDS)
    found = [word for word in kind if f" {word}" in story]
    if not found:
        return story
    asked = [
        word
        for word in (wishes.trait, wishes.animal, wishes.place, wishes.first_thing, wishes.second_thing)
        if word in kind
    ]
    return story.replace(f" {generator.choice(found)}", f" {generator.choice((*asked, generator.choice(kind)))}")


def cut(story: str, wishes: Wishes, generator: random.Random) -> str:
    """Broken off at some word."""
    words = story.split(" ")
    return " ".join(words[: generator.randint(len(words) // 2, len(words))])


def drivel(story: str, wishes: Wishes, generator: random.Random) -> str:
    """With a sentence of words that nobody knows."""
    return insert(story, unknown(generator), generator)


def unknown(generator: random.Random) -> str:
    """Return a sentence of made-up words."""
    words = [
        "".join(generator.choices(string.ascii_lowercase, k=generator.randint(2, 8)))
        for _ in range(generator.randint(2, 6))
    ]
    return f"{' '.join(words).capitalize()}."


def listed(generator: random.Random) -> str:
    """Return a list of such sentences, with dashes or numbers: much text, and no story."""
    marks = generator.choice(([f"{number}. " for number in range(1, 13)], ["- "] * 12))
    return "\n".join(f"{mark}{unknown(generator)}" for mark in marks[: generator.randint(3, 12)])


def insert(story: str, sentence: str, generator: random.Random) -> str:
    """With a sentence put somewhere behind the first, the end included."""
    told = sentences(story)
    told.insert(generator.randint(min(1, len(told)), len(told)), sentence)
    return " ".join(told)


CHANGES = (drop, double, move, add, add, add, exchange, exchange, exchange, cut, drivel)
