"""`selfplay verify RUN`: is every file of a run what was written, and if not, what is to be done?

Compared are: finished stages with their manifests (size, XXH3 and sha256 of each file), what unfinished stages keep to go
on from (journals, checkpoints), the settings, the provenance, the outcome, metrics.jsonl and every answer in the judge
cache. What is left out is listed with its reason. Repairing removes what is damaged and what was made from it, so that
the same recipe makes it anew. Imports no torch but for an unfinished PPO.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from judges.llm.cache import AnswerCache
from selfplay.errors import ConfigError
from selfplay.rundir import STAGE, WORK, RunDirectory, place
from selfplay.storage import durable
from selfplay.storage.checksums import (
    CHECKS,
    MANIFEST,
    check_small,
    hashes_of_file,
    is_complete,
    manifest_of,
    read_sealed,
)
from selfplay.storage.files import json_lines
from selfplay.storage.journal import entries, entry_of

CACHE, LEDGER = "judge_cache.sqlite", "spending.jsonl"
LEFT_OUT = {
    ".lock": "who works on the run; it is empty",
    ".spending.lock": "who writes the ledger; it is empty",
    "log.txt": "what was said, for people; nothing reads it",
    "report.html": "`selfplay report` writes it again",
    "best": "a link, which the end of a run makes again",
    "README.md": "the model card, which a run writes again",
}
"""Files of a run that nothing vouches for, and why none has to."""
SEALED = ("provenance.json", "outcome.json", "tracking.json", "judge_check.json")
"""Files of a run outside its iterations that carry their own checksum."""


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


def verify(directory: str | Path) -> Verification:
    """Compare every file of a run with what was written. Raises ConfigError if there is no run."""
    files = RunDirectory(directory)
    if not (files.path / "config.yaml").is_file() and not (files.path / "provenance.json").is_file():
        raise ConfigError(
            f"{str(directory)!r} is not a run directory: it has no config.yaml; start one with `selfplay run RECIPE`"
        )
    found = Verification()
    _verify_top(files, found)
    for number in files.numbers():
        for folder in sorted(files.iteration(number).iterdir()):
            name = folder.name.removesuffix(".partial")
            if not folder.is_dir() or not STAGE.fullmatch(name):
                found.left_out[_name(files, folder)] = "this run did not make it"
            elif name != folder.name:
                _verify_unfinished(files, folder, found)
            elif (folder / MANIFEST).is_file():
                _verify_stage(files, number, name, found)
            elif any(folder.iterdir()):
                remedy = f"{folder.name} was removed, with {_after(number, name)}"
                repair = partial(remove_from, files, number, name)
                found.damage.append(Damage(folder / MANIFEST, "it is not there any more", remedy, repair))
            else:
                found.left_out[_name(files, folder)] = "it is empty"
    _verify_metrics(files, found)
    if (files.path / CACHE).is_file():
        _verify_cache(files.path / CACHE, found)
    return found


def repair(directory: str | Path) -> list[str]:
    """Remove what is damaged and what was made from it; returns what was done, in words.

    Raises ConfigError if there is no run, or if another process works on it.
    """
    files = RunDirectory(directory)
    done: list[str] = []
    with files.locked():
        for _ in range(1000):  # a repair may change what else is there: look again until all is well
            damage = verify(directory).damage
            if not damage:
                return done
            damage[0].repair()
            done.append(f"{damage[0].path}: {damage[0].remedy}")
    raise ConfigError(f"{str(directory)!r} cannot be repaired: delete it and begin anew")


def _name(files: RunDirectory, path: Path) -> str:
    return str(path.relative_to(files.path))


def _verify_top(files: RunDirectory, found: Verification) -> None:
    """Verify the files that lie in the run's own folder."""
    for name in SEALED:
        path = files.path / name
        if path.is_file():
            found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
            problem = _problem(partial(read_sealed, path))
            if problem:
                found.damage.append(Damage(path, problem, "removed", partial(durable.remove, path)))
            elif "format" not in read_sealed(path):
                found.unchecked.append(name)
    config = files.path / "config.yaml"
    if not config.is_file():
        found.left_out["config.yaml"] = "it is not there; `selfplay run RECIPE` writes it"
    elif not (problem := _problem(files.provenance)):
        found.files, found.bytes = found.files + 1, found.bytes + config.stat().st_size
        if problem := _problem(files.config_text):
            remedy = "removed; `selfplay run RECIPE` writes it again"
            found.damage.append(Damage(config, problem, remedy, partial(durable.remove, config)))
        elif "config" not in files.provenance():
            found.unchecked.append("config.yaml")
    if (files.path / LEDGER).is_file():
        _verify_journal(files.path / LEDGER, found)
    known = {*SEALED, "config.yaml", "metrics.jsonl", CACHE, LEDGER}
    own = {files.iteration(number).name for number in files.numbers()}
    for path in sorted(files.path.iterdir()):
        if path.name == "compare":
            _verify_comparisons(files, path, found)
        elif path.name not in known | own:
            rest = "what a killed process left; the next start removes it"
            other = rest if durable.BESIDE.fullmatch(path.name) else "this run did not make it"
            found.left_out[path.name] = LEFT_OUT.get(path.name, other)


