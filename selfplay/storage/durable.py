"""How files are changed on disk: after a kill, a power cut or a full disk at any moment, the old is there or the new.

    write(path, text)                      # a whole file
    with replacing(path) as beside: ...    # the same for what a library writes
    append(path, line)                     # a line of a journal
    make_folder(path)                      # a folder to write into
    with new_folder(path) as folder: ...   # a folder that is whole
    publish(folder, final)                 # a folder that is whole gets its name
    remove(path), remove_tree(folder)      # a folder disappears in one step too

Everything is written beside its place, forced to disk, renamed, and the folder's list of names is forced to disk. What
is written beside has a name of its own (`.NAME.PROCESS-NUMBER.partial`) that is created new, so no file of anyone else's
is ever replaced or removed; `sweep` removes what killed processes left. Each call that changes the disk is announced to
`hook`, through which tests die, fill the disk or cut files at every one of them. Left out: locks, and what is written.
"""

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from selfplay.errors import ConfigError, SelfplayError

BESIDE = re.compile(r"\..+\.(\d+)-\d+\.partial")
"""Names of what is written beside its place, with the number of the process that writes."""
AGAIN = "give the same command again"
"""End of the way out of a NotWritten."""


class NotWritten(ConfigError, OSError):
    """The disk refused a change, such as for lack of space. The message names the file, the reason and the way out."""


def _nothing(call: str, path: Path) -> None:
    """Let every call pass."""


hook: Callable[[str, Path], None] = _nothing
"""Called before each change with its name (create, write, fsync, rename, append, truncate, remove, link) and its path."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what says in the block that the disk refuses a change into a NotWritten that names `path`.

    That is an OSError, and the errors that safetensors and torch make of one.
    """
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise _not_written(path, error.strerror or str(error), full) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError" and "I/O error" in str(error):
            raise _not_written(path, str(error).rpartition("I/O error: ")[2], "os error 28" in str(error)) from error
        if "inline_container.cc" in str(error):  # torch.save, which does not say why
            raise _not_written(path, "torch could not write all of it", True) from error
        raise


def _not_written(path: Path, reason: str, full: bool) -> NotWritten:
    fix = "free some space" if full else "fix that"
    return NotWritten(f"{str(path)!r} could not be written: {reason}; {fix} and {AGAIN}")


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Add to what tells in the block of a file that could not be written that the same command goes on.

    For what saves as it works. The error of a worker, which is no NotWritten here any more, is told by its words.
    """
    try:
        yield
    except SelfplayError as error:
        if str(error).endswith(AGAIN):
            error.args = (f"{error}, which goes on from what is saved",)
        raise


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part. Raises NotWritten."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as beside, open(beside, "wb") as file:
        hook("write", beside)
        file.write(data)


@contextlib.contextmanager
def _removed_on_failure(beside: Path) -> Iterator[None]:
    """Remove what was made beside its place if the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new, empty file beside `path`; when the block ends without an error, it takes the place of `path`.

    It is removed if the block fails. Raises NotWritten where the disk refuses.
    """
    with naming(path):
        beside = _create_beside(path, _create_file)
        with _removed_on_failure(beside):
            yield beside
            _sync(beside)
            hook("rename", path)
            os.replace(beside, path)
        _sync(path.parent)


def append(path: Path, content: str) -> None:
    """Add to the end of a file and force it to disk; where the disk refuses, what was there stays. Raises NotWritten."""
    with naming(path):
        new = not path.exists()
        before = 0 if new else path.stat().st_size
        try:
            hook("append", path)
            with open(path, "ab") as file:
                file.write(content.encode())
            _sync(path)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, before)
            raise
        if new:
            _sync(path.parent)


def truncate(path: Path, size: int) -> None:
    """Cut a file behind its first `size` bytes. Raises NotWritten."""
    with naming(path):
        hook("truncate", path)
        os.truncate(path, size)
        _sync(path)


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to a folder, in place of a link that is there. Raises NotWritten."""
    with naming(path):
        beside = _create_beside(path, lambda name: os.symlink(target, name, target_is_directory=True))
        with _removed_on_failure(beside):
            hook("link", path)
            os.replace(beside, path)
        _sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, where they are not there. Raises NotWritten."""
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)


def refusal(folder: Path) -> str:
    """Make a folder, if it is not there, and return why no file can be created in it; nothing if one can."""
    try:
        make_folder(folder)
        beside = _create_beside(folder / "trial", _create_file)
        hook("remove", beside)
        beside.unlink()
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        return cause.strerror or str(cause)
    return ""


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a new, empty folder beside `path`; when the block ends without an error, it gets the name `path`.

    It is removed if the block fails. An empty folder may be at `path`. Raises NotWritten where the disk refuses.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _create_beside(path, os.mkdir)
    try:
        yield beside
        publish(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Force a file to disk. Raises NotWritten."""
    with naming(path):
        _sync(path)


def sync_tree(folder: Path) -> None:
    """Force a folder with everything in it to disk. Raises NotWritten."""
    with naming(folder):
        for path in sorted(folder.rglob("*")):
            if not path.is_symlink():
                _sync(path)
        _sync(folder)


def publish(folder: Path, final: Path) -> None:
    """Give a folder that is whole its name, in one step; an empty folder may be there. Raises NotWritten."""
    sync_tree(folder)
    with naming(final):
        hook("rename", final)
        os.rename(folder, final)
        _sync(final.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises NotWritten."""
    with naming(path):
        hook("remove", path)
        path.unlink(missing_ok=True)
        _sync(path.parent)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it, if it is there, in one step: renamed first. Raises NotWritten."""
    if not folder.is_dir():
        return
    with naming(folder):
        beside = _create_beside(folder, os.mkdir)
        hook("rename", folder)
        os.rename(folder, beside)
        _sync(folder.parent)
        hook("remove", beside)
        shutil.rmtree(beside)


def sweep(folder: Path) -> None:
    """Remove what processes that are gone left written beside its place in a folder, not below it. Raises NotWritten."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = BESIDE.fullmatch(path.name)
        if found is None or (int(found[1]) != os.getpid() and _alive(int(found[1]))):
            continue
        with naming(path):
            hook("remove", path)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _create_beside(path: Path, create: Callable[[Path], object]) -> Path:
    """Create something new beside a path and return its path. Raises OSError for a path such as `.`, which has no name."""
    if not path.name.strip("."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for number in itertools.count():
        beside = path.with_name(f".{path.name}.{os.getpid()}-{number}.partial")
        with contextlib.suppress(FileExistsError):
            hook("create", beside)
            create(beside)
            return beside
    raise AssertionError("the numbers have no end")


def _create_file(path: Path) -> None:
    """Create an empty file. Raises FileExistsError if it is there."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    hook("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do this for folders
            raise
    finally:
        os.close(descriptor)


def _alive(process: int) -> bool:
    """Return whether a process of this number runs here."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
