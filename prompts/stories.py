"""The built-in set: short stories told to an instruction, from a seeded generator, so that a loop can run offline.

An instruction names an animal with a trait, a place and two things. Half of the demonstrations are by a careful author
and half by a sloppy one (`CARE`, the probability with which a wish is met). That leaves the policy something to improve,
and who predicts the second half of a story has a reason to notice how careful the first half was, which is just what a
reward model must notice.
`judges/stories.py` checks every wish in Python.
No text is taken from anywhere. Instructions of the `train` and `heldout` splits never coincide: a hash of the wishes
decides the split.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

from selfplay.records import Message, Prompt

TRAITS = ("shy", "brave", "tiny", "sleepy", "clever", "lonely", "proud", "gentle", "noisy", "curious", "hungry", "lazy")
ANIMALS = (
    "fox",
    "bear",
    "owl",
    "mouse",
    "rabbit",
    "frog",
    "duck",
    "goat",
    "hedgehog",
    "otter",
    "pony",
    "cat",
    "dog",
    "sparrow",
    "turtle",
    "squirrel",
)
PLACES = (
    "lake",
    "forest",
    "farm",
    "beach",
    "market",
    "river",
    "castle",
    "garden",
    "bridge",
    "mountain",
    "village",
    "cave",
)
THINGS = (
    "kite",
    "bell",
    "drum",
    "lamp",
    "ball",
    "book",
    "boat",
    "cake",
    "hat",
    "key",
    "rope",
    "shell",
    "spoon",
    "apple",
    "coin",
    "flute",
    "map",
    "ring",
    "scarf",
    "basket",
    "candle",
    "button",
    "ladder",
    "mirror",
    "wagon",
    "pillow",
    "whistle",
    "ribbon",
    "bucket",
    "feather",
)

OPENINGS = (
    "One day a {who} went to the {place}.",
    "Once there was a {who} who lived near the {place}.",
    "A {who} walked to the {place} in the morning.",
    "Long ago a {who} played at the {place}.",
)
FINDS = (
    "It found a {thing} under a tree.",
    "A friend gave it a {thing}.",
    "It saw a {thing} on the ground.",
    "There was a {thing} behind a big stone.",
)
USES = (
    "It took the {thing} home.",
    "The {thing} made it smile.",
    "It showed the {thing} to a friend.",
    "It liked the {thing} very much.",
)
FILLERS = (
    "The sun was warm.",
    "It began to rain.",
    "The wind was cold.",
    "Nobody was there.",
    "It sat down to rest.",
    "It ran up the hill.",
    "It sang a little song.",
    "The sky was very blue.",
    "It was a long way home.",
    "It looked left and right.",
)
CLOSINGS = ("It was happy.", "They all laughed.", "At night it slept well.", "It was a good day.")
END = "The end."
CARE = (0.1, 0.9)


@dataclass(frozen=True)
class Wishes:
    """What an instruction asks for; travels as the prompt's `meta`."""

    trait: str
    animal: str
    place: str
    first_thing: str
    second_thing: str

    @property
    def key(self) -> str:
        """Name of this combination; also the prompt's id."""
        return "-".join(asdict(self).values())

    @property
    def split(self) -> str:
        """`heldout` for about one combination in eight, decided by a hash, else `train`."""
        return "heldout" if hashlib.sha256(self.key.encode()).digest()[0] < 32 else "train"

    @property
    def instruction(self) -> str:
        """The wishes as a sentence."""
        return (
            f"Tell a story about a {self.trait} {self.animal} at the {self.place}. "
            f"Use the words {self.first_thing} and {self.second_thing}."
        )

    def prompt(self) -> Prompt:
        """Return the instruction as one user message, the wishes as `meta`."""
        return Prompt(id=self.key, messages=(Message(role="user", content=self.instruction),), meta=asdict(self))


def draw_wishes(generator: random.Random) -> Wishes:
    """Return one combination, all choices equally likely, the two things different."""
    first, second = generator.sample(THINGS, 2)
    return Wishes(generator.choice(TRAITS), generator.choice(ANIMALS), generator.choice(PLACES), first, second)


def wishes_of_split(split: str, seed: int) -> Iterator[Wishes]:
    """Endless distinct combinations of one split (`train` or `heldout`)."""
    generator = random.Random(f"{split}/{seed}")
    seen: set[str] = set()
    while True:
        wishes = draw_wishes(generator)
        if wishes.split == split and wishes.key not in seen:
            seen.add(wishes.key)
            yield wishes


def prompts(split: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` different instructions of a split. Raises ValueError for a split other than `train` and `heldout`."""
    if split not in ("train", "heldout"):
        raise ValueError(f"the built-in stories have the splits 'train' and 'heldout', not {split!r}")
    source = wishes_of_split(split, seed)
    return [next(source).prompt() for _ in range(count)]


def tell(wishes: Wishes, care: float, generator: random.Random) -> str:
    """Return a story in which each wish is met with probability `care`; one in two has a closing, one in two an ending."""

    def kept() -> bool:
        return generator.random() < care

    animal = wishes.animal if kept() else generator.choice(ANIMALS)
    who = f"{wishes.trait if kept() else generator.choice(TRAITS)} {animal}" if kept() else animal
    place = wishes.place if kept() else generator.choice(PLACES)
    sentences = [generator.choice(OPENINGS).format(who=who, place=place)]
    for wish in (wishes.first_thing, wishes.second_thing):
        sentences += generator.sample(FILLERS, generator.choice((0, 1)))
        thing = wish if kept() else generator.choice(THINGS)
        sentences.append(generator.choice(FINDS).format(thing=thing))
        if generator.random() < 0.5:
            sentences.append(generator.choice(USES).format(thing=thing))
    sentences += generator.sample(FILLERS, generator.choice((0, 1)))
    if generator.random() < 0.5:
        sentences.append(generator.choice(CLOSINGS))
    if generator.random() < 0.5:
        sentences.append(END)
    return " ".join(sentences)


def documents(count: int, seed: int = 0) -> list[str]:
    """Return a corpus to pretrain on: stories beneath a line that says what they are about, by careful authors only."""
    generator = random.Random(f"documents/{seed}")
    texts: list[str] = []
    while len(texts) < count:
        wishes = draw_wishes(generator)
        if wishes.split == "train":
            blurb = (
                f"This is a story about a {wishes.trait} {wishes.animal} at the {wishes.place}. "
                f"It has the words {wishes.first_thing} and {wishes.second_thing}."
            )
            texts.append(f"{blurb}\n{tell(wishes, 1.0, generator)}")
    return texts


def demonstrations(count: int, seed: int = 0) -> list[tuple[Prompt, str]]:
    """Instructions with stories told to them, by careful and by sloppy authors, all of the `train` split."""
    generator = random.Random(f"demonstrations/{seed}")
    source = wishes_of_split("train", seed + 1)
    return [(wishes.prompt(), tell(wishes, generator.choice(CARE), generator)) for wishes in islice(source, count)]
