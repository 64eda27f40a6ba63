"""`selfplay compare`: the same held-out prompts to every checkpoint, every pair judged in both orders, all statistics.

What was sampled and what the judge said is kept, so asking again is free. Where the targets include a run, its recipe
says which prompts, sampling, engine and judge; anything may be given instead. Left out on purpose: training and labels;
nothing here changes a run.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import judges
from judges.llm.cache import AnswerCache
from prompts.sources import load_prompts
from selfplay.compare.targets import Contestant, check_unseen, contestants, recipes
from selfplay.config import Engine as EngineConfig
from selfplay.config import PromptSource, Recipe, Sampling
from selfplay.engines import Engine
from selfplay.engines.ledger import Ledger
from selfplay.errors import ConfigError
from selfplay.journal import Journal
from selfplay.progress import meter
from selfplay.records import Completion, Pair, Prompt, Verdict
from selfplay.results.run import Match, vote_table
from selfplay.rundir import RunDirectory
from selfplay.stats.summary import Summary, summarise
from selfplay.storage import derived_seed, hash_of, read_rows, write_json, write_rows


@dataclass(frozen=True)
class Settings:
    """How checkpoints are compared: everything that the answers and the verdicts depend on."""

    prompts: PromptSource
    judge: str
    judge_model: str | None
    """What answers for the run's labelling judge, or for another whose file names no model."""
    labelling: bool
    """Whether `judge` is the one that labelled."""
    sampling: Sampling
    engine: EngineConfig
    dtype: str
    seed: int


@dataclass(frozen=True)
class HeadToHead:
    """The outcome of a comparison: `matches` as in matches.parquet, and what follows from them.

    `asked` counts the answers that the judge's model had to give now, for they were not in the cache.
    """

    names: tuple[str, ...]
    judge: str
    matches: tuple[Match, ...]
    summary: Summary
    asked: int
    seconds: float

    def json(self) -> dict[str, Any]:
        """Everything but the texts, ready for JSON."""
        return {
            "judge": self.judge,
            "asked": self.asked,
            "seconds": round(self.seconds, 3),
            **self.summary.model_dump(mode="json"),
            "matrix": self.summary.matrix(),
        }

    def write(self, folder: Path) -> None:
        """Write `matches.parquet` and `comparison.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "matches.parquet", [vars(match) for match in self.matches])
        write_json(folder / "comparison.json", self.json())


def settings_of(
    trained: Sequence[Recipe],
    *,
    prompts: PromptSource | None = None,
    judge: str | None = None,
    sampling: Sampling | None = None,
    engine: EngineConfig | None = None,
) -> Settings:
    """What is given, and for the rest what the first run's recipe says. Raises ConfigError if neither names it."""
    if not trained:
        if prompts is None or judge is None:
            raise ConfigError(
                "without a run among the checkpoints, say what to ask and who judges: --prompts FILE --judge FILE"
            )
        return Settings(prompts, judge, None, False, sampling or Sampling(), engine or EngineConfig(), "float32", 0)
    recipe = trained[0]
    own = recipe.sampling.model_copy(
        update={
            "temperature": recipe.evaluate.temperature,
            "n": 1,
            "seed": derived_seed(recipe.seed, "generate", "heldout"),
        }
    )
    file = judge or recipe.evaluate.judge or recipe.judge.file
    return Settings(
        prompts or recipe.prompts.heldout,
        file,
        recipe.judge_model,
        file == recipe.judge.file,
        sampling or own,
        engine or recipe.engine,
        recipe.policy.dtype,
        recipe.seed,
    )


def compare(
    targets: Sequence[str],
    *,
    prompts: PromptSource | None = None,
    judge: str | None = None,
    sampling: Sampling | None = None,
    engine: EngineConfig | None = None,
    folder: Path | None = None,
    baseline: str | None = None,
    resamples: int = 2000,
) -> HeadToHead:
    """Compare checkpoints (see `contestants` for what a target may be) and write what was found into `folder`.

    `folder` defaults to `compare` in the first run, else `runs/compare`; it keeps samples too, and a judge cache if
    there is no run whose cache could serve. Raises ConfigError for targets, prompts or judges that cannot be used, and
    for prompts that a run was trained on.
    """
    began = time.time()
    found = contestants(targets)
    trained = recipes(found)
    settings = settings_of(trained, prompts=prompts, judge=judge, sampling=sampling, engine=engine)
    spec = judging(settings)
    asked_of = load_prompts(settings.prompts, settings.seed)
    check_unseen(asked_of, trained)
    home = next((one.run for one in found if one.run is not None), None)
    folder = folder or (home / "compare" if home else Path("runs/compare"))
    folder.mkdir(parents=True, exist_ok=True)
    answers = sample_all(found, asked_of, settings, folder)
    cache = AnswerCache((home or folder) / "judge_cache.sqlite") if spec.needs_model else AnswerCache()
    before = cache.spent()["answers"]
    with ExitStack() as engines:
        ledger = Ledger((home or folder) / "spending.jsonl") if spec.needs_model else Ledger()
        matches = judge_all(found, asked_of, answers, spec, cache, ledger, settings, engines)
    asked = int(cache.spent()["answers"] - before)
    cache.close()
    summary = summarise(vote_table(matches, [one.name for one in found]), baseline=baseline, resamples=resamples)
    result = HeadToHead(
        tuple(one.name for one in found), spec.name, tuple(matches), summary, asked, time.time() - began
    )
    result.write(folder)
    return result


