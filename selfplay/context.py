"""What every stage and algorithm of a run gets."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompts.files import digest, names_file
from selfplay.config import Recipe, SamplingParams
from selfplay.distributed.cluster import started_by_launcher
from selfplay.engines import sample_through
from selfplay.objects import scores_of
from selfplay.progress import Meter, meter
from selfplay.records import Completion, Prompt
from selfplay.rundir import BEGUN, WORK, RunDirectory, iteration_name
from selfplay.storage.checksums import read_sealed
from selfplay.storage.files import derived_seed, hash_of
from selfplay.storage.journal import Journal
from selfplay.tracking import Tracker

if TYPE_CHECKING:
    from selfplay.distributed.pool import Pool
    from selfplay.engines import Engine
    from selfplay.engines.ledger import Ledger
    from selfplay.rewards.sources import Reward

SCORED_AT_ONCE = 256
"""Completions that a reward is asked about in one call, which a kill repeats at most."""


@dataclass
class RunContext:
    """What every stage gets: the recipe, the directory, the prompts, the trackers, and one engine kept open between stages."""

    recipe: Recipe
    files: RunDirectory
    train: list[Prompt]
    heldout: list[Prompt]
    tracker: Tracker = field(default_factory=Tracker, repr=False)
    _engine: "Engine | None" = field(default=None, repr=False)
    _loaded: Path | None = field(default=None, repr=False)
    _pool: "Pool | None" = field(default=None, repr=False)

    def seed(self, *purpose: Any) -> int:
        """Return a seed for one purpose of this run."""
        return derived_seed(self.recipe.seed, *purpose)

    @cached_property
    def prompts_asked(self) -> dict[str, str]:
        """Hashes of the training and of the held-out prompts themselves: a file may change while its name stays."""
        return {
            name: hash_of([prompt.model_dump(mode="json") for prompt in prompts])
            for name, prompts in (("train", self.train), ("heldout", self.heldout))
        }

    @cached_property
    def ledger(self) -> "Ledger":
        """What this run has spent on endpoints, all its judges together. Raises ConfigError if the file is damaged."""
        from selfplay.engines.ledger import LEDGER, Ledger

        return Ledger(self.files.path / LEDGER)

    def sampling(self, **changes: Any) -> SamplingParams:
        """Return the recipe's sampling as an engine takes it, with what a stage sets."""
        return SamplingParams.of(self.recipe.sampling, **changes)

    def fingerprint(self, settings: Any, *inputs: tuple[int, str]) -> str:
        """Hash of the settings that a stage reads and of the (iteration, stage) folders that it reads."""
        return hash_of([self.recipe.seed, settings, [self.files.manifest_hash(*stage) for stage in inputs]])

    def fingerprint_with(
        self, stage: tuple[int, str], sources: list[str], settings: Any, *inputs: tuple[int, str]
    ) -> str:
        """Return the fingerprint of a stage that also reads files or datasets, by their content where they are files.

        A stage that was begun before the content was held goes by their names; so does a finished one whose files are gone.
        """
        named, content = self.fingerprint(settings, *inputs), [digest(one) for one in sources]
        known = self.made_from(*stage)
        if content == sources or known == named:
            return named
        gone = any(names_file(one) and one == told for one, told in zip(sources, content, strict=True))
        if known is not None and gone and self.files.finished(*stage):
            return known
        return self.fingerprint([settings, content], *inputs)

    def made_from(self, number: int, name: str) -> str | None:
        """Return the fingerprint that a stage was finished or begun with, None if there is nothing of it. Raises Damaged."""
        begun = self.files.stage(number, f"{name}.partial") / WORK / BEGUN
        found = self.files.manifest(number, name) or (read_sealed(begun) if begun.is_file() else {})
        return found.get("fingerprint")

    @contextmanager
    def writing(self, iteration: int, name: str, fingerprint: str) -> Iterator[Path]:
        """Open a stage's folder as `RunDirectory.writing` does, for all processes that work on the stage.

        The first one alone makes it ready and gives it its name, once all have left the block.
        """
        if not started_by_launcher():
            with self.files.writing(iteration, name, fingerprint) as folder:
                yield folder
            return
        from selfplay.distributed.collectives import barrier, init_process_group, rank

        init_process_group()
        if rank() > 0:
            barrier()
            yield self.files.stage(iteration, name).with_name(f"{name}.partial")
            barrier()
            return
        with self.files.writing(iteration, name, fingerprint) as folder:
            barrier()
            yield folder
            barrier()

    def engine(self, checkpoint: Path, name: str, to_train: bool = False) -> "Engine":
        """Return the recipe's engine with a checkpoint's weights; valid until the next call for another checkpoint.

        With `launch` it is one engine on each of the workers. `to_train` says that the caller will move other weights into
        it: then it is in this process, or in that of the first of the workers that share it (`engine.tensor_parallel`).
        """
        from selfplay.engines.open import follower, open_engine, reload_engine

        if self.on_workers and not to_train:
            from selfplay.engines.ray import PooledEngine

            engine, dtype = self.recipe.engine, self.recipe.policy.dtype
            return PooledEngine(self.pool(), "policy", engine, checkpoint, name, dtype=dtype)
        self.close_pool()
        if to_train and (shared := follower(self.recipe.engine, self.recipe.policy.dtype)) is not None:
            if self._engine is not None:
                self._engine.close()
            self._engine = shared
        elif self._engine is None:
            self._engine = open_engine(self.recipe.engine, checkpoint, name, dtype=self.recipe.policy.dtype)
        elif self._loaded != checkpoint:
            reload_engine(self._engine, checkpoint, name, self.recipe.policy.dtype)
        self._loaded = None if to_train else checkpoint
        return self._engine

    def judge_engine(self, part: Any) -> "Engine":
        """Return the engine that answers for a judge's file: on the workers, or here; an endpoint's calls are made here.

        So all calls of a run's endpoints share one limit of rate and one ledger. Raises ConfigError if the file names no model.
        """
        from selfplay.engines.ray import open_judge_on

        engine, dtype = self.recipe.engine, self.recipe.policy.dtype
        return open_judge_on(self.pool if self.on_workers else None, part, engine, dtype, self.ledger)

    @property
    def on_workers(self) -> bool:
        """Return whether text is made on the workers of Ray: there is a `launch`, and this process is none of them."""
        return self.recipe.launch is not None and not started_by_launcher()

    def pool(self) -> "Pool":
        """Return the workers that make text: one pool for the whole run, whose engines all take turns on its workers."""
        from selfplay.distributed.pool import Pool

        assert self.recipe.launch is not None
        if self._pool is None:
            self._pool = Pool(self.recipe.launch, self.recipe.engine.gpus_each)
        return self._pool

    def make_room(self) -> None:
        """End what makes text, until the next call for it, before a stage that trains; a vLLM, which starts slowly, stays.

        What stages before left behind goes too.
        """
        from selfplay.weights.release import release_memory

        self.close_pool()
        if self.recipe.engine.kind == "transformers" and self._engine is not None:
            self._engine.close()
            self._engine = None
        release_memory()

    def close_pool(self) -> None:
        """End the workers that make text, until the next call for them: whatever trains needs their place."""
        if self._pool is not None:
            self._pool.close()

    def close(self) -> None:
        """Close the engine and the workers."""
        self.close_pool()
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def sample(
    run: RunContext,
    policy: int | Path,
    prompts: Sequence[Prompt],
    count: int,
    label: str,
    journal: Journal,
    bar: Meter,
    temperature: float | None = None,
) -> list[list[Completion]]:
    """Return `count` completions per prompt by the policy of an iteration, or by a checkpoint made on the way to one.

    They go batch by batch through the journal (see `sample_through`), from the workers of `launch` if there are any.

    `label` says what for: it names the seed and ends the completions' ids. `temperature` is the recipe's unless given.
    """
    checkpoint, name = (
        (run.files.policy(policy), iteration_name(policy)) if isinstance(policy, int) else (policy, policy.name)
    )
    changes = {"n": count, "seed": run.seed("generate", label)} | (
        {} if temperature is None else {"temperature": temperature}
    )
    size, open_engine = run.recipe.engine.prompts_at_once(count), partial(run.engine, checkpoint, name)
    return sample_through(journal, label, prompts, run.sampling(**changes), size, open_engine, bar, f"/{label}")


