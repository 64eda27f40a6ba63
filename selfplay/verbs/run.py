"""`selfplay run` and its parts: a whole recipe, its start, or one stage of one iteration.

Each saves what it did and stops where a signal asks for it (`selfplay.stopping`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from selfplay.config import Recipe, load_recipe
from selfplay.errors import ENDED_EARLY, ConfigError
from selfplay.stopping import listening
from selfplay.storage.durable import resumable
from selfplay.verbs import Json, emit

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
RunArgument = Annotated[Path, typer.Argument(help="A run's directory, such as runs/quickstart.")]
EXIT_CODES = """\b
Exit codes:
  0    the run came to its end
  1    it failed: a judge was given up, training diverged, an engine died
  2    a mistake in the recipe, a file or an argument
  3    it ended before its last iteration by its own rules (see outcome.json):
       a reward model no better than chance, a severe alarm, or no gain
       for guard.patience iterations
  75   stopped by SIGTERM or SIGUSR1, with all saved: the same command goes on
  130  stopped by Ctrl-C: the same command goes on"""


def run(
    recipe: RecipeArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as algorithm.steps=10."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the work it implies.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", help="With --dry-run: size it for these cards, such as 8xH100-80GB; default those found."
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Run it with so many seeds, each a run of its own: OUTPUT-seed0, ...")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe; give the same command again to go on with a run that was stopped."""
    loaded = load_recipe(recipe, overrides or [])
    if seeds is not None and not dry_run:
        run_seeds(loaded, seeds, as_json)
    elif dry_run:
        _print_work(loaded, gpu, as_json)
    else:
        directory = run_to_its_end(loaded)
        print_table(directory, as_json)
        leave_with_outcome(directory)


def run_seeds(recipe: Recipe, seeds: int, as_json: bool) -> None:
    """Run a recipe with several seeds, from its own on, and print the win rates between them."""
    from selfplay.results.seeds import folder_of_seed

    if recipe.directory.joinpath("config.yaml").is_file():
        raise ConfigError(
            f"{str(recipe.directory)!r} is a run already, and with --seeds it would stand for all seeds: give another output=..."
        )
    folders = [folder_of_seed(recipe.directory, recipe.seed + number) for number in range(seeds)]
    ran = [
        run_to_its_end(recipe.model_copy(update={"output": str(folder), "seed": recipe.seed + number}))
        for number, folder in enumerate(folders)
    ]
    print_seeds_of(ran, as_json)
    typer.echo(f"runs: {' '.join(map(str, ran))}", err=as_json)
    for directory in ran:
        leave_with_outcome(directory)


def print_seeds_of(runs: Sequence[Path], as_json: bool) -> None:
    """Print each run's table, and the win rates between them."""
    from rich.console import Console

    from selfplay.report import show
    from selfplay.report.terminal import print_seeds
    from selfplay.results.seeds import by_iteration

    found = by_iteration(runs)
    if as_json:
        emit({"seeds": [one.json() for one in found], "runs": {str(run): show.iterations(run) for run in runs}})
        return
    console = Console(highlight=False)
    for run in runs:
        typer.echo(f"{run}")
        show.print_iterations(show.iterations(run), console)
    print_seeds(found, console)


def _print_work(recipe: Recipe, gpu: str | None, as_json: bool) -> None:
    """Print a resolved recipe, how much work it is, and the memory and time it takes. Raises ConfigError if it cannot work."""
    from selfplay.preflight import PromptSets, check
    from selfplay.sizing.plan import plan
    from selfplay.sizing.work import work

    sets = PromptSets(recipe)
    prompts, amounts = check(recipe, sets), work(recipe, sets)
    sized = plan(recipe, *prompts, amounts, gpu)
    if as_json:
        emit({"recipe": recipe.model_dump(mode="json"), "work": amounts, "machine": sized.json()})
        return
    import yaml

    typer.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    for name, amount in amounts.items():
        typer.echo(f"{name.replace('_', ' ')}: {'unknown' if amount is None else f'{amount:,}'}")
    for line in sized.lines():
        typer.echo(line)


def run_to_its_end(recipe: Recipe, only_start: bool = False) -> Path:
    """Run a recipe, stop politely where a signal asks for it, and return the run's directory."""
    with listening(), resumable():
        from selfplay.loop import run as run_loop

        return run_loop(recipe, only_start)


def leave_with_outcome(directory: Path) -> None:
    """Leave with code 3 if a run ended before its last iteration by its own rules."""
    from selfplay.loop import outcome

    if outcome(directory)["stopped"]:
        raise typer.Exit(ENDED_EARLY)


def print_table(directory: Path, as_json: bool = False) -> None:
    """Print a run's iterations, one row each; of a recipe's name that stands for its seeds, those of each and between them."""
    from rich.console import Console

    from selfplay.report import show
    from selfplay.results.seeds import seed_runs

    if seeds := seed_runs(directory):
        print_seeds_of(seeds, as_json)
        return
    rows = show.iterations(directory)
    if as_json:
        emit(rows)
        return
    show.print_iterations(rows, Console(highlight=False))
    typer.echo(f"run: {directory}")


def bootstrap(
    recipe: RecipeArgument,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Make a recipe's start and no more: tokenizer, pretraining, fine-tuning."""
    directory = run_to_its_end(load_recipe(recipe, overrides or []), only_start=True)
    typer.echo(directory / "iteration-000" / "policy")


def stage(name: str) -> Any:
    """Return the verb that runs one stage alone."""

    def command(
        directory: RunArgument,
        iteration: Annotated[int, typer.Option("--iteration", "-i", min=1, help="Number of the iteration.")],
    ) -> None:
        with listening(), resumable():
            from selfplay.loop import run_stage

            typer.echo(run_stage(directory, name, iteration))

    command.__doc__ = f"Run the stage `{name}` of one iteration alone."
    return command
