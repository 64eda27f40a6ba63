"""A run on disk: paths, manifests, the lock, provenance and metrics. Imports no torch.

A stage writes into `NAME.partial`, keeps what it needs to go on after a kill in `work` there, and is finished in one step:
`manifest.json` is written, the folder is renamed, and `work` is removed last. The manifest holds what the stage was made
from (`fingerprint`: the settings it reads and the manifests of the stages before it) and the hashes of each file, which
are compared whenever one is read (`selfplay.storage.checksums`).
"""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from selfplay.config import FREE_SETTINGS, Recipe, validate
from selfplay.errors import ConfigError
from selfplay.progress import log
from selfplay.storage import durable
from selfplay.storage.checksums import (
    FORMAT,
    MANIFEST,
    Damaged,
    check_small,
    fast_hash,
    hashes_of_file,
    manifest_of,
    read_sealed,
    write_sealed,
)
from selfplay.storage.files import hash_of, json_lines, read_json_lines
from selfplay.storage.provenance import changes, provenance
from selfplay.storage.upgrade import upgrade_settings, upgrade_unfinished

INPUTS = "inputs"
"""Folder of a run that `selfplay.train` was given prompts, samples or a model for: where it wrote them."""
WORK = "work"
"""Folder in an unfinished stage's for all that it needs to go on; the last thing to be removed."""
BEGUN = "begun.json"
"""File in `work` that says what the stage was begun from."""
ORDER = ("bootstrap", "judge", "generate", "label", "reward", "policy", "evaluate")
ITERATION = re.compile(r"iteration-(\d{3,})")
STAGE = re.compile(rf"(?:{'|'.join(ORDER)})(?:-extra-[1-9]\d*)?")


def iteration_name(number: int) -> str:
    """Return what an iteration's folder is called; its policy goes by the same name."""
    return f"iteration-{number:03d}"


