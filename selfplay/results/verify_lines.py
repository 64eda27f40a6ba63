"""The parts of `selfplay verify` for what grows line by line: journals, the ledger, logs and the judge cache."""

from functools import partial
from pathlib import Path

from judges.llm.cache import CACHE, AnswerCache
from selfplay.engines.ledger import mend, problem_with
from selfplay.errors import ConfigError
from selfplay.results.damage import Damage, Verification, name_in, problem_of
from selfplay.rundir import RunDirectory
from selfplay.storage import durable
from selfplay.storage.checksums import is_complete
from selfplay.storage.journal import entries, entry_of, is_journal

COMPARISONS = ("compare", "score")
"""Folders of a run that the commands of these names write, where no other is named to them."""


def verify_journal(path: Path, found: Verification) -> None:
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


def verify_ledger(path: Path, found: Verification) -> None:
    """Verify each line of the ledger, that it follows the one before, and that as many are there as were written."""
    there = path.is_file()
    found.files, found.bytes = found.files + there, found.bytes + (path.stat().st_size if there else 0)
    found.journal_lines += len(entries(path))
    try:
        problem = problem_with(path)
    except ConfigError:  # its sealed total is damaged, which is found by itself
        return
    if problem:
        remedy = (
            "written anew from the lines that can be read; what they lack of the sealed total is counted as one more"
        )
        found.damage.append(Damage(path, problem, remedy, partial(mend, path)))


def _only_its_end_changed(line: bytes) -> bool:
    """Return whether a last line is whole but for its line feed, which is another byte: no kill does that."""
    return entry_of(line[:-1] + b"\n") is not None


def verify_logs(work: Path, known: set[Path], found: Verification) -> None:
    """Verify the logs of an unfinished PPO up to its checkpoint, whose own files are verified as every checkpoint's are."""
    from selfplay.rl.checkpoint import LOGS, check_checkpoint, checkpoints

    for folder in checkpoints(work)[-1:]:
        logs = [work / name for name in LOGS if (work / name).is_file()]
        known.update(logs)
        found.files, found.bytes = found.files + len(logs), found.bytes + sum(path.stat().st_size for path in logs)
        if is_complete(folder) and (problem := problem_of(partial(check_checkpoint, folder))):
            remedy = "the checkpoint was removed; this training begins anew"
            found.damage.append(Damage(folder, problem, remedy, partial(durable.remove_tree, folder)))


def verify_comparisons(files: RunDirectory, folder: Path, found: Verification) -> None:
    """Verify the responses and scores that `selfplay compare` or `selfplay score` keeps in a folder."""
    rest = f"`selfplay {folder.name}` writes it again" if folder.name in COMPARISONS else "this run did not make it"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if is_journal(path):
            verify_journal(path, found)
        else:
            found.left_out[name_in(files, path)] = rest


def verify_cache(path: Path, found: Verification) -> None:
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
