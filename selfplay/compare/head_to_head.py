"""`selfplay compare`: the same held-out prompts to every checkpoint, every pair judged in both orders, all statistics.

What was sampled and what the judge said is kept, so asking again is free. How the checkpoints are compared is said by
the recipes of the runs among them (`settings`); anything may be given instead. Left out on purpose: training and labels;
nothing here changes a run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import judges
from judges.audit.cautions import cautions
from judges.spec.base import JudgeSpec
from prompts.sources import load_prompts
from selfplay.compare.best_of import bounds_of_best
from selfplay.compare.difficulty import known_difficulty
from selfplay.compare.sampling import Engines, open_folder, sample_all
from selfplay.compare.settings import Given, judging, settings_of
from selfplay.compare.targets import Contestant, check_unseen, contestants, recipes, with_baseline_first
from selfplay.config import Launch
from selfplay.errors import ConfigError
from selfplay.progress import log, meter
from selfplay.records import Completion, Pair, Prompt, Verdict
from selfplay.report.html import as_run
from selfplay.results.load import read_run
from selfplay.results.run import Match, RunData, vote_table
from selfplay.results.seeds import BetweenSeeds
from selfplay.rundir import RunDirectory
from selfplay.stats.summary import Category, Summary, breakdown, summarise
from selfplay.storage import durable
from selfplay.storage.files import hash_of, write_json, write_rows


@dataclass(frozen=True)
class HeadToHead:
    """The outcome of a comparison: `matches` as in matches.parquet, and what follows from them.

    `facts` is what stands above every table: judge, prompts, n, temperature. `categories` is empty unless a column was
    named. `asked` counts the answers that the judge's model had to give now, for they were not in the cache.
    """

    names: tuple[str, ...]
    judge: str
    facts: dict[str, Any]
    matches: tuple[Match, ...]
    summary: Summary
    categories: tuple[Category, ...]
    seeds: tuple[BetweenSeeds, ...]
    asked: int
    seconds: float
    folder: Path

    def json(self) -> dict[str, Any]:
        """Everything but the texts, ready for JSON."""
        return {
            "judge": self.judge,
            "settings": self.facts,
            "asked": self.asked,
            "seconds": round(self.seconds, 3),
            **self.summary.model_dump(mode="json"),
            "matrix": self.summary.matrix(),
            "categories": [one.model_dump(mode="json") for one in self.categories],
            "seeds": [one.json() for one in self.seeds],
        }

    def page(self, source: Path) -> RunData:
        """Return what the report shows of it; `source` is the folder that holds it."""
        return as_run(
            " and ".join(self.names) if len(self.names) < 3 else f"{len(self.names)} checkpoints",
            source,
            matches=self.matches,
            found=self.summary,
            facts=self.facts,
            categories=self.categories,
            seeds=self.seeds,
        )

    def write(self, folder: Path) -> None:
        """Write `matches.parquet` and `comparison.json`."""
        durable.make_folder(folder)
        write_rows(folder / "matches.parquet", [vars(match) for match in self.matches])
        write_json(folder / "comparison.json", self.json())


def compare(
    targets: Sequence[str],
    given: Given | None = None,
    *,
    like: str | Path | None = None,
    folder: Path | None = None,
    baseline: str | None = None,
    difficulty: Path | None = None,
    by: str | None = None,
    launch: Launch | None = None,
    resamples: int = 2000,
) -> HeadToHead:
    """Compare checkpoints (see `targets.contestants` for what a target may be) and write what was found into `folder`.

    `given` says how, where the runs' recipes do not agree or shall not decide; `like` names a run whose recipe does. All
    are held against `baseline` (a target or its name; default the first). `difficulty` is a file of prompt difficulties,
    which is fitted if it is not there; `by` is a column of the prompts to break win rates down by. `launch` says on which
    workers of Ray to sample and judge. `folder` defaults to `compare` in the first run, else `runs/compare`; it keeps samples
    too, and a judge cache if there is no run whose cache could serve. Raises ConfigError for targets, prompts or judges that
    cannot be used, for runs whose recipes differ, and for prompts that a run was trained on.
    """
    began = time.time()
    found = with_baseline_first(contestants(targets), baseline)
    trained = recipes(found)
    settings = settings_of(trained, given, None if like is None else RunDirectory(like).recipe())
    spec = judging(settings)
    asked_of = load_prompts(settings.prompts, settings.seed)
    check_unseen(asked_of, trained)
    warn(spec, asked_of)
    values = {} if by is None else categories_of(asked_of, by)
    bounds = bounds_of_best(found, spec)
    folder, cache, ledger = open_folder(found, spec, folder, "compare")
    before = cache.spent()["answers"]
    with Engines(settings, cache, ledger, launch) as engines:
        answers = sample_all(found, asked_of, folder, engines)
        judged = judge_all(found, asked_of, answers, engines.judge(spec))
    matches = with_known_rewards(found, judged)
    asked = int(cache.spent()["answers"] - before)
    cache.close()
    table = vote_table(matches, [one.name for one in found])
    known = known_difficulty(difficulty, table) if difficulty else None
    result = HeadToHead(
        names=table.models,
        judge=spec.name,
        facts=settings.facts(spec, len(asked_of)) | bounds,
        matches=tuple(matches),
        summary=summarise(table, difficulty=known, resamples=resamples),
        categories=tuple(breakdown(table, values, resamples=resamples)) if values else (),
        seeds=tuple(between_seeds(found, matches)),
        asked=asked,
        seconds=time.time() - began,
        folder=folder,
    )
    result.write(folder)
    return result


def warn(spec: JudgeSpec, prompts: Sequence[Prompt]) -> None:
    """Say what in a judge's file will mislead on these prompts."""
    for caution in cautions(spec, prompts):
        log(f"caution: {caution}")


