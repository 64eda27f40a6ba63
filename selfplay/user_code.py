"""Calls of Python that a user wrote: whatever it raises or returns, the user reads a sentence, never a traceback.

What a function returns is checked where it is called, since each caller expects something else; here is what they share.
Left out: a time limit, and `os._exit`, which nothing can catch.
"""

import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfplay.errors import ConfigError, SelfplayError

LONGEST_SHOWN = 200
"""Characters of a value or an error that a sentence shows."""


def call(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a user's function returns; `name` is what it is called in messages.

    Raises ConfigError if it raises anything, `SystemExit` included: a run must not end as if it were finished. What is
    meant for the user already, such as an engine's own SelfplayError, is passed on.
    """
    try:
        return function(*arguments, **options)
    except SelfplayError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{name} {failure(error)} ({_place(error)})") from error


def _place(error: BaseException) -> str:
    """Return the innermost line of code that is not a library's: "rewards.py, line 12"."""
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}"


def failure(error: BaseException) -> str:
    """Return what happened as words to put behind a function's name: "raised KeyError: 'word'"."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({shown(error.code)}), which would end the run as if it were finished"
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "(its message cannot be read)"
    return f"raised {type(error).__name__}: {cut(message)}"


def shown(value: Any) -> str:
    """Return a value as a sentence shows it: its repr, cut, without characters that no file can hold."""
    try:
        return cut(" ".join(repr(value).split()))
    except Exception:
        return f"<a {type(value).__name__} whose repr fails>"


def cut(text: str) -> str:
    """Return text shortened to LONGEST_SHOWN characters, with halves of surrogate pairs as `\\udXXX`."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole if len(whole) <= LONGEST_SHOWN else whole[: LONGEST_SHOWN - 3] + "..."


def listed(name: str, values: Any, rows: Sequence[str], what: str) -> list[Any]:
    """Return what a user's function returned as a list, of one item for each of `rows`. Raises ConfigError.

    `what` says what there should be one of for each row, such as "number".
    """
    if values is None or isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise ConfigError(
            f"{name} returned {shown(values)}; it must return a list with a {what} for each of {len(rows)} rows"
        )
    found = call(name, list, values)  # a generator runs only now
    if len(found) != len(rows):
        raise ConfigError(
            f"{name} returned {len(found)} items for {len(rows)} rows ({shown(found)}); it must return a {what} for each"
        )
    return found


def number(value: Any) -> float | None:
    """Return a value as a float, or None if it is not a number; text is none, whatever it says."""
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        return float(value)
    except Exception:
        return None


def numbers(name: str, values: Any, rows: Sequence[str], wanted: str, fits: Callable[[float], bool]) -> list[float]:
    """Return what a user's function returned as one float per row. Raises ConfigError that names the first that is wrong.

    `rows` say what each is about, `wanted` what each value must be, and `fits` whether a number is.
    """
    found = listed(name, values, rows, "number")
    for row, value in zip(rows, found, strict=True):
        read = number(value)
        if read is None or not fits(read):
            raise ConfigError(f"{name} returned {shown(value)} for {row}; it must be {wanted}")
    return [float(value) for value in found]


def require_text(name: str, row: str, field: str, text: str) -> None:
    """Raise ConfigError for text with half of a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{name} returned a {field} for {row} with half of a surrogate pair ({shown(text)}), which no file can hold: "
            "read text with errors='replace'"
        ) from None