def _verify_stage(files: RunDirectory, number: int, name: str, found: Verification) -> None:
    """Verify a finished stage: its manifest, and each file that it names."""
    folder = files.stage(number, name)
    remedy = f"removed, with {_after(number, name)}"

    problem = _problem(partial(check_small, folder), folder)
    manifest = (not problem and manifest_of(folder)) or {"outputs": {}}
    found.files, found.bytes = found.files + 1, found.bytes + (folder / MANIFEST).stat().st_size
    for file, known in manifest["outputs"].items():
        path = folder / file
        if not path.is_file():
            problem = problem or f"{file} is not there any more"
            continue
        found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
        slow, fast = hashes_of_file(path)
        if slow != known or fast != manifest.get("checks", {}).get(file, fast):
            problem = problem or f"{file} is not what was written"
    pruned = manifest.get("pruned", {})
    found.left_out |= {
        _name(files, folder / file): "removed on purpose, with `selfplay prune`"
        if not (folder / file).is_file()
        else "pruning it was cut short: give `selfplay prune` again"
        for file in pruned
    }
    if problem:
        found.damage.append(Damage(folder, problem, remedy, partial(remove_from, files, number, name)))
    elif "checks" not in manifest:
        found.unchecked.append(f"{_name(files, folder)}/{MANIFEST}")
    for path in sorted(folder.rglob("*")):
        inside = str(path.relative_to(folder))
        if path.is_file() and inside not in {*manifest["outputs"], *pruned, MANIFEST} and not problem:
            rest = (
                "the stage does not need it any more" if inside.startswith(f"{WORK}/") else "this run did not make it"
            )
            found.left_out[_name(files, path)] = LEFT_OUT.get(path.name, rest)


def _after(number: int, name: str) -> str:
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
                durable.remove_tree(files.stage(later, one))


def _verify_unfinished(files: RunDirectory, folder: Path, found: Verification) -> None:
    """Verify what a stage that is not finished keeps to go on from."""
    work = folder / WORK
    known: set[Path] = set()
    if work.is_dir() and not (work / "begun.json").is_file() and any(path.is_file() for path in folder.rglob("*")):
        remedy = "its unfinished stage was removed"
        problem = "begun.json is not there any more"
        found.damage.append(Damage(work, problem, remedy, partial(durable.remove_tree, folder)))
    for path in (work / "begun.json", folder / MANIFEST):
        if path.is_file():
            known.add(path)
            found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
            if problem := _problem(partial(read_sealed, path)):
                remedy = "its unfinished stage was removed"
                found.damage.append(Damage(path, problem, remedy, partial(durable.remove_tree, folder)))
    for path in [*work.glob("journal*.jsonl"), *work.glob("opponents.jsonl")]:
        known.add(path)
        _verify_journal(path, found)
    _verify_logs(work, known, found)
    for checks in sorted(work.rglob(CHECKS)):
        parts = [path for path in checks.parent.rglob("*") if path.is_file()]
        known.update(parts)
        found.files, found.bytes = found.files + len(parts), found.bytes + sum(path.stat().st_size for path in parts)
        if not is_complete(checks.parent):
            remedy = "removed; its steps are taken again"
            problem = "its files are not those that were written"
            found.damage.append(Damage(checks.parent, problem, remedy, partial(durable.remove_tree, checks.parent)))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in known:
            found.left_out[_name(files, path)] = "its stage is not finished, and writes or compares it when it goes on"


