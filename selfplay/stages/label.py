"""Verdicts on the pairs, and the preferences that follow from them.

Writes `verdicts.parquet`, `preferences.parquet` and `judge_health.json`. The journal holds each batch of verdicts, so that
no paid call is made twice.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import judges
from selfplay.config import ConfigError
from selfplay.engines import Engine
from selfplay.models import load_tokenizer
from selfplay.progress import meter
from selfplay.records import Pair, Verdict
from selfplay.rundir import Journal, read_rows, write_json, write_rows
from selfplay.stages import Run
from selfplay.stages.generate import stage_name
from selfplay.stages.rows import pair_of, preference_row

BATCH = 512


def fingerprint(run: Run, iteration: int, extra: int = 0) -> str:
    """What the verdicts follow from."""
    settings = [run.recipe.judge.model, judges.digest(judge_spec(run, run.recipe.judge.file))]
    return run.fingerprint(settings, (iteration, stage_name("generate", extra)))


def run(run: Run, iteration: int, extra: int = 0) -> None:
    """Make `iteration-NNN/label` from `generate`. Raises ConfigError if no pair could be decided."""
    name, source = stage_name("label", extra), stage_name("generate", extra)
    spec = judge_spec(run, run.recipe.judge.file)
    with run.files.writing(iteration, name, fingerprint(run, iteration, extra)) as folder:
        started = time.time()
        pairs = [pair_of(row) for row in read_rows(run.files.stage(iteration, source) / "pairs.parquet")]
        verdicts = ask(run, spec, pairs, iteration - 1, folder / "journal.jsonl", "label")
        preferences, counts = judges.to_preferences(pairs, verdicts, spec)
        if not preferences:
            raise ConfigError(
                f"judge {spec.name!r} decided none of {len(pairs)} pairs ({counts['ties']} ties, "
                f"{counts['unscored']} unscored): there is nothing to learn from; look at what it says with "
                f"`selfplay judge try`"
            )
        tokenizer = load_tokenizer(run.files.policy(iteration - 1))
        write_rows(folder / "verdicts.parquet", verdicts)
        write_rows(
            folder / "preferences.parquet", [preference_row(preference, tokenizer) for preference in preferences]
        )
        write_json(folder / "judge_health.json", {"judge": spec.name, **judges.health(pairs, verdicts, spec),
                                                  "seconds": round(time.time() - started, 3)})
        (folder / "journal.jsonl").unlink(missing_ok=True)


def judge_spec(run: Run, file: str) -> judges.JudgeSpec:
    """The judge of a file, with the recipe's model in place of the file's."""
    spec = judges.load_spec(file)
    model = run.recipe.judge.model
    return spec.model_copy(update={"model": model}) if model and spec.needs_model else spec


def ask(
    run: Run, spec: judges.JudgeSpec, pairs: Sequence[Pair], policy: int, journal_path: Path, label: str
) -> list[Verdict]:
    """All verdicts on the pairs, batch by batch through a journal; `policy` is the iteration that judges itself, if it does."""
    journal = Journal(journal_path)
    verdicts: list[Verdict] = []
    judge = None
    with ExitStack() as engines, meter(label, len(pairs), "pairs") as bar:
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            if str(start) not in journal.batches:
                judge = judge or open_judge(run, spec, policy, engines)
                journal.append(str(start), [verdict.model_dump() for verdict in judge.judge(batch)])
            verdicts += [Verdict.model_validate(row) for row in journal.batches[str(start)]]
            bar.advance(len(batch))
    return verdicts


def open_judge(run: Run, spec: judges.JudgeSpec, policy: int, engines: ExitStack) -> judges.Judge:
    """The judge, with an engine for each model of its own, which `engines` closes."""

    def engine_for(part: judges.JudgeSpec) -> Engine:
        if getattr(part, "model", None) == "policy":
            return run.engine(run.files.policy(policy), f"iteration-{policy:03d}")
        engine = own_engine(run, part)
        engines.callback(engine.close)
        return engine

    weights = run.files.manifest_hash(policy, "policy")
    return judges.build(spec, engine_for if spec.needs_model else None, run.files.path / "judge_cache.sqlite",
                        seed=run.seed("judge"), weights=weights)


def own_engine(run: Run, spec: judges.JudgeSpec) -> Engine:
    """The engine of a judge that is not the policy: an endpoint, or the recipe's kind of engine over the judge's model."""
    from selfplay.engines.open import open_engine

    endpoint, model = getattr(spec, "endpoint", None), getattr(spec, "model", None)
    if model is None:
        raise ConfigError(f"judge {spec.name!r} asks a language model, but names none: set judge.model in the recipe")
    if endpoint is not None:
        from selfplay.engines.endpoint import EndpointEngine

        return EndpointEngine(endpoint, model)
    return open_engine(
        run.recipe.engine, model, model, dtype=run.recipe.policy.dtype, revision=getattr(spec, "revision", None)
    )
