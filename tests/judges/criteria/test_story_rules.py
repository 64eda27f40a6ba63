"""The rules for the built-in stories, one by one."""

from collections.abc import Callable

import pytest

from judges import build, load_spec
from judges.criteria.stories import (
    closes_well,
    ends,
    fitting_length,
    has_friend,
    names_animal,
    names_place,
    no_other_animal,
    repeats_nothing,
    uses_things,
)
from prompts.stories import Wishes
from selfplay.records import Completion, Prompt

PROMPT = Wishes("shy", "fox", "lake", "kite", "bell").prompt()
Rule = Callable[[Prompt, str], float]


@pytest.mark.parametrize(
    ("rule", "response", "points"),
    [
        (names_animal, "One day a shy FOX ran.", 1.0),
        (names_animal, "The fox was shy.", 0.5),
        (names_animal, "A brave fox and a shy owl.", 0.5),
        (names_animal, "A shy foxglove.", 0.0),
        (names_animal, "", 0.0),
        (no_other_animal, "A fox at the lake.", 1.0),
        (no_other_animal, "A fox and an Owl.", 0.0),
        (no_other_animal, "Nobody at all, doggedly.", 1.0),
        (names_place, "At the Lake, a fox.", 1.0),
        (names_place, "By the lakeside.", 0.0),
        # A third for each thing that is there, a sixth more for each that comes back.
        (uses_things, "A kite.", 1 / 3),
        (uses_things, "A kite and a kite.", 1 / 2),
        (uses_things, "A kite, a kite, a kite.", 1 / 2),
        (uses_things, "A kite and a bell.", 2 / 3),
        (uses_things, "A kite, a kite, a bell.", 5 / 6),
        (uses_things, "A bell: the bell! A kite: the kite!", 1.0),
        (uses_things, "Kites and bells.", 0.0),
        (ends, "It slept. The end.", 1.0),
        (ends, "It slept. The end. ", 1.0),
        (ends, "The end. The end.", 0.0),
        (ends, "The end. It slept.", 0.0),
        (ends, "It slept.", 0.0),
        (closes_well, "It ran. It was happy. The end.", 1.0),
        (closes_well, "It ran. They all laughed.", 1.0),
        (closes_well, "It was happy. It ran. The end.", 0.0),
        (closes_well, "", 0.0),
        (has_friend, "It showed it to a friend.", 1.0),
        (has_friend, "They were friendly.", 0.0),
        (repeats_nothing, "It ran. It sat.", 1.0),
        (repeats_nothing, "It ran. It sat. it ran!", 0.0),
        (repeats_nothing, " ", 0.0),
        (fitting_length, " ".join(["word"] * 19), 0.0),
        (fitting_length, " ".join(["word"] * 20), 1.0),
        (fitting_length, " ".join(["word"] * 75), 1.0),
        (fitting_length, " ".join(["word"] * 76), 0.0),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_rule(rule: Rule, response: str, points: float) -> None:
    assert rule(PROMPT, response) == pytest.approx(points, abs=1e-12)


def test_the_judge_adds_them_up() -> None:
    """The shipped weights: animal 2, other animals 1, place 2, things 3, end 2, closing, friend, repeats, length 1
    each."""
    spec = load_spec("stories")
    weights = {criterion.name: criterion.weight for criterion in spec.criteria}  # type: ignore[attr-defined]
    total = sum(weights.values())
    answer = Completion(
        id="c",
        prompt_id=PROMPT.id,
        finish_reason="stop",
        policy="test",
        text="A shy fox went to the lake. It found a kite. The end.",
    )
    # Met: animal, no other animal, place, a third of the things, ending, no repeats; not: closing, friend, length.
    met = (
        weights["animal"]
        + weights["no other animal"]
        + weights["place"]
        + weights["things"] / 3
        + weights["ending"]
        + weights["no repeats"]
    )
    assert build(spec).score([PROMPT], [answer]) == [pytest.approx(met / total, abs=1e-12)]  # type: ignore[attr-defined]
