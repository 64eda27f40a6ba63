"""Instructions that a program can check, under the names of IFEval (Zhou et al. 2023, 2311.07911).

A row's meta holds `instruction_id_list` and, for each of them, its arguments in `kwargs`, as in IFEval's own file. Each
check gives the verdict of the reference implementation (google-research/instruction_following_eval), its oddities included.
What that takes from packages (the language, sentences, words in capitals) is read by `Reading`: for a judge by rules of our
own, which are right on short texts and the same everywhere; for figures to be held against published ones as the reference
does (`judges.criteria.ifeval_figures`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judges.criteria.languages import is_language
from selfplay.records import Prompt

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """What checks ask about a text: whether it is in a language, how many sentences it has, how many words in capitals."""

    is_language: Callable[[str, str], bool]
    sentences: Callable[[str], int]
    capital_words: Callable[[str], int]


Check = Callable[[str, Arguments, Reading], bool]


def followed(prompt: Prompt, response: str) -> float:
    """Share of the prompt's constraints that the response meets. Raises ValueError for one that cannot be checked."""
    verdicts = verdicts_on(prompt, response, OURS)
    return sum(verdicts) / len(verdicts)


def verdicts_on(prompt: Prompt, response: str, reading: Reading) -> list[bool]:
    """Return for each of the prompt's constraints whether the response meets it; what is blank meets none.

    Raises ValueError for a constraint that cannot be checked.
    """
    names, arguments = constraints_of(prompt)
    return [
        bool(response.strip()) and CHECKS[name](response, given, reading)
        for name, given in zip(names, arguments, strict=True)
    ]


def constraints_of(prompt: Prompt) -> tuple[Sequence[str], Sequence[Arguments]]:
    """Return the names and the arguments of a prompt's constraints. Raises ValueError for what cannot be checked."""
    names, arguments = prompt.meta["instruction_id_list"], prompt.meta["kwargs"]
    if not names or len(names) != len(arguments):
        raise ValueError(f"{len(names)} constraints and {len(arguments)} sets of arguments")
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise ValueError(f"the constraint {unknown[0]!r} is not known")
    return names, [{key: value for key, value in given.items() if value is not None} for given in arguments]


def relation_holds(count: int, relation: str, bound: int) -> bool:
    """`at least` or `less than` a bound."""
    return count >= bound if relation == "at least" else count < bound


def words(text: str) -> list[str]:
    """Return the runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Return what ends in a full stop, question or exclamation mark before a space, a quote or the end."""
    return [part for part in re.split(r"""[.!?]+["')\]]*(?=\s|$)""", text) if words(part)]


OURS = Reading(
    is_language=is_language,
    sentences=lambda text: len(sentences(text)),
    capital_words=lambda text: sum(word.isupper() for word in words(text)),
)


def matches(pattern: str, text: str) -> list[str]:
    """Return where a keyword stands in a text, in any case. The reference reads keywords as regular expressions."""
    try:
        return [found[0] for found in re.finditer(pattern, text, re.IGNORECASE)]
    except re.error:
        return [found[0] for found in re.finditer(re.escape(pattern), text, re.IGNORECASE)]


def letter_frequency(response: str, given: Arguments, reading: Reading) -> bool:
    """Return whether a letter occurs often enough, in any case."""
    count = response.lower().count(given["letter"].strip().lower())
    return relation_holds(count, given["let_relation"], given["let_frequency"])


