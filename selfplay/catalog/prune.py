"""`selfplay prune RUN`: remove the weights that nobody needs any more; numbers, answers and verdicts stay.

What goes are the weights of policies and reward models of iterations that are not kept. Their manifests say so: a file
that was pruned moves from `outputs` to `pruned` with its sha256, so it is no damage, and what was made from it still
fits. `show`, `report` and `compare` read such a run; going on with it is refused.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from selfplay.errors import ConfigError
from selfplay.guard.selection import assess_run
from selfplay.results.load import read_run
from selfplay.rundir import RunDirectory
from selfplay.storage import durable
from selfplay.storage.checksums import MANIFEST, write_sealed

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class Pruning:
    """What would go: each stage's folder with the names of its files, and how many bytes that frees."""

    kept: tuple[int, ...]
    folders: tuple[tuple[Path, tuple[str, ...]], ...]
    bytes: int


def plan_pruning(run: Path, keep: Iterable[str] = ("best",)) -> Pruning:
    """Return what pruning would remove. `keep` holds `best`, `last`, `start` or numbers of iterations.

    Raises ConfigError for a run that is not finished, for what cannot be kept, and for an iteration to keep whose weights
    are gone.
    """
    files = RunDirectory(run)
    recipe, there = files.recipe(), files.iterations()
    if not (files.path / "outcome.json").is_file():
        raise ConfigError(
            f"{str(run)!r} is not finished, and going on needs its weights: finish it with `selfplay run`, or delete it"
        )
    names = list(keep)
    places = {"last": there[-1], "start": 0}
    if "best" in names:
        places["best"] = _best(run)
    kept = set()
    for name in names:
        number = places.get(name, int(name) if name.isdecimal() else None)
        if number is None or number not in there:
            raise ConfigError(
                f"{name!r} cannot be kept: {recipe.name} has the iterations {', '.join(map(str, there))}; name numbers, "
                "or best, last, start"
            )
        _check_weights(files, number)
        kept.add(number)
    if not names:
        raise ConfigError(
            "nothing is named to keep, and a run without any weights is of no use: name numbers, or best, last, start"
        )
    folders, size = [], 0
    for number in files.numbers():
        for stage in files.stages(number) if number not in kept else []:
            if stage.partition("-")[0] in ("policy", "reward"):
                manifest = files.manifest(number, stage)
                named = {**manifest["outputs"], **manifest.get("pruned", {})}
                gone = [
                    file for file in named if file.endswith(WEIGHTS) and (files.stage(number, stage) / file).is_file()
                ]
                size += sum((files.stage(number, stage) / file).stat().st_size for file in gone)
                folders += [(files.stage(number, stage), tuple(gone))] if gone else []
    return Pruning(tuple(sorted(kept)), tuple(folders), size)


def _best(run: Path) -> int:
    """Return a finished run's best iteration. Raises ConfigError where its outcome and its evaluations disagree."""
    found = read_run(run)
    best, left = found.outcome.get("best"), assess_run(found).best_iteration
    if best != left:
        raise ConfigError(
            f"outcome.json of {str(run)!r} says that the best iteration is {best}, and its evaluations say {left}: `selfplay "
            f"verify {run}` says what is damaged or missing; or name the numbers to keep"
        )
    return left


def _check_weights(files: RunDirectory, number: int) -> None:
    """Raise ConfigError if weights of an iteration's policy are not there any more."""
    manifest, folder = files.manifest(number, "policy"), files.stage(number, "policy")
    pruned = files.pruned(number, "policy")
    gone = [file for file in manifest["outputs"] if file.endswith(WEIGHTS) and not (folder / file).is_file()]
    if pruned or gone:
        raise ConfigError(
            f"iteration {number} cannot be kept: its weights {'were pruned before' if pruned else 'are gone'} "
            f"({folder / (pruned or gone)[0]}); name one that has them"
        )


def prune(run: Path, pruning: Pruning) -> None:
    """Remove what a plan names. A kill in between leaves a run that can be pruned again. Raises ConfigError if locked."""
    files = RunDirectory(run)
    with files.locked():
        for folder, gone in pruning.folders:
            manifest = files.manifest(int(folder.parent.name.rpartition("-")[2]), folder.name)
            outputs, checks = dict(manifest["outputs"]), dict(manifest.get("checks", {}))
            pruned = dict(manifest.get("pruned", {}))
            for file in gone:
                pruned[file] = outputs.pop(file, pruned.get(file))
                checks.pop(file, None)
            fresh = {
                **manifest,
                "outputs": outputs,
                "pruned": pruned,
                **({"checks": checks} if "checks" in manifest else {}),
            }
            write_sealed(folder / MANIFEST, fresh)
            for file in gone:
                with contextlib.suppress(FileNotFoundError):
                    durable.remove(folder / file)
