"""A built-in set of requests with conditions that a program can check, for models that can already chat.

A request names a text, a topic and two conditions in IFEval's terms (Zhou et al. 2023), which the shipped judge
`instructions` reads from the prompt's `meta`. All wording is ours. Splits never coincide: a hash of the request decides.
"""

import hashlib
import random
from collections.abc import Callable
from typing import Any

from selfplay.records import Message, Prompt

TEXTS = (
    "a short note",
    "a product description",
    "a diary entry",
    "a piece of advice",
    "an explanation for a child",
    "an announcement",
    "a list of tips",
    "a polite complaint",
    "a short speech",
    "an invitation",
    "a news item",
    "a recipe",
)
TOPICS = (
    "growing tomatoes",
    "a lost umbrella",
    "learning to swim",
    "the night train",
    "a broken printer",
    "feeding birds in winter",
    "moving to a new town",
    "a chess club",
    "saving water",
    "an old bicycle",
    "choosing a book",
    "a neighbour's dog",
    "baking bread",
    "a rainy holiday",
    "first aid",
    "repairing a chair",
    "a school play",
    "watching the stars",
    "a long queue",
    "making tea",
    "a surprise party",
    "walking to work",
    "a village market",
    "cleaning windows",
)
WORDS = ("careful", "window", "seven", "promise", "green", "morning", "quiet", "bridge", "paper", "together")
ENDINGS = ("That is all.", "Thank you for reading.", "See you soon.", "Any questions?")

Condition = tuple[str, dict[str, Any], str]


def _keywords(generator: random.Random) -> Condition:
    chosen = generator.sample(WORDS, 2)
    return "keywords:existence", {"keywords": chosen}, f"Use the words {chosen[0]} and {chosen[1]}."


def _forbidden(generator: random.Random) -> Condition:
    chosen = generator.sample(("the", "very", "good", "and", "is"), 2)
    return "keywords:forbidden_words", {"forbidden_words": chosen}, f"Do not use the words {chosen[0]} or {chosen[1]}."


def _fewer_words(generator: random.Random) -> Condition:
    bound = generator.choice((30, 50, 80))
    return (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": bound},
        f"Use fewer than {bound} words.",
    )


def _sentences(generator: random.Random) -> Condition:
    bound = generator.choice((3, 4, 5))
    return (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": bound},
        f"Write at least {bound} sentences.",
    )


def _bullets(generator: random.Random) -> Condition:
    count = generator.choice((2, 3, 4))
    return (
        "detectable_format:number_bullet_lists",
        {"num_bullets": count},
        f"Have exactly {count} bullet points, each begun with *.",
    )


def _ending(generator: random.Random) -> Condition:
    phrase = generator.choice(ENDINGS)
    return "startend:end_checker", {"end_phrase": phrase}, f'End with exactly these words: "{phrase}"'


CONDITIONS: tuple[Callable[[random.Random], Condition], ...] = (
    _keywords,
    _forbidden,
    _fewer_words,
    _sentences,
    _bullets,
    _ending,
    lambda generator: ("punctuation:no_comma", {}, "Do not use any commas."),
    lambda generator: ("detectable_format:title", {}, "Give it a title in double angular brackets, such as <<title>>."),
    lambda generator: ("change_case:english_lowercase", {}, "Use lowercase letters only."),
    lambda generator: ("startend:quotation", {}, "Put the whole answer in double quotation marks."),
)
CLASHES = (
    {"change_case:english_lowercase", "startend:end_checker"},
    {"startend:quotation", "startend:end_checker"},
    {"length_constraints:number_words", "length_constraints:number_sentences"},
)


def draw(generator: random.Random) -> Prompt:
    """Return one request with two conditions that can be met together."""
    while True:
        first, second = (make(generator) for make in generator.sample(CONDITIONS, 2))
        if {first[0], second[0]} not in CLASHES:
            break
    text = f"Write {generator.choice(TEXTS)} about {generator.choice(TOPICS)}. {first[2]} {second[2]}"
    identifier = hashlib.sha256(text.encode()).hexdigest()[:16]
    meta = {"instruction_id_list": [first[0], second[0]], "kwargs": [first[1], second[1]]}
    return Prompt(id=identifier, messages=(Message(role="user", content=text),), meta=meta)


def split_of(prompt: Prompt) -> str:
    """`heldout` for about one request in eight, by its hash, else `train`."""
    return "heldout" if int(prompt.id[:2], 16) < 32 else "train"


def prompts(split: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` different requests of a split. Raises ValueError for a split other than `train` and `heldout`."""
    if split not in ("train", "heldout"):
        raise ValueError(f"the built-in instructions have the splits 'train' and 'heldout', not {split!r}")
    generator = random.Random(f"instructions/{split}/{seed}")
    found: dict[str, Prompt] = {}
    while len(found) < count:
        prompt = draw(generator)
        if split_of(prompt) == split:
            found[prompt.id] = prompt
    return list(found.values())
