"""The file layer dies, or is refused by the disk, at every call that it makes: the old is there or the new, and no rest."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from selfplay.storage import durable
from selfplay.storage.durable import NotWritten

DIED = 9


def fill_folder(folder: Path) -> None:
    with durable.new_folder(folder / "made") as new:
        (new / "a").write_text("a")
        (new / "sub").mkdir()
        (new / "sub" / "b").write_text("b")


CHANGES: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "write": (lambda folder: durable.write(folder / "f", "old"), lambda folder: durable.write(folder / "f", "new")),
    "write new": (lambda folder: None, lambda folder: durable.write(folder / "f", "new")),
    "append": (lambda folder: durable.write(folder / "f", "old"), lambda folder: durable.append(folder / "f", "+new")),
    "append new": (lambda folder: None, lambda folder: durable.append(folder / "f", "new")),
    "truncate": (lambda folder: durable.write(folder / "f", "long"), lambda folder: durable.truncate(folder / "f", 1)),
    "remove": (lambda folder: durable.write(folder / "f", "old"), lambda folder: durable.remove(folder / "f")),
    "link": (lambda folder: durable.link(folder / "f", "one"), lambda folder: durable.link(folder / "f", "two")),
    "new folder": (lambda folder: None, fill_folder),
    "remove a tree": (fill_folder, lambda folder: durable.remove_tree(folder / "made")),
}
"""Name -> what was there before, and the change."""


def state(folder: Path) -> dict[str, str]:
    """What a reader finds, without what is written beside its place."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file())
        and not any(durable.BESIDE.fullmatch(part) for part in path.relative_to(folder).parts)
    }


def counting(action: Callable[[str, Path], None], number: int) -> Callable[[str, Path], None]:
    """A hook that acts at its nth call."""
    calls = 0

    def hook(call: str, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            action(call, path)

    return hook


def in_a_fork(work: Callable[[], None]) -> int:
    """The exit code of a forked process that does the work: 0 at its end."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("name", CHANGES)
def test_death_at_every_call_leaves_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    before, change = CHANGES[name]
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        before(folder)
        old = state(folder)

        def work(folder: Path = folder, number: int = number) -> None:
            durable.hook = counting(lambda call, path: os._exit(DIED), number)
            change(folder)

        code = in_a_fork(work)
        left = state(folder)
        change(folder) if left == old else None
        new = state(folder)
        assert left in (old, new), f"call {number}"
        durable.sweep(folder)
        assert {path.name for path in folder.iterdir()} == {key.split("/")[0] for key in new}, "something is left over"
        if code == 0:
            break
        assert code == DIED
    assert number > 2, "there were calls to die at"


@pytest.mark.parametrize("name", CHANGES)
def test_a_disk_that_refuses_any_call_is_one_sentence_and_leaves_the_old_or_the_new(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, change = CHANGES[name]

    def refuse(call: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        before(folder)
        old = state(folder)
        monkeypatch.setattr(durable, "hook", counting(refuse, number))
        said = ""
        try:
            change(folder)
        except NotWritten as error:
            said = str(error)
        monkeypatch.undo()
        assert not said or "could not be written: No space left on device; free some space" in said
        left = state(folder)
        change(folder) if left == old else None
        assert left in (old, state(folder)), f"call {number}"
        durable.sweep(folder)
        assert {path.name for path in folder.iterdir()} == {key.split("/")[0] for key in state(folder)}
        if not said:
            break


def test_an_append_that_is_refused_half_way_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes a part of the line and then is full: what the next append finds ends with a whole line."""
    file = tmp_path / "f"
    durable.append(file, "one\n")

    def full(call: str, path: Path) -> None:
        if call == "fsync":
            assert path.read_text() == "one\ntwo\n"
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "hook", full)
    with pytest.raises(NotWritten):
        durable.append(file, "two\n")
    assert file.read_text() == "one\n"


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_path_without_a_name_is_one_sentence(path: str) -> None:
    with pytest.raises(NotWritten, match="could not be written: Is a directory"):
        durable.write(Path(path), "text")
    with pytest.raises(NotWritten, match="could not be written: Is a directory"), durable.new_folder(Path(path)):
        pass


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    for name in ("my.partial", ".my.partial", ".f.1-0.partial", ".f.99999999-0.partial", f".f.{os.getpid()}-3.partial"):
        (tmp_path / name).write_text("x")  # process 1 lives, and 99999999 is beyond all numbers of processes
    (tmp_path / ".g.99999999-1.partial").mkdir()
    (tmp_path / ".g.99999999-1.partial" / "x").write_text("x")
    durable.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f.1-0.partial", ".my.partial", "my.partial"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with durable.replacing(file) as one:
        one.write_text("one")
        with durable.replacing(file) as two:
            two.write_text("two")
        assert file.read_text() == "two" and one != two
    assert file.read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "f"
    durable.write(file, "old")
    with pytest.raises(KeyboardInterrupt), durable.replacing(file) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), durable.new_folder(tmp_path / "g"):
        raise KeyboardInterrupt
    assert state(tmp_path) == {"f": "old"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["create", "remove"])
def test_a_folder_says_why_no_file_can_be_created_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    assert durable.refusal(tmp_path / "a/b") == "" and list((tmp_path / "a").rglob("*")) == [tmp_path / "a/b"]
    (tmp_path / "file").write_text("x")
    assert durable.refusal(tmp_path / "file/b") == "Not a directory"

    def refuse(now: str, path: Path) -> None:
        if now == call:
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(durable, "hook", refuse)
    assert durable.refusal(tmp_path) == "Read-only file system"
