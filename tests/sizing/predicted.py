"""What the dry run says of a recipe on this machine, beside what its first iteration then takes: memory, hours, disk.

    PYTHONPATH=.:tests/real .venv/bin/python tests/sizing/predicted.py runs/quickstart.yaml iterations=1 output=/tmp/q
    PYTHONPATH=.:tests/real .venv/bin/python tests/sizing/predicted.py smollm2 output=/tmp/s

`smollm2` is a small run on SmolLM2-135M-Instruct with adapters, that of `make test-real`. Memory is this process's, looked at
twenty times a second, by the stage that is being written.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from selfplay.config import Recipe, load_recipe
from selfplay.loop import run, run_stage
from selfplay.preflight import check
from selfplay.rundir import RunDirectory
from selfplay.sizing.cards import GB
from selfplay.sizing.plan import Plan, plan
from selfplay.sizing.work import work

PAGE = os.sysconf("SC_PAGE_SIZE")
ROW = "{:10}{:>10}{:>10}{:>8}{:>12}{:>10}{:>8}"


def watched(directory: Path, peaks: dict[str, int], done: threading.Event) -> None:
    """Note the most memory in each stage, until `done`."""
    while not done.wait(0.05):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        for partial in directory.glob("iteration-*/*.partial"):
            name = "start" if partial.parent.name.endswith("000") else partial.stem
            peaks[name] = max(peaks.get(name, 0), resident)


def recipe_of(name: str, overrides: list[str]) -> Recipe:
    """The recipe of a file, or the small real one."""
    if name != "smollm2":
        return load_recipe(name, overrides)
    from real_run import RECIPE
    from smollm2 import checkpoint

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "r.yaml").write_text(RECIPE.format(model=checkpoint()))
        return load_recipe(Path(place) / "r.yaml", overrides)


def rows(sized: Plan, peaks: dict[str, int], files: RunDirectory) -> list[str]:
    """The table: per stage GB and minutes, predicted, measured and their ratio; then disk."""
    found = [ROW.format("", "GB said", "was", "ratio", "min. said", "was", "ratio")]
    memory: dict[str, int] = {}
    for row in sized.stages:
        name = row.stage.partition(":")[0]
        memory[name] = max(memory.get(name, 0), row.total)
    seconds = files.seconds(1)
    for name, said in memory.items():
        cells = [name, f"{said / GB:.2f}"]
        cells += [f"{peaks[name] / GB:.2f}", f"{said / peaks[name]:.2f}"] if name in peaks else ["", ""]
        if name in seconds and name in sized.hours:
            cells += [f"{60 * sized.hours[name]:.2f}", f"{seconds[name] / 60:.2f}"]
            cells += [f"{3600 * sized.hours[name] / seconds[name]:.2f}"]
        found.append(ROW.format(*cells, *[""] * (7 - len(cells))))
    taken = sum(one.stat().st_size for one in files.path.rglob("*") if one.is_file() and not one.is_symlink())
    return [*found, f"disk: {sized.disk['kept'] / GB:.3f} GB said, {taken / GB:.3f} was"]


def main(name: str, overrides: list[str]) -> None:
    """Plan, run an iteration, and print the table."""
    recipe = recipe_of(name, overrides)
    sized = plan(recipe, *check(recipe), work(recipe), None)
    peaks: dict[str, int] = {}
    done = threading.Event()
    threading.Thread(target=watched, args=(recipe.directory, peaks, done), daemon=True).start()
    begun = time.time()
    files = RunDirectory(run(recipe))
    for stage in ("policy", "evaluate"):  # which the brake on a poor reward model leaves out
        if not files.finished(1, stage):
            run_stage(files.path, stage, 1)
    done.set()
    sys.stdout.write("\n".join([*rows(sized, peaks, files), f"{(time.time() - begun) / 60:.1f} minutes in all"]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
