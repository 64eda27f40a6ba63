"""What was written is what is read: every single byte that changes is noticed, and said in one sentence."""

import json
import os
from pathlib import Path

import pytest

from selfplay.errors import ConfigError
from selfplay.rundir import RunDirectory
from selfplay.storage import checksums, durable
from selfplay.storage.checksums import FORMAT, Damaged, check_folder, checked, read_sealed, sealed, write_sealed
from selfplay.storage.files import read_json, read_json_lines, read_rows, write_json, write_rows
from selfplay.storage.journal import Journal, entries


def flipped(data: bytes, place: int) -> bytes:
    """The same bytes but for one, whose lowest bit is another."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def change(path: Path, place: int) -> None:
    """Change one byte of a file, at a time of its own."""
    path.write_bytes(flipped(path.read_bytes(), place))
    os.utime(path, ns=(1, 1 + place))


def test_a_sealed_file_gives_back_what_was_written(tmp_path: Path) -> None:
    value = {"text": "é\u2028", "numbers": [0.1, 1e-300, 12345678901234567890], "none": None, "nested": {"a": [{}]}}
    write_sealed(tmp_path / "f.json", value)
    assert read_sealed(tmp_path / "f.json") == {"format": FORMAT, **value}
    assert json.loads((tmp_path / "f.json").read_text())["text"] == "é\u2028", "others can read it as JSON"


def test_every_byte_of_a_sealed_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    write_sealed(file, {"text": "é", "number": 1.5, "list": [1, 2]})
    data = file.read_bytes()
    for place in range(len(data)):
        file.write_bytes(flipped(data, place))
        with pytest.raises(Damaged, match=r"f.json' is damaged: .*; put it back from a copy"):
            read_sealed(file)
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:cut])
        with pytest.raises(Damaged, match="it is empty" if cut == 0 else "damaged"):
            read_sealed(file)


def test_what_has_no_seal_is_of_the_format_before_and_what_is_of_the_next_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "old.json", {"a": 1})
    assert read_sealed(tmp_path / "old.json") == {"a": 1}
    durable.write(tmp_path / "new.json", sealed({"format": FORMAT + 1}))
    with pytest.raises(ConfigError, match=r"has the format 3, and this version of selfplay knows formats up to 2"):
        read_sealed(tmp_path / "new.json")


def stage(home: Path) -> Path:
    """A finished stage with a file of each kind."""
    files = RunDirectory(home)
    with files.writing(1, "label", "f") as folder:
        write_json(folder / "health.json", {"a": 1})
        (folder / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
        write_rows(folder / "rows.parquet", [{"a": 1}, {"a": 2}])
        (folder / "sub").mkdir()
        (folder / "sub" / "weights.bin").write_bytes(bytes(range(256)))
    return files.stage(1, "label")


def test_a_changed_or_missing_file_of_a_finished_stage_is_not_read(tmp_path: Path) -> None:
    folder = stage(tmp_path)
    readers = {"health.json": read_json, "rows.jsonl": read_json_lines, "rows.parquet": read_rows}
    for name, reader in readers.items():
        data = (folder / name).read_bytes()
        before = reader(folder / name)
        for place in range(0, len(data), max(1, len(data) // 40)):
            change(folder / name, place)
            with pytest.raises(Damaged, match=f"{name}' is damaged: its bytes are not those that were written"):
                reader(folder / name)
            (folder / name).write_bytes(data)
        (folder / name).write_bytes(data[:-1])
        with pytest.raises(Damaged, match=f"it has {len(data) - 1:,} bytes, and {len(data):,} were written"):
            reader(folder / name)
        (folder / name).write_bytes(data)
        assert reader(folder / name) == before
        check_folder(folder)
    change(folder / "health.json", 5)
    with pytest.raises(Damaged, match=r"health.json' is damaged: its bytes"):
        checksums.check_small(folder)
    change(folder / "health.json", 5)
    change(folder / "sub" / "weights.bin", 100)
    with pytest.raises(Damaged, match=r"sub/weights.bin' is damaged"):
        check_folder(folder)
    (folder / "health.json").unlink()
    with pytest.raises(Damaged, match=r"health.json' is damaged: it is not there any more"):
        checksums.check_small(folder)


def test_a_file_is_compared_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = stage(tmp_path), []
    real = checksums.check_of_file
    monkeypatch.setattr(checksums, "check_of_file", lambda path: read.append(path.name) or real(path))
    for _ in range(3):
        checked(folder / "rows.parquet")
    assert read == ["rows.parquet"]


def test_a_stage_of_the_format_before_is_compared_by_its_sha256(tmp_path: Path) -> None:
    folder = stage(tmp_path)
    manifest = read_sealed(folder / "manifest.json")
    write_json(folder / "manifest.json", {key: manifest[key] for key in ("fingerprint", "seconds", "outputs")})
    assert read_json(folder / "health.json") == {"a": 1}
    change(folder / "health.json", 5)
    with pytest.raises(Damaged, match="its sha256 is not the one in its manifest"):
        read_json(folder / "health.json")


def test_every_byte_of_a_journal_counts(tmp_path: Path) -> None:
    """Only the last line's end may go, which is how a kill leaves a file: that line's batch is made again."""
    file = tmp_path / "journal.jsonl"
    for key in "abc":
        Journal(file).append(key, [{"text": f"é{key}"}])
    data = file.read_bytes()
    for place in range(len(data)):
        file.write_bytes(flipped(data, place))
        assert any(entry is None for _, entry in entries(file))
        if place == len(data) - 1:
            assert Journal(file).batches.keys() == {"a", "b"}
        else:
            with pytest.raises(Damaged, match=r"journal.jsonl' is damaged: line [123] does not have the checksum"):
                Journal(file)
