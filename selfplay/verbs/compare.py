"""`selfplay compare`: checkpoints head to head, or votes from elsewhere, on the terminal, as JSON and as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfplay.config import Launch, PromptSource, validate
from selfplay.errors import ConfigError
from selfplay.storage.durable import resumable
from selfplay.verbs import Json, emit

if TYPE_CHECKING:
    from selfplay.compare.head_to_head import HeadToHead
    from selfplay.compare.settings import Given
    from selfplay.compare.vote_summary import VoteSummary


Prompts = Annotated[str | None, typer.Option(help="Held-out prompts: a file, a folder, a dataset or a built-in set.")]
Split = Annotated[str, typer.Option(help="Split of --prompts, where it is a folder, a dataset or a built-in set.")]
Temperature = Annotated[float | None, typer.Option(min=0, help="Temperature of the answers; 0 is greedy.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Engine = Annotated[str | None, typer.Option(help="transformers or vllm; default the run's.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Workers of Ray that sample and judge, one for each GPU; default this process."),
]
Address = Annotated[
    str | None, typer.Option(help="A Ray cluster for --workers (HOST:PORT, or auto); default this machine.")
]
Like = Annotated[Path | None, typer.Option(help="A run whose recipe says how, where the runs' recipes differ.")]


def given_of(
    prompts: str | None,
    split: str,
    judge: str | None,
    temperature: float | None,
    max_tokens: int | None,
    engine: str | None,
) -> "Given":
    """Return what the user says of prompts, judge and sampling. Raises ConfigError for what cannot be."""
    from selfplay.compare.settings import Given
    from selfplay.config import Engine as EngineConfig

    source = None if prompts is None else validate(PromptSource, {"source": prompts, "split": split}, "--prompts")
    kind = None if engine is None else validate(EngineConfig, {"kind": engine}, "--engine")
    return Given(source, judge, temperature, max_tokens, engine=kind)


def launch_of(workers: int | None, address: str | None) -> Launch | None:
    """Return the workers that are to sample and judge. Raises ConfigError for an address without workers."""
    if workers is None and address is not None:
        raise ConfigError(
            f"--address {address} names a Ray cluster, and --workers says on how many of its workers: add it"
        )
    return None if workers is None else Launch(workers=workers, address=address)


def compare(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Runs, runs/NAME@2, runs/NAME@start, checkpoints or hub ids.")
    ] = None,
    prompts: Prompts = None,
    split: Split = "heldout",
    judge: Annotated[
        str | None, typer.Option(help="A judge: a shipped name or a YAML file. With --votes: whose votes count.")
    ] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    engine: Engine = None,
    like: Like = None,
    workers: Workers = None,
    address: Address = None,
    votes: Annotated[
        Path | None, typer.Option(help="Votes from elsewhere, CSV, JSON or Parquet: no model needed.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Whom all others are held against; default the first.")] = None,
    difficulty: Annotated[
        Path | None, typer.Option(help="Difficulty of prompts, for rates at equal length; fitted if it is not there.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Column of the prompts to break win rates down by.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the samples, the matches and comparison.json.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the page of a run's report for this comparison: one HTML file.")
    ] = None,
    table: Annotated[
        list[Path] | None, typer.Option(help="Write the pairs into a file: .csv, .parquet or .tex. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare checkpoints on the same held-out prompts, head to head, with intervals."""
    if (votes is None) == (not targets):
        raise ConfigError("name what to compare: checkpoints and runs, or --votes FILE, not both")
    _check_formats(table or [])
    check_folder(output)
    if votes is not None:
        options = {
            "--prompts": prompts,
            "--temperature": temperature,
            "--max-tokens": max_tokens,
            "--engine": engine,
            "--like": like,
            "--workers": workers,
            "--address": address,
        }
        found = _compare_votes(votes, options, judge, baseline, difficulty, by, output)
        _hand_over(found, votes, report, table or [], as_json)
        return
    from selfplay.compare.head_to_head import compare as head_to_head

    given, launch = given_of(prompts, split, judge, temperature, max_tokens, engine), launch_of(workers, address)
    named: Any = {"baseline": baseline, "difficulty": difficulty, "by": by, "launch": launch}
    with resumable():
        result = head_to_head(targets or [], given, like=like, folder=output, **named)
    _hand_over(result, result.folder, report, table or [], as_json)


def check_folder(output: Path | None) -> None:
    """Raise ConfigError for an --output that cannot be a folder, since it or a part of its path is a file."""
    there = next((path for path in (output, *output.parents) if path.exists()), None) if output is not None else None
    if there is not None and not there.is_dir():
        raise ConfigError(f"--output {str(output)!r} is to be a folder, and {str(there)!r} is a file: name a folder")


def _check_formats(table_files: Sequence[Path]) -> None:
    """Raise ConfigError for a file that no table can be written into."""
    from selfplay.report.table_files import check_format

    for file in table_files:
        check_format(file)


def _compare_votes(
    file: Path,
    unusable: Mapping[str, Any],
    judge: str | None,
    baseline: str | None,
    difficulty: Path | None,
    by: str | None,
    output: Path | None,
) -> "VoteSummary":
    """Summarise a file of votes. Raises ConfigError for options that say how to ask models, for none is asked."""
    from selfplay.compare.vote_summary import summarise_votes

    given = [name for name, value in unusable.items() if value is not None]
    if given:
        raise ConfigError(f"{' and '.join(given)} say how to ask models, and --votes asks none: leave them out")
    found = summarise_votes(file, judge=judge, baseline=baseline, difficulty=difficulty, by=by)
    if output is not None:
        found.write(output)
    return found


def _hand_over(
    found: "HeadToHead | VoteSummary", source: Path, report: Path | None, table_files: Sequence[Path], as_json: bool
) -> None:
    """Print what was found, and write the files that were asked for."""
    from rich.console import Console

    from selfplay.report.html import write_comparison
    from selfplay.report.table_files import write_table
    from selfplay.report.terminal import print_seeds, print_summary

    if as_json:
        emit(found.json())
    else:
        console = Console(highlight=False)
        print_summary(found.summary, console, found.facts, found.categories)
        print_seeds(getattr(found, "seeds", ()), console)
    written = [write_table(file, found.summary, found.facts) for file in table_files]
    written += [write_comparison(found.page(source), report)] if report is not None else []
    for file in written:
        typer.echo(file, err=as_json)
