"""`selfplay verify RUN`: is every file of a run what was written, and if not, what is to be done?

Compared are: finished stages with their manifests (size, XXH3 and sha256 of each file), what unfinished stages keep to go
on from (journals, checkpoints), the settings, the provenance, the outcome, metrics.jsonl and every answer in the judge
cache. What is left out is listed with its reason. Repairing removes what is damaged and what was made from it, so that
the same recipe makes it anew. Imports no torch but for an unfinished PPO.
"""

from functools import partial
from pathlib import Path

from judges.llm.cache import CACHE
from selfplay.engines.ledger import LEDGER, TOTAL
from selfplay.errors import ConfigError
from selfplay.results.damage import (
    LEFT_OUT,
    Damage,
    Verification,
    foreign_files,
    name_in,
    problem_of,
    remove_from,
    what_follows,
)
from selfplay.results.verify_lines import (
    COMPARISONS,
    verify_cache,
    verify_comparisons,
    verify_journal,
    verify_ledger,
    verify_logs,
)
from selfplay.rundir import BEGUN, STAGE, WORK, RunDirectory
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
from selfplay.storage.journal import is_journal

SEALED = ("provenance.json", "outcome.json", "tracking.json", "judge_check.json", "precision.json", TOTAL)
"""Files of a run outside its iterations that carry their own checksum."""


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
                found.left_out[name_in(files, folder)] = "this run did not make it"
            elif name != folder.name:
                _verify_unfinished(files, folder, found)
            elif (folder / MANIFEST).is_file():
                _verify_stage(files, number, name, found)
            elif any(folder.iterdir()):
                remedy = f"{folder.name} was removed, with {what_follows(number, name)}"
                repair = partial(remove_from, files, number, name)
                found.damage.append(Damage(folder / MANIFEST, "it is not there any more", remedy, repair))
            else:
                found.left_out[name_in(files, folder)] = "it is empty"
    _verify_metrics(files, found)
    if (files.path / CACHE).is_file():
        verify_cache(files.path / CACHE, found)
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


def _verify_top(files: RunDirectory, found: Verification) -> None:
    """Verify the files that lie in the run's own folder."""
    for name in SEALED:
        path = files.path / name
        if path.is_file():
            found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
            problem = problem_of(partial(read_sealed, path))
            if problem:
                found.damage.append(Damage(path, problem, "removed", partial(durable.remove, path)))
            elif "format" not in read_sealed(path):
                found.unchecked.append(name)
    config = files.path / "config.yaml"
    if not config.is_file():
        found.left_out["config.yaml"] = "it is not there; `selfplay run RECIPE` writes it"
    elif not (problem := problem_of(files.provenance)):
        found.files, found.bytes = found.files + 1, found.bytes + config.stat().st_size
        if problem := problem_of(files.config_text):
            remedy = "removed; `selfplay run RECIPE` writes it again"
            found.damage.append(Damage(config, problem, remedy, partial(durable.remove, config)))
        elif "config" not in files.provenance():
            found.unchecked.append("config.yaml")
    if (files.path / LEDGER).is_file() or (files.path / TOTAL).is_file():
        verify_ledger(files.path / LEDGER, found)
    known = {*SEALED, "config.yaml", "metrics.jsonl", CACHE, LEDGER}
    own = {files.iteration(number).name for number in files.numbers()}
    for path in sorted(files.path.iterdir()):
        if path.is_dir() and (path.name in COMPARISONS or any(map(is_journal, path.glob("samples/*")))):
            verify_comparisons(files, path, found)
        elif path.name not in known | own:
            rest = "what a killed process left; the next start removes it"
            other = rest if durable.BESIDE.fullmatch(path.name) else "this run did not make it"
            found.left_out[path.name] = LEFT_OUT.get(path.name, other)


def _verify_stage(files: RunDirectory, number: int, name: str, found: Verification) -> None:
    """Verify a finished stage: its manifest, and each file that it names."""
    folder = files.stage(number, name)
    remedy = f"removed, with {what_follows(number, name)}"

    problem = problem_of(partial(check_small, folder), folder)
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
        name_in(files, folder / file): "removed on purpose, with `selfplay prune`"
        if not (folder / file).is_file()
        else "pruning it was cut short: give `selfplay prune` again"
        for file in pruned
    }
    if problem:
        found.damage.append(Damage(folder, problem, remedy, partial(remove_from, files, number, name)))
    elif "checks" not in manifest:
        found.unchecked.append(f"{name_in(files, folder)}/{MANIFEST}")
    foreign = set(foreign_files(folder))
    for path in sorted(folder.rglob("*")):
        inside = str(path.relative_to(folder))
        if path.is_file() and inside not in {*manifest["outputs"], *pruned, MANIFEST} and not problem:
            rest = "this run did not make it" if path in foreign else "the stage does not need it any more"
            found.left_out[name_in(files, path)] = LEFT_OUT.get(path.name, rest)


def _verify_unfinished(files: RunDirectory, folder: Path, found: Verification) -> None:
    """Verify what a stage that is not finished keeps to go on from."""
    work = folder / WORK
    known: set[Path] = set()
    if work.is_dir() and not (work / BEGUN).is_file() and any(path.is_file() for path in folder.rglob("*")):
        remedy = "its unfinished stage was removed"
        problem = "begun.json is not there any more"
        found.damage.append(Damage(work, problem, remedy, partial(durable.remove_tree, folder)))
    for path in (work / BEGUN, folder / MANIFEST):
        if path.is_file():
            known.add(path)
            found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
            if problem := problem_of(partial(read_sealed, path)):
                remedy = "its unfinished stage was removed"
                found.damage.append(Damage(path, problem, remedy, partial(durable.remove_tree, folder)))
    for path in sorted(path for path in work.rglob("*") if path.is_file() and is_journal(path)):
        known.add(path)
        verify_journal(path, found)
    verify_logs(work, known, found)
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
            found.left_out[name_in(files, path)] = (
                "its stage is not finished, and writes or compares it when it goes on"
            )


def _verify_metrics(files: RunDirectory, found: Verification) -> None:
    """metrics.jsonl, which holds what the stages' own files hold."""
    path = files.path / "metrics.jsonl"
    if found.damage or not path.is_file():
        return
    found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
    problem = problem_of(files.metrics)
    if not problem and path.read_bytes() != json_lines(files.metrics()).encode():
        problem = "it does not hold the rows that the stages left"
    if problem:
        found.damage.append(Damage(path, problem, "removed; it is written again", partial(durable.remove, path)))
    elif any("checks" not in files.manifest(one, name) for one in files.numbers() for name in files.stages(one)):
        found.unchecked.append("metrics.jsonl (rows of stages without checksums)")
