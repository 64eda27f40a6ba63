"""Instructions that a program can check, under the names of IFEval (Zhou et al. 2023, 2311.07911).

A row's meta holds `instruction_id_list` and, for each of them, its arguments in `kwargs`, as in IFEval's own file. The
checks are ours, written from the instructions' descriptions; where IFEval's differ, a verdict may. Left out: IFEval's
loose mode, which forgives a first or last line.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from judges.criteria.languages import is_language
from selfplay.records import Prompt

Arguments = Mapping[str, Any]


def followed(prompt: Prompt, response: str) -> float:
    """Share of the prompt's constraints that the response meets. Raises ValueError for one that cannot be checked."""
    names, arguments = prompt.meta["instruction_id_list"], prompt.meta["kwargs"]
    if not names or len(names) != len(arguments):
        raise ValueError(f"{len(names)} constraints and {len(arguments)} sets of arguments")
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise ValueError(f"the constraint {unknown[0]!r} is not known")
    return sum(
        bool(response.strip()) and CHECKS[name](response, given) for name, given in zip(names, arguments, strict=True)
    ) / len(names)


def relation_holds(count: int, relation: str, bound: int) -> bool:
    """`at least` or `less than` a bound."""
    return count >= bound if relation == "at least" else count < bound


def words(text: str) -> list[str]:
    """Return the runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Return what ends in a full stop, question or exclamation mark before a space, a quote or the end."""
    return [part for part in re.split(r"""[.!?]+["')\]]*(?=\s|$)""", text) if words(part)]


def has_keyword(response: str, keyword: str, whole: bool = False) -> bool:
    """Return whether a keyword occurs, in any case; `whole` as a word of its own."""
    pattern = rf"\b{re.escape(keyword)}\b" if whole else re.escape(keyword)
    return re.search(pattern, response, re.IGNORECASE) is not None


def letter_frequency(response: str, given: Arguments) -> bool:
    """Return whether a letter occurs often enough, in any case."""
    return relation_holds(
        response.lower().count(given["letter"].lower()), given["let_relation"], given["let_frequency"]
    )


def keyword_frequency(response: str, given: Arguments) -> bool:
    """Return whether a keyword occurs often enough, in any case."""
    found = re.findall(re.escape(given["keyword"]), response, re.IGNORECASE)
    return relation_holds(len(found), given["relation"], given["frequency"])


def capital_words(response: str, given: Arguments) -> bool:
    """Return whether enough words are in capitals throughout."""
    count = sum(word.isupper() for word in words(response))
    return relation_holds(count, given["capital_relation"], given["capital_frequency"])


def number_paragraphs(response: str, given: Arguments) -> bool:
    """Exactly so many paragraphs, divided by `***`."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    return len([part for part in parts if part]) == given["num_paragraphs"] and all(parts[1:-1])


def nth_paragraph_first_word(response: str, given: Arguments) -> bool:
    """Exactly so many paragraphs, divided by empty lines, of which the n-th begins with a certain word."""
    parts = [part for part in re.split(r"\n\s*\n", response) if part.strip()]
    if len(parts) != given["num_paragraphs"]:
        return False
    opening = words(parts[given["nth_paragraph"] - 1])
    return bool(opening) and opening[0].lower() == given["first_word"].lower()


def two_responses(response: str, given: Arguments) -> bool:
    """Return whether there are two different answers, divided by six asterisks."""
    parts = [part.strip() for part in response.split("******") if part.strip()]
    return len(parts) == 2 and parts[0] != parts[1]


def postscript(response: str, given: Arguments) -> bool:
    """Return whether a line begins with the marker, behind some text."""
    marker = r"\s?".join(re.escape(letter) for letter in given["postscript_marker"].replace(" ", ""))
    return re.search(rf"\S.*\n\s*{marker}", response, re.IGNORECASE | re.DOTALL) is not None


def is_json(response: str, given: Arguments) -> bool:
    """Return whether the whole answer is JSON, bare or in a code fence."""
    body = re.sub(r"\A```(?:json)?\s*\n?|\n?```\Z", "", response.strip(), flags=re.IGNORECASE)
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def ends_with(response: str, given: Arguments) -> bool:
    """Return whether these are the very last words."""
    return response.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def repeats_prompt(response: str, given: Arguments) -> bool:
    """Return whether the answer begins with the request, word for word."""
    return response.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def highlights(response: str, given: Arguments) -> bool:
    """At least so many passages *between asterisks*."""
    found = re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", response)
    return sum(bool(passage.strip("* ")) for passage in found) >= given["num_highlights"]


def sections(response: str, given: Arguments) -> bool:
    """At least so many sections, each begun by the word and a number."""
    return len(re.findall(rf"{re.escape(given['section_spliter'])}\s?\d+", response)) >= given["num_sections"]


def bullets(response: str, given: Arguments) -> bool:
    """Exactly so many lines that begin with `*` or `-`."""
    return len(re.findall(r"^\s*(?:\*(?!\*)|-(?!-))\s*\S", response, re.MULTILINE)) == given["num_bullets"]


CHECKS: dict[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda text, given: all(has_keyword(text, word) for word in given["keywords"]),
    "keywords:forbidden_words": lambda text, given: (
        not any(has_keyword(text, word, True) for word in given["forbidden_words"])
    ),
    "keywords:frequency": keyword_frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": lambda text, given: is_language(text, given["language"]),
    "length_constraints:number_words": lambda text, given: relation_holds(
        len(words(text)), given["relation"], given["num_words"]
    ),
    "length_constraints:number_sentences": lambda text, given: relation_holds(
        len(sentences(text)), given["relation"], given["num_sentences"]
    ),
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": lambda text, given: (
        len(re.findall(r"\[[^\[\]\n]+\]", text)) >= given["num_placeholders"]
    ),
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullets,
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": sections,
    "detectable_format:title": lambda text, given: re.search(r"<<[^<>\n]*[^<>\s][^<>\n]*>>", text) is not None,
    "detectable_format:json_format": is_json,
    "detectable_format:constrained_response": lambda text, given: (
        re.search(r"\bMy answer is (?:yes|no|maybe)\.", text) is not None
    ),
    "combination:repeat_prompt": repeats_prompt,
    "combination:two_responses": two_responses,
    "change_case:english_capital": lambda text, given: text.isupper() and is_language(text, "en"),
    "change_case:english_lowercase": lambda text, given: text.islower() and is_language(text, "en"),
    "change_case:capital_word_frequency": capital_words,
    "punctuation:no_comma": lambda text, given: not re.search("[,،，、]", text),
    "startend:end_checker": ends_with,
    "startend:quotation": lambda text, given: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
}
