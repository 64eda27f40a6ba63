"""`selfplay demo`: the whole loop within a minute, on a model so small that a laptop trains it; its recipe is demo.yaml."""

from pathlib import Path
from typing import Annotated

import typer

from selfplay.config import load_recipe
from selfplay.verbs.run import leave_with_outcome, print_table, run_to_its_end

RECIPE = Path(__file__).with_name("demo.yaml")


def demo(
    output: Annotated[Path, typer.Option(help="The run's directory.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
) -> None:
    """Run the whole loop at its smallest: a tiny model from text, two iterations, a table and a report."""
    directory = run_to_its_end(load_recipe(RECIPE, [f"output={output}", f"seed={seed}"]))
    print_table(directory)
    typer.echo(f"report: {directory / 'report.html'}")
    typer.echo(f"talk to it: selfplay chat {directory}@best --beside start")
    leave_with_outcome(directory)
