"""The built-in stories: splits that never meet, wishes that are met as often as the author cares, the same for a seed."""

import random
import re
from dataclasses import asdict

import pytest

from judges.criteria.stories import names_animal, names_place
from prompts.stories import (
    ANIMALS,
    END,
    PLACES,
    THINGS,
    TRAITS,
    Wishes,
    demonstrations,
    documents,
    prompts,
    tell,
    wishes_of_split,
)

WISHES = Wishes("shy", "fox", "lake", "kite", "bell")


def test_an_instruction_names_every_wish_and_carries_them_as_meta() -> None:
    prompt = WISHES.prompt()
    assert prompt.text == "Tell a story about a shy fox at the lake. Use the words kite and bell."
    assert (prompt.id, prompt.meta) == ("shy-fox-lake-kite-bell", asdict(WISHES))


def test_splits_never_share_a_prompt_whatever_the_seeds() -> None:
    train = {prompt.text for seed in range(3) for prompt in prompts("train", 3000, seed)}
    heldout = {prompt.text for seed in range(3) for prompt in prompts("heldout", 500, seed)}
    assert len(heldout) > 1400 and not train & heldout


def test_one_combination_in_eight_is_held_out() -> None:
    generator = random.Random(0)
    drawn = [
        Wishes(
            generator.choice(TRAITS), generator.choice(ANIMALS), generator.choice(PLACES), *generator.sample(THINGS, 2)
        )
        for _ in range(4000)
    ]
    # Binomial(4000, 1/8): 500 on average, deviation sqrt(4000 * 7 / 64) = 20.9; four deviations are 84.
    assert 416 < sum(wishes.split == "heldout" for wishes in drawn) < 584


def test_prompts_are_different_and_follow_from_the_seed() -> None:
    found = prompts("train", 500, 4)
    assert len({prompt.id for prompt in found}) == 500
    assert prompts("train", 500, 4) == found and prompts("train", 10, 4) == found[:10]
    assert not set(map(str, prompts("train", 50, 5))) & set(map(str, found[:50]))
    with pytest.raises(ValueError, match="'train' and 'heldout', not 'test'"):
        prompts("test", 1)


def test_a_careful_author_meets_every_wish_and_a_careless_one_hardly_any() -> None:
    generator = random.Random(1)
    careful = [tell(WISHES, 1.0, generator) for _ in range(200)]
    careless = [tell(WISHES, 0.0, generator) for _ in range(200)]
    prompt = WISHES.prompt()
    for text in careful:
        assert names_animal(prompt, text) == names_place(prompt, text) == 1.0
        assert "kite" in text and "bell" in text
    # By chance a careless author names 1 animal in 16 and 1 place in 12: of 200, 12.5 and 16.7 on average.
    assert sum(names_animal(prompt, text) > 0 for text in careless) < 30
    assert sum(names_place(prompt, text) > 0 for text in careless) < 35
    ended = sum(text.endswith(END) for text in [*careful, *careless])
    assert 140 < ended < 260, "one in two of 400 has an ending, whoever tells it"


def test_stories_are_sentences_with_nothing_left_open() -> None:
    generator = random.Random(2)
    for wishes, care in zip(wishes_of_split("train", 0), [0.0, 0.5, 1.0] * 40, strict=False):
        text = tell(wishes, care, generator)
        assert "{" not in text and re.fullmatch(r"(?:[A-Z][A-Za-z, ]*\. )*[A-Z][A-Za-z, ]*\.", text), text
        assert len(text.split()) <= 90


def test_documents_are_of_the_training_split_and_say_first_what_they_are_about() -> None:
    texts = documents(300, 3)
    assert len(texts) == 300 and documents(300, 3) == texts and documents(5, 4) != texts[:5]
    pattern = re.compile(r"This is a story about a (\w+) (\w+) at the (\w+)\. It has the words (\w+) and (\w+)\.\n(.+)")
    for text in texts:
        match = pattern.fullmatch(text)
        assert match is not None, text
        *words, story = match.groups()
        wishes = Wishes(*words)
        assert wishes.split == "train"
        assert all(word in story for word in words), "the corpus is by careful authors"


def test_demonstrations_are_of_mixed_quality_and_of_the_training_split() -> None:
    found = demonstrations(600, 0)
    assert demonstrations(600, 0) == found and len({prompt.id for prompt, _ in found}) == 600
    assert all(Wishes(**prompt.meta).split == "train" for prompt, _ in found)
    # Half are careful (0.9), half sloppy (0.1): places are met with (0.9 + 0.1) / 2 plus 1/12 of the rest: 0.54.
    met = sum(names_place(prompt, text) for prompt, text in found) / 600
    assert 0.46 < met < 0.62


def test_demonstrations_are_not_the_prompts_that_are_trained_on() -> None:
    """The same combination may come up by chance, one in two million; a shared stream would repeat them all."""
    shared = {prompt.id for prompt, _ in demonstrations(1000, 0)} & {prompt.id for prompt in prompts("train", 1000, 0)}
    assert len(shared) < 5
