"""What can be compared: iterations of runs, checkpoints on disk, models on the hub; and what their runs agree on."""

import difflib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from prompts.sources import load_prompts
from selfplay.config import Recipe
from selfplay.errors import ConfigError
from selfplay.guard.selection import assess
from selfplay.records import Prompt
from selfplay.results.seeds import seed_runs
from selfplay.rundir import RunDirectory, iteration_name
from selfplay.storage.checksums import manifest_of
from selfplay.storage.files import hash_of


@dataclass(frozen=True)
class Contestant:
    """A checkpoint under the name that tables give it; `run` is set for iterations of runs."""

    name: str
    checkpoint: str
    revision: str | None = None
    run: Path | None = None
    recipe: str = ""
    """For one of several seeds of a recipe: the target that named them all, with what was named of them (`runs/r@best`)."""
    best_of: int | None = None
    """Of so many answers to a prompt, the one that the run's own reward scores highest (`runs/r@2*16`)."""

    @property
    def number(self) -> int:
        """Return the iteration of a run's policy, by its folder."""
        return int(Path(self.checkpoint).parent.name.rpartition("-")[2])

    @property
    def identity(self) -> str:
        """Changes with the weights: from the files' names, sizes and times (a model card is none), or the hub id."""
        folder = Path(self.checkpoint)
        if not folder.is_dir():
            return hash_of([self.checkpoint, self.revision])
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md")
        return hash_of([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def refuse_pruned(one: Contestant) -> None:
    """Raise ConfigError if a checkpoint's weights were removed by `selfplay prune`."""
    manifest = manifest_of(Path(one.checkpoint)) if Path(one.checkpoint).is_dir() else None
    if manifest is not None and manifest.get("pruned"):
        raise ConfigError(
            f"the weights of {one.name!r} were pruned ({one.checkpoint}): its numbers and answers are kept, and nothing "
            "new can be sampled from it; name another iteration"
        )


def contestants(targets: Sequence[str]) -> list[Contestant]:
    """Return the checkpoints that targets name, in their order.

    `RUN@2`, `RUN@start`, `RUN@best` and `RUN@all` name iterations; `RUN` alone means all of them if it is the only
    target, and else the best. Of a recipe that was run with several seeds (RUN-seed0, ...), they name those of each seed;
    alone, it means the start and the best of each. `RUN@2*16` is the best of 16 answers by the run's own reward. A directory
    is a checkpoint, anything else a hub id, with `@REVISION` if wanted. The same target may stand twice. Raises ConfigError
    for what does not exist, and if there are fewer than two.
    """
    found = named_checkpoints(targets)
    if len(found) < 2:
        raise ConfigError(f"there is one checkpoint in {' '.join(targets)!r}, and nothing to compare it with: name two")
    return found


def named_checkpoints(targets: Sequence[str]) -> list[Contestant]:
    """Return the checkpoints that targets name, as `contestants` does, one or more."""
    return _with_names_of_their_own([one for target in targets for one in _named(target, alone=len(targets) == 1)])


def resolve(target: str) -> Contestant:
    """Return the one checkpoint that a target names; a run alone means its best. Raises ConfigError as `contestants` does."""
    found = _named(target, alone=False)
    if len(found) != 1:
        raise ConfigError(f"{target!r} names {len(found)} checkpoints: name one, such as @best")
    return found[0]


def _named(target: str, alone: bool) -> list[Contestant]:
    """Return the checkpoints that one target names; `alone` if there is no other."""
    before, star, count = target.rpartition("*")
    if star and count.isdecimal():
        return [_best_of(one, int(count)) for one in _named(before, alone=False)]
    base, at, suffix = target.rpartition("@")
    if at and (Path(base) / "config.yaml").is_file():
        return _of_run(Path(base), suffix, alone)
    if (Path(target) / "config.yaml").is_file():
        return _of_run(Path(target), "all" if alone else "best", alone)
    if at and seed_runs(Path(base)):
        return _of_seeds(Path(base), suffix)
    if seed_runs(Path(target)):
        return [one for which in ("start", "best")[0 if alone else 1 :] for one in _of_seeds(Path(target), which)]
    if (Path(target) / "config.json").is_file():
        return [Contestant(Path(target).resolve().name, target)]
    of_run = bool(at) and (suffix in ("start", "best", "all") or suffix.isdecimal())
    _refuse_local(base if of_run else target, of_run)
    return [Contestant(target, base if at else target, suffix if at else None)]


def _refuse_local(target: str, of_run: bool) -> None:
    """Raise ConfigError for what is no hub id: an iteration's run, a path, and what is or would be in a folder here."""
    path = Path(target)
    if path.exists():
        raise ConfigError(f"{target!r} is neither a run (with a config.yaml) nor a checkpoint (with a config.json)")
    within = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if not (of_run or within or target.startswith((".", "/", "~"))):
        return
    known = {
        one.name: str(one)
        for folder in (Path("runs"), path.parent)
        if folder.is_dir()
        for one in sorted(folder.iterdir())
        if (one / "config.yaml").is_file() or (one / "config.json").is_file()
    }
    near = difflib.get_close_matches(path.name, known, n=1, cutoff=0.5)
    hint = f", did you mean {known[near[0]]!r}?" if near else "; `selfplay runs` lists the runs in a folder"
    hub = (
        f" (a hub id is one only where there is no folder {path.parts[0]!r})"
        if within and not path.is_absolute()
        else ""
    )
    raise ConfigError(f"there is no run or checkpoint {target!r}{hub}{hint}")


def _best_of(one: Contestant, n: int) -> Contestant:
    """Return the best of n answers of a contestant. Raises ConfigError if there is no run whose reward could choose."""
    if one.run is None or n < 2:
        raise ConfigError(
            f"{one.name}*{n}: best of n is for an iteration of a run, whose reward chooses, and n of at least 2"
        )
    return replace(one, name=f"{one.name}*{n}", best_of=n)


def _of_seeds(path: Path, which: str) -> list[Contestant]:
    """Return one iteration of each seed of a recipe."""
    if which == "all":
        raise ConfigError(f"{path}@all would be every iteration of every seed: name one, such as {path}@best")
    return [
        replace(one, recipe=f"{path.name}@{which}")
        for run in seed_runs(path)
        for one in _of_run(run, which, alone=False)
    ]


def _of_run(path: Path, which: str, alone: bool) -> list[Contestant]:
    """Return iterations of a run; named as in its own files if it is the only one."""
    there = RunDirectory(path).iterations()
    if which == "all":
        numbers = there
    elif which == "best":
        numbers = [assess(path).best_iteration]
    elif which == "start":
        numbers = [0]
    elif which.isdecimal():
        numbers = [int(which)]
    else:
        raise ConfigError(f"{path}@{which} is not an iteration: name a number, start, best or all")
    missing = [number for number in numbers if number not in there]
    if missing or not numbers:
        raise ConfigError(
            f"{str(path)!r} has no policy of iteration {missing[0] if missing else 0}; there are: "
            f"{', '.join(map(str, there)) or 'none'}"
        )
    names = {
        number: iteration_name(number) if alone else f"{path.resolve().name}@{number or 'start'}" for number in numbers
    }
    return [Contestant(names[number], str(RunDirectory(path).policy(number)), run=path) for number in numbers]


def _with_names_of_their_own(found: Sequence[Contestant]) -> list[Contestant]:
    """No two alike: by their paths where these differ, else by a number."""
    named: list[Contestant] = []
    for one in found:
        name = one.name
        if any(other.name == name and other.checkpoint != one.checkpoint for other in found):
            name = one.checkpoint + (f"*{one.best_of}" if one.best_of else "")
        same = [other for other in named if (other.checkpoint, other.revision) == (one.checkpoint, one.revision)]
        copies = sum(other.best_of == one.best_of for other in same)
        named.append(replace(one, name=f"{name} ({copies + 1})" if copies else name))
    return named


def with_baseline_first(found: Sequence[Contestant], baseline: str | None) -> list[Contestant]:
    """Return the same checkpoints with the baseline, a name or a target, in front. Raises ConfigError if it is none of them."""
    if baseline is None:
        return list(found)
    places = [
        place
        for place, one in enumerate(found)
        if baseline in (one.name, one.checkpoint + ("*" if one.best_of else ""))
    ]
    if not places and ("@" in baseline or Path(baseline).exists()):
        with suppress(ConfigError):  # what cannot be resolved is none of them either
            known = resolve(baseline)
            wanted = (known.checkpoint, known.best_of)
            places = [place for place, one in enumerate(found) if (one.checkpoint, one.best_of) == wanted]
    if not places:
        names = ", ".join(one.name for one in found)
        raise ConfigError(f"the baseline {baseline!r} is none of the checkpoints compared: {names}")
    return [found[places[0]], *found[: places[0]], *found[places[0] + 1 :]]


def recipes(found: Sequence[Contestant]) -> list[Recipe]:
    """Return the recipe of each run among them, once each, in their order."""
    paths = list(dict.fromkeys(one.run for one in found if one.run is not None))
    return [RunDirectory(path).recipe().model_copy(update={"output": str(path)}) for path in paths]


def check_unseen(prompts: Sequence[Prompt], trained: Sequence[Recipe]) -> None:
    """Raise ConfigError if one of the runs was trained on a prompt that it would be measured on."""
    asked = {tuple(prompt.messages) for prompt in prompts}
    for recipe in trained:
        shared = [
            prompt for prompt in load_prompts(recipe.prompts.train, recipe.seed) if tuple(prompt.messages) in asked
        ]
        if shared:
            raise ConfigError(
                f"run {recipe.name!r} was trained on {len(shared)} of the {len(prompts)} prompts, such as "
                f"{shared[0].text[:60]!r}: give prompts that no run has seen with --prompts"
            )
