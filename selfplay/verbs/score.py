"""`selfplay score`: single checkpoints by a judge that scores, with intervals, on the terminal or as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfplay.errors import ConfigError
from selfplay.storage.durable import resumable
from selfplay.verbs import Json, emit
from selfplay.verbs.compare import (
    Address,
    Engine,
    Like,
    MaxTokens,
    Prompts,
    Split,
    Temperature,
    Workers,
    check_folder,
    given_of,
    launch_of,
)

if TYPE_CHECKING:
    from selfplay.compare.score import CheckpointScore, Scores
    from selfplay.stats.means import Mean

FIGURES = {
    "prompt_strict": "prompts, strict",
    "instruction_strict": "instructions, strict",
    "prompt_loose": "prompts, loose",
    "instruction_loose": "instructions, loose",
}


def score(
    targets: Annotated[list[str], typer.Argument(help="Runs, runs/NAME@2, runs/NAME@all, checkpoints or hub ids.")],
    judge: Annotated[
        str | None, typer.Option(help="A judge that scores: a shipped name or a YAML file; default the run's.")
    ] = None,
    prompts: Prompts = None,
    split: Split = "heldout",
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    engine: Engine = None,
    like: Like = None,
    workers: Workers = None,
    address: Address = None,
    by: Annotated[str | None, typer.Option(help="Column of the prompts to break scores down by.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the samples, scores.parquet and scores.json.")] = None,
    as_json: Json = False,
) -> None:
    """Score single checkpoints: means with intervals, and IFEval's figures for prompts that have conditions."""
    if not targets:
        raise ConfigError("name what to score: a run, a checkpoint or a hub id")
    from selfplay.compare.score import score as score_checkpoints

    given = given_of(prompts, split, judge, temperature, max_tokens, engine)
    check_folder(output)
    with resumable():
        found = score_checkpoints(targets, given, like=like, folder=output, by=by, launch=launch_of(workers, address))
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        print_scores(found)


def print_scores(found: "Scores") -> None:
    """Print what scores rest on, then a row per checkpoint, its categories, and the figures."""
    from rich.console import Console
    from rich.text import Text

    from selfplay.formatting import facts_text, hundredths
    from selfplay.report.terminal import UNBOUNDED, print_table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNBOUNDED
    console.print(Text(facts_text(found.facts)))
    categories = list(dict.fromkeys(name for one in found.checkpoints for name in one.categories))
    titles = ("checkpoint", "score", "above the first", "prompts", "unscored", "tokens", "cut off", *categories)
    rows: list[tuple[str, ...]] = [
        (
            one.name,
            _score(one.score),
            _points(one.above_first),
            f"{one.score.n:,}",
            f"{one.score.unscored:,}",
            f"{one.mean_tokens:.0f}",
            f"{hundredths(one.truncated)}%",
            *(_score(one.categories[name]) for name in categories),
        )
        for one in found.checkpoints
    ]
    print_table(console, titles, rows)
    if all(one.figures is not None for one in found.checkpoints):
        console.print()
        print_table(console, ("IFEval", *FIGURES.values()), [row for one in found.checkpoints for row in _figures(one)])


def _figures(one: "CheckpointScore") -> list[tuple[str, ...]]:
    """Return a checkpoint's figures as rows: the shares, and their differences to the first checkpoint's."""
    from selfplay.formatting import interval_text, points_text

    shares, above = one.figures or {}, one.figures_above_first or {}
    rows = [(one.name, *(interval_text(shares[key].share, shares[key].low, shares[key].high) for key in FIGURES))]
    if above:
        points = (points_text(above[key].share, above[key].low, above[key].high) for key in FIGURES)
        rows.append(("  above the first", *points))
    return rows


def _score(one: "Mean") -> str:
    return "-" if one.mean is None else f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _points(one: "Mean | None") -> Any:
    return "-" if one is None or one.mean is None else f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
