"""`selfplay runs`, `diff`, `note` and `prune`: keep an overview of many runs, and of the disk that they take."""

from pathlib import Path
from typing import Annotated

import typer

from selfplay.verbs import Json, emit


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder that holds runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs of a folder: state, iterations, the best and who measured it, age, size, tags."""
    from rich.console import Console

    from selfplay.catalog.listing import list_runs, table_of
    from selfplay.report.terminal import print_table

    found = list_runs(folder)
    if as_json:
        emit([one.json() for one in found])
        return
    if not found:
        typer.echo(f"there are no runs in {folder}; begin one with: selfplay run RECIPE")
        return
    print_table(Console(highlight=False), *table_of(found))
    for one in found:
        if one.detail:
            typer.echo(f"{one.path}: {one.state}, {one.detail}")


def diff(
    a: Annotated[Path, typer.Argument(help="A run's directory.")],
    b: Annotated[Path, typer.Argument(help="Another run's directory.")],
    as_json: Json = False,
) -> None:
    """Show what differs between two runs in recipe, code, data and outcome."""
    from selfplay.catalog.diff import diff as difference

    found = difference(a, b)
    if as_json:
        emit(found)
        return
    for part, lines in found.items():
        typer.echo(f"{part}: {'the same' if not lines else ''}".rstrip())
        for line in lines:
            typer.echo(f"  {line}")


def note(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    text: Annotated[str, typer.Argument(help="What to remember; leave it out to read the notes.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag to add. May be repeated.")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="A tag to take away. May be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Add a note or tags to a run, or read them; the report and `selfplay runs` show them."""
    from selfplay.results.notes import add_note

    found = add_note(run, text, tag or (), untag or ())
    if as_json:
        emit(found)
        return
    typer.echo(f"tags: {' '.join(found['tags']) or 'none'}")
    for one in found["notes"]:
        typer.echo(f"{one['time']}  {one['text']}")


def prune(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    keep: Annotated[
        str, typer.Option(help="Iterations whose weights stay: best, last, start or numbers, with commas between.")
    ] = "best",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove the weights of iterations that are not kept; numbers, answers and verdicts stay."""
    from selfplay.catalog.listing import size_text
    from selfplay.catalog.prune import plan_pruning
    from selfplay.catalog.prune import prune as remove

    found = plan_pruning(run, [name.strip() for name in keep.split(",") if name.strip()])
    if not found.folders:
        typer.echo("there is nothing to remove")
        return
    for folder, gone in found.folders:
        typer.echo(f"{folder}: {', '.join(gone)}")
    kept = ", ".join("start" if number == 0 else f"iteration {number}" for number in found.kept)
    typer.echo(f"frees {size_text(found.bytes)}; kept are the weights of {kept}, and all numbers, answers and verdicts")
    if yes or typer.confirm("remove these files?"):
        remove(run, found)
        typer.echo("removed")
    else:
        typer.echo("nothing was removed")
