"""Votes that someone else collected: CSV with any separator, JSON, JSON lines or Parquet, gzipped or not.

Text may be UTF-8, UTF-16 or Latin-1. Columns and words of the chatbot arena, FastChat and our own matches.parquet are
known, in any case; whatever is not known is refused together with what is.
"""

import csv
import gzip
import io
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfplay.config import parse_json
from selfplay.errors import ConfigError
from selfplay.stats.votes import Vote, VoteTable, tabulate

WORDS = {
    **dict.fromkeys(("a", "model_a", "model a", "1st"), 1.0),
    **dict.fromkeys(("b", "model_b", "model b", "2nd"), 0.0),
    **dict.fromkeys(("tie", "draw", "tie (bothbad)", "tie (inconsistent)", "both_bad", "bothbad", "both bad"), 0.5),
    **dict.fromkeys(("", "nan", "none", "null", "na", "n/a", "error", "unscored"), math.nan),
}
"""Preferences that are words, in lower case; FastChat calls two orders that disagree `tie (inconsistent)`."""
COLUMNS = {
    "prompt": ("prompt", "prompt_id", "question_id", "question", "instruction"),
    "model_a": ("model_a", "a"),
    "model_b": ("model_b", "b"),
    "preference": ("preference", "winner"),
    "length_a": ("length_a", "a_tokens"),
    "length_b": ("length_b", "b_tokens"),
    "judge": ("judge",),
}
"""What a vote is made of, under the names that files give it (in lower case, with `_` for spaces and hyphens)."""
NEEDED = ("prompt", "model_a", "model_b", "preference")
SEPARATORS = ",;\t|"


class VoteFile(NamedTuple):
    """The votes of a file, how many of them each judge gave (none where the file names no judge), and prompt -> value of
    the column that was asked for."""

    table: VoteTable
    judges: dict[str, int]
    values: dict[str, str]


LONGEST_CELL = 131_072
"""Characters in a cell of a CSV file; one that is longer has a double quote left open."""