def draw_prompts(prompts: Sequence[Prompt], count: int, start: int, seed: int) -> list[Prompt]:
    """`count` prompts from place `start` of an endless stream: all prompts in a random order, then in another, ..."""
    drawn: list[Prompt] = []
    lap, place = divmod(start, len(prompts))
    while len(drawn) < count:
        order = random.Random(f"{seed}/{lap}").sample(range(len(prompts)), len(prompts))
        drawn += [prompts[index] for index in order[place : place + count - len(drawn)]]
        lap, place = lap + 1, 0
    unique = {prompt.id: prompt for prompt in drawn}
    return list(unique.values())


def score_in_batches(
    reward: "Reward", prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], journal: Journal, label: str
) -> list[list[float]]:
    """Return a reward's scores of some completions per prompt, batch by batch through a journal; NaN where there is none.

    No score is asked for twice, whatever kills the caller. Raises ConfigError for what is not a number per response.
    """
    rows = [(prompt, one) for prompt, group in zip(prompts, groups, strict=True) for one in group]
    name = f"the reward {type(reward).__qualname__}"
    scores: list[float] = []
    with meter(label, len(rows), "completions") as bar:
        for start in range(0, len(rows), SCORED_AT_ONCE):
            asked, answers = zip(*rows[start : start + SCORED_AT_ONCE], strict=True)
            if str(start) not in journal.batches:
                found = scores_of(name, reward.score(asked, answers), asked, answers)
                journal.append(str(start), [None if math.isnan(score) else score for score in found])
            scores += [math.nan if score is None else score for score in journal.batches[str(start)]]
            bar.advance(len(asked))
    left = iter(scores)
    return [[next(left) for _ in group] for group in groups]
