"""IFEval's four figures, counted as the reference implementation counts them (Zhou et al. 2023, 2311.07911).

Strict: the response as it is. Loose: any of eight versions of it, without its first line, its last, both, and each of these
without asterisks. Instruction level: the share of all constraints; prompt level: the share of prompts all of whose
constraints are met. Languages are detected by `langdetect`, which draws at random and gets a fixed seed here; sentences and
words by `nltk` with Punkt's English parameters, from the extra `ifeval`.
"""

import functools
import importlib.util
from collections.abc import Sequence

import numpy as np

from judges.criteria.ifeval import CHECKS, Reading, constraints_of
from selfplay.errors import ConfigError
from selfplay.records import Prompt, Record
from selfplay.stats.intervals import bootstrap_sums, constant_interval, percentile_interval

FIGURES = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
PACKAGES = ("nltk", "punkt")


class Figure(Record):
    """A share with its 95% interval over prompts, and of how many prompts or constraints it is."""

    share: float
    low: float
    high: float
    n: int


def has_conditions(prompts: Sequence[Prompt]) -> bool:
    """Return whether every prompt has constraints that can be checked."""
    return bool(prompts) and all(
        prompt.meta.get("instruction_id_list") and set(prompt.meta["instruction_id_list"]) <= set(CHECKS)
        for prompt in prompts
    )


@functools.cache
def reference_reading() -> Reading:
    """Return how the reference implementation reads languages, sentences and words. Raises ConfigError without its packages."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "IFEval's figures count sentences and words as the reference does, which needs packages that are not installed: "
            "pip install 'selfplay-loop[ifeval]'"
        )
    import langdetect
    import punkt
    from nltk.tokenize.destructive import NLTKWordTokenizer

    sentences = punkt.PunktSentenceTokenizer(punkt.load_model("english")).tokenize
    words = NLTKWordTokenizer().tokenize

    def is_language(text: str, code: str) -> bool:
        langdetect.DetectorFactory.seed = 0
        try:
            return str(langdetect.detect(text)) == code
        except langdetect.LangDetectException:  # no letters at all, which the reference lets pass
            return True

    return Reading(
        is_language=is_language,
        sentences=lambda text: len(list(sentences(text))),
        capital_words=lambda text: sum(word.isupper() for part in sentences(text) for word in words(part)),
    )


def versions_of(response: str) -> list[str]:
    """Return the response and what the loose figures forgive, in the reference's order."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [response, response.replace("*", ""), *cut, *(text.replace("*", "") for text in cut)]


def strict_and_loose(prompt: Prompt, response: str, reading: Reading) -> tuple[list[bool], list[bool]]:
    """Return for each constraint whether the response meets it, and whether any of its versions does."""
    names, arguments = constraints_of(prompt)

    def meets(name: str, given: object, text: str) -> bool:
        return bool(text.strip()) and CHECKS[name](text, given, reading)  # type: ignore[arg-type]

    asked = list(zip(names, arguments, strict=True))
    strict = [meets(name, given, response) for name, given in asked]
    others = versions_of(response)[1:]
    loose = [
        met or any(meets(name, given, text) for text in others)
        for met, (name, given) in zip(strict, asked, strict=True)
    ]
    return strict, loose


def counts_of(prompts: Sequence[Prompt], responses: Sequence[str], reading: Reading | None = None) -> np.ndarray:
    """Return one row per prompt, (n, 6): all met strictly, constraints met strictly, the same loosely, 1, and constraints."""
    reading = reading or reference_reading()
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        strict, loose = strict_and_loose(prompt, response, reading)
        rows.append([all(strict), sum(strict), all(loose), sum(loose), 1, len(strict)])
    return np.array(rows, dtype=np.float64)


def figures_of(counts: np.ndarray, resamples: int = 2000, seed: int = 0) -> dict[str, Figure]:
    """Return the four figures of `counts_of`, each with a percentile bootstrap over prompts."""
    samples = bootstrap_sums(counts, resamples, seed)
    found = {}
    for place, name in enumerate(FIGURES):
        unit = 4 if name.startswith("prompt") else 5
        share = float(counts[:, place].sum() / counts[:, unit].sum())
        low, high = (
            constant_interval(share, len(counts))
            if share in (0.0, 1.0)
            else map(float, percentile_interval(samples[:, place] / samples[:, unit]))
        )
        found[name] = Figure(share=share, low=low, high=high, n=int(counts[:, unit].sum()))
    return found


def differences_of(counts: np.ndarray, before: np.ndarray, resamples: int = 2000, seed: int = 0) -> dict[str, Figure]:
    """Return by how much each figure is above that of another checkpoint on the same prompts, resampled together."""
    samples = bootstrap_sums(np.hstack([counts, before]), resamples, seed)
    found = {}
    for place, name in enumerate(FIGURES):
        unit = 4 if name.startswith("prompt") else 5
        difference = float((counts[:, place].sum() - before[:, place].sum()) / counts[:, unit].sum())
        drawn = (samples[:, place] - samples[:, 6 + place]) / samples[:, unit]
        low, high = map(float, percentile_interval(drawn))
        found[name] = Figure(share=difference, low=low, high=high, n=int(counts[:, unit].sum()))
    return found
