"""Sample the answers that are compared, and open who judges them: in this process, or on workers of Ray.

What was sampled before, from the same weights in the same way, is read again. Batches are cut as `evaluate` cuts them, so that
with the transformers engine the answers do not depend on the workers.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import judges
from judges.llm.cache import CACHE, AnswerCache
from selfplay.compare.best_of import choose, chosen_by
from selfplay.compare.settings import Settings, settings_of
from selfplay.compare.targets import Contestant, refuse_pruned
from selfplay.config import Launch
from selfplay.distributed.cluster import connected
from selfplay.engines import Engine, sample_through
from selfplay.engines.ledger import LEDGER, Ledger
from selfplay.errors import ConfigError
from selfplay.progress import Meter, log, meter
from selfplay.records import Completion, Prompt
from selfplay.rundir import RunDirectory
from selfplay.storage import durable
from selfplay.storage.files import derived_seed, hash_of, read_rows
from selfplay.storage.journal import Journal

if TYPE_CHECKING:
    from selfplay.distributed.pool import Pool


class Engines:
    """Opens the engines of a comparison and the judges that ask them; closes them, and ends the workers, behind its block."""

    def __init__(self, settings: Settings, cache: AnswerCache, ledger: Ledger, launch: Launch | None = None) -> None:
        self.settings, self.cache, self.ledger, self.launch = settings, cache, ledger, launch
        self._open = ExitStack()
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        """Connect to Ray, if there are to be workers. Raises ConfigError if that cannot be."""
        self._open.enter_context(connected(self.launch))
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def of(self, one: Contestant) -> Engine:
        """Return an engine over a checkpoint; the caller closes it."""
        settings = self.settings
        if self.launch is not None:
            from selfplay.engines.ray import PooledEngine

            place = (self.pool(), "policy", settings.engine, one.checkpoint, one.name)
            return PooledEngine(*place, dtype=settings.dtype, revision=one.revision)
        from selfplay.engines.open import open_engine

        return open_engine(settings.engine, one.checkpoint, one.name, dtype=settings.dtype, revision=one.revision)

    def judge(self, spec: judges.JudgeSpec) -> judges.Judge:
        """Return a judge from its file."""
        return judges.build(spec, self._answering if spec.needs_model else None, self.cache, seed=self.settings.seed)

    def pool(self) -> "Pool":
        """Return the workers, started if they are not there."""
        from selfplay.distributed.pool import Pool

        assert self.launch is not None
        if self._pool is None:
            self._pool = Pool(self.launch, self.settings.engine.gpus_each)
            self._open.callback(self._pool.close)
        return self._pool

    def _answering(self, part: judges.JudgeSpec) -> Engine:
        from selfplay.engines.ray import open_judge_on

        pool = None if self.launch is None else self.pool
        engine = open_judge_on(pool, part, self.settings.engine, self.settings.dtype, self.ledger)
        self._open.callback(engine.close)
        return engine


def open_folder(
    found: Sequence[Contestant], spec: judges.JudgeSpec, output: Path | None, name: str
) -> tuple[Path, AnswerCache, Ledger]:
    """Return the folder to write into, made, with the judge cache and the ledger.

    The folder is `output`, or `name` in the first run, else in `runs`. What a judge's model says is kept in that run, or in the
    folder where there is none or it may not be written into. Raises ConfigError for a folder that may not be written into.
    """
    run = next((one.run for one in found if one.run is not None), None)
    folder = output or (run or Path("runs")) / name
    if reason := durable.refusal(folder):
        raise ConfigError(f"{str(folder)!r} could not be written: {reason}; name another folder with --output")
    if not spec.needs_model and not any(one.best_of for one in found):
        return folder, AnswerCache(), Ledger()
    home = run or folder
    if reason := durable.refusal(home):
        log(f"  {home} could not be written: {reason}; what the judge says is kept in {folder}")
        home = folder
    return folder, AnswerCache(home / CACHE), Ledger(home / LEDGER)


def sample_all(
    found: Sequence[Contestant], prompts: Sequence[Prompt], folder: Path, engines: Engines
) -> dict[str, list[Completion]]:
    """Name -> one answer per prompt. What was sampled before, from the same weights in the same way, is read again."""
    answers: dict[str, list[Completion]] = {}
    settings = engines.settings
    asked = [prompt.model_dump(mode="json") for prompt in prompts]
    with meter("sample", len(prompts) * sum(one.best_of or 1 for one in found), "completions") as bar:
        for one in found:
            size = settings.engine.prompts_at_once(one.best_of or 1)
            way: list[Any] = [one.identity, asked, settings.sampling.model_dump(), settings.engine.kind, settings.dtype]
            file = folder / "samples" / f"{hash_of([*way, size, *chosen_by(one)])[:24]}.jsonl"
            before = answered_before(one, prompts, settings)
            if before is None:
                answers[one.name] = _sample(one, prompts, file, engines, size, bar)
            else:
                answers[one.name] = before
                bar.advance(len(prompts))
    return answers


def _sample(
    one: Contestant, prompts: Sequence[Prompt], file: Path, engines: Engines, size: int, bar: Meter
) -> list[Completion]:
    """Return one answer per prompt, sampled into a journal; the best of n where that is asked for, chosen into another."""
    settings = engines.settings

    def sampled(journal: Path, **changes: int) -> list[list[Completion]]:
        sampling = settings.sampling.model_copy(update=changes)
        with ExitStack() as stack:

            def open_engine() -> Engine:
                refuse_pruned(one)
                durable.make_folder(journal.parent)
                return stack.enter_context(closing(engines.of(one)))

            return sample_through(Journal(journal), "answers", prompts, sampling, size, open_engine, bar)

    if one.best_of is None:
        return [group[0] for group in sampled(file, n=1)]
    groups = sampled(file.with_suffix(".all"), n=one.best_of, seed=derived_seed(settings.sampling.seed, "best"))
    chosen = Journal(file)
    if "answers" not in chosen.batches:
        answers = choose(one, prompts, groups, file, engines.judge)
        chosen.append("answers", [answer.model_dump(mode="json") for answer in answers])
    return [Completion.model_validate(row) for row in chosen.batches["answers"]]


def answered_before(one: Contestant, prompts: Sequence[Prompt], settings: Settings) -> list[Completion] | None:
    """Return what the run itself sampled to evaluate this iteration, if that was in the very same way."""
    file = Path(one.checkpoint).parent / "evaluate" / "completions.parquet"
    if one.run is None or one.best_of or not file.is_file():
        return None
    own = settings_of([RunDirectory(one.run).recipe()])
    if replace(own, judge=settings.judge, judge_model=settings.judge_model, labelling=settings.labelling) != settings:
        return None
    found = {row["prompt_id"]: Completion.model_validate(row) for row in read_rows(file)}
    return [found[prompt.id] for prompt in prompts] if all(prompt.id in found for prompt in prompts) else None
