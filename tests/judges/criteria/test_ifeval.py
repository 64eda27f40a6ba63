"""Every checkable instruction, met and not met, and the names in IFEval's own file."""

import json
from pathlib import Path
from typing import Any

import pytest

from judges.criteria.ifeval import CHECKS, OURS, followed, sentences, verdicts_on
from judges.criteria.ifeval_figures import (
    FIGURES,
    counts_of,
    differences_of,
    figures_of,
    has_conditions,
    reference_reading,
    strict_and_loose,
    versions_of,
)
from judges.criteria.languages import LANGUAGES, is_language
from selfplay.records import Prompt

REFERENCE = Path(__file__).parents[2] / "data" / "ifeval_reference.jsonl"
"""Made-up responses to made-up constraints, and what the reference implementation says of each: strictly, and loosely."""
IFEVAL = Path(__file__).parents[4] / "shared" / "data" / "prompts" / "ifeval.jsonl"

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["kite", "bell"]}, "A KITE and a bell.", "A kite."),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "A rocket.", "A Rock!"),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "at least"}, "War and warm.", "War."),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "less than"}, "War.", "War, war."),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "at least"}, "Oh! No!", "Oh!"),
    (
        "keywords:letter_frequency",
        {"letter": "t", "let_frequency": 1, "let_relation": "less than"},
        "Oh no.",
        "The end.",
    ),
    ("language:response_language", {"language": "de"}, "Das ist nicht der Hund von mir.", "This is not the dog."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "One two three", "One two"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "One. Two!",
        "It costs 1.50 in all.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First, this.\n\nThen that.",
        "First, this.\n\nLater that.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yours.\nP.S. More.", "PS: more."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "So:\n* one\n- two", "* one\n* two\n* three"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\nx\nSECTION 2\ny",
        "SECTION 1\nx",
    ),
    ("detectable_format:title", {}, "<<On kites>>\nText", "<< >>\nText"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "My answer is perhaps."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "Say hi.\nHi!", "Hi! You said: say hi."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("change_case:english_capital", {}, "THIS IS LOUD.", "THIS Is LOUD."),
    ("change_case:english_lowercase", {}, "this is quiet.", "This is quiet."),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "NASA and ESA",
        "NASA",
    ),
    ("punctuation:no_comma", {}, "One and two.", "One, two."),
    ("startend:end_checker", {"end_phrase": "Goodbye."}, "So long. goodbye.", "Goodbye. So long."),
    ("startend:quotation", {}, '"So it is."', '"So" it is.'),
]


@pytest.mark.parametrize(("name", "given", "meets", "fails"), CASES)
def test_a_constraint_is_met_or_not(name: str, given: dict[str, Any], meets: str, fails: str) -> None:
    assert CHECKS[name](meets, given, OURS) is True
    assert CHECKS[name](fails, given, OURS) is False


def test_the_cases_cover_all_constraints() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_the_score_is_the_share_of_constraints_met() -> None:
    prompt = Prompt.plain(
        "p",
        "?",
        instruction_id_list=["punctuation:no_comma", "startend:end_checker", "change_case:english_lowercase"],
        kwargs=[{}, {"end_phrase": "bye"}, {}],
    )
    assert followed(prompt, "that is it, bye") == pytest.approx(2 / 3, abs=1e-12)
    assert followed(prompt, " ") == 0.0  # nothing said meets nothing, even "no comma"
    with pytest.raises(ValueError, match="the constraint 'no:such' is not known"):
        followed(Prompt.plain("p", "?", instruction_id_list=["no:such"], kwargs=[{}]), "x")


def reference_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in REFERENCE.read_text(encoding="utf-8").splitlines()]


def asked(row: dict[str, Any]) -> Prompt:
    return Prompt.plain("p", "?", instruction_id_list=row["instruction_id_list"], kwargs=row["kwargs"])


def test_every_verdict_is_the_reference_implementations() -> None:
    rows = reference_rows()
    assert {name for row in rows for name in row["instruction_id_list"]} == set(CHECKS) and len(rows) > 150
    for row in rows:
        strict, loose = strict_and_loose(asked(row), row["response"], reference_reading())
        assert (strict, loose) == (row["strict"], row["loose"]), row


def test_verdicts_of_our_own_differ_in_language_sentences_and_capitals_alone() -> None:
    read = {"language:response_language", "length_constraints:number_sentences", "change_case:capital_word_frequency",
            "change_case:english_capital", "change_case:english_lowercase"}  # fmt: skip
    for row in reference_rows():
        ours = verdicts_on(asked(row), row["response"], OURS)
        both = zip(row["instruction_id_list"], ours, row["strict"], strict=True)
        assert all(mine == theirs for name, mine, theirs in both if name not in read), row


def test_the_loose_versions_of_a_response() -> None:
    """The first line, the last and both are left out, each with asterisks and without."""
    assert versions_of("a\n*b*\nc") == ["a\n*b*\nc", "a\nb\nc", "*b*\nc", "a\n*b*", "*b*", "b\nc", "a\nb", "b"]


