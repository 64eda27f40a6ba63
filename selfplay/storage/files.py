"""Values and rows on disk: JSON, JSON lines and Parquet; and the hashes and seeds that follow from values.

Files are written in one step (`selfplay.storage.durable`). What a finished stage left is compared with its manifest before it is
read (`selfplay.storage.checksums`). Imports no torch.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfplay.storage import durable
from selfplay.storage.checksums import Damaged, checked


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, in one step. NaN is refused: a missing number is null."""
    durable.write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, once it was compared with the manifest beside it. Raises Damaged."""
    data = checked(path).read_bytes()
    try:
        return json.loads(data)
    except ValueError:
        raise Damaged(path, "it is empty" if not data else "it is not JSON") from None


def read_json_lines(path: Path) -> list[Any]:
    """Return the values of a file of JSON lines, without a last one that a kill cut short; none if there is no file.

    A line ends at a line feed and nowhere else: sampled text may hold U+0085 or U+2028, at which `splitlines` cuts too.
    Raises Damaged for another line that is not JSON, and for a file that its manifest does not vouch for.
    """
    values = []
    lines = checked(path).read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except ValueError:  # the end, which is empty, or a part of a line
            if number < len(lines):
                raise Damaged(path, f"line {number} is not JSON") from None
    return values


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as JSON lines. NaN is refused."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, in one step. NaN is refused."""
    durable.write(path, json_lines(rows))


def write_rows(path: Path, rows: Sequence[BaseModel | dict[str, Any]]) -> None:
    """Write records or mappings as Parquet. A mapping inside a row needs the same keys in all rows, or to be JSON text."""
    import pyarrow
    import pyarrow.parquet

    plain = [row.model_dump() if isinstance(row, BaseModel) else row for row in rows]
    with durable.replacing(path) as beside:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), beside)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file as mappings, once it was compared with the manifest beside it. Raises Damaged."""
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(checked(path)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise Damaged(path, f"it is not Parquet ({str(error).splitlines()[0]})") from None
    return rows


def rows_in(path: Path) -> int:
    """Return how many rows a Parquet file has, without reading them."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def hash_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def derived_seed(*parts: Any) -> int:
    """Return a seed in [0, 2^31) for one purpose of a run, from the run's seed and the purpose's name."""
    return int(hash_of(parts)[:8], 16) & 0x7FFFFFFF
