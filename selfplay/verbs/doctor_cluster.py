"""What the machines of a Ray cluster have: the versions of this one, a disk that all share, NCCL where there are GPUs.

One task on each machine looks; it loads torch. Left out: whether NCCL's transfers get from one machine to another.
"""

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from selfplay.config import Launch
from selfplay.distributed.cluster import connected
from selfplay.errors import ConfigError, first_line
from selfplay.storage.provenance import provenance
from selfplay.verbs.doctor import Finding, list_gpus

SECONDS = 300.0
"""After which a machine counts as one that does not answer."""


@dataclass(frozen=True)
class Machine:
    """What a machine says of itself."""

    host: str
    versions: dict[str, str]
    sees: bool
    """Whether the file that was written here is there."""
    writes: bool
    """Whether it may write beside that file."""
    gpus: int
    nccl: bool
    """Whether torch was built with NCCL."""


def examine(address: str, folder: Path) -> list[Finding]:
    """Say of each machine of a Ray cluster what keeps it from working on a run in `folder`, or that nothing does.

    Raises ConfigError if there is no cluster at the address, or if nothing can be written into the folder.
    """
    folder = folder.absolute()  # as given: a link may lead elsewhere on another machine
    try:
        descriptor, written = tempfile.mkstemp(prefix=".selfplay-doctor-", dir=folder)
    except OSError as error:
        raise ConfigError(
            f"nothing can be written into {str(folder)!r} ({error.strerror}): give --directory the folder of your runs"
        ) from None
    os.close(descriptor)
    try:
        return _look_everywhere(address, folder, written)
    finally:
        Path(written).unlink(missing_ok=True)


def _look_everywhere(address: str, folder: Path, written: str) -> list[Finding]:
    """Return what is found on each machine, where the file `written` in the folder is looked for."""
    with connected(Launch(address=address)):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes, task = [node for node in ray.nodes() if node["Alive"]], ray.remote(look)
        asked = [
            task.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(written)
            for node in nodes
        ]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=SECONDS)
        found, here = [], versions()
        for node, reference in zip(nodes, asked, strict=True):
            name = f"machine {node['NodeManagerAddress']} (node {node['NodeID'][:6]})"
            if reference not in answered:
                found.append(Finding(name, "problem", f"no answer in {SECONDS:g} s", "look for it in `ray status`"))
                continue
            try:
                found += findings_of(name, ray.get(reference), here, folder)
            except ray.exceptions.RayError as error:
                said = first_line(getattr(error, "cause", None) or error)
                cure = "install the same selfplay and torch there as here, or share the environment"
                found.append(Finding(name, "problem", f"selfplay does not work there: {said}", cure))
        return found


def look(file: str) -> Machine:
    """Return what the machine has on which this runs."""
    from torch import distributed

    nccl = distributed.is_available() and distributed.is_nccl_available()
    writes = os.access(Path(file).parent, os.W_OK)
    return Machine(socket.gethostname(), versions(), Path(file).exists(), writes, len(list_gpus()), nccl)


def versions() -> dict[str, str]:
    """Return what must be the same on all machines: Python, selfplay (with the commit of a checkout), and its packages."""
    import ray

    made = provenance()
    commit = {"selfplay's commit": made["commit"][:9]} if made["commit"] else {}
    return {"Python": made["python"], **commit, **made["packages"], "ray": ray.__version__}


def findings_of(name: str, machine: Machine, here: dict[str, str], folder: Path) -> list[Finding]:
    """Return what is wrong with one machine, or that nothing is; `here` are this one's versions."""
    found, there = [], machine.versions
    differing = [
        f"{what} {there.get(what, 'none')} (here {here.get(what, 'none')})"
        for what in sorted({*here, *there})
        if here.get(what) != there.get(what)
    ]
    if differing:
        cure = "install the same versions on all machines, or one environment on a disk that they share"
        found.append(Finding(name, "problem", f"other versions than here: {', '.join(differing)}", cure))
    if not machine.sees:
        cure = "mount the disk of your runs there too, at the same path, or give --directory a folder on one that all share"
        found.append(Finding(name, "problem", f"does not see what is written into {folder} here", cure))
    elif not machine.writes:
        found.append(
            Finding(name, "problem", f"may not write into {folder}", "start its Ray as the user of this one's")
        )
    if machine.gpus and not machine.nccl:
        cure = "install the build of torch for CUDA there, as https://pytorch.org says for its driver"
        found.append(Finding(name, "problem", f"{machine.gpus} GPU(s), and a torch without NCCL", cure))
    gpus = f"{machine.gpus} GPU(s), NCCL" if machine.gpus else "no GPU"
    return found or [Finding(name, "fine", f"{machine.host}: versions as here, shares {folder}, {gpus}")]
