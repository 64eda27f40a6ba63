"""Reads what a run left on disk, once: for the report, the guard and the model card.

Reads a run at any moment, also one that is under way or was stopped: what is not there yet is `None` or empty, never an
error. Left out on purpose: models. Whatever needs a forward pass is computed by the stages and read here.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from judges.llm.cache import CACHE
from selfplay.results.notes import read_notes
from selfplay.results.run import Iteration, Match, RunData, Spent, TrainingPair
from selfplay.results.seeds import BetweenSeeds, by_iteration, siblings
from selfplay.rundir import RunDirectory
from selfplay.stats.diversity import self_similarity
from selfplay.storage.checksums import Damaged, read_sealed
from selfplay.storage.files import read_json, read_rows


def read_run(path: str | Path) -> RunData:
    """Read a run's directory. Raises ConfigError if it holds no run."""
    directory = RunDirectory(path)
    config_text = directory.config_text()
    numbers = directory.numbers()
    matches: dict[tuple[str, str, str], Match] = {}
    for one in numbers:
        for match in _matches(directory.stage(one, "evaluate") / "matches.parquet"):
            matches.setdefault((match.prompt_id, match.a, match.b), match)
    return RunData(
        path=directory.path,
        config_text=config_text,
        config=directory.settings() or {},
        provenance=directory.provenance(),
        outcome=read_sealed(outcome) if (outcome := directory.path / "outcome.json").is_file() else {},
        spent=tuple(_spent(directory.path / CACHE)),
        iterations=tuple(_iteration(directory, one) for one in numbers),
        metrics=tuple(directory.metrics()),
        matches=tuple(matches.values()),
        notes=read_notes(directory.path),
        seeds=_seeds(directory.path),
        training=tuple(pair for one in numbers for pair in _training(directory, one)),
    )


def _seeds(path: Path) -> tuple[BetweenSeeds, ...]:
    """Return the win rates between the seeds of a run's recipe; none if another seed's run is damaged, which `verify` says."""
    try:
        return tuple(by_iteration(siblings(path.resolve())))
    except Damaged:
        return ()


def _iteration(directory: RunDirectory, number: int) -> Iteration:
    """Return one iteration's numbers; of several rounds of labels or reward models the last counts."""
    completions = directory.stage(number, "generate") / "completions.parquet"
    return Iteration(
        number=number,
        evaluation=_json(directory.stage(number, "evaluate") / "evaluation.json"),
        health=_json(_last_round(directory, number, "label") / "judge_health.json"),
        reward=_json(_last_round(directory, number, "reward") / "metrics.json"),
        self_similarity=_similarity(completions) if completions.is_file() else None,
        seconds=directory.seconds(number),
    )


def _training(directory: RunDirectory, number: int, most: int = 40) -> Iterator[TrainingPair]:
    """Yield some of the pairs that an iteration's reward model learned from, evenly chosen, with what the judge said."""
    folder = directory.stage(number, "label")
    if not (folder / "preferences.parquet").is_file():
        return
    rows = read_rows(folder / "preferences.parquet")
    chosen = [rows[index * len(rows) // most] for index in range(most)] if len(rows) > most else rows
    wanted = {row["pair_id"] for row in chosen}
    reasons: dict[str, list[str]] = defaultdict(list)
    if (folder / "verdicts.parquet").is_file():
        for row in read_rows(folder / "verdicts.parquet"):
            if row["pair_id"] in wanted and row["reason"]:
                reasons[row["pair_id"]].append(row["reason"])
    for row in chosen:
        prompt, chosen_text, rejected = (row[key][-1]["content"] for key in ("prompt", "chosen", "rejected"))
        reason = " / ".join(reasons[row["pair_id"]])
        yield TrainingPair(number, row["prompt_id"], prompt, chosen_text, rejected, row["margin"], reason)


def _last_round(directory: RunDirectory, number: int, name: str) -> Path:
    """Folder of a stage, or of its last extra round."""
    return (directory.rounds(number, name) or [directory.stage(number, name)])[-1]


def _similarity(path: Path, most: int = 512) -> float | None:
    """Likeness of the answers that each policy gave to one prompt, over at most so many prompts."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read_rows(path):
        groups[row["policy"], row["prompt_id"]].append(row["text"])
    return self_similarity(list(groups.values())[:most])


def _spent(path: Path) -> list[Spent]:
    """Return what each model was asked, from the judges' cache; nothing if there is none, or if it is of another kind."""
    if not path.is_file():
        return []
    question = (
        "select model, count(*), sum(input_tokens), sum(output_tokens), sum(cost) from answers group by model "
        "order by model"
    )
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as database:
            return [Spent(*row) for row in database.execute(question)]
    except sqlite3.Error:
        return []


def _matches(path: Path) -> list[Match]:
    """Return the rows of a matches.parquet, without columns that are not ours."""
    if not path.is_file():
        return []
    known = Match.__dataclass_fields__
    optional = ("reason", "judge", "error", "a_truncated", "b_truncated")
    rows = [
        {key: value for key, value in row.items() if key in known and not (value is None and key in optional)}
        for row in read_rows(path)
    ]
    return [Match(**row) for row in rows]


def _json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or `None` if the file is not there."""
    value = read_json(path) if path.is_file() else None
    return value if isinstance(value, dict) else None
