"""What certainly does not fit this machine, refused before work starts: memory, and the disk that the run lies on.

Counted is what does not depend on the lengths of prompts and answers, against all memory and the whole disk, free or not, and a
fifth less than predicted, by which predictions may be wrong. Left out: clusters of several machines, which are not known here.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress

import psutil

from selfplay.config import Recipe
from selfplay.errors import ConfigError
from selfplay.progress import log
from selfplay.records import Prompt
from selfplay.rundir import RunDirectory
from selfplay.sizing import cards
from selfplay.sizing.advice import way_out
from selfplay.sizing.cards import GB, Machine
from selfplay.sizing.disk import kept_models
from selfplay.sizing.sizes import Sizes, longest_prompt, sizes_of
from selfplay.sizing.stages import StageMemory, stages

CERTAIN = 0.8
"""Share of a prediction that is certainly taken."""


def refuse_what_cannot_fit(recipe: Recipe, prompts: Sequence[Prompt], only_start: bool = False) -> None:
    """Raise ConfigError if a stage that is still to be done, or what the run keeps, is larger than this machine.

    Nothing is refused where the sizes of models or GPUs are not known, or the workers are on a cluster. `only_start` looks at
    the start alone.
    """
    files, last = RunDirectory(recipe.directory), recipe.iterations
    clustered = recipe.launch is not None and recipe.launch.address is not None
    if clustered or files.finished(last, "evaluate" if recipe.prompts.heldout is not None else "policy"):
        return
    machine = machine_here()
    sizes = None if machine is None else sizes_of(recipe, machine, longest_prompt(prompts))
    if sizes is None or sizes.backbone is None:
        return
    if not only_start:
        _check_disk(sizes)
    swap = 0 if sizes.machine.card is not None else psutil.swap_memory().total
    for row in stages(sizes):
        stage = row.stage.partition(":")[0]
        done = files.finished(0, "policy") if stage == "start" else only_start or files.finished(last, stage)
        if CERTAIN * row.least > row.room + swap and not done:
            raise ConfigError(_sentence(sizes, row))


def machine_here() -> Machine | None:
    """Return the cards of this machine, if torch can use them, or its memory; None for cards whose memory is not told."""
    import torch

    memory = cards.memory_here()
    if not torch.cuda.is_available():
        return cards.of_listing([], memory)
    machine = cards.found(memory)
    return None if machine.card is None else machine


def _sentence(sizes: Sizes, row: StageMemory) -> str:
    """Return what does not fit, by how much, and the settings with which it does."""
    where = "a GPU here" if sizes.machine.card is not None else "this machine"
    shared = row.room < sizes.machine.memory and sizes.machine.card is None
    part = f" for each of {sizes.workers} workers" if shared else ""
    way = way_out(sizes)
    return (
        f"the stage {row.stage!r} takes {row.least / GB:.1f} GB whatever the lengths of prompts and answers, and "
        f"{where} has {row.room / GB:.1f} GB{part}: {way[0].lower()}{way[1:]} (`selfplay run RECIPE --dry-run` has the table)"
    )


def _check_disk(sizes: Sizes) -> None:
    """Raise ConfigError if the run's models are more than its disk has in all; say so if they are more than is free."""
    directory = sizes.recipe.directory.absolute()
    usage = shutil.disk_usage(next(one for one in (directory, *directory.parents) if one.exists()))
    needed = CERTAIN * kept_models(sizes)
    said = f"the run's {sizes.recipe.iterations} iterations keep {kept_models(sizes) / GB:.1f} GB of models"
    if not usage.total:
        return  # a file system that does not say
    if needed > usage.total:
        raise ConfigError(
            f"{said}, and the disk of {str(directory)!r} has {usage.total / GB:.1f} GB in all: give an `output` on a larger one, "
            "or fewer `iterations`"
        )
    there = 0
    with suppress(OSError):  # another process may be at work on the run, which is found out later
        there = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if needed > usage.free + there:
        log(f"  caution: {said}, and the disk of {str(directory)!r} has {usage.free / GB:.1f} GB free")
