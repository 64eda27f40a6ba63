"""What `selfplay run --dry-run` says of memory and time: a table per stage, what does not fit, and the settings that fix it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfplay.config import Recipe
from selfplay.records import Prompt
from selfplay.rundir import RunDirectory
from selfplay.sizing import cards
from selfplay.sizing.advice import advice
from selfplay.sizing.cards import GB
from selfplay.sizing.disk import disk
from selfplay.sizing.hours import CardRates, ProcessorRates, Work, hours
from selfplay.sizing.sizes import longest_prompt, sizes_of, tokens_of
from selfplay.sizing.stages import StageMemory, stages


@dataclass(frozen=True)
class Plan:
    """A recipe on a machine: bytes per stage and part, hours per stage of an iteration, and what stands in the way."""

    machine: str
    capacity: int
    stages: tuple[StageMemory, ...]
    hours: dict[str, float]
    disk: dict[str, int]
    notes: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "machine": self.machine,
            "bytes_per_process": self.capacity,
            "stages": {row.stage: {**row.parts, "total": row.total} for row in self.stages},
            "hours_per_iteration": self.hours,
            "disk_bytes": self.disk,
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return it as text: a line per stage with its largest parts, then hours, then what to change."""
        found = [f"memory per process in GB, of {self.capacity / GB:.1f} ({self.machine}):"] if self.stages else []
        for row in self.stages:
            parts = sorted(((size, name) for name, size in row.parts.items() if size), reverse=True)
            words = ", ".join(f"{name} {size / GB:.2f}" for size, name in parts if size >= row.total / 100)
            mark = " TOO MUCH" if row.excess else ""
            found.append(f"  {row.stage:17} {row.total / GB:7.2f}{mark}  ({words})")
        for stage, amount in self.hours.items():
            found.append(f"  {stage:17} {amount:7.2f} hours per iteration")
        if self.disk:
            kept, most = self.disk["kept"], self.disk["at most"]
            beside = f", {most / GB:.2f} GB while checkpoints are there" if most > kept else ""
            found.append(f"disk: {kept / GB:.2f} GB for the finished run{beside}")
        return [*found, *self.notes]


def plan(
    recipe: Recipe, train: Sequence[Prompt], heldout: Sequence[Prompt], work: dict[str, Any], gpus: str | None
) -> Plan:
    """Size a recipe for the named GPUs, else those found, else this machine's memory; `work` is that of `sizing.work`.

    Raises ConfigError for a card that is not known.
    """
    memory, nodes = cards.memory_here(), 1 if recipe.launch is None else recipe.launch.nodes
    machine = cards.found(memory, nodes) if gpus is None else cards.named(gpus, memory)
    lengths = [tokens_of(prompt) for prompt in (*train, *heldout)]
    sizes = sizes_of(recipe, machine, longest_prompt([*train, *heldout]))
    if sizes is None:
        said = f"memory and time: there is no config.json of {recipe.policy.model!r} at hand; download the model first"
        return Plan(machine.title, 0, (), {}, {}, (said,))
    rows = tuple(stages(sizes))
    amounts, notes = measured_hours(recipe), []
    if amounts:
        notes.append(f"hours: as this run's own iterations took ({recipe.directory})")
    elif machine.card is not None or not any(row.excess for row in rows):
        todo = work_of(recipe, work, sum(lengths) // len(lengths), len(heldout))
        rates = CardRates(machine.card, sizes) if machine.card is not None else ProcessorRates.measured(sizes, todo)
        amounts = hours(sizes, todo, rates)
    return Plan(machine.title, sizes.capacity, rows, amounts, disk(sizes, work), (*notes, *advice(sizes, rows)))


def work_of(recipe: Recipe, work: dict[str, Any], prompt: int, heldout: int) -> Work:
    """Return an iteration's share of a recipe's work, with prompts of so many tokens."""
    iterations, algorithm = recipe.iterations, recipe.algorithm
    return Work(
        prompt=prompt,
        answer=recipe.sampling.max_tokens,
        generated=recipe.generate.prompts * recipe.generate.completions,
        pairs=work["pairs"] // iterations,
        judge_calls=work["judge_calls"] // iterations,
        episodes=algorithm.episodes_per_step,
        learned=algorithm.learned_per_step,
        epochs=int(getattr(algorithm, "epochs", 1)),
        heldout=heldout,
    )


def measured_hours(recipe: Recipe) -> dict[str, float]:
    """Return the mean hours of each stage over the iterations that this run has finished already; empty if none."""
    if not (recipe.directory / "config.yaml").is_file():
        return {}
    files = RunDirectory(recipe.directory)
    seconds: dict[str, list[float]] = {}
    for number in files.iterations():
        for name, took in files.seconds(number).items():
            if number and "-extra-" not in name:
                seconds.setdefault(name, []).append(took)
    return {name: sum(took) / len(took) / 3600 for name, took in seconds.items()}