class RunDirectory:
    """Paths and state of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def iteration(self, number: int) -> Path:
        """Return the folder of an iteration; 0 is the start."""
        return self.path / iteration_name(number)

    def stage(self, number: int, name: str) -> Path:
        """Return the folder of a stage; there only once the stage is complete."""
        return self.iteration(number) / name

    def policy(self, number: int) -> Path:
        """Return the checkpoint of an iteration's policy."""
        return self.stage(number, "policy")

    def finished(self, number: int, name: str) -> bool:
        """Return whether a stage is complete."""
        return (self.stage(number, name) / MANIFEST).is_file()

    def stages(self, number: int) -> list[str]:
        """Return the finished stages of an iteration, in the order of a run; folders of other names are not ours."""
        names = [folder.name for folder in _folders(self.iteration(number)) if STAGE.fullmatch(folder.name)]
        return sorted((name for name in names if self.finished(number, name)), key=place)

    def rounds(self, number: int, name: str) -> list[Path]:
        """Return the folders of a stage's finished rounds: itself, then its extra rounds."""
        return [self.stage(number, one) for one in self.stages(number) if one.partition("-extra-")[0] == name]

    def numbers(self) -> list[int]:
        """Return the iterations that have a folder, the start first."""
        found = (ITERATION.fullmatch(folder.name) for folder in _folders(self.path))
        return sorted(int(match[1]) for match in found if match and match[0] == iteration_name(int(match[1])))

    def iterations(self) -> list[int]:
        """Return the iterations that have a policy, the start first."""
        return [number for number in self.numbers() if self.finished(number, "policy")]

    def manifest(self, number: int, name: str) -> dict[str, Any]:
        """Return a finished stage's manifest. Raises Damaged."""
        return manifest_of(self.stage(number, name)) or {}

    def manifest_hash(self, number: int, name: str) -> str:
        """Return the hash of what a finished stage wrote, for the fingerprints of the stages that read it."""
        manifest = self.manifest(number, name)
        return hash_of([manifest["fingerprint"], {**manifest["outputs"], **manifest.get("pruned", {})}])

    def pruned(self, number: int, name: str) -> list[str]:
        """Return the files of a finished stage that `selfplay prune` removed."""
        return sorted(self.manifest(number, name).get("pruned", {}))

    def check_fingerprint(self, number: int, name: str, fingerprint: str) -> None:
        """Raise ConfigError if a finished stage was made from something else than what is there now, Damaged if cut."""
        folder = self.stage(number, name)
        check_small(folder)
        manifest = self.manifest(number, name)
        if "checks" in manifest and manifest["fingerprint"] != fingerprint:  # those of format 1 were made otherwise
            raise ConfigError(
                f"{folder} was made with other settings or from other files than those there now; delete "
                f"it and the stages after it to make them again, or give another `output`"
            )

    @contextlib.contextmanager
    def writing(self, number: int, name: str, fingerprint: str) -> Iterator[Path]:
        """Open a folder to write a stage into; complete, with its manifest, when the block ends without an error.

        What an earlier, killed try left there is kept if it was made from the same fingerprint, and else removed.
        """
        final, partial = self.stage(number, name), self.stage(number, f"{name}.partial")
        if final.is_dir() and any(final.iterdir()) and not (final / MANIFEST).is_file():
            raise Damaged(final / MANIFEST, "it is missing")
        begun = partial / WORK / BEGUN
        spent, started = self._take_up(partial, fingerprint), time.time()
        try:
            yield partial
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk, which is what ended the block
                write_sealed(begun, {"fingerprint": fingerprint, "seconds": spent + time.time() - started})
            raise
        durable.sync_tree(partial)
        hashes = {
            str(file.relative_to(partial)): hashes_of_file(file)
            for file in sorted(partial.rglob("*"))
            if file.is_file() and file.relative_to(partial).parts[0] not in (WORK, MANIFEST)
        }
        manifest = {
            "fingerprint": fingerprint,
            "seconds": round(spent + time.time() - started, 3),
            "outputs": {file: slow for file, (slow, _) in hashes.items()},
            "checks": {file: fast for file, (_, fast) in hashes.items()},
        }
        write_sealed(partial / MANIFEST, manifest)
        self._publish(partial, final)

    def _take_up(self, partial: Path, fingerprint: str) -> float:
        """Make a stage's partial folder ready to be written into; returns the seconds spent on it before."""
        begun = partial / WORK / BEGUN
        upgrade_unfinished(partial, partial / WORK, fingerprint)
        if begun.is_file():
            known = read_sealed(begun)
            if known["fingerprint"] == fingerprint:
                return float(known["seconds"])
            durable.remove_tree(partial)
        elif any(path.is_file() and not durable.BESIDE.fullmatch(path.name) for path in partial.rglob("*")):
            raise ConfigError(f"{str(partial)!r} was not begun by a stage of this run; move it away, or delete it")
        durable.make_folder(begun.parent)
        write_sealed(begun, {"fingerprint": fingerprint, "seconds": 0.0})
        return 0.0

    def _publish(self, partial: Path, final: Path) -> None:
        """Give a stage that is whole its name, put its rows into metrics.jsonl, and remove what it was resumed from."""
        durable.publish(partial, final)
        self.collect_metrics()
        durable.remove_tree(final / WORK)

    def recover(self, number: int, name: str, fingerprint: str) -> None:
        """Finish what a kill left of finishing a stage: one that has its manifest is whole."""
        final, partial = self.stage(number, name), self.stage(number, f"{name}.partial")
        if not self.finished(number, name) and (manifest_of(partial) or {}).get("fingerprint") == fingerprint:
            self._publish(partial, final)

    def tidy(self) -> None:
        """Remove what kills left behind finished work. Only for who holds the lock."""
        durable.sweep(self.path)
        for number in self.numbers():
            durable.sweep(self.iteration(number))
            for name in self.stages(number):
                durable.sweep(self.stage(number, name))
                if (self.stage(number, name) / WORK / BEGUN).is_file():  # else it is not the stage's
                    durable.remove_tree(self.stage(number, name) / WORK)
            for partial in self.iteration(number).glob("*.partial"):
                for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
                    durable.sweep(folder)
        self.collect_metrics()

    def seconds(self, number: int) -> dict[str, float]:
        """Return the wall-clock seconds of each finished stage of an iteration."""
        return {name: self.manifest(number, name)["seconds"] for name in sorted(self.stages(number))}

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows that the stages left, in the order of a run, each with its iteration and stage.

        A stage's rows are in its folder's metrics.jsonl; those of a format before 2 are in the run's alone. Raises Damaged.
        """
        rows: list[dict[str, Any]] = []
        unsealed: set[tuple[int, str]] = set()
        for number in self.numbers():
            for folder in self.stages(number):
                name, manifest = folder if number or folder != "policy" else "bootstrap", self.manifest(number, folder)
                if "checks" not in manifest:
                    unsealed.add((number, name))
                elif "metrics.jsonl" in manifest["outputs"]:
                    found = read_json_lines(self.stage(number, folder) / "metrics.jsonl")
                    rows += [{"iteration": number, "stage": name, **row} for row in found]
        if unsealed:
            old = read_json_lines(self.path / "metrics.jsonl")
            rows += [row for row in old if (row["iteration"], row["stage"]) in unsealed]
        return sorted(rows, key=lambda row: (row["iteration"], place(row["stage"])))

    def collect_metrics(self) -> None:
        """Write metrics.jsonl anew from what the stages left, if it is not that."""
        file, text = self.path / "metrics.jsonl", json_lines(self.metrics())
        if not file.is_file() or file.read_bytes() != text.encode():
            durable.write(file, text)

    def recipe(self) -> Recipe:
        """Return the recipe that this run was begun with. Raises ConfigError if there is no run here, Damaged."""
        return validate(Recipe, self.settings(), str(self.path / "config.yaml"))

    def settings(self) -> dict[str, Any]:
        """Return what config.yaml holds, as it is written today. Raises as `config_text`, and Damaged if it is not YAML."""
        try:
            found = yaml.safe_load(self.config_text())
        except yaml.YAMLError as error:
            problem = f"it is not YAML ({' '.join(str(error).split())[:80]})"
            raise Damaged(self.path / "config.yaml", problem) from None
        return found if "format" in self.provenance() or not isinstance(found, dict) else upgrade_settings(found)

    def config_text(self) -> str:
        """Return the text of config.yaml. Raises ConfigError if there is no run here, Damaged if it was changed."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise ConfigError(
                f"{str(self.path)!r} is not a run directory: it has no config.yaml; start one with `selfplay run RECIPE`"
            )
        data = file.read_bytes()
        known = self.provenance().get("config")
        if known is not None and fast_hash(data) not in known:
            raise Damaged(
                file,
                "it is not the one that this run wrote",
                "put it back from a copy, or delete it: `selfplay run RECIPE` writes it anew and compares each finished "
                "stage with the recipe",
            )
        return data.decode()

    def provenance(self) -> dict[str, Any]:
        """Return what made the run; empty if that is not known. Raises Damaged."""
        file = self.path / "provenance.json"
        way_out = "put it back from a copy, or delete it: what made the run is then forgotten"
        return read_sealed(file, way_out) if file.is_file() else {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: raises ConfigError if another process works on it."""
        lock = FileLock(self.path / ".lock")
        try:
            durable.make_folder(self.path)
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process is working on {str(self.path)!r}; wait for it, or give another `output`"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def begin(self, recipe: Recipe) -> None:
        """Write config and provenance, or check that the recipe is the one this run was begun with.

        Says so where it was begun by versions that may give other numbers. Raises ConfigError for a directory that holds
        something else, and for settings that differ, naming each; Damaged for a config.yaml that was changed.
        """
        durable.sweep(self.path)
        file, told = self.path / "config.yaml", self.provenance()
        if file.is_file():
            differing = differences(self.recipe().model_dump(), recipe.model_dump())
            if "format" not in told:
                log(
                    "  this run was begun by an earlier version: its finished stages are taken as they are, without "
                    "comparing what they were made from"
                )
            if differing:
                raise ConfigError(
                    f"{str(self.path)!r} was begun with other settings: {'; '.join(differing)}. Give the old values to go "
                    f"on with it, `output=...` to begin another run, or delete it to begin anew"
                )
        elif not told:
            foreign = [entry.name for entry in self.path.iterdir() if entry.name not in (".lock", "log.txt", INPUTS)]
            if foreign:
                raise ConfigError(
                    f"{str(self.path)!r} holds files that do not belong to a run ({', '.join(sorted(foreign)[:3])}); "
                    "give another `output`, or empty it"
                )
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        self._write_provenance(told, text)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            durable.write(file, text)
        self.tidy()

    def _write_provenance(self, told: dict[str, Any], config: str) -> None:
        """Write down what made the run, what goes on with it now if that is another, and the hash of its settings.

        The hash of the settings before stays beside the new one, for a kill may come between this file and config.yaml.
        """
        now, fresh = provenance(), fast_hash(config.encode())
        known = {key: value for key, value in told.items() if key not in ("format", "config")} or now
        last = [known, *known.get("resumed", [])][-1]
        if any(last.get(key) != now[key] for key in ("commit", "python", "platform", "processor", "packages")):
            known = {**known, "resumed": [*known.get("resumed", []), now]}
            if changed := changes(last, now):
                log(
                    f"  this run was made with other versions until now ({', '.join(changed)}): it goes on, but its "
                    "numbers may differ in the last digits from those of a run that was never stopped"
                )
        configs = [fresh, *(one for one in told.get("config", []) if one != fresh)][:2]
        if {**known, "config": configs, "format": FORMAT} != told:
            write_sealed(self.path / "provenance.json", {**known, "config": configs})


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that may not be there, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def place(name: str) -> tuple[bool, int, int]:
    """Return where a stage stands in an iteration; each extra round stands behind the whole one before."""
    base, _, extra = name.partition("-extra-")
    at = ORDER.index(base)
    return at >= ORDER.index("policy"), int(extra or 0), at


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return settings that differ between two recipes, one `key: old -> new` each; those in FREE_SETTINGS do not count."""
    found = []
    for key in sorted(key for key in {*old, *new} if f"{prefix}{key}" not in FREE_SETTINGS):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found
