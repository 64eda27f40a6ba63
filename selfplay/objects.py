"""Python of the user's own, named in a recipe or a judge file as `package.module:name` or `./file.py:name`.

Whatever it raises or returns, the user reads a sentence, never a traceback. What a function returns is checked where it
is called, since each caller expects something else; here is what they share. Left out: a time limit, and `os._exit`,
which nothing can catch.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from selfplay.config.load import half_of_pair
from selfplay.errors import ConfigError, SelfplayError
from selfplay.records import Completion, Prompt
from selfplay.storage.files import hash_of

NAMELESS = ModuleType("selfplay_nameless")
"""Holds what has no name of its own, such as a lambda, so that a reference can lead to it; see `reference_to`."""
LONGEST_SHOWN = 200
"""Characters of a value or an error that a sentence shows."""
LARGEST_SCORE = 1e18
"""Largest reward in size: means and deviations square it, in float32."""


def call(name: str, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """Return what a user's function returns; `name` is what it is called in messages.

    Raises ConfigError if it raises anything, `SystemExit` and `CancelledError` included: a run must not end as if it were
    finished, nor in a traceback. Ctrl-C, and what is meant for the user already, such as an engine's own SelfplayError, are
    passed on.
    """
    try:
        return function(*arguments, **options)
    except (SelfplayError, KeyboardInterrupt):
        raise
    except BaseException as error:
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
    return f"raised {type(error).__name__}: {cut(message)}".removesuffix(": ")


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

    `what` says what there should be one of for each row, such as "number". What has no order of its own, such as a set, is
    refused: nothing says which item is whose.
    """
    unordered = isinstance(values, str | bytes | bytearray | Mapping | Set)
    if values is None or unordered or not hasattr(values, "__iter__"):
        raise ConfigError(
            f"{name} returned {shown(values)}; it must return a list with a {what} for each of {len(rows)} rows"
        )
    found = call(name, lambda: list(islice(values, len(rows) + 1)))  # a generator runs only now, and may have no end
    if len(found) != len(rows):
        count = f"{len(found)}" if len(found) < len(rows) else f"more than {len(rows)}"
        raise ConfigError(
            f"{name} returned {count} items for {len(rows)} rows ({shown(found)}); it must return a {what} for each"
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


def scores_of(name: str, scores: Any, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
    """Return the scores of a reward that the user wrote as floats. Raises ConfigError if they are not one per response.

    NaN stands for a response that cannot be scored; an infinite score, or one whose square float32 cannot hold, is refused:
    nothing can be learned from it.
    """
    rows = [
        f"prompt {prompt.id!r}, response {shown(response.text)}"
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    wanted = f"a finite number, or float('nan') for a response that cannot be scored, of {LARGEST_SCORE:g} at most"
    return numbers(name, scores, rows, wanted, lambda value: math.isnan(value) or is_score(value))


def is_score(value: float) -> bool:
    """Return whether something can be learned from a number as a reward: it is finite, and so is its square in float32."""
    return abs(value) <= LARGEST_SCORE  # which NaN is not


def require_text(name: str, row: str, field: str, text: Any) -> None:
    """Raise ConfigError for what is not text, and for text with half of a surrogate pair, which no file can hold."""
    if not isinstance(text, str):
        raise ConfigError(f"{name} returned the {field} {shown(text)} for {row}; it must be text")
    if half := half_of_pair(text):
        raise ConfigError(f"{name} returned a {field} for {row} with {half}: read text with errors='replace'")


def load_object(reference: str) -> Any:
    """Return what `package.module:name` or `/path/file.py:name` names.

    Raises ConfigError for what is not there or cannot be called.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ConfigError(f"python: {reference!r} names no function: write ./file.py:name or package.module:name")
    if place.endswith(".py") and not Path(place).is_file():
        raise ConfigError(f"python: there is no file {place!r}, from {str(Path.cwd())!r}")
    module = _load_module(place, reference)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1, cutoff=0.5)
        raise ConfigError(f"python: {place} has no {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"python: {reference} is a {type(found).__name__}, not a function or class")
    return found


def reference_to(function: Callable[..., Any]) -> str:
    """Return a reference that leads `load_object` to a live function, in this process and in one that defines it again.

    That of a lambda, a closure or an object that can be called is made from its source and from what it holds.
    """
    place, name = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
    if place in sys.modules and getattr(sys.modules[place], name, None) is function:
        return f"{place}:{name}"
    kind = getattr(function, "__name__", type(function).__name__)
    name = f"{''.join(one if one.isalnum() else '_' for one in kind)}_{hash_of(_source(function))[:12]}"
    setattr(NAMELESS, name, function)
    sys.modules[NAMELESS.__name__] = NAMELESS
    return f"{NAMELESS.__name__}:{name}"


def _source(value: Any) -> str:
    """Return the source of a live object as far as it is known, with its defaults and what it holds."""
    cells, owner = getattr(value, "__closure__", None) or (), getattr(value, "__self__", None)
    held = [getattr(value, "__defaults__", None), [cell.cell_contents for cell in cells], owner]
    held += [vars(one) for one in (value, owner) if hasattr(one, "__dict__") and not inspect.isroutine(one)]
    try:
        text = inspect.getsource(value if inspect.isroutine(value) or inspect.isclass(value) else type(value))
    except (OSError, TypeError):  # typed into an interpreter
        text = repr(getattr(getattr(value, "__code__", None), "co_code", b""))
    return text + re.sub(r" at 0x[0-9a-f]+", "", repr(held))  # an address is another in each process


def _load_module(place: str, reference: str) -> ModuleType:
    """Import a module by name, or a file by path (once per content of the file)."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ConfigError(
                f"python: {reference}: {error}; name an installed module, or a file as ./file.py:name"
            ) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise ConfigError(f"python: {place} cannot be imported: it {failure(error)}") from error
    name = f"judge_file_{hashlib.sha256(place.encode() + Path(place).read_bytes()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    location = importlib.util.spec_from_file_location(name, place)
    assert location is not None and location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules[name] = module
    try:
        location.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(f"python: {place} cannot be run: it {failure(error)}") from error
    return module


def source_of(reference: str) -> bytes:
    """Return the bytes of the file that a reference to Python is in; of what lives in a notebook alone, its own source.

    Empty for a module that is not there.
    """
    place, _, name = reference.rpartition(":")
    if place.endswith(".py"):
        return Path(place).read_bytes()
    if place in sys.modules and sys.modules[place].__spec__ is None:  # a notebook, a script, or NAMELESS
        return _source(getattr(sys.modules[place], name, None)).encode()
    try:
        location = importlib.util.find_spec(place)
    except ImportError:
        return b""
    file = Path(location.origin) if location is not None and location.origin else None
    return file.read_bytes() if file is not None and file.is_file() else b""


def source_hash(reference: str | None) -> str:
    """Return the sha256 of the file that a reference to Python is in; empty for no reference."""
    return "" if reference is None else hashlib.sha256(source_of(reference)).hexdigest()
