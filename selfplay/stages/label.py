"""Verdicts on the pairs, and the preferences that follow from them.

Writes `verdicts.parquet`, `preferences.parquet` and `judge_health.json`. The journal holds each batch of verdicts, so that
no paid call is made twice.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import judges
from judges.audit.check import enforce_thresholds, measure_health
from judges.llm.cache import CACHE
from selfplay.context import RunContext
from selfplay.engines import Engine
from selfplay.engines.open import open_engine
from selfplay.errors import ConfigError
from selfplay.models import load_tokenizer
from selfplay.progress import meter
from selfplay.records import Pair, Verdict
from selfplay.rundir import WORK, iteration_name
from selfplay.stages.generate import stage_name
from selfplay.stages.rows import pair_of, preference_row
from selfplay.storage.files import read_rows, write_json, write_rows
from selfplay.storage.journal import Journal

BATCH = 512


def fingerprint(run: RunContext, iteration: int, extra: int = 0) -> str:
    """Return what the verdicts follow from."""
    settings = [run.recipe.judge.model, judges.digest(known_judge(run))]
    return run.fingerprint(settings, (iteration, stage_name("generate", extra)))


def run(run: RunContext, iteration: int, extra: int = 0) -> None:
    """Make `iteration-NNN/label` from `generate`.

    Raises ConfigError if no pair could be decided, or if the judge fails the thresholds of its own file.
    """
    name, source = stage_name("label", extra), stage_name("generate", extra)
    spec = labelling_judge(run)
    with run.files.writing(iteration, name, fingerprint(run, iteration, extra)) as folder, ExitStack() as engines:
        started = time.time()
        pairs = [pair_of(row) for row in read_rows(run.files.stage(iteration, source) / "pairs.parquet")]
        judge = open_judge(run, spec, iteration - 1, engines)
        verdicts = ask(judge, pairs, folder / WORK / "journal.jsonl", "label")
        preferences, counts = judges.to_preferences(pairs, verdicts, spec)
        if not preferences:
            raise ConfigError(
                f"judge {spec.name!r} decided none of {len(pairs)} pairs ({counts['ties']} ties, "
                f"{counts['unscored']} unscored): there is nothing to learn from; look at what it says with "
                f"`selfplay judge try`"
            )
        health = measure_health(judge, pairs, verdicts)
        enforce_thresholds(spec, health)
        tokenizer = load_tokenizer(run.files.policy(iteration - 1))
        wins = shares_won(pairs, judges.aggregate_verdicts(verdicts, spec))
        rows = [preference_row(preference, tokenizer, wins) for preference in preferences]
        write_rows(folder / "verdicts.parquet", verdicts)
        write_rows(folder / "preferences.parquet", rows)
        seconds = round(time.time() - started, 3)
        write_json(folder / "judge_health.json", {"judge": spec.name, **health, "seconds": seconds})


def shares_won(pairs: Sequence[Pair], settled: Mapping[str, float | None]) -> dict[str, float]:
    """Completion id -> its mean preference over the pairs that hold it: the chance to beat another answer to its prompt.

    `settled` is each pair's preference for its first response. A tie counts one half, an unscored pair not at all.
    """
    found: dict[str, list[float]] = {}
    for pair in pairs:
        if (preference := settled.get(pair.id)) is not None:
            found.setdefault(pair.first.id, []).append(preference)
            found.setdefault(pair.second.id, []).append(1 - preference)
    return {completion: sum(values) / len(values) for completion, values in found.items()}


def labelling_judge(run: RunContext) -> judges.JudgeSpec:
    """Return the judge that labels: the recipe's file, with the model that the recipe names or makes, if it does."""
    return judges.load_spec(run.recipe.judge.file, run.recipe.judge_model)


def known_judge(run: RunContext) -> judges.JudgeSpec:
    """Return the judge that labels, for fingerprints: a model that the run made goes by its weights, not by where it lies."""
    if run.recipe.judge.bootstrap is None:
        return labelling_judge(run)
    return judges.load_spec(run.recipe.judge.file, run.files.manifest_hash(0, "judge"))


def ask(judge: judges.Judge, pairs: Sequence[Pair], journal_path: Path, label: str) -> list[Verdict]:
    """Return all verdicts on the pairs, batch by batch through a journal."""
    journal = Journal(journal_path)
    verdicts: list[Verdict] = []
    with meter(label, len(pairs), "pairs") as bar:
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            if str(start) not in journal.batches:
                journal.append(str(start), [verdict.model_dump() for verdict in judge.judge(batch)])
            verdicts += [Verdict.model_validate(row) for row in journal.batches[str(start)]]
            bar.advance(len(batch))
    return verdicts


def open_judge(
    run: RunContext, spec: judges.JudgeSpec, policy: int, engines: ExitStack, own_engine: bool = False
) -> judges.Judge:
    """Return the judge, with an engine for each model of its own, which `engines` closes.

    `policy` is the iteration whose policy answers, if the judge's model is `policy`; it shares the run's engine unless
    `own_engine`, for a judge that is asked while that engine has other weights.
    """

    def engine_for(part: judges.JudgeSpec) -> Engine:
        checkpoint, name = run.files.policy(policy), iteration_name(policy)
        if getattr(part, "model", None) != "policy":
            engine = run.judge_engine(part)
        elif own_engine:
            engine = open_engine(run.recipe.engine, checkpoint, name, dtype=run.recipe.policy.dtype)
        else:
            return run.engine(checkpoint, name)
        engines.callback(engine.close)
        return engine

    weights = {"policy": run.files.manifest_hash(policy, "policy")}
    if run.recipe.judge.bootstrap is not None:
        weights[str(run.recipe.judge_model)] = run.files.manifest_hash(0, "judge")
    return judges.build(
        spec,
        engine_for if spec.needs_model else None,
        run.files.path / CACHE,
        seed=run.seed("judge"),
        weights=weights,
    )