def _verify_journal(path: Path, found: Verification) -> None:
    """Verify each line of a journal; a last one that a kill cut short is none."""
    lines = entries(path)
    found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
    found.journal_lines += len(lines)
    kept = b"".join(line for line, entry in lines if entry is not None)
    bad = [number for number, (_, entry) in enumerate(lines, start=1) if entry is None]
    if bad and (bad != [len(lines)] or lines[-1][0].endswith(b"\n") or _only_its_end_changed(lines[-1][0])):
        problem = f"line {bad[0]} does not have the checksum that it was written with"
        remedy = "its damaged lines were removed; what a stage finds missing is made again"
        found.damage.append(Damage(path, problem, remedy, partial(durable.write, path, kept)))


def _only_its_end_changed(line: bytes) -> bool:
    """Return whether a last line is whole but for its line feed, which is another byte: no kill does that."""
    return entry_of(line[:-1] + b"\n") is not None


def _verify_logs(work: Path, known: set[Path], found: Verification) -> None:
    """Verify the logs of an unfinished PPO up to its checkpoint, whose own files are verified as every checkpoint's are."""
    from selfplay.rl.checkpoint import LOGS, check_checkpoint, checkpoints

    for folder in checkpoints(work)[-1:]:
        logs = [work / name for name in LOGS if (work / name).is_file()]
        known.update(logs)
        found.files, found.bytes = found.files + len(logs), found.bytes + sum(path.stat().st_size for path in logs)
        if is_complete(folder) and (problem := _problem(partial(check_checkpoint, folder))):
            remedy = "the checkpoint was removed; this training begins anew"
            found.damage.append(Damage(folder, problem, remedy, partial(durable.remove_tree, folder)))


def _verify_comparisons(files: RunDirectory, folder: Path, found: Verification) -> None:
    """Verify the responses that `selfplay compare` keeps."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.parent.name == "samples" and path.suffix == ".jsonl":
            _verify_journal(path, found)
        else:
            found.left_out[_name(files, path)] = "`selfplay compare` writes it again"


def _verify_metrics(files: RunDirectory, found: Verification) -> None:
    """metrics.jsonl, which holds what the stages' own files hold."""
    path = files.path / "metrics.jsonl"
    if found.damage or not path.is_file():
        return
    found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
    problem = _problem(files.metrics)
    if not problem and path.read_bytes() != json_lines(files.metrics()).encode():
        problem = "it does not hold the rows that the stages left"
    if problem:
        found.damage.append(Damage(path, problem, "removed; it is written again", partial(durable.remove, path)))
    elif any("checks" not in files.manifest(one, name) for one in files.numbers() for name in files.stages(one)):
        found.unchecked.append("metrics.jsonl (rows of stages without checksums)")


def _verify_cache(path: Path, found: Verification) -> None:
    """Verify every answer in the judge cache; sqlite's free space holds nothing, and is not compared."""
    found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
    try:
        cache = AnswerCache(path)
        rows, without, damaged = cache.check()
        cache.close()
    except ConfigError as error:
        found.damage.append(Damage(path, str(error), "removed", partial(durable.remove, path)))
        return
    found.answers += rows
    if without:
        found.unchecked.append(f"{CACHE} ({without} answers without checksums)")

    def drop() -> None:
        cache = AnswerCache(path)
        cache.check(repair=True)
        cache.close()

    if damaged:
        problem = f"{len(damaged)} of {rows} answers are not what was kept, such as {damaged[0]}"
        found.damage.append(Damage(path, problem, "the damaged answers were removed, and are asked for again", drop))


def _problem(check: Callable[[], object], folder: Path | None = None) -> str:
    """Return what a check says is wrong, without its way out, and which file of a stage's folder that is; empty if it passes."""
    try:
        check()
    except ConfigError as error:
        problem = getattr(error, "problem", str(error))
        path = getattr(error, "path", None)
        return problem if folder is None or path is None else f"{path.relative_to(folder)}: {problem}"
    return ""