def judging(settings: Settings) -> judges.JudgeSpec:
    """The judge's file, asked in both orders whatever it says; with the recipe's model if it labelled or names none."""
    spec = judges.load_spec(settings.judge)
    if settings.judge_model and spec.needs_model and (settings.labelling or getattr(spec, "model", None) is None):
        spec = spec.model_copy(update={"model": settings.judge_model})
    if getattr(spec, "model", None) == "policy":
        raise ConfigError(
            f"judge {spec.name!r} is the policy itself, and here there are several: name a judge with a model "
            "of its own with --judge"
        )
    return spec.model_copy(update={"order": "both"}) if hasattr(spec, "order") else spec


def sample_all(
    found: Sequence[Contestant], prompts: Sequence[Prompt], settings: Settings, folder: Path
) -> dict[str, list[Completion]]:
    """Name -> one answer per prompt. What was sampled before, from the same weights in the same way, is read again."""
    answers: dict[str, list[Completion]] = {}
    asked = [prompt.model_dump(mode="json") for prompt in prompts]
    with meter("sample", len(found) * len(prompts), "completions") as bar:
        for one in found:
            key = hash_of([one.identity, asked, settings.sampling.model_dump(), settings.engine.kind, settings.dtype])
            file = folder / "samples" / f"{key[:24]}.jsonl"
            before = answered_before(one, prompts, settings)
            if before is None and "answers" not in Journal(file).batches:
                _sample(one, prompts, settings, file)
            answers[one.name] = before or [Completion.model_validate(row) for row in Journal(file).batches["answers"]]
            bar.advance(len(prompts))
    return answers


def _sample(one: Contestant, prompts: Sequence[Prompt], settings: Settings, file: Path) -> None:
    """Sample one answer per prompt into a file, which is there whole or not at all."""
    from selfplay.engines.open import open_engine

    engine = open_engine(settings.engine, one.checkpoint, one.name, dtype=settings.dtype, revision=one.revision)
    try:
        groups = engine.generate(prompts, settings.sampling.model_copy(update={"n": 1}))
    finally:
        engine.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [group[0].model_copy(update={"logprobs": None}).model_dump(mode="json") for group in groups]
    Journal(file).append("answers", rows)


def answered_before(one: Contestant, prompts: Sequence[Prompt], settings: Settings) -> list[Completion] | None:
    """What the run itself sampled to evaluate this iteration, if that was in the very same way."""
    file = Path(one.checkpoint).parent / "evaluate" / "completions.parquet"
    if one.run is None or not file.is_file():
        return None
    recipe = RunDirectory(one.run).recipe()
    if replace(settings_of([recipe]), judge=settings.judge, judge_model=settings.judge_model) != settings:
        return None
    found = {row["prompt_id"]: Completion.model_validate(row) for row in read_rows(file)}
    return [found[prompt.id] for prompt in prompts] if all(prompt.id in found for prompt in prompts) else None


def judge_all(
    found: Sequence[Contestant],
    prompts: Sequence[Prompt],
    answers: dict[str, list[Completion]],
    spec: judges.JudgeSpec,
    cache: AnswerCache,
    ledger: Ledger,
    settings: Settings,
    engines: ExitStack,
) -> list[Match]:
    """One match per prompt and pair of checkpoints, the one named later first. The same two texts are judged once."""
    games = [
        (prompt, later.name, earlier.name, answers[later.name][place], answers[earlier.name][place])
        for earlier, later in combinations(found, 2)
        for place, prompt in enumerate(prompts)
    ]
    pairs = {
        _pair_id(prompt, ours, theirs): Pair(
            id=_pair_id(prompt, ours, theirs), prompt=prompt, first=ours, second=theirs
        )
        for prompt, _, _, ours, theirs in games
        if ours.text != theirs.text
    }

    def engine_for(part: judges.JudgeSpec) -> Engine:
        from selfplay.engines.open import open_judge_engine

        engine = open_judge_engine(part, settings.engine, settings.dtype, ledger)
        engines.callback(engine.close)
        return engine

    with meter("judge", len(pairs), "pairs") as bar:
        judge = judges.build(spec, engine_for if spec.needs_model else None, cache, seed=settings.seed)
        verdicts = judge.judge(list(pairs.values())) if pairs else []
        bar.advance(len(pairs))
    settled = judges.aggregate_verdicts(verdicts, spec)
    said: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.pair_id, {})[verdict.order] = verdict
    return [_match(game, settled, said, spec.name) for game in games]


def _pair_id(prompt: Prompt, ours: Completion, theirs: Completion) -> str:
    return hash_of([prompt.id, ours.text, theirs.text])[:24]


def _match(
    game: tuple[Prompt, str, str, Completion, Completion],
    settled: dict[str, float | None],
    said: dict[str, dict[str, Verdict]],
    judge: str,
) -> Match:
    """A row of matches.parquet; the same text twice is a tie that nobody was asked about."""
    prompt, a, b, ours, theirs = game
    key = _pair_id(prompt, ours, theirs)
    orders = said.get(key, {})
    forward, backward = orders.get("forward"), orders.get("reversed")
    return Match(
        prompt_id=prompt.id,
        prompt=prompt.text,
        a=a,
        b=b,
        a_text=ours.text,
        b_text=theirs.text,
        preference=0.5 if ours.text == theirs.text else settled.get(key),
        a_tokens=len(ours.token_ids),
        b_tokens=len(theirs.token_ids),
        a_truncated=ours.finish_reason == "length",
        b_truncated=theirs.finish_reason == "length",
        forward=forward.preference if forward else None,
        reversed=backward.preference if backward else None,
        judge=judge,
        reason=" / ".join(verdict.reason for verdict in orders.values() if verdict.reason),
        error=" / ".join(verdict.error for verdict in orders.values() if verdict.error),
    )
