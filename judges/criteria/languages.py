"""Whether a text is in a language, by its script and, among languages of one script, by its letters: right on short texts too.

Which of the languages of a script makes a text likeliest is said by naive Bayes over runs of one to three letters, with the
frequencies that the package `langdetect` ships (from Wikipedia). Unlike `langdetect` itself it draws nothing at random. A
language that is not in the table cannot be checked, which is an error and not a verdict.
"""

import functools
import json
import math
import re
from collections import Counter
from importlib import resources

SCRIPTS = {
    "latin": "A-Za-zÀ-ɏḀ-ỿ",
    "cyrillic": "Ѐ-ӿ",
    "greek": "Ͱ-Ͽ",
    "hebrew": "֐-׿",
    "arabic": "؀-ۿݐ-ݿ",
    "devanagari": "ऀ-ॿ",
    "bengali": "ঀ-৿",
    "gurmukhi": "਀-੿",
    "gujarati": "઀-૿",
    "tamil": "஀-௿",
    "telugu": "ఀ-౿",
    "kannada": "ಀ-೿",
    "malayalam": "ഀ-ൿ",
    "thai": "฀-๿",
    "hangul": "가-힯ᄀ-ᇿ",
    "kana": "぀-ヿ",
    "han": "一-鿿",
}
LANGUAGES = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "fi", "sv", "vi", "sw", "tr", "pl"), "latin"),
    **dict.fromkeys(("ru", "bg", "uk"), "cyrillic"),
    **dict.fromkeys(("ar", "fa", "ur"), "arabic"),
    **dict.fromkeys(("hi", "mr", "ne"), "devanagari"),
    "ko": "hangul",
    "ja": "kana",
    "zh": "han",
    "th": "thai",
    "el": "greek",
    "he": "hebrew",
    "bn": "bengali",
    "pa": "gurmukhi",
    "gu": "gujarati",
    "ta": "tamil",
    "te": "telugu",
    "kn": "kannada",
    "ml": "malayalam",
}
"""Language -> the script that it is written in."""
UNSEEN = 1e-5
"""Added to each frequency, for runs of letters that a language's profile does not have."""
BENEFIT = 4.0
"""Nats by which another language has to be likelier than the one that was asked for."""


def is_language(text: str, code: str) -> bool:
    """Return whether most of a text's letters are of the language's script, and no other language of that script is likelier.

    Raises ValueError for a language that cannot be checked.
    """
    if code not in LANGUAGES:
        raise ValueError(f"the language {code!r} cannot be checked; these can: {', '.join(sorted(LANGUAGES))}")
    script = LANGUAGES[code]
    letters = {name: len(re.findall(f"[{span}]", text)) for name, span in SCRIPTS.items()}
    if script == "kana":  # Japanese is written with Chinese characters too
        letters["kana"] += letters["han"] * bool(letters["kana"])
    if not letters[script] or letters[script] < max(letters.values()):
        return False
    rivals = [name for name, written_in in LANGUAGES.items() if written_in == script and name != code]
    if not rivals:
        return True
    runs = Counter(runs_of(text))
    return loglikelihood(runs, code) + BENEFIT >= max(loglikelihood(runs, rival) for rival in rivals)


def runs_of(text: str) -> list[str]:
    """Return the runs of one to three letters in a text's words, in lower case; a blank stands for a word's edge."""
    words = [f" {word} " for word in re.findall(r"[^\W\d_]+", text.lower())]
    pieces = [
        word[start : start + size] for word in words for size in (1, 2, 3) for start in range(len(word) - size + 1)
    ]
    return [piece for piece in pieces if piece != " "]


def loglikelihood(runs: Counter[str], code: str) -> float:
    """Return the log-likelihood of runs of letters in a language, in nats."""
    logs, unseen = profile(code)
    return sum(count * logs.get(run, unseen) for run, count in runs.items())


@functools.cache
def profile(code: str) -> tuple[dict[str, float], float]:
    """Return a language's runs of letters with the logarithm of their share among runs of their length, and that of any other."""
    file = resources.files("langdetect") / "profiles" / code
    known = json.loads(file.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    for run, count in known["freq"].items():
        if len(run.lower()) == len(run):  # unlike Turkish İ
            counts[run.lower()] += count
    logs = {run: math.log(count / known["n_words"][len(run) - 1] + UNSEEN) for run, count in counts.items()}
    return logs, math.log(UNSEEN)
