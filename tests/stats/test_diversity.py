"""Diversity measures against counts done by hand."""

import pytest

from selfplay.stats.diversity import distinct_n, ngrams, self_similarity, similarity, unique_share, words


def test_words_ignore_case_and_marks():
    assert words("The fox's kite, the KITE!") == ["the", "fox's", "kite", "the", "kite"]
    assert ngrams("a b c", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("a", 2) == []


def test_distinct_n_by_hand():
    # Words: a b a | a b -> 5, of which a, b differ: 2/5. Bigrams: ab ba | ab -> 3, of which 2 differ.
    assert distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5, abs=1e-12)
    assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3, abs=1e-12)
    assert distinct_n(["a", ""], 2) is None


def test_unique_share_by_hand():
    assert unique_share(["x", " x ", "y", "z"]) == pytest.approx(3 / 4, abs=1e-12)
    assert unique_share([]) is None


def test_similarity_by_hand():
    # Bigrams ab bc cd and ab bc ce share two: 2 * 2 / (3 + 3).
    assert similarity("a b c d", "a b c e") == pytest.approx(2 / 3, abs=1e-12)
    # Repeats count: aa aa (of "a a a") and aa share one: 2 * 1 / 3.
    assert similarity("a a a", "a a") == pytest.approx(2 / 3, abs=1e-12)
    assert similarity("one", "one") == 1.0
    assert similarity("one", "two") == 0.0


def test_self_similarity_is_a_mean_over_prompts_of_means_over_pairs():
    # First prompt: pairs 1, 0, 0 -> 1/3; second: 2/3; the third has one answer only. Mean 1/2.
    groups = [["a b", "a b", "c d"], ["a b c d", "a b c e"], ["alone here"]]
    assert self_similarity(groups) == pytest.approx(0.5, abs=1e-12)
    assert self_similarity([["x"]]) is None
