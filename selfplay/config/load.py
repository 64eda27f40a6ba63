"""Reading recipes: YAML without its traps, dotted overrides, and pydantic's errors as sentences for a user."""

import codecs
import difflib
import gzip
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from selfplay.config.judging import A_KEY, KEY_NAMES
from selfplay.config.recipe import Recipe
from selfplay.errors import ConfigError

T = TypeVar("T", bound=BaseModel)
NAMED_KEY = re.compile(
    rf"""((?:{KEY_NAMES}|credentials)['"]?\s*[:=]\s*[\[({{]*)('[^'\n]*'|"[^"\n]*"|[^\s,}}\])]+)""",
    re.IGNORECASE,
)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without three traps: `1e-4` is a number, `on` / `off` / `yes` / `no` are text, and no key stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice, of which YAML would silently drop the first."""
        seen: set[str] = set()
        for key in (pair[0] for pair in node.value if isinstance(pair[0], yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.inf|\.nan)$"
    ),
    list("-+.0123456789"),
)


def read_text(path: Path) -> str:
    """Return the text of a user's file in UTF-8, or in UTF-16 as editors on Windows save it; it may be gzipped.

    Raises ConfigError for others.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{path} is a damaged gzip file: {error}") from None
    start = data[:200]
    without_mark = "utf-16-be" if start[:1] == b"\0" else "utf-16-le" if b"\0" in start else "utf-8-sig"
    encoding = "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else without_mark
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeError:
        raise ConfigError(f"{path} is not text in UTF-8 or UTF-16; save it as such") from None


MOST_NESTED = 100
"""Lists and mappings within one another in a user's JSON; what writes rows to disk gives up at about 250."""
NESTED = f"it is nested more than {MOST_NESTED} deep: leave it out, or make it flat"
SUSPICIOUS = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")


class Unusable(ValueError):
    """JSON that is valid and that nothing can be done with; the message says why, behind the place it stands in."""


def parse_json(text: str) -> Any:
    """Return what a user's JSON says. Raises ValueError for what is not JSON, Unusable as `check_json` does."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise Unusable(NESTED) from None
    if suspicious(text):
        check_json(value)
    return value


def suspicious(text: str) -> bool:
    """Return whether JSON may hold what `check_json` refuses: cheap, so that other values need no walk."""
    return text.count("[") + text.count("{") > MOST_NESTED or SUSPICIOUS.search(text) is not None


def half_of_pair(text: str) -> str | None:
    """Return the words for half of a surrogate pair in a text, with what is around it; None for a text that a file can hold."""
    found = SURROGATE.search(text)
    return (
        found
        and f"half of a surrogate pair ({text[max(0, found.start() - 20) : found.end() + 20]!a}), which no file can hold"
    )


def check_json(value: Any) -> None:
    """Raise Unusable, naming the column, for halves of surrogate pairs, which no file can hold, and for endless nesting."""
    waiting: list[tuple[Any, str, int]] = [(value, "it", 0)]
    while waiting:
        one, name, depth = waiting.pop()
        if isinstance(one, str) and (half := half_of_pair(one)):
            raise Unusable(
                f"{name} holds {half}: write the whole character (as JSON escapes it, two halves one behind the other), or take "
                "the half out"
            )
        if depth > MOST_NESTED:
            raise Unusable(f"{name}{NESTED.removeprefix('it')}")
        if isinstance(one, dict):
            waiting += [(key, "the name of a column" if not depth else name, depth + 1) for key in one]
            waiting += [(item, name if depth else f"column {key!a}", depth + 1) for key, item in one.items()]
        elif isinstance(one, list | tuple):
            waiting += [(item, name, depth + 1) for item in one]


def hide_keys(shown: str) -> str:
    """Return what a message shows of a user's file, with *** for what looks like a key and for what is named one."""
    return NAMED_KEY.sub(r"\1***", A_KEY.sub("***", shown))


def parse_yaml(text: str, where: str = "the text") -> Any:
    """Parse YAML; raises ConfigError that names `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(hide_keys(str(error)).split())}") from None


def check_text(what: str, text: str) -> None:
    """Raise ConfigError for text with half of a surrogate pair, which an argument that is not UTF-8 becomes."""
    if SURROGATE.search(text):
        raise ConfigError(f"{what} {text!r} is not text in UTF-8: give it in that encoding")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in a tree of mappings, in place; the value is read as YAML."""
    check_text("the override", override)
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(
            f"override {hide_keys(repr(override))} is not of the form key=value, such as algorithm.steps=10"
        )
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[leaf] = parse_yaml(value, f"the value of {key}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides. Raises ConfigError with a sentence for every mistake."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(_folder(path))
    if not path.is_file():
        raise ConfigError(f"there is no recipe {str(path)!r}; write one with `selfplay init {path}`")
    tree = parse_yaml(read_text(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no mapping of settings; `selfplay init` writes one to start from")
    tree.setdefault("name", path.stem)
    for override in overrides:
        apply_override(tree, override)
    return validate(Recipe, tree, str(path))


def _folder(path: Path) -> str:
    """Return what to say of a folder that was given for a recipe."""
    if (path / "config.yaml").is_file():
        return (
            f"{str(path)!r} is a run's folder, not a recipe: go on with it by `selfplay run {path / 'config.yaml'} "
            f"output={path}`"
        )
    recipe = next((str(file) for file in sorted(path.glob("*.yaml"))), None)
    return f"{str(path)!r} is a folder, not a recipe: " + (
        f"name a file in it, such as {recipe}"
        if recipe
        else f"name a YAML file, or write one with `selfplay init {path / 'recipe.yaml'}`"
    )


def validate(model: type[T], tree: Any, where: str) -> T:
    """`model.model_validate(tree)` whose errors are sentences; raises ConfigError naming `where`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        sentences = "; ".join(_sentence(model, item) for item in error.errors())
        raise ConfigError(f"{where}: {A_KEY.sub('***', sentences)}") from None


def _sentence(model: type[BaseModel], error: Any) -> str:
    """Return one of pydantic's errors, said to a user."""
    location = _without_kinds(model, [str(part) for part in error["loc"]])
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_keys(model, location[:-1]), n=1, cutoff=0.5)
        return f"unknown setting {key!r}" + (f", did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else "")
    if error["type"] == "missing":
        return f"setting {key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = f"{message[0].lower()}{message[1:]}"
    if "endpoint" in location:  # a key may have been put where it does not belong
        return f"{key}: {message}"
    return f"{key} = {hide_keys(repr(error['input']))}: {message}"


def _without_kinds(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return a place of the tree as the user wrote it: pydantic also names which member of a union it took."""
    location = [part for part in location if not part.startswith("(")]
    field = model.model_fields.get(location[0]) if location else None
    if field is None or not field.discriminator or len(location) < 2:
        return location
    return [location[0], *location[2:]]


def _known_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the settings that exist at a place of the tree."""
    for part in location:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        if field is None:
            return []
        inner = _sections(field.annotation)
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a setting of this type may hold, in a list or by themselves."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _sections(inner)]
