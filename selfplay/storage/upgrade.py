"""Runs of the format before, which had no number: what they hold is brought into the form of today where it is read.

Format 1 was written up to version 0.1.0. Its finished stages are taken as they are (only the sha256 of their files is
compared), its journals get checksums, and settings that could have one value only are dropped.
"""

from pathlib import Path
from typing import Any

from selfplay.storage import durable
from selfplay.storage.checksums import write_sealed
from selfplay.storage.files import read_json, read_json_lines
from selfplay.storage.journal import line_of

WITH_ONE_VALUE: dict[str, dict[str, Any]] = {
    "sampling": {"n": 1, "seed": 0, "top_p": 1.0, "top_k": 0},
    "algorithm": {"precision": "float32"},
}
"""Settings that format 1 wrote into config.yaml, and the only value that it allowed for each, or a default that has changed."""


def upgrade_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of format 1 as they are written today."""
    upgraded = dict(settings)
    for section, values in WITH_ONE_VALUE.items():
        if isinstance(settings.get(section), dict):
            kept = {key: value for key, value in settings[section].items() if values.get(key, object()) != value}
            upgraded[section] = kept
    return upgraded


def upgrade_unfinished(partial: Path, work: Path, fingerprint: str) -> None:
    """Bring what a stage of format 1 left unfinished into the form of today, for the stage of this fingerprint.

    Fingerprints of format 1 cannot be compared with those of today; that its settings are the same has been checked.
    """
    begun = partial / "begun.json"
    if not begun.is_file():
        return
    work.mkdir(exist_ok=True)
    for journal in [*partial.glob("journal*.jsonl"), *partial.glob("opponents.jsonl")]:
        batches = read_json_lines(journal)
        durable.write(work / journal.name, "".join(line_of(one["key"], one["rows"]) for one in batches))
        durable.remove(journal)
    write_sealed(work / "begun.json", {"fingerprint": fingerprint, "seconds": read_json(begun)["seconds"]})
    durable.remove(begun)
