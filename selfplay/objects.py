"""Python that a recipe or a judge file names: `package.module:name` or `./file.py:name`."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from selfplay.errors import ConfigError
from selfplay.objects import failure


def load_object(reference: str) -> Any:
    """What `package.module:name` or `/path/file.py:name` names.

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


def _load_module(place: str, reference: str) -> ModuleType:
    """Import a module by name, or a file by path (once per content of the file)."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ConfigError(
                f"python: {reference}: {error}; name an installed module, or a file as ./file.py:name"
            ) from None
        except (Exception, SystemExit) as error:
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
        if isinstance(error, Exception | SystemExit):
            raise ConfigError(f"python: {place} cannot be run: it {failure(error)}") from error
        raise
    return module


def source_of(reference: str) -> bytes:
    """The bytes of the file that a reference to Python is in; empty for a module that is not there or not in a file."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place).read_bytes()
    try:
        location = importlib.util.find_spec(place)
    except ImportError:
        return b""
    file = Path(location.origin) if location is not None and location.origin else None
    return file.read_bytes() if file is not None and file.is_file() else b""
