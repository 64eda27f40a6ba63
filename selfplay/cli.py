"""The command line: verbs to functions, no logic. A user's mistake is one sentence and exit code 2."""

import sys

try:
    import errno
    from pathlib import Path
    from typing import Annotated, Any

    import typer
    import typer.core

    from selfplay.errors import ConfigError, Interrupted, SelfplayError, Stopped
    from selfplay.verbs import Json, emit
    from selfplay.verbs.chat import chat
    from selfplay.verbs.compare import compare
    from selfplay.verbs.demo import demo
    from selfplay.verbs.judge import judge_app
    from selfplay.verbs.prompts import prompts
    from selfplay.verbs.run import EXIT_CODES, RunArgument, bootstrap, print_table, run, stage
    from selfplay.verbs.runs import diff, note, prune, runs
    from selfplay.verbs.score import score
except KeyboardInterrupt:  # these take half a second, before main() can catch it
    sys.exit(130)


class Verbs(typer.core.TyperGroup):
    """The verbs. Ctrl-C in one of them is a sentence, where typer would print "Aborted" and leave with 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was given."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Improve a language model by its own play: generate, judge, train a reward model, PPO, compare, repeat.",
)
app.add_typer(judge_app, name="judge")
THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
"""What is never a mistake of this program. ENOENT and EEXIST can be one: where a user says where to write,
`storage.durable` names the path."""


def main() -> None:
    """Entry point."""
    try:
        app()
    except KeyboardInterrupt:  # while the verbs are being put together, before one of them runs
        sys.exit(Interrupted.exit_code)
    except SelfplayError as error:
        asked_for = isinstance(error, Stopped | Interrupted)
        typer.echo(str(error) if asked_for else f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in THE_DISK:
            raise
        typer.echo(
            f"error: {error.filename or 'a file'}: {error.strerror}; fix that and give the same command again",
            err=True,
        )
        sys.exit(ConfigError.exit_code)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write a recipe with every setting, its default and what it does."""
    from selfplay.config.template import write_recipe

    write_recipe(file, force)
    typer.echo(f"wrote {file}; run it with: selfplay run {file}")


app.command(epilog=EXIT_CODES)(demo)
app.command(epilog=EXIT_CODES)(run)
app.command(epilog=EXIT_CODES)(bootstrap)


@app.command()
def show(
    directory: RunArgument,
    prompt: Annotated[str | None, typer.Option(help="Id of a held-out prompt: show its transcripts.")] = None,
    as_json: Json = False,
) -> None:
    """Print a run's iterations as a table, or the transcripts of one prompt side by side."""
    if prompt is None:
        print_table(directory, as_json)
        return
    from rich.console import Console

    from selfplay.report import show as showing

    found = showing.transcripts(directory, prompt)
    emit(found) if as_json else showing.print_transcripts(found, Console(highlight=False))


for _name in ("generate", "label", "reward", "policy", "evaluate"):
    app.command(_name)(stage(_name))


@app.command()
def verify(
    directory: RunArgument,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove what is damaged and what was made from it; run the recipe again then."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every file of a run with what was written; exit code 1 if one is damaged."""
    from selfplay.results import verify as verifying

    if repair:
        for line in verifying.repair(directory):
            typer.echo(line, err=as_json)
    found = verifying.verify(directory)
    if as_json:
        emit(found.json())
    else:
        from selfplay.report.show import print_verification

        print_verification(found.json())
    if found.damage:
        raise typer.Exit(1)


@app.command()
def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="Look at all machines of this Ray cluster too (HOST:6379, or auto on one of them)."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(help="With --address: the folder of runs, which all must share; default this folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print versions and devices, what is missing or clashes, and the line that fixes it; exit code 1 on a problem."""
    from dataclasses import asdict

    from selfplay.verbs import doctor as doctoring

    if directory is not None and address is None:
        raise ConfigError(
            f"--directory {str(directory)!r} is looked at on the machines of a cluster, and no --address is given: add "
            "--address auto, or leave --directory out"
        )
    findings = doctoring.diagnose()
    if address is not None:
        from selfplay.verbs import doctor_cluster

        findings += doctor_cluster.examine(address, directory or Path())
    code = int(any(finding.state == "problem" for finding in findings))
    if as_json:
        emit([asdict(finding) for finding in findings])
        raise typer.Exit(code)
    for finding in findings:
        typer.echo(f"{finding.state:8} {finding.subject}: {finding.detail}")
        if finding.cure:
            typer.echo(f"{'':9}-> {finding.cure}")
    raise typer.Exit(code)


@app.command()
def report(
    directory: RunArgument,
    output: Annotated[Path | None, typer.Option(help="Where to write it; default report.html in the run.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve it on this machine while the run goes on.")] = False,
    port: Annotated[int, typer.Option(help="Port for --live.")] = 8765,
    figures: Annotated[Path | None, typer.Option(help="Write the figures into this folder as SVG and PNG.")] = None,
) -> None:
    """Write a run's report: one HTML file that works offline."""
    if live:
        from selfplay.report.server import serve_report

        serve_report(directory, port)
        return
    from selfplay.report.html import write_report
    from selfplay.results.seeds import seed_runs

    seeds = seed_runs(directory)
    if seeds and (output is not None or figures is not None):
        raise ConfigError(
            f"{str(directory)!r} stands for {len(seeds)} seeds, each with a report of its own: name one of them"
        )
    for run_directory in seeds or [directory]:
        typer.echo(write_report(run_directory, output))
    if figures is not None:
        from selfplay.report.export_figures import save_figures

        for file in save_figures(directory, figures):
            typer.echo(file)


app.command()(compare)
app.command()(chat)
app.command()(prompts)
app.command()(score)
for _verb in (runs, diff, note, prune):
    app.command()(_verb)


@app.command()
def export(
    target: Annotated[str, typer.Argument(help="RUN@best, RUN@2 or RUN@start.")],
    directory: Annotated[Path, typer.Argument(help="A new directory.")],
    push_to_hub: Annotated[
        str | None, typer.Option(help="Repository on the hub to push it to; a push that failed is tried again.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="License for the model card; default the base model's.")] = None,
) -> None:
    """Write a run's checkpoint as one clean directory with a model card."""
    from selfplay.compare.export import export as export_checkpoint

    typer.echo(export_checkpoint(target, directory, push_to_hub=push_to_hub, license=license))


if __name__ == "__main__":
    main()