def test_the_four_figures_and_their_differences() -> None:
    """Three prompts with 2, 1 and 1 constraints. Strict: 1 of 2, 1 of 1, 0 of 1. Loose: the third without its last line too."""
    comma, quoted = "punctuation:no_comma", "startend:quotation"
    prompts = [
        Prompt.plain(str(number), "?", instruction_id_list=names, kwargs=[{}] * len(names))
        for number, names in enumerate(([comma, quoted], [comma], [comma]))
    ]
    assert has_conditions(prompts) and not has_conditions([*prompts, Prompt.plain("x", "?")])
    counts = counts_of(prompts, ["No quotes", "None", "Nothing\nbut, this"], OURS)
    assert counts.tolist() == [[0, 1, 0, 1, 1, 2], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    found = figures_of(counts)
    assert {name: found[name].share for name in FIGURES} == {
        "prompt_strict": pytest.approx(1 / 3),
        "instruction_strict": pytest.approx(2 / 4),
        "prompt_loose": pytest.approx(2 / 3),
        "instruction_loose": pytest.approx(3 / 4),
    }
    assert found["prompt_strict"].n == 3 and found["instruction_loose"].n == 4
    assert all(one.low <= one.share <= one.high for one in found.values())
    better = counts_of(prompts, ['"Quotes"', "None", "Nothing"], OURS)
    apart = differences_of(better, counts)
    assert apart["prompt_strict"].share == pytest.approx(2 / 3) and apart["instruction_strict"].share == pytest.approx(
        2 / 4
    )
    assert all(one.low <= one.share <= one.high for one in apart.values())


SHORT_ENGLISH = (
    "feed birds daily.", "water plants every morning.", "bring warm clothes tonight.", "buy two tickets.", "swim slowly",
    "dear neighbour, please keep dogs inside.", "mix flour, salt, water. bake slowly.", "he was very happy.",
    "then, something unexpected happened.", "they became good friends.", "look what i found!", "tickets cost five pounds.",
    "come early, stay late.", "she asked what happened.", "birds need fresh water.", "choose books you love.",
)  # fmt: skip
SHORT_OTHERS = (
    "hunde bellen laut.", "bitte morgen früh anrufen.", "vögel fressen gern körner.", "les chiens aboient fort.",
    "le chat dort encore.", "los perros ladran fuerte.", "traiga ropa abrigada.", "i cani abbaiano forte.",
    "os cachorros latem alto.", "honden blaffen hard.", "koirat haukkuvat kovaa.", "hundar skäller högt.",
    "psy szczekają głośno.", "bugün yağmur yağıyor.", "mbwa hubweka kwa sauti.",
)  # fmt: skip


def test_short_texts_are_told_apart_without_function_words() -> None:
    assert [text for text in SHORT_ENGLISH if not is_language(text, "en")] == []
    assert [text for text in SHORT_OTHERS if is_language(text, "en")] == []


def test_sentences_are_counted_as_people_would() -> None:
    assert len(sentences('He said "Stop!" Then he left. Did he? Yes... 3.5 miles.')) == 5


@pytest.mark.skipif(not IFEVAL.exists(), reason="needs ../shared/data, which is not here")
def test_every_row_of_ifeval_can_be_checked() -> None:
    rows = [json.loads(line) for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 541
    for row in rows:
        kwargs = [{key: value for key, value in given.items() if value is not None} for given in row["kwargs"]]
        prompt = Prompt.plain(
            str(row["key"]), row["prompt"], instruction_id_list=row["instruction_id_list"], kwargs=kwargs
        )
        assert 0 <= followed(prompt, "This is, in short, my answer.") <= 1
        assert set(row["instruction_id_list"]) <= set(CHECKS)


SAMPLES = {
    "en": "The dog is in the house with you.",
    "de": "Der Hund ist nicht auf dem Dach und das ist gut.",
    "fr": "Le chien est dans la maison et il ne dort pas.",
    "es": "El perro es de la casa y los niños juegan con una pelota.",
    "it": "Il cane non è nella casa, ma gli amici sono con lui per giocare.",
    "pt": "O cão não está em casa, mas os meninos são mais altos do que uma árvore.",
    "fi": "Koira on talossa ja se ei ole iso, mutta hän oli siellä myös.",
    "vi": "Con chó này là của một người và nó không được ở trong nhà.",
    "sw": "Mbwa ni mkubwa na watu wa kijiji wana furaha sana kwa sababu hii.",
    "ru": "Это не дом, но я был в городе, и он как новый.",
    "bg": "Това е къща и ще се види, че са тук от вчера.",
    "ar": "هذا هو البيت في المدينة من هذه السنة.",
    "fa": "این کتاب را که در خانه است به من بده.",
    "ur": "یہ کتاب میں نے پڑھی ہے اور یہ اچھی ہے۔",
    "hi": "यह किताब बहुत अच्छी है और मैं इसे पढ़ता हूँ।",
    "mr": "हे पुस्तक चांगले आहे आणि ते घरी आहेत.",
    "ne": "यो किताब राम्रो छ र म पनि पढ्न चाहन्छु।",
    "ko": "이 책은 아주 좋습니다.",
    "ja": "この本はとても良いです。",
    "zh": "这本书很好。",
    "th": "หนังสือเล่มนี้ดีมาก",
    "bn": "এই বইটি খুব ভালো।",
    "pa": "ਇਹ ਕਿਤਾਬ ਬਹੁਤ ਚੰਗੀ ਹੈ।",
    "gu": "આ પુસ્તક ખૂબ સારું છે.",
    "ta": "இந்த புத்தகம் நன்றாக உள்ளது.",
    "te": "ఈ పుస్తకం చాలా బాగుంది.",
    "kn": "ಈ ಪುಸ್ತಕ ಚೆನ್ನಾಗಿದೆ.",
}


@pytest.mark.parametrize("code", sorted(SAMPLES))
def test_a_language_is_told_from_all_others(code: str) -> None:
    assert [other for other in sorted(SAMPLES) if is_language(SAMPLES[code], other)] == [code]


def test_a_language_that_cannot_be_checked_says_so() -> None:
    with pytest.raises(ValueError, match="the language 'tlh' cannot be checked"):
        is_language("nuqneH", "tlh")
    assert "en" in LANGUAGES and not is_language("", "en") and not is_language("12 + 4", "en")
