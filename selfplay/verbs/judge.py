"""`selfplay judge ...`: list judges, look at one, measure it, calibrate it, and hold two against each other."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from selfplay.config import validate
from selfplay.verbs import Json, emit

judge_app = typer.Typer(no_args_is_help=True, help="Measure a judge, look at one, or list them.")
JudgeArgument = Annotated[str, typer.Argument(help="A shipped judge's name, or a YAML file.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model that judges, instead of the file's.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="A sqlite file that keeps the answers, to ask only once.")
]
EngineOption = Annotated[str, typer.Option("--engine", help="transformers or vllm.")]


@judge_app.command("list")
def judge_list(as_json: Json = False) -> None:
    """List the shipped judges."""
    from judges.audit.inspect import overview

    found = overview()
    if as_json:
        emit(found)
        return
    widest = max(len(judge["name"]) for judge in found)
    for judge in found:
        typer.echo(f"{judge['name']:{widest}} {judge['mode']:10} {judge['description']}")


@judge_app.command("schema")
def judge_schema() -> None:
    """Print the JSON schema of judge files, for editors."""
    from judges.audit.inspect import schema

    emit(schema())


@judge_app.command("check")
def judge_check(
    file: JudgeArgument,
    model: ModelOption = None,
    engine: EngineOption = "transformers",
    gold: Annotated[Path | None, typer.Option(help="Pairs of your own with the right answer, JSONL.")] = None,
    tests_only: Annotated[
        bool, typer.Option("--tests-only", help="Run the tests in the file, without its model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a judge's tests, then gold pairs and canaries; exit code 1 below the thresholds of its file."""
    from judges.audit.check import check
    from judges.audit.gold import load_gold

    with judge_and_engine(file, model, engine, needed=not tests_only) as (spec, opened):
        pairs = load_gold(gold) if gold is not None else None
        found = check(spec, opened, pairs, tests_only=tests_only, announce=lambda line: typer.echo(line, err=as_json))
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        from selfplay.report.show import print_check

        print_check(found.model_dump(mode="json"))
    if not found.passed:
        raise typer.Exit(1)


@judge_app.command("try")
def judge_try(
    file: JudgeArgument, model: ModelOption = None, engine: EngineOption = "transformers", as_json: Json = False
) -> None:
    """Show what a judge is shown, what it says, and how that is read, for one pair. Without a model: what it would be shown."""
    from judges.audit.inspect import try_pair

    with judge_and_engine(file, model, engine, needed=False) as (spec, opened):
        found = try_pair(spec, opened, announce=lambda line: typer.echo(line, err=True))
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        from selfplay.report.show import print_trial

        print_trial(found.model_dump(mode="json"))


@judge_app.command("calibrate")
def judge_calibrate(
    file: JudgeArgument,
    gold: Annotated[
        Path | None, typer.Option(help="Pairs with the right answer, JSONL; default the judge's own.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Pairs for --teacher to decide, instead of --gold: JSONL, or a run's pairs.parquet."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="A judge whose winners are the right answers of --pairs.")] = None,
    teacher_model: Annotated[str | None, typer.Option(help="Model of the teacher, instead of its file's.")] = None,
    model: ModelOption = None,
    engine: EngineOption = "transformers",
    cache: CacheOption = None,
    as_json: Json = False,
) -> None:
    """Fit how sure a judge may be on pairs with known answers, and say what that does to its calibration."""
    from judges.audit.calibration import calibrate
    from judges.audit.gold import known_pairs
    from judges.llm.cache import AnswerCache
    from selfplay.errors import ConfigError

    if (pairs is None) != (teacher is None) or (gold is not None and teacher is not None):
        raise ConfigError("the right answers come from --gold FILE, or from --teacher JUDGE and --pairs FILE together")
    with judge_and_engine(file, model, engine) as (spec, opened):
        if pairs is not None and teacher is not None:
            known = decided_pairs(pairs, teacher, teacher_model, engine, cache)
        else:
            known = known_pairs(spec, gold)
        found = calibrate(spec, known, opened, AnswerCache(cache))
    if as_json:
        emit({**found.model_dump(mode="json"), "better": found.better, "calibrated": found.calibrated})
        return
    for line in found.lines():
        typer.echo(line)


