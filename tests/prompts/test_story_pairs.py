"""Pairs of stories to teach and to test judges with: reproducible, of one split, unlike, and of every kind."""

import random
import re
from itertools import islice

from prompts.stories import ANIMALS, Wishes, tell
from prompts.story_pairs import CHANGES, changed, double, drop, exchange, listed, move, sentences, story_pairs, unknown

WISHES = Wishes("shy", "fox", "lake", "kite", "bell")
STORY = "One day a shy fox went to the lake. It found a kite under a tree. The end."


def test_the_same_seed_gives_the_same_pairs_and_splits_share_no_prompt() -> None:
    train, heldout = list(islice(story_pairs("train", 3), 300)), list(islice(story_pairs("heldout", 3), 300))
    assert train == list(islice(story_pairs("train", 3), 300)) != list(islice(story_pairs("train", 4), 300))
    assert not {prompt.id for prompt, _, _ in train} & {prompt.id for prompt, _, _ in heldout}
    assert len({prompt.id for prompt, _, _ in train}) == 300
    assert all(first != second for _, first, second in train)


def test_about_half_are_two_versions_of_one_story_and_some_are_no_stories() -> None:
    rows = list(islice(story_pairs("train", 0), 1000))
    alike = sum(len(set(sentences(first)) & set(sentences(second))) >= 2 for _, first, second in rows)
    assert 400 < alike < 650
    texts = [text for _, first, second in rows for text in (first, second)]
    assert "" in texts and any(prompt.text in (first, second) for prompt, first, second in rows)
    assert (
        all("{" not in text for text in texts)
        and 30 < sum(bool(re.search(r"\b[b-df-hj-np-tv-z]{4,}\b", text)) for text in texts) < 600
    )


def test_what_each_change_does() -> None:
    generator = random.Random(0)
    assert {drop(STORY, WISHES, generator) for _ in range(30)} == {
        "It found a kite under a tree. The end.",
        "One day a shy fox went to the lake. The end.",
        "One day a shy fox went to the lake. It found a kite under a tree.",
    }
    doubled = [sentences(double(STORY, WISHES, generator)) for _ in range(10)]
    assert all(len(told) == 4 and set(told) == set(sentences(STORY)) for told in doubled)
    moved = [sentences(move(STORY, WISHES, generator)) for _ in range(10)]
    assert all(sorted(told) == sorted(sentences(STORY)) and told != sentences(STORY) for told in moved)
    animals = {word for _ in range(200) for word in ANIMALS if f" {word} " in exchange(STORY, WISHES, generator)}
    assert animals >= {"fox", "cat", "dog"}
    assert re.fullmatch(r"[A-Z][a-z ]+\.", unknown(generator))
    lists = [listed(generator) for _ in range(50)]
    assert all(re.fullmatch(r"(- [A-Z][a-z ]+\.\n?){3,12}|(\d+\. [A-Z][a-z ]+\.\n?){3,12}", text) for text in lists)
    assert {text[0] for text in lists} == {"-", "1"}


def test_no_change_breaks_on_an_empty_text_or_leaves_a_story_as_long_as_it_likes() -> None:
    generator = random.Random(1)
    for change in CHANGES:
        assert isinstance(change("", WISHES, generator), str)
    for number in range(200):
        story = tell(WISHES, number / 200, generator)
        assert len(changed(story, WISHES, generator, 3).split()) <= len(story.split()) + 3 * 12
    assert changed(STORY, WISHES, generator, 0) == STORY