def number_paragraphs(response: str, given: Arguments, reading: Reading) -> bool:
    """Exactly so many paragraphs, divided by `***`, none of them empty but before the first or behind the last divider."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    count = len(parts) - (not parts[0]) - (len(parts) > 1 and not parts[-1])
    return all(parts[1:-1]) and count == given["num_paragraphs"]


def nth_paragraph_first_word(response: str, given: Arguments, reading: Reading) -> bool:
    """Exactly so many paragraphs, divided by two line ends, of which the n-th begins with a certain word.

    Empty ones do not count among so many, but do in counting to the n-th. The word ends at the first mark, and quotation
    marks before it are left out.
    """
    parts = response.split("\n\n")
    count, nth = sum(bool(part.strip()) for part in parts), given["nth_paragraph"]
    if nth > count or not parts[nth - 1].strip():
        return False
    opening = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    first = re.split(r"""[.,?!'"]""", opening)[0].lower()
    return count == given["num_paragraphs"] and first == given["first_word"].lower()


def two_responses(response: str, given: Arguments, reading: Reading) -> bool:
    """Return whether there are two different answers, divided by six asterisks."""
    parts = [part.strip() for part in response.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def postscript(response: str, given: Arguments, reading: Reading) -> bool:
    """Return whether the marker stands anywhere, in any case, with or without a blank between its letters."""
    marker = given["postscript_marker"].strip()
    return bool(matches(POSTSCRIPTS.get(marker, marker.lower()), response.lower()))


def is_json(response: str, given: Arguments, reading: Reading) -> bool:
    """Return whether the whole answer is JSON, bare or in a code fence."""
    body = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def ends_with(response: str, given: Arguments, reading: Reading) -> bool:
    """Return whether these are the very last words."""
    return response.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def repeats_prompt(response: str, given: Arguments, reading: Reading) -> bool:
    """Return whether the answer begins with the request, word for word."""
    return response.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def highlights(response: str, given: Arguments, reading: Reading) -> bool:
    """At least so many passages *between asterisks*, of one or of two."""
    single = [passage.strip("*") for passage in re.findall(r"\*[^\n*]*\*", response)]
    double = [passage[2:-2] for passage in re.findall(r"\*\*[^\n*]*\*\*", response)]
    return sum(bool(passage.strip()) for passage in single + double) >= given["num_highlights"]


def sections(response: str, given: Arguments, reading: Reading) -> bool:
    """At least so many sections, each begun by the word and a number."""
    return len(re.findall(rf"{given['section_spliter'].strip()}\s?\d+", response)) >= given["num_sections"]


def bullets(response: str, given: Arguments, reading: Reading) -> bool:
    """Exactly so many lines that begin with `-`, or with `*` but not `**`."""
    stars = re.findall(r"^\s*\*[^*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == given["num_bullets"]


def has_title(response: str, given: Arguments, reading: Reading) -> bool:
    """Return whether something stands <<between double angular brackets>>."""
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", response))


CHECKS: dict[str, Check] = {
    "keywords:existence": lambda text, given, _: all(matches(word, text) for word in given["keywords"]),
    "keywords:forbidden_words": lambda text, given, _: (
        not any(matches(rf"\b{word}\b", text) for word in given["forbidden_words"])
    ),
    "keywords:frequency": lambda text, given, _: relation_holds(
        len(matches(given["keyword"].strip(), text)), given["relation"], given["frequency"]
    ),
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": lambda text, given, reading: reading.is_language(text, given["language"]),
    "length_constraints:number_words": lambda text, given, _: relation_holds(
        len(words(text)), given["relation"], given["num_words"]
    ),
    "length_constraints:number_sentences": lambda text, given, reading: relation_holds(
        reading.sentences(text), given["relation"], given["num_sentences"]
    ),
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": lambda text, given, _: (
        len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]
    ),
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullets,
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": sections,
    "detectable_format:title": has_title,
    "detectable_format:json_format": is_json,
    "detectable_format:constrained_response": lambda text, given, _: any(
        f"My answer is {answer}." in text for answer in ("yes", "no", "maybe")
    ),
    "combination:repeat_prompt": repeats_prompt,
    "combination:two_responses": two_responses,
    "change_case:english_capital": lambda text, given, reading: text.isupper() and reading.is_language(text, "en"),
    "change_case:english_lowercase": lambda text, given, reading: text.islower() and reading.is_language(text, "en"),
    "change_case:capital_word_frequency": lambda text, given, reading: relation_holds(
        reading.capital_words(text), given["capital_relation"], given["capital_frequency"]
    ),
    "punctuation:no_comma": lambda text, given, _: "," not in text,
    "startend:end_checker": ends_with,
    "startend:quotation": lambda text, given, _: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
}
