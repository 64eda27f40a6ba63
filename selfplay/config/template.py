"""A recipe to start from: every setting with its default, and above it what it does, taken from `selfplay.config`."""

import textwrap
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from selfplay.config import Recipe, validate
from selfplay.errors import ConfigError
from selfplay.storage import durable

WIDTH = 110
HEADER = """\
# A selfplay recipe: one file is one run. Every setting is here with its default; delete what you do not change.
# Check it:  selfplay run {file} --dry-run        Run it:  selfplay run {file}
# Change a setting without editing:  selfplay run {file} algorithm.steps=5
"""


def write_recipe(file: Path, force: bool = False) -> None:
    """Write the commented recipe. Raises ConfigError if the file is there already, or its folder is not."""
    if file.is_dir() or (file.exists() and not force):
        raise ConfigError(f"{str(file)!r} is there already; give another name, or --force to replace it")
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {str(file.parent)!r}; make it first")
    durable.write(file, commented_recipe(str(file)))


def commented_recipe(file: str = "recipe.yaml") -> str:
    """Return the recipe as text: the built-in stories, bootstrapped from text, so that it runs as it is."""
    example = validate(Recipe, {"name": Path(file).stem, "policy": {"bootstrap": {}}}, file)
    return HEADER.format(file=file) + "\n".join(section(example, 0)) + "\n"


def section(values: BaseModel, depth: int) -> list[str]:
    """Lines of one section: for each setting its documentation as a comment, then `key: value`.

    Behind a section that is null stand its settings, commented out.
    """
    lines: list[str] = []
    indent = "  " * depth
    for key, field in type(values).model_fields.items():
        value = getattr(values, key)
        text = " ".join((field.description or documentation(field.annotation)).split())
        if depth == 0 and lines:
            lines.append("")
        lines += [f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH - len(indent) - 2)]
        if isinstance(value, BaseModel):
            lines += [f"{indent}{key}:", *section(value, depth + 1)]
        else:
            lines.append(f"{indent}{key}: {scalar(value)}")
            kind = held_section(field.annotation)
            if value is None and kind is not None:
                lines += [
                    f"{indent}# or {key}:",
                    *(f"{indent}#    {line}" for line in section(kind.model_construct(), 1)),
                ]
    return lines


def held_section(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a setting of this type holds, or may hold; None if it holds a plain value."""
    inner = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def documentation(annotation: Any) -> str:
    """Return the first line of the docstring of the section that a setting holds, if it holds one."""
    kind = held_section(annotation)
    return ((kind and kind.__doc__) or "").strip().split("\n\n")[0]


def scalar(value: Any) -> str:
    """Return a value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
