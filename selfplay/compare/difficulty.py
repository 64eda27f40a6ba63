"""The difficulty of prompts in a file: fitted once, kept, and used for every later comparison on the same prompts.

Columns `prompt` and `difficulty`, and `baseline` for whom it was fitted; AlpacaEval's instruction_difficulty.csv (`index`,
`instruction_difficulty`) is read too.
"""

import csv
import io
import math
from pathlib import Path

import numpy as np

from selfplay.compare.vote_files import decode
from selfplay.errors import ConfigError
from selfplay.stats.intervals import Array
from selfplay.stats.length_control import fit_difficulty
from selfplay.stats.votes import VoteTable
from selfplay.storage import durable

NAMES = {"prompt": ("prompt", "prompt_id", "index", ""), "difficulty": ("difficulty", "instruction_difficulty")}
"""Columns, under the names that files give them; pandas leaves the name of an index empty."""


def known_difficulty(path: Path, table: VoteTable) -> Array:
    """Difficulty (P,) of the table's prompts from a file, which is fitted against the table's first model and written if
    it is not there. Raises ConfigError for a file that another baseline or other prompts were fitted for."""
    baseline = table.models[0]
    if not path.is_file():
        fitted = fit_difficulty(table, 0)
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["prompt", "difficulty", "baseline"])
        writer.writerows(
            [prompt, repr(float(value)), baseline] for prompt, value in zip(table.prompts, fitted, strict=True)
        )
        durable.make_folder(path.parent)
        durable.write(path, out.getvalue())
        return fitted
    found = _read(path, baseline)
    missing = [prompt for prompt in table.prompts if prompt not in found]
    if missing:
        raise ConfigError(
            f"{path} has no difficulty for {len(missing)} of the {len(table.prompts)} prompts, such as {missing[0]!r}; "
            "name another file with --difficulty to have it fitted on these"
        )
    return np.array([found[prompt] for prompt in table.prompts])


def _read(path: Path, baseline: str) -> dict[str, float]:
    """Prompt -> difficulty."""
    rows = list(csv.DictReader(io.StringIO(decode(path), newline="")))
    header = list(rows[0]) if rows else []
    columns = [next((name for name in names if name in header), None) for names in NAMES.values()]
    if None in columns:
        raise ConfigError(
            f"{path} holds no difficulties: it needs the columns prompt and difficulty, and has "
            f"{', '.join(header) or 'none'}"
        )
    fitted_for = {row["baseline"] for row in rows if row.get("baseline")}
    if fitted_for and fitted_for != {baseline}:
        raise ConfigError(
            f"{path} was fitted with the baseline {', '.join(sorted(fitted_for))!r}, and this comparison has {baseline!r}: "
            "name another file with --difficulty, or give --baseline"
        )
    prompt, difficulty = map(str, columns)
    found = {}
    for line, row in enumerate(rows, 2):
        try:
            value = float(row[difficulty])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{path}:{line}: the difficulty is {row[difficulty]!r}, which is not a number")
        found[str(row[prompt]).strip()] = value
    return found
