"""The machines that a recipe is sized for: GPUs named (`8xH100-80GB`) or found, or this machine's processor.

Rates are the makers' own for dense bfloat16 products, and the bandwidth of the memory.
"""

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from selfplay.errors import ConfigError

GB = 10**9


@dataclass(frozen=True)
class Card:
    """One GPU: `memory` in bytes, `flops` in bfloat16 operations per second, `bandwidth` in bytes per second."""

    name: str
    memory: int
    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Machine:
    """What a recipe is sized for: `count` cards on `nodes` alike, or no card and the bytes of memory of a machine without any.

    `bfloat16` says whether its processor has units for it.
    """

    count: int
    card: Card | None
    memory: int
    bfloat16: bool = False
    nodes: int = 1

    @property
    def cards_of_node(self) -> int:
        """Return the cards of one node."""
        return self.count // self.nodes

    @property
    def title(self) -> str:
        """Return it in words, such as `8 x H100, 80 GB each`."""
        if self.card is None:
            return f"no GPU, {self.memory / GB:.0f} GB of memory"
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        return f"{nodes}{self.cards_of_node} x {self.card.name}, {self.card.memory / GB:.0f} GB each"


KNOWN = {
    card.name: card
    for card in (
        Card("B200", 180 * GB, 2250e12, 8.0e12),
        Card("H200", 141 * GB, 989e12, 4.8e12),
        Card("H100", 80 * GB, 989e12, 3.35e12),
        Card("GH200", 96 * GB, 989e12, 4.0e12),
        Card("A100", 80 * GB, 312e12, 2.0e12),
        Card("L40S", 48 * GB, 362e12, 0.864e12),
        Card("A10", 24 * GB, 125e12, 0.6e12),
        Card("L4", 24 * GB, 121e12, 0.3e12),
        Card("RTX4090", 24 * GB, 165e12, 1.01e12),
        Card("RTX3090", 24 * GB, 71e12, 0.936e12),
    )
}
"""From the makers' data sheets: memory, dense bfloat16 rate (without sparsity), bandwidth."""
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may take, in the second and the first version of cgroups."""
SPELT = re.compile(r"(?:(?P<nodes>\d+)x)?(?:(?P<count>\d+)x)?(?P<name>[A-Za-z]+\d+[A-Za-z]*)(?:-(?P<memory>\d+)GB)?")


def named(text: str, memory: int) -> Machine:
    """Return the machine that `8xH100-80GB` (count and memory may be left out; `8x8xH100` is eight nodes of eight) names.

    `memory` is that of this machine, for parts that stay on the processor. Raises ConfigError for a card that is not known.
    """
    match = SPELT.fullmatch(text.replace(" ", ""))
    by_name = {name.lower(): card for name, card in KNOWN.items()}
    card = by_name.get(match["name"].lower()) if match else None
    if match is None or card is None:
        raise ConfigError(
            f"--gpu {text!r} names no known card: write it as 8xH100-80GB (or 8x8xH100 for eight nodes of eight), with one of "
            f"{', '.join(KNOWN)}"
        )
    nodes = int(match["nodes"] or 1) if match["count"] else 1
    count = nodes * int(match["count"] or match["nodes"] or 1)
    card = replace(card, memory=int(match["memory"]) * GB) if match["memory"] else card
    return Machine(count, card, memory, nodes=nodes)


def found(memory: int, nodes: int = 1) -> Machine:
    """Return the GPUs that `nvidia-smi` lists, of each of `nodes` alike; without any, a machine of `memory` bytes."""
    rows: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        with suppress(OSError, subprocess.SubprocessError):
            rows = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    return of_listing(rows, memory, nodes)


def of_listing(rows: list[str], memory: int, nodes: int = 1) -> Machine:
    """Return the machine of `nvidia-smi`'s lines `name, MiB`: all cards as the largest, and unknown ones as A100s.

    A card that shares the processor's memory has no number of its own (`[N/A]`), and is not counted.
    """
    rows = [row for row in rows if row.rpartition(",")[2].strip().isdigit()]
    if not rows:
        return Machine(0, None, memory, processor_has_bfloat16())
    title, _, mebibytes = max((row.rpartition(",") for row in rows), key=lambda row: int(row[2]))
    words = re.sub(r"[^a-z0-9]+", " ", title.lower()).replace("rtx ", "rtx").split()
    like = next((card for name, card in KNOWN.items() if name.lower() in words), KNOWN["A100"])
    return Machine(nodes * len(rows), replace(like, memory=int(mebibytes) * 2**20), memory, nodes=nodes)


def memory_here() -> int:
    """Return the bytes of memory that processes of this machine may take together: all of it, or a container's limit."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in CONTAINER_LIMITS:
        if limit.is_file() and (said := limit.read_text().strip()).isdigit():
            found = min(found, int(said))
    return found


def processor_has_bfloat16() -> bool:
    """Return whether Linux lists units for bfloat16 products among the processor's flags."""
    listed = Path("/proc/cpuinfo")
    return listed.is_file() and bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", listed.read_text()))
