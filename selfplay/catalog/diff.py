"""`selfplay diff A B`: what differs between two runs in recipe, code, data and outcome."""

from collections.abc import Sequence
from pathlib import Path

from prompts.sources import load_prompts
from selfplay.catalog.listing import start_rate
from selfplay.config import PromptSource, Recipe
from selfplay.errors import ConfigError
from selfplay.formatting import rate_text
from selfplay.guard.selection import assess
from selfplay.rundir import RunDirectory, differences
from selfplay.storage.files import hash_of
from selfplay.storage.provenance import changes


def diff(a: Path, b: Path) -> dict[str, list[str]]:
    """Return what differs between two runs in recipe, code, data and outcome, each as sentences `what: A -> B`."""
    one, other = RunDirectory(a), RunDirectory(b)
    recipes = (one.recipe(), other.recipe())
    settings = differences(recipes[0].model_dump(), recipes[1].model_dump())
    free = [(key, getattr(recipes[0], key), getattr(recipes[1], key)) for key in ("iterations", "description")]
    settings += [f"{key}: {before!r} -> {after!r}" for key, before, after in free if before != after]
    return {
        "recipe": settings,
        "code": changes(one.provenance(), other.provenance()),
        "data": _data(*recipes),
        "outcome": _outcomes(one, other),
    }


def _data(a: Recipe, b: Recipe) -> list[str]:
    """Return how the prompts of two recipes differ, by their content now."""
    found = []
    for kind in ("train", "heldout"):
        try:
            texts = [_texts(getattr(recipe.prompts, kind), recipe.seed) for recipe in (a, b)]
        except ConfigError as error:
            found.append(f"{kind} prompts: not compared, since those of one run cannot be read now ({error})")
            continue
        if texts[0] != texts[1]:
            shared = len(set(texts[0]) & set(texts[1]))
            found.append(f"{kind} prompts: {len(texts[0]):,} -> {len(texts[1]):,}, {shared:,} in both")
    return found


def _texts(source: PromptSource | Sequence[PromptSource] | None, seed: int) -> list[str]:
    if source is None:
        return []
    return [hash_of([message.model_dump() for message in prompt.messages]) for prompt in load_prompts(source, seed)]


def _outcomes(a: RunDirectory, b: RunDirectory) -> list[str]:
    """Return how far two runs came and how well, iteration by iteration."""
    found = []
    best = [assess(files.path).best_iteration for files in (a, b)]
    if best[0] != best[1]:
        found.append(f"best iteration: {best[0] or 'start'} -> {best[1] or 'start'}")
    for number in sorted({*a.iterations(), *b.iterations()} - {0}):
        rates = [
            rate_text(start_rate(files, number)) if files.finished(number, "evaluate") else "not evaluated"
            for files in (a, b)
        ]
        if rates[0] != rates[1]:
            found.append(f"iteration {number} beats the start: {rates[0]} -> {rates[1]}")
    return found