def read_votes(path: str | Path, judge: str | None = None, by: str | None = None) -> VoteFile:
    """Votes with the columns prompt, model_a, model_b and preference (or winner); `COLUMNS` lists other names.

    A preference is P(model_a is better), or a, b, tie; empty, null and NaN are unscored. Lengths and `judge` are
    optional: name a judge to count its votes alone; `by` is another column. Raises ConfigError naming the line that is
    wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file of votes {str(path)!r}; name a CSV, JSON or Parquet file")
    judges: Counter[str] = Counter()
    values: dict[str, str] = {}
    table = tabulate(_votes(path, judge, by, judges, values))
    if not table.prompts:
        others = f"; there are votes of {', '.join(map(repr, sorted(judges)))}" if judges else ""
        raise ConfigError(f"{path} holds no votes" + (f" of the judge {judge!r}{others}" if judge else ""))
    return VoteFile(table, dict(judges) if judge is None else {judge: judges[judge]}, values)


def _votes(
    path: Path, judge: str | None, by: str | None, judges: Counter[str], values_of: dict[str, str]
) -> Iterator[Vote]:
    """Yield the votes of a file, those of one judge if it is named; counts each judge's, and notes each prompt's value."""
    for where, header, rows in _tables(path):
        place = _columns(header, where)
        at = [place.get(name) for name in COLUMNS]
        if by is not None:
            at.append(_place_of(by, header, where))
        for line, row in rows:
            values = [None if index is None or index >= len(row) else row[index] for index in at]
            said = "" if values[6] is None else str(values[6]).strip()
            if said:
                judges[said] += 1
            if judge is None or said == judge:
                vote = _vote(values, f"{path}:{line}")
                if by is not None and values[7] not in (None, ""):
                    value = str(values[7]).strip()
                    if (known := values_of.setdefault(vote.prompt, value)) != value:
                        raise ConfigError(
                            f"{path}:{line}: the prompt {vote.prompt!r} has {value!r} in the column {by!r}, and {known!r} in "
                            "a row before: give it one, or break down by another column"
                        )
                yield vote


Rows = Iterable[tuple[int, Sequence[Any]]]


def _tables(path: Path) -> Iterator[tuple[str, Sequence[str], Rows]]:
    """Parts of a file with the same columns: where it is, its header, and its rows with their line numbers."""
    if path.read_bytes()[:4] == b"PAR1":
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{path} is not a whole Parquet file ({error}): write or copy it again") from None
        yield (
            str(path),
            table.column_names,
            enumerate(zip(*(table[name].to_pylist() for name in table.column_names), strict=True), 1),
        )
        return
    text = decode(path)
    if text.lstrip()[:1] in ("{", "["):
        for line, row in _json_rows(path, text):
            yield f"{path}:{line}", list(row), [(line, list(row.values()))]
        return
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    csv.field_size_limit(LONGEST_CELL)  # one for the whole process, which reading prompts raises
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header = next(reader, [])
    rows = _rows(path, reader, header, separator)
    yield f"{path}:1", header, rows if separator != ";" else _decimal_commas(rows)


def _rows(path: Path, reader: Any, header: Sequence[str], separator: str) -> Rows:
    """Yield the rows of a CSV file that are not empty. Raises ConfigError for one with more cells than there are columns."""
    count = len(header)
    try:
        for row in reader:
            if len(row) > count and any(row[count:]):
                raise ConfigError(
                    f"{path}:{reader.line_num} has {len(row)} cells for {count} columns: put a text that holds "
                    f"{separator!r} in double quotes"
                )
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(
            f"{path}:{reader.line_num} is not CSV ({error}): is a double quote left open before it?"
        ) from None


def decode(path: Path) -> str:
    """Return the text of a file, gzipped or not, in UTF-8, UTF-16 or, where it is neither, Latin-1 as Windows has it."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ConfigError(f"{path} is not a whole gzip file ({error}): write or copy it again") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if data[1:200:2].count(0) > 50 or data[0:200:2].count(0) > 50:
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _decimal_commas(rows: Rows) -> Rows:
    """Rows of a file separated by semicolons, where 0,25 is a number."""
    for line, row in rows:
        yield line, [one.replace(",", ".") if one.replace(",", "", 1).isdecimal() else one for one in row]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON array or of JSON lines, with their places."""
    if text.lstrip().startswith("["):
        try:
            whole = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON that can be used ({error})") from None
        lines: Iterable[tuple[int, Any]] = enumerate(whole, 1)
    else:
        lines = _json_lines(path, text)
    for number, row in lines:
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number} is no JSON object with the keys {', '.join(NEEDED)}")
        yield number, row


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the value of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise ConfigError(f"{path}:{number} is not JSON that can be used ({error})") from None


def _place_of(column: str, header: Sequence[str], where: str) -> int:
    """Return where a column is that the user named. Raises ConfigError with the columns found."""
    names = [name.strip() for name in header]
    if column not in names:
        raise ConfigError(f"{where} has no column {column!r}; there are: {', '.join(names)}")
    return names.index(column)


def _columns(header: Sequence[str], where: str) -> dict[str, int]:
    """Part of a vote -> its place in the header. Raises ConfigError with the columns found, if one is missing."""
    names_here = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in header]
    found = {name: place for place, name in enumerate(names_here)}
    twice = [
        name
        for name in found
        if name and names_here.count(name) > 1 and any(name in names for names in COLUMNS.values())
    ]
    if twice:
        raise ConfigError(f"{where} has two columns {twice[0]!r}: take one of them out")
    place = {
        part: next(found[name] for name in names if name in found)
        for part, names in COLUMNS.items()
        if any(name in found for name in names)
    }
    missing = [part for part in NEEDED if part not in place]
    if missing:
        known = "; ".join(f"{part} ({', '.join(COLUMNS[part][1:])})" for part in NEEDED)
        columns = ", ".join(name.strip() for name in header if name.strip()) or "none"
        raise ConfigError(
            f"{where} has no column {' and '.join(missing)}; there are: {columns[:300]}. Votes need, under these or the "
            f"names in brackets: {known}"
        )
    return place


def _vote(values: Sequence[Any], where: str) -> Vote:
    """Return one row, in the order of `COLUMNS`, as a vote."""
    names = []
    for part, value in zip(NEEDED[:3], values[:3], strict=True):
        name = "" if value is None else str(value).strip()
        if not name:
            raise ConfigError(f"{where} has no {part}; votes need {', '.join(NEEDED)}")
        names.append(name)
    value = values[3]
    said = "" if value is None else str(value).strip()
    preference = WORDS.get(said.lower())
    sides = {float(place == 0) for place, name in enumerate(names[1:]) if name.lower() == said.lower()}
    if preference is not None and len(sides) == 1 and preference not in sides:
        raise ConfigError(
            f"{where}: preference {said!r} is a word of its own and the name of a model too, and they say different things: "
            "give P(model_a is better) as a number, 1, 0.5 or 0 (empty where it is not known), or rename the models"
        )
    if preference is None and said in names[1:]:
        preference = float(said == names[1])
    elif preference is None:
        preference = _number(
            value, f"{where}: preference", f"no number, neither model's name, and none of {_known_words()}"
        )
    lengths = [
        math.nan
        if value is None or math.isnan(WORDS.get(str(value).strip().lower(), 0))
        else _length(value, f"{where}: {part}")
        for part, value in zip(("length_a", "length_b"), values[4:6], strict=True)
    ]
    return Vote(names[0], names[1], names[2], preference, lengths[0], lengths[1])


def _known_words() -> str:
    return ", ".join(repr(word) for word in WORDS if word)


def _length(value: Any, where: str) -> float:
    """Return a length. Raises ConfigError for what is none."""
    number = _number(value, where)
    if number < 0:
        raise ConfigError(f"{where} is {value!r}, and no text is that short: leave it empty where it is not known")
    return number


def _number(value: Any, where: str, wrong: str = "which is not a number") -> float:
    """Return a finite number; raises ConfigError naming `where` and saying what is wrong."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{where} is {value!r}, {wrong}")
    return number
