"""Rows from files, folders and datasets on the hub, as mappings of columns.

What the columns mean is said by `prompts.shapes`. Left out: streaming. A source is read whole, since prompts are small
beside what is sampled from them.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selfplay.config import NESTED, Unusable, check_json, parse_json, read_text, suspicious
from selfplay.errors import ConfigError
from selfplay.storage.checksums import fast_hash_of_file
from selfplay.storage.files import hash_of

READABLE = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
"""How the names of files end that can be read; each may be gzipped, with `.gz` behind it."""
SEPARATORS = ",;\t|"
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")
"""Words at the start of a file's or a folder's name that say which split it holds."""

Row = dict[str, Any]


def suffix_of(path: str | Path) -> str:
    """Return how a file's name ends, `.gz` left out, in lower case."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def names_file(source: str) -> bool:
    """Return whether a source is named as a file is, and not as a dataset."""
    return suffix_of(source) in READABLE


def digest(source: str) -> str:
    """Return what tells a source's content from another's: a hash of a file, or of the readable files in a folder.

    A dataset on the hub, what is built in, and what is not there go by their names.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file() and names_file(one.name))
        return hash_of([[one.relative_to(path).as_posix(), fast_hash_of_file(one)] for one in files])
    return fast_hash_of_file(path) if path.is_file() else source


def rows_of(source: str, split: str, built_in: Iterable[str] = ()) -> Iterable[Row]:
    """Return the rows of a file, of a split of a folder, or of a dataset on the hub.

    `built_in` are the names that a source may also be, for the error's sentence. Raises ConfigError for what cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_rows(path, split)
    if names_file(source):
        if not path.is_file():
            raise ConfigError(f"there is no file {source!r}")
        return file_rows(path)
    return _hub_rows(source, split, built_in)


def file_rows(path: Path) -> list[Row]:
    """Return the rows of one file; a line of a .txt file is a row with the column `prompt`. Raises ConfigError."""
    kind = suffix_of(path)
    if kind == ".parquet":
        return _parquet_rows(path)
    text = read_text(path)
    if kind == ".txt":
        return [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]
    if kind in (".csv", ".tsv"):
        return _table_rows(text, path)
    return _json_rows(text, str(path), whole=kind == ".json")


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a text that is not UTF-8
        raise ConfigError(f"{path} is not a Parquet file that can be read: {error}") from None


def _table_rows(text: str, path: Path) -> list[Row]:
    """Return the rows under the header of a CSV file; the separator is the one that its header holds most of."""
    csv.field_size_limit(sys.maxsize)
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    rows = []
    for row in reader:
        if None in row:
            raise ConfigError(
                f"{path}, line {reader.line_num} has more cells than the header ({', '.join(reader.fieldnames or ())}): "
                "put text that holds the separator or a quotation mark between double quotation marks"
            )
        rows.append({str(key).strip(): value for key, value in row.items()})
    return rows


def _json_rows(text: str, where: str, whole: bool) -> list[Row]:
    """Return the objects of JSON lines, or of a .json file (`whole`): one list, or an object with one list of objects."""
    check = suspicious(text)
    if whole:
        try:
            found = json.loads(text)
        except RecursionError:
            raise ConfigError(f"{where}: {NESTED}") from None
        except ValueError:
            if text.lstrip().startswith("["):
                _json(text, where)
        else:
            entries = _only_list(found)
            return _objects([(f"{where}, entry {number}", entry) for number, entry in enumerate(entries, 1)], check)
    lines = [(f"{where}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _objects([(place, _json(line, place)) for place, line in lines], check=False)


def _only_list(found: Any) -> list[Any]:
    """Return the rows of a whole JSON document; an object without a list of objects in it is itself the only row."""
    if isinstance(found, list):
        return found
    lists = [value for value in found.values() if _objects_only(value)] if isinstance(found, dict) else []
    rows_apart = len(lists) == 1 and not {"messages", "conversations", "prompt", "instruction"} & set(found)
    return lists[0] if rows_apart else [found]


def _objects_only(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except Unusable as error:
        raise ConfigError(f"{where}: {error}") from None
    except ValueError:
        raise ConfigError(
            f"{where} is not JSON; a .jsonl file holds one object per line, a .json file one list of objects"
        ) from None


def _objects(entries: list[tuple[str, Any]], check: bool) -> list[Row]:
    """Return the entries, each of which must be a mapping that can be used, where `check` says that one may not be.

    Raises ConfigError that names the place of the first that is not.
    """
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} is not an object with columns")
        if check:
            try:
                check_json(entry)
            except Unusable as error:
                raise ConfigError(f"{where}: {error}") from None
    return [entry for _, entry in entries]


def _folder_rows(folder: Path, split: str) -> Iterable[Row]:
    """Return the rows of a folder's files of a split, in the order of their paths; where no name says a split, of all files.

    A folder that `datasets` saved is loaded as such.
    """
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _saved_rows(folder, split)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and names_file(path.name))
    files = [path for path in files if path.name != "dataset_infos.json"]
    if not files:
        raise ConfigError(f"the folder {str(folder)!r} holds no files that can be read ({', '.join(READABLE)})")
    named = {path: split_of(path.relative_to(folder)) for path in files}
    if any(named.values()):
        files = [path for path in files if named[path] == split]
        if not files:
            there = ", ".join(sorted({name for name in named.values() if name}))
            raise ConfigError(f"the folder {str(folder)!r} has no split {split!r}; its files are of: {there}")
    return [row for path in files for row in file_rows(path)]


def split_of(path: Path) -> str | None:
    """Return the split that a file's name or a folder above it begins with (`train-00000.parquet`, `test/a.jsonl`), or None."""
    for part in reversed(path.parts):
        word = re.match(r"[a-z]+", part.lower())
        if word and word[0] in SPLITS:
            return word[0]
    return None


def _saved_rows(folder: Path, split: str) -> Iterable[Row]:
    import datasets

    found = datasets.load_from_disk(str(folder))
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise ConfigError(f"the folder {str(folder)!r} has no split {split!r}; there are: {', '.join(sorted(found))}")
    return found[split]


def _hub_rows(source: str, split: str, built_in: Iterable[str]) -> Iterable[Row]:
    import datasets

    try:
        return datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub client raises errors of many kinds
        raise ConfigError(
            f"{source!r} is neither built in ({', '.join(built_in)}), nor a file ({', '.join(READABLE)}), "
            f"nor a folder, nor a dataset that could be loaded with split {split!r}: {str(error).splitlines()[0]}"
        ) from None
