"""The rows a judge is taught on, token by token, and how its heads begin."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from judges import load_spec
from judges.distill import RuleTeacher
from selfplay.config import Architecture, Judge, JudgeBootstrap, Optimisation, validate
from selfplay.errors import ConfigError
from selfplay.records import Completion, Pair, Prompt
from selfplay.stages.bootstrap import llama_config
from selfplay.stages.judge_model import lesson_rows, lesson_tokenizer, look_for_likes, pairs, places_of, taught

TEACHER = RuleTeacher(
    load_spec("stories"), [load_spec("stories-judge", "made"), load_spec("stories-judge-logprob", "made")]
)
LESSONS = list(islice(TEACHER.lessons(pairs("train", 0)), 600))
TOKENIZER = lesson_tokenizer(LESSONS, TEACHER.criteria, 1280)


def rows(first: str, second: str) -> list[dict[str, list[int]]]:
    """The rows of one pair in both orders, asked by stories-judge."""
    prompt = Prompt.plain(
        "p",
        "Tell a story about a shy fox at the lake. Use the words kite and bell.",
        trait="shy",
        animal="fox",
        place="lake",
        first_thing="kite",
        second_thing="bell",
    )
    told = [
        Completion(id=text, prompt_id="p", text=text, finish_reason="stop", policy="test") for text in (first, second)
    ]
    pair = Pair(id="p", prompt=prompt, first=told[0], second=told[1])
    return list(islice(lesson_rows(TOKENIZER, [*TEACHER.lessons([pair]), *LESSONS], TEACHER.criteria, 512), 2))


def hints(row: dict[str, list[int]]) -> list[tuple[str, str]]:
    """(token, what the model must say at it) wherever it must say something."""
    return [
        (TOKENIZER.decode([token]), TOKENIZER.decode([label]))
        for token, label in zip(row["input_ids"], [*row["labels"][1:], -100], strict=True)
        if label != -100
    ]


def test_a_row_holds_hints_at_responses_and_sheets_and_then_the_answer() -> None:
    row, _ = rows("A shy fox found a drum. A fox. The end.", "A bear. A bear.")
    # words: asked for and new 1, again 2, or not asked for 0 (the question's own fox does not count); a full stop: whether
    # this sentence stood there before
    story_a = [
        (" shy", " 1"),
        (" fox", " 1"),
        (" drum", " 0"),
        (".", " 0"),
        (" fox", " 2"),
        (".", " 0"),
        (" The end.", " 0"),
    ]
    story_b = [(" bear", " 0"), (".", " 0"), (" bear", " 0"), (".", " 1")]
    # animal 2 of 2, no other 1 of 1, neither place nor things, ending 2 of 2, repeats nothing 1 of 1, too short
    sheet_a = list(
        zip(
            [f" {name}" for name in TEACHER.criteria],
            [" 2", " 1", " 0", " 0", " 2", " 0", " 0", " 1", " 0"],
            strict=True,
        )
    )
    sheet_b = [(f" {name}", " 0") for name in TEACHER.criteria]
    found = hints(row)
    told = [*story_a, *sheet_a, *story_b, *sheet_b]
    assert found[: len(told)] == told
    behind = found[len(told) :]
    # behind the last sheet, up to the answer: who wins
    assert behind[:4] == [(".", "A"), ("\n", "A"), ("Who wins each, then [[A]] or [[B]].", "A"), ("<|end|>", "A")]
    assert "".join(label for _, label in behind[4:]) == (
        "animal A2 no other animal A1 place = things = ending A2 closing = friend = no repeats A1 length = [[A]]<|end|>"
    )


def test_the_other_order_has_the_other_sheet_and_verdict() -> None:
    _, row = rows("A shy fox found a drum. The end.", "A bear. A bear.")
    assert hints(row)[-24:-20] == [
        (".", "B"),
        ("\n", "B"),
        ("Who wins each, then [[A]] or [[B]].", "B"),
        ("<|end|>", "B"),
    ]
    assert "".join(label for _, label in hints(row)).endswith(
        "animal B2 no other animal B1 place = things = ending B2 closing = friend = no repeats B1 length = [[B]]<|end|>"
    )


def test_every_word_and_point_is_one_token_and_text_comes_back_as_it_was() -> None:
    for text in (" kite", " bell", " fox", " no other animal", " A2", " B0.5", " =", " 1.5", "A", "B"):
        assert len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == 1, text
    for lesson in LESSONS[:50]:
        for text in (lesson.messages[0].content, lesson.answer):
            assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text
    assert len(TOKENIZER) <= 1280 + 5
    assert len(TOKENIZER.tokenize(" It found a kite under a tree. It began to rain.")) == 4  # stock phrases are tokens


def test_a_question_beyond_the_context_is_left_out() -> None:
    assert list(lesson_rows(TOKENIZER, LESSONS[:1], TEACHER.criteria, 10)) == []


def test_a_sheet_is_where_all_criteria_stand_in_their_order() -> None:
    assert places_of([1, 2, 3], [7, 1, 2, 3, 9, 1, 2, 9, 1, 2, 3, 4]) == [1, 8]


def test_half_the_heads_of_the_lower_layers_begin_with_keys_like_queries() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        llama_config(Architecture(layers=4, hidden_size=32, heads=2, intermediate_size=32), TOKENIZER)
    )
    look_for_likes(model)
    alike = [
        [
            bool((layer.self_attn.q_proj.weight[rows] == layer.self_attn.k_proj.weight[rows]).all())
            for rows in (slice(0, 16), slice(16, 32))
        ]
        for layer in model.model.layers
    ]
    assert alike == [[True, False]] * 2 + [[False, False]] * 2


def test_labels_that_are_not_one_token_are_refused_before_any_training(tmp_path: Path) -> None:
    worded = load_spec("stories-judge-logprob", "made")
    words = worded.output.model_copy(update={"tokens": {"A": ("A", "alpha and no more"), "B": ("B",)}})
    teacher = RuleTeacher(load_spec("stories"), [worded.model_copy(update={"output": words})])
    with pytest.raises(ConfigError, match="the label 'alpha and no more' is"):
        taught(JudgeBootstrap(training=Optimisation(steps=2, batch_size=8)), teacher, tmp_path, 0)


def test_a_recipe_names_a_judge_s_model_or_makes_it() -> None:
    with pytest.raises(
        ConfigError, match="judge.bootstrap makes a model, and judge.model names 'x': remove one of them"
    ):
        validate(Judge, {"model": "x", "bootstrap": {}}, "judge")