def between_seeds(found: Sequence[Contestant], matches: Sequence[Match]) -> list[BetweenSeeds]:
    """Return the win rates between recipes that were run with several seeds, and against other checkpoints.

    Seeds of two recipes meet in their order, the first against the first: each pair is one value.
    """
    met: dict[tuple[str, str], list[float]] = {}
    for match in matches:
        if match.preference is not None:
            met.setdefault((match.a, match.b), []).append(match.preference)
    rates = {pair: sum(values) / len(values) for pair, values in met.items()}
    groups: dict[str, list[str]] = {}
    for one in found:
        groups.setdefault(one.recipe or one.name, []).append(one.name)
    several = {one.recipe for one in found if one.recipe}
    rows = []
    for (earlier, before), (later, after) in combinations(groups.items(), 2):
        if several & {earlier, later}:
            most = max(len(before), len(after))
            pairs = zip(_stretched(after, most), _stretched(before, most), strict=False)
            values = tuple(rates[pair] for pair in pairs if pair in rates)
            rows += [BetweenSeeds(later, earlier, values)] if len(values) > 1 else []
    return rows


def _stretched(names: Sequence[str], most: int) -> Sequence[str]:
    """Return one checkpoint as often as the seeds that it meets; seeds as they are."""
    return [*names] * most if len(names) == 1 else names


def categories_of(prompts: Sequence[Prompt], column: str) -> dict[str, str]:
    """Prompt id -> its value in a column. Raises ConfigError, naming the columns there are, for one that is not there."""
    found = {prompt.id: str(prompt.meta[column]) for prompt in prompts if prompt.meta.get(column) is not None}
    if not found:
        there = sorted({key for prompt in prompts for key in prompt.meta})
        raise ConfigError(f"the prompts have no column {column!r}; there are: {', '.join(there) or 'none'}")
    return found


def judge_all(
    found: Sequence[Contestant],
    prompts: Sequence[Prompt],
    answers: dict[str, list[Completion]],
    judge: judges.Judge,
) -> list[Match]:
    """Return one match per prompt and pair of checkpoints, the one named later first. The same two texts are judged once."""
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

    with meter("judge", len(pairs), "pairs") as bar:
        verdicts = judge.judge(list(pairs.values())) if pairs else []
        bar.advance(len(pairs))
    settled = judges.aggregate_verdicts(verdicts, judge.spec)
    said: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.pair_id, {})[verdict.order] = verdict
    return [_match(game, settled, said, judge.spec.name) for game in games]


def with_known_rewards(found: Sequence[Contestant], matches: Sequence[Match]) -> list[Match]:
    """Return the same matches with the rewards that the runs' own evaluations gave to the very same two texts, where they did."""
    known: dict[tuple[str, str], tuple[float, float]] = {}
    for run in dict.fromkeys(one.run for one in found if one.run is not None):
        for match in read_run(run).matches:
            if match.a_reward is not None and match.b_reward is not None:
                known[match.a_text, match.b_text] = (match.a_reward, match.b_reward)
                known.setdefault((match.b_text, match.a_text), (match.b_reward, match.a_reward))
    nothing = (None, None)
    rewards = [known.get((match.a_text, match.b_text), nothing) for match in matches]
    return [replace(match, a_reward=a, b_reward=b) for match, (a, b) in zip(matches, rewards, strict=True)]


def _pair_id(prompt: Prompt, ours: Completion, theirs: Completion) -> str:
    return hash_of([prompt.id, ours.text, theirs.text])[:24]


def _match(
    game: tuple[Prompt, str, str, Completion, Completion],
    settled: dict[str, float | None],
    said: dict[str, dict[str, Verdict]],
    judge: str,
) -> Match:
    """Return a row of matches.parquet; the same text twice is a tie that nobody was asked about."""
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
