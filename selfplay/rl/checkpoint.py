"""A folder that holds all a training needs to take the identical next step, on any number of processes.

`checkpoint-N`, N steps done, is written as `checkpoint-N.partial` and renamed, so that existence is completion: tensors by
torch.distributed.checkpoint, each process its own part; `state.json` with what is no tensor; `checks.json` with the checksum of
each file, and those of the logs beside the folder up to it, to which a resume cuts them back. Left out: history. Only the newest
is kept.
"""

import re
import warnings
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from selfplay.distributed.collectives import all_gather, barrier, from_first, rank, world_size
from selfplay.errors import ConfigError
from selfplay.storage import durable
from selfplay.storage.checksums import CHECKS, Damaged, check_of_file, fast_hash_of_file, read_sealed, write_sealed

STATE = "state.json"
LOGS = ("metrics.jsonl", "samples.jsonl")
NAME = re.compile(r"checkpoint-\d+")


def save_checkpoint(directory: Path, state: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write a checkpoint of `state["steps_done"]` steps and remove older ones. Every process calls it. Raises NotWritten.

    `state` is JSON; `tensors` are in nested dicts, whole or spread over the processes. The logs beside the checkpoint are forced
    to disk first: a resume cuts them back to what they are now.
    """
    final = directory / f"checkpoint-{state['steps_done']}"
    partial = directory / f"{final.name}.partial"
    if rank() == 0:
        durable.remove_tree(partial)
        with durable.naming(partial):
            partial.mkdir(parents=True)
    barrier()
    writer = FileSystemWriter(partial)
    with durable.naming(partial), _first_reason(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        save(tensors, storage_writer=writer, no_dist=world_size() == 1)
    barrier()
    written = [path for path in partial.iterdir() if path.name.startswith(f"__{rank()}_")]
    checks = {name: check for part in all_gather(_checks(written)) for name, check in part.items()}
    if rank() == 0:
        write_sealed(partial / STATE, state)
        checks |= _checks([path for path in partial.iterdir() if path.name not in checks])
        logs = [directory / name for name in LOGS if (directory / name).is_file()]
        for log in logs:
            durable.sync(log)
        write_sealed(partial / CHECKS, {"files": checks, "logs": _checks(logs)})
        durable.publish(partial, final)
        for other in checkpoints(directory):
            if other != final:
                durable.remove_tree(other)
    barrier()


def _checks(files: list[Path]) -> dict[str, str]:
    return {path.name: check_of_file(path) for path in sorted(files)}


class _first_reason:
    """Raise the error that a process met while writing, not torch's report of who met what."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, CheckpointException):
            reason, _ = next(iter(error.failures.values()))
            raise reason from error


def checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints in a directory, the oldest first: one, or two after a kill between two calls."""
    found = [path for path in directory.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def find_checkpoint(directory: Path, fingerprint: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint in a directory with its state, the same on every process, or None if there is none.

    Raises Damaged for one that is not what was written, and ConfigError for one of other settings (`fingerprint` is compared
    with the state's own), of an earlier version, or on a disk that the processes do not share.
    """
    found = from_first(lambda: _newest(directory, fingerprint))
    if found is not None and not all(all_gather(found[0].is_dir())):
        raise ConfigError(f"{str(found[0])!r} is not there for all processes: put the run on a disk that they share")
    return found


def _newest(directory: Path, fingerprint: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    if (directory / "checkpoint.pt").is_file():
        raise ConfigError(
            f"{str(directory / 'checkpoint.pt')!r} was written by a version of selfplay before 0.3, which kept a checkpoint in "
            f"one file: {_way_out(directory)}, or end it with that version"
        )
    found = checkpoints(directory)
    if not found:
        return None
    check_checkpoint(found[-1])
    state = read_sealed(found[-1] / STATE, _way_out(directory))
    changed = [key for key in fingerprint if state["fingerprint"].get(key) != fingerprint[key]]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{str(found[-1])!r} was written with {key} = {state['fingerprint'].get(key)!r}, and now it is "
            f"{fingerprint[key]!r}: put it back, or delete {str(directory)!r} to begin this training anew"
        )
    return found[-1], state


def setting_at_checkpoint(directory: Path | None, name: str) -> Any:
    """Return a setting with which the newest checkpoint in a directory was written, None if there is none.

    A resume follows it where the setting was measured and not given. Raises Damaged.
    """
    found = checkpoints(directory) if directory is not None else []
    return read_sealed(found[-1] / STATE, _way_out(found[-1].parent))["fingerprint"].get(name) if found else None


def load_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Copy a checkpoint's tensors into the ones of the same names, in place; every process calls it with its own parts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(tensors, storage_reader=FileSystemReader(folder), no_dist=world_size() == 1)


def resume(directory: Path, fingerprint: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any] | None:
    """Put a training back to the newest checkpoint in its directory, which is made; return its state, or None without one.

    `tensors` are filled in place, and what was logged behind the checkpoint is forgotten. Every process calls it. Raises what
    `find_checkpoint` and `restore_logs` do.
    """
    directory.mkdir(parents=True, exist_ok=True)
    folder, state = find_checkpoint(directory, fingerprint) or (None, None)
    if folder is not None:
        load_tensors(folder, tensors)
    if rank() == 0:
        restore_logs(directory, folder)
    barrier()
    return state


def check_checkpoint(folder: Path) -> dict[str, str]:
    """Return the sizes and checksums that the logs had at a checkpoint.

    Raises Damaged if a file of it, or a log's part up to it, is not what was written.
    """
    way_out = _way_out(folder.parent)
    if not (folder / CHECKS).is_file():
        raise Damaged(folder / CHECKS, "it is not there any more", way_out)
    known = read_sealed(folder / CHECKS, way_out)
    for name, check in known["files"].items():
        path = folder / name
        if not path.is_file() or check_of_file(path) != check:
            raise Damaged(path, "its bytes are not those that were written", way_out)
    for name, check in known["logs"].items():
        log, size = folder.parent / name, int(check.split()[0])
        if not log.is_file() or log.stat().st_size < size or f"{size} {fast_hash_of_file(log, size)}" != check:
            raise Damaged(log, "it does not begin as it did at the last checkpoint", way_out)
    logs: dict[str, str] = known["logs"]
    return logs


def restore_logs(directory: Path, folder: Path | None) -> None:
    """Cut the logs back to what they were at a checkpoint, or remove them without one; remove what a kill left half written.

    Only for the first process. Raises Damaged as `check_checkpoint` does, and NotWritten.
    """
    known = {} if folder is None else check_checkpoint(folder)
    for path in (directory / name for name in LOGS):
        if path.name not in known:
            durable.remove(path)
        elif path.stat().st_size > (size := int(known[path.name].split()[0])):
            durable.truncate(path, size)
    for partial in directory.glob("checkpoint-*.partial"):
        durable.remove_tree(partial)


def _way_out(directory: Path) -> str:
    return f"delete {str(directory)!r}, and this training begins anew"
