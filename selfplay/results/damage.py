"""What `selfplay verify` found of a run, and how a stage is removed without what its run did not make."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfplay.errors import ConfigError
from selfplay.progress import log
from selfplay.rundir import BEGUN, STAGE, WORK, RunDirectory, place
from selfplay.storage import durable
from selfplay.storage.checksums import MANIFEST

KEPT = "kept"
"""Folder of a run for files that lay in a stage's folder, were not made by it, and had to make way."""
CARD = "README.md"
LEFT_OUT = {
    ".lock": "who works on the run; it is empty",
    ".spending.lock": "who writes the ledger; it is empty",
    "log.txt": "what was said, for people; nothing reads it",
    "report.html": "`selfplay report` writes it again",
    "best": "a link, which the end of a run makes again",
    CARD: "the model card, which a run writes again",
    "notes.json": "the words of people, from `selfplay note`; nothing of the run depends on them",
    "precision.lock": "who chooses the precision; it is empty",
    "inputs": "what `selfplay.train` was given; its content is in the fingerprints of the stages that read it",
    "logs": "what each worker said, for people; nothing reads it",
    KEPT: "files that the run did not make, which a repair moved out of the way",
}
"""Files of a run that nothing vouches for, and why none has to."""


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written, and what `repair` does about it."""

    path: Path
    problem: str
    remedy: str
    repair: Callable[[], None] = field(repr=False, compare=False)


@dataclass
class Verification:
    """What was compared, what is damaged, what has no checksums, and what is left out and why."""

    files: int = 0
    bytes: int = 0
    journal_lines: int = 0
    answers: int = 0
    damage: list[Damage] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        found = [{"path": str(one.path), "problem": one.problem, "remedy": one.remedy} for one in self.damage]
        return {**vars(self), "damage": found}


def name_in(files: RunDirectory, path: Path) -> str:
    """Return a path as it is named within its run."""
    return str(path.relative_to(files.path))


def problem_of(check: Callable[[], object], folder: Path | None = None) -> str:
    """Return what a check says is wrong, without its way out, and which file of a stage's folder that is; empty if it passes."""
    try:
        check()
    except ConfigError as error:
        problem = getattr(error, "problem", str(error))
        path = getattr(error, "path", None)
        return problem if folder is None or path is None else f"{path.relative_to(folder)}: {problem}"
    return ""


def what_follows(number: int, name: str) -> str:
    """Return what is removed with a stage, in words."""
    return f"evaluations from iteration {number} on" if name == "evaluate" else "all stages behind it"


def remove_from(files: RunDirectory, number: int, name: str) -> None:
    """Remove a stage and those that were made from it, the last first. Evaluations are read by evaluations alone."""
    only_evaluations = name == "evaluate"
    for later in reversed([one for one in files.numbers() if one >= number]):
        names = [path.name.removesuffix(".partial") for path in files.iteration(later).iterdir() if path.is_dir()]
        behind = [
            one
            for one in sorted({one for one in names if STAGE.fullmatch(one)}, key=place, reverse=True)
            if later > number or place(one) >= place(name)
        ]
        for one in behind:
            if one == "evaluate" or not only_evaluations:
                durable.remove_tree(files.stage(later, one).with_name(f"{one}.partial"))
                _remove_stage(files, files.stage(later, one))


def _remove_stage(files: RunDirectory, folder: Path) -> None:
    """Remove a stage's folder; what lies in it and was not made by the stage is moved into the run's `kept`, and that is said."""
    for path in foreign_files(folder):
        moved = files.path / KEPT / path.relative_to(files.path)
        while moved.exists():
            moved = moved.with_name(f"{moved.name}.again")
        with durable.naming(moved):
            moved.parent.mkdir(parents=True, exist_ok=True)
        durable.publish(path, moved)
        log(f"  {path} was not made by the run, and was moved to {moved}")
    durable.remove_tree(folder)


def foreign_files(folder: Path) -> list[Path]:
    """Return the files in a finished stage's folder that the stage did not make; none if its manifest cannot say so any more."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        ours = {MANIFEST, CARD, *manifest["outputs"], *manifest.get("checks", {}), *manifest.get("pruned", {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if (folder / WORK / BEGUN).is_file():  # a kill left it
        ours |= {str(path.relative_to(folder)) for path in (folder / WORK).rglob("*")}
    others = [path for path in sorted(folder.rglob("*")) if path.is_file() and not durable.BESIDE.fullmatch(path.name)]
    return [path for path in others if str(path.relative_to(folder)) not in ours]