@judge_app.command("compare")
def judge_compare(
    one: JudgeArgument,
    other: JudgeArgument,
    pairs: Annotated[
        Path | None, typer.Option(help="JSONL with prompt and chosen, rejected or responses; or a run's pairs.parquet.")
    ] = None,
    model: ModelOption = None,
    other_model: Annotated[str | None, typer.Option(help="Model of the second judge, instead of its file's.")] = None,
    engine: EngineOption = "transformers",
    cache: CacheOption = None,
    as_json: Json = False,
) -> None:
    """Hold two judges against each other on the same pairs: agreement, who is right where that is known, and cost."""
    from judges.audit.compare import compare_judges
    from judges.llm.cache import AnswerCache

    with (
        judge_and_engine(one, model, engine) as (left, opened),
        judge_and_engine(other, other_model, engine, option="--other-model") as (right, opened_too),
    ):
        asked, answers = pairs_and_answers(pairs, left)
        found = compare_judges((left, right), asked, answers, (opened, opened_too), AnswerCache(cache))
    if as_json:
        emit({**found.model_dump(mode="json"), "verdict": found.verdict})
    else:
        from selfplay.report.show import print_judges

        print_judges(found.model_dump(mode="json"), found.names, found.verdict)


@judge_app.command("distill")
def judge_distill(
    teacher: JudgeArgument,
    output: Annotated[Path, typer.Argument(help="A new directory for the student's checkpoint.")],
    pairs: Annotated[
        Path | None, typer.Option(help="JSONL with prompt and chosen, rejected or responses; or a run's pairs.parquet.")
    ] = None,
    file: Annotated[
        str, typer.Option(help="The pairwise judge file that the student answers.")
    ] = "helpfulness-logprob",
    student: Annotated[str | None, typer.Option(help="A checkpoint to fine-tune; default a new small model.")] = None,
    epochs: Annotated[float, typer.Option(help="How often it sees each lesson.")] = 3.0,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Draws who measures, and the new model's weights.")] = 0,
    model: ModelOption = None,
    engine: EngineOption = "transformers",
    cache: CacheOption = None,
    as_json: Json = False,
) -> None:
    """Teach a small local model to judge as another judge does, and compare the two on held-out pairs."""
    from judges.llm.cache import AnswerCache
    from selfplay.report.show import print_judges
    from selfplay.stages.distill import Distillation, distill

    given = {"file": file, "student": student, "epochs": epochs, "learning_rate": learning_rate, "seed": seed}
    settings = validate(Distillation, given, "judge distill")
    with judge_and_engine(teacher, model, engine) as (spec, opened):
        asked, answers = pairs_and_answers(pairs, spec)
        kept = AnswerCache(cache or output.with_name(f"{output.name}.answers.sqlite"))
        found = distill(spec, asked, output, settings, opened, kept, answers)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        print_judges(found.model_dump(mode="json"), found.names, found.verdict)
        typer.echo(f"the student: selfplay judge check {file} --model {output}")


def decided_pairs(pairs: Path, teacher: str, model: str | None, engine: str, cache: Path | None) -> Any:
    """Return the pairs of a file for which a judge names a winner, with that winner as the known answer."""
    from judges.build import build
    from judges.distill import decided_by
    from judges.llm.cache import AnswerCache

    with judge_and_engine(teacher, model, engine, option="--teacher-model") as (spec, opened):
        return decided_by(build(spec.lenient(), opened, AnswerCache(cache)), pairs_and_answers(pairs, spec)[0])


def pairs_and_answers(path: Path | None, spec: Any) -> tuple[Any, dict[str, float]]:
    """Return the pairs of a file, a run's or JSON lines, or of a judge's gold set, and what is known of them."""
    from judges.audit.gold import known_pairs, load_pairs

    if path is None:
        rows = known_pairs(spec, option="--pairs")
        return [row.pair for row in rows], {row.pair.id: row.answer for row in rows}
    if path.suffix == ".parquet":
        from selfplay.errors import ConfigError
        from selfplay.stages.rows import pair_of
        from selfplay.storage.files import read_rows

        try:
            return [pair_of(row) for row in read_rows(path)], {}
        except KeyError as error:
            raise ConfigError(
                f"{path} has no column {error}, so it does not hold a run's pairs: those are in "
                "iteration-NNN/generate/pairs.parquet"
            ) from None
    return load_pairs(path)


@contextmanager
def judge_and_engine(
    file: str, model: str | None, kind: str, needed: bool = True, option: str = "--model"
) -> Iterator[Any]:
    """Open a judge's spec, and a function that opens the engine of a part of it; engines are closed at the end.

    `option` is that for `model`.
    """
    import judges
    from selfplay.config import Engine
    from selfplay.engines.ledger import Ledger

    spec = judges.load_spec(file, model)
    config, ledger = validate(Engine, {"kind": kind}, "--engine"), Ledger()
    with ExitStack() as engines:

        def opener(part: Any) -> Any:
            from selfplay.engines.open import open_judge_engine

            opened = open_judge_engine(part, config, ledger=ledger, option=option)
            engines.callback(opened.close)
            return opened

        wanted = spec.needs_model and (needed or any(getattr(part, "model", None) for part in spec.parts))
        yield spec, opener if wanted else None
