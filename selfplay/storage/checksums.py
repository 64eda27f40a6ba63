"""What was written is what is read: checksums of files, sealed JSON, and manifests.

A finished stage's `manifest.json` names each of its files with its size and two hashes: XXH3 (Collet 2012-2021), which is
as fast as memory and is compared whenever a file is read, and sha256, which names its content to the world and is
compared by `selfplay verify`. JSON that nothing else vouches for is sealed: its last key `check` is the hash of the rest.
Folders and files of a format before 2 have no seal and are read as they are; their sha256 is compared where there is one.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from selfplay.errors import ConfigError
from selfplay.storage import durable

FORMAT = 2
"""Of run directories. 1 had neither seals nor this number."""
MANIFEST = "manifest.json"
CHECKS = "checks.json"
"""Names the files of a checkpoint that a training wrote, each with its size and XXH3."""
PIECE = 1 << 20
SMALL = 1 << 24
"""Bytes of a file that is compared at each start of a run, whether it is read or not."""


class Damaged(ConfigError):
    """A file that is not what was written. The message names it, says what is wrong, and gives the way out."""

    def __init__(self, path: Path, problem: str, way_out: str | None = None) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{str(path)!r} is damaged: {problem}; {way_out or way_out_of(path)}")


def way_out_of(path: Path) -> str:
    """Return what to do about damage to a file: the command for a file of a run, else to put it back."""
    run = next((folder for folder in path.parents if (folder / "provenance.json").is_file()), None)
    if run is None:
        return "put it back from a copy, or delete it to have it made again"
    return (
        f"`selfplay verify {run} --repair` removes it and the stages that follow from it, and giving the same command "
        "again makes them anew"
    )


def fast_hash(data: bytes) -> str:
    """Return the XXH3 of bytes, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def fast_hash_of_file(path: Path, size: int | None = None) -> str:
    """Return the XXH3 of a file's bytes, or of its first `size`."""
    total = xxhash.xxh3_128()
    for piece in _pieces(path, size):
        total.update(piece)
    return total.hexdigest()


def hashes_of_file(path: Path) -> tuple[str, str]:
    """Return the sha256 of a file's bytes, and its check: size and XXH3."""
    slow, fast, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    for piece in _pieces(path, None):
        slow.update(piece)
        fast.update(piece)
        size += len(piece)
    return slow.hexdigest(), f"{size} {fast.hexdigest()}"


def check_of_file(path: Path) -> str:
    """Return a file's size and XXH3, as manifests hold them."""
    return f"{path.stat().st_size} {fast_hash_of_file(path)}"


def _pieces(path: Path, size: int | None) -> Iterator[bytes]:
    left = path.stat().st_size if size is None else size
    with open(path, "rb") as file:
        while left > 0 and (piece := file.read(min(PIECE, left))):
            left -= len(piece)
            yield piece


def sealed(value: dict[str, Any]) -> str:
    """Return a value as JSON whose last key, `check`, is the hash of the rest. NaN is refused."""
    body = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return json.dumps({**value, "check": fast_hash(body.encode())}, indent=1, ensure_ascii=False) + "\n"


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a value as sealed JSON with the format's number. Raises NotWritten."""
    durable.write(path, sealed({"format": FORMAT, **value}))


def read_sealed(path: Path, way_out: str | None = None) -> dict[str, Any]:
    """Return the value of a sealed file, without its seal; of one that has none and claims no format, as it is.

    Raises Damaged for anything that `write_sealed` did not write, and ConfigError for a format from the future.
    """
    data = path.read_bytes()
    try:
        value = json.loads(data)
    except ValueError:
        raise Damaged(path, "it is empty" if not data else "it is not JSON", way_out) from None
    if not isinstance(value, dict):
        raise Damaged(path, "it holds no JSON object", way_out)
    if "check" not in value and "format" not in value:
        return value
    body = {key: one for key, one in value.items() if key != "check"}
    try:
        same = sealed(body).encode() == data
    except ValueError:  # NaN, or half of a surrogate pair
        same = False
    if not same:
        raise Damaged(path, "its content does not have the checksum that it was written with", way_out)
    if body["format"] > FORMAT:
        raise ConfigError(
            f"{str(path)!r} has the format {body['format']}, and this version of selfplay knows formats up to {FORMAT}: "
            "install a newer one"
        )
    return body


_manifests: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}
_checked: dict[Path, tuple[int, int, int]] = {}


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished stage's folder, or None if there is none. Raises Damaged."""
    path = folder / MANIFEST
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    known = _manifests.get(path)
    if known is None or known[0] != (status.st_mtime_ns, status.st_size):
        known = _manifests[path] = ((status.st_mtime_ns, status.st_size), read_sealed(path))
    return known[1]


def checked(path: Path) -> Path:
    """Return a path after comparing its file with the manifest beside it; a file that no manifest names is taken as it is.

    A file that has not changed since this process compared it is not read again. Raises Damaged.
    """
    manifest = manifest_of(path.parent)
    if manifest is not None and path.name in manifest["outputs"]:
        _compare(path, path.name, manifest)
    return path


def check_folder(folder: str | Path) -> None:
    """Compare every file of a finished stage with its manifest; other folders pass. Raises Damaged."""
    manifest = manifest_of(Path(folder))
    for name in manifest["outputs"] if manifest is not None else ():
        _compare(Path(folder) / name, name, manifest or {})


def check_small(folder: Path) -> None:
    """Compare the sizes of a finished stage's files with its manifest, and the bytes of small ones. Raises Damaged."""
    manifest = manifest_of(folder) or {}
    for name, check in manifest.get("checks", {}).items():
        _compare_size(folder / name, check)
        if int(check.split()[0]) <= SMALL:
            _compare(folder / name, name, manifest)


def _compare(path: Path, name: str, manifest: dict[str, Any]) -> None:
    """Raise Damaged if a file is not the one that a manifest names."""
    check = manifest.get("checks", {}).get(name)
    if check is not None:
        _compare_size(path, check)
    elif not path.is_file():
        raise Damaged(path, "it is not there any more")
    status = path.stat()
    now = (status.st_mtime_ns, status.st_size, status.st_ino)
    if _checked.get(path) == now:
        return
    if check is None:  # of a format before 2
        if hashes_of_file(path)[0] != manifest["outputs"][name]:
            raise Damaged(path, "its sha256 is not the one in its manifest")
    elif check_of_file(path) != check:
        raise Damaged(path, "its bytes are not those that were written")
    _checked[path] = now


def _compare_size(path: Path, check: str) -> None:
    """Raise Damaged for a file that is not there, or that has another size."""
    if not path.is_file():
        raise Damaged(path, "it is not there any more")
    size = int(check.split()[0])
    if path.stat().st_size != size:
        raise Damaged(path, f"it has {path.stat().st_size:,} bytes, and {size:,} were written")


def write_checks(folder: Path) -> None:
    """Seal a folder that is to be resumed from: write `checks.json` with size and XXH3 of each file. Raises NotWritten."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / CHECKS)
    write_sealed(folder / CHECKS, {"files": {str(file.relative_to(folder)): check_of_file(file) for file in files}})


def is_complete(checkpoint: Path) -> bool:
    """Return whether each file that a checkpoint's `checks.json` names is there and is what was written."""
    try:
        checks = read_sealed(checkpoint / CHECKS)["files"]
        return all(check_of_file(checkpoint / name) == known for name, known in checks.items())
    except (OSError, Damaged):
        return False
