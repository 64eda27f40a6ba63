"""`selfplay score`: what single checkpoints are worth, each answer scored by itself, on the same prompts.

A mean with its 95% interval over prompts, per category if a column is named, and for instructions that a program can check
IFEval's four figures. Against the first checkpoint, every other one's difference is paired by prompt. Sampling and settings
are those of `compare`. Left out: judges that only compare; for these there is `selfplay compare`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from judges.criteria.ifeval_figures import Figure, counts_of, differences_of, figures_of, has_conditions
from prompts.sources import load_prompts
from selfplay.compare.best_of import bounds_of_best
from selfplay.compare.head_to_head import categories_of
from selfplay.compare.sampling import Engines, open_folder, sample_all
from selfplay.compare.settings import Given, judging, settings_of
from selfplay.compare.targets import Contestant, check_unseen, named_checkpoints, recipes
from selfplay.config import Launch
from selfplay.errors import ConfigError
from selfplay.records import Completion, Prompt, Record
from selfplay.rundir import RunDirectory
from selfplay.stats.means import Mean, difference_of, mean_of
from selfplay.storage.files import write_json, write_rows

OF_CONDITIONS = "instructions"
"""The judge of prompts with conditions that a program can check, where none is named."""


class CheckpointScore(Record):
    """What one checkpoint is worth. `above_first` is its paired difference to the first checkpoint, None for that one."""

    name: str
    score: Mean
    above_first: Mean | None
    categories: dict[str, Mean]
    figures: dict[str, Figure] | None
    figures_above_first: dict[str, Figure] | None
    mean_tokens: float
    truncated: float


class Scores(Record):
    """The outcome: `facts` stand above the table; checkpoints in the order in which they were named."""

    facts: dict[str, Any]
    checkpoints: list[CheckpointScore]
    folder: str


def score(
    targets: Sequence[str],
    given: Given | None = None,
    *,
    like: str | Path | None = None,
    folder: Path | None = None,
    by: str | None = None,
    launch: Launch | None = None,
    resamples: int = 2000,
) -> Scores:
    """Score checkpoints (targets and `launch` as for `compare`); write `scores.json` and `scores.parquet` into `folder`.

    Raises ConfigError for what cannot be used, and for a judge that scores no response by itself.
    """
    found = named_checkpoints(targets)
    trained = recipes(found)
    given = given or Given()
    if given.judge is None and given.prompts is not None and has_conditions(load_prompts(given.prompts, 0)):
        given = replace(given, judge=OF_CONDITIONS)
    settings = settings_of(trained, given, None if like is None else RunDirectory(like).recipe())
    spec = judging(settings)
    if not spec.scores:
        raise ConfigError(
            f"judge {spec.name!r} compares two responses and scores none by itself: name a pointwise, rubric or rules judge, "
            "or use `selfplay compare`"
        )
    bounds = bounds_of_best(found, spec)
    asked = load_prompts(settings.prompts, settings.seed)
    check_unseen(asked, trained)
    values = {} if by is None else categories_of(asked, by)
    folder, cache, ledger = open_folder(found, spec, folder, "score")
    with Engines(settings, cache, ledger, launch) as engines:
        answers = sample_all(found, asked, folder, engines)
        judge: Any = engines.judge(spec)
        scores: dict[str, list[float | None]] = {one.name: list(judge.score(asked, answers[one.name])) for one in found}
    cache.close()
    counts = {}
    if has_conditions(asked):
        counts = {name: counts_of(asked, [one.text for one in told]) for name, told in answers.items()}
    made = _collect(found, asked, answers, scores, counts, values, resamples)
    facts = settings.facts(spec, len(asked)) | bounds
    result = Scores(facts=facts, checkpoints=made, folder=str(folder))
    write_rows(folder / "scores.parquet", _rows(asked, answers, scores))
    write_json(folder / "scores.json", result.model_dump(mode="json"))
    return result


def _collect(
    found: Sequence[Contestant],
    prompts: Sequence[Prompt],
    answers: dict[str, list[Completion]],
    scores: dict[str, list[float | None]],
    counts: dict[str, np.ndarray],
    values: dict[str, str],
    resamples: int,
) -> list[CheckpointScore]:
    first = found[0].name
    made = []
    for one in found:
        name, later = one.name, one.name != first
        told = answers[name]
        parts = {
            value: mean_of(
                [given for prompt, given in zip(prompts, scores[name], strict=True) if values.get(prompt.id) == value]
            )
            for value in dict.fromkeys(values.values())
        }
        made.append(
            CheckpointScore(
                name=name,
                score=mean_of(scores[name], resamples),
                above_first=difference_of(scores[name], scores[first], resamples) if later else None,
                categories=parts,
                figures=figures_of(counts[name], resamples) if counts else None,
                figures_above_first=differences_of(counts[name], counts[first], resamples)
                if counts and later
                else None,
                mean_tokens=sum(len(answer.token_ids) for answer in told) / len(told),
                truncated=sum(answer.finish_reason == "length" for answer in told) / len(told),
            )
        )
    return made


def _rows(
    prompts: Sequence[Prompt], answers: dict[str, list[Completion]], scores: dict[str, list[float | None]]
) -> list[dict[str, Any]]:
    """Return one row per checkpoint and prompt for scores.parquet."""
    return [
        {"checkpoint": name, "prompt_id": prompt.id, "prompt": prompt.text, "response": answer.text, "score": given}
        for name, told in answers.items()
        for prompt, answer, given in zip(prompts, told, scores[name], strict=True)
    ]
