"""What is known of a run, as the report, the guard and the model card see it: matches, iterations, ways of writing.

Plain data with what follows from it; `gather` fills it from disk.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import correlation
from typing import Any

from selfplay.records import Comparison
from selfplay.results.seeds import BetweenSeeds
from selfplay.rundir import iteration_name
from selfplay.stats.diversity import cut_alike, distinct_n, unique_share
from selfplay.stats.summary import LEVEL, Category, PairSummary, Summary, summarise
from selfplay.stats.votes import Vote, VoteTable, tabulate

START = "iteration-000"
RATES = ("win_rate_vs_start", "win_rate_vs_previous")
"""The comparisons of evaluation.json."""


@dataclass(frozen=True)
class Match:
    """One row of matches.parquet: two texts on one held-out prompt, and what the judge said of them.

    `preference` is P(a better) and `None` if unscored; `forward` and `reversed` are the two orders' preferences for a.
    Tokens and rewards are `None` where the stage did not record them.
    """

    prompt_id: str
    prompt: str
    a: str
    b: str
    a_text: str
    b_text: str
    preference: float | None
    a_tokens: int | None = None
    b_tokens: int | None = None
    a_truncated: bool = False
    b_truncated: bool = False
    forward: float | None = None
    reversed: float | None = None
    reason: str = ""
    judge: str = ""
    error: str = ""
    a_reward: float | None = None
    b_reward: float | None = None

    def sides(self) -> "tuple[tuple[str, Answer], tuple[str, Answer]]":
        """Return the two checkpoints with what each answered."""
        return (
            (self.a, Answer(self.a_text, self.a_tokens, self.a_truncated, self.a_reward)),
            (self.b, Answer(self.b_text, self.b_tokens, self.b_truncated, self.b_reward)),
        )


@dataclass(frozen=True)
class Answer:
    """One checkpoint's text on one prompt."""

    text: str
    tokens: int | None
    truncated: bool
    reward: float | None = None

    @property
    def length(self) -> int:
        """Tokens, or characters where tokens were not counted."""
        return len(self.text) if self.tokens is None else self.tokens


@dataclass(frozen=True)
class TrainingPair:
    """A pair that a reward model learned from; `margin` as in preferences.parquet."""

    iteration: int
    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float
    reason: str = ""


@dataclass(frozen=True)
class Iteration:
    """One iteration's numbers; a stage that has not finished leaves `None`."""

    number: int
    evaluation: dict[str, Any] | None = None
    health: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None
    self_similarity: float | None = None
    """Likeness of the answers to one training prompt, of the policy that this iteration began with."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in matches.parquet."""
        return iteration_name(self.number)

    def comparison(self, key: str) -> Comparison | None:
        """Return a `Comparison` of evaluation.json."""
        value = (self.evaluation or {}).get(key)
        return None if value is None else Comparison.model_validate(value)

    def number_of(self, key: str) -> float | None:
        """Return a number of evaluation.json."""
        return number((self.evaluation or {}).get(key))


@dataclass(frozen=True)
class Spent:
    """What one judge's model was asked over the whole run, by judge_cache.sqlite; `cost` in dollars."""

    model: str
    answers: int
    input_tokens: int
    output_tokens: int
    cost: float


@dataclass(frozen=True)
class Profile:
    """How one checkpoint writes, on the held-out prompts: lengths in tokens, shares in [0, 1].

    Distinct n-grams are those of the first words only, as many as the shortest answer to the same prompt has: longer
    texts would else look less diverse. `reward_length` is the correlation of reward and length.
    """

    name: str
    texts: int
    mean_length: float
    p95_length: float
    truncated: float
    distinct_1: float | None
    distinct_2: float | None
    unique: float | None
    reward_length: float | None


@dataclass(frozen=True, eq=False)
class RunData:
    """All that is on disk of a run, but for the weights."""

    path: Path
    config_text: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    iterations: tuple[Iteration, ...]
    metrics: tuple[dict[str, Any], ...]
    matches: tuple[Match, ...]
    outcome: dict[str, Any] = field(default_factory=dict)
    votes: VoteTable | None = None
    """Votes from elsewhere, in place of matches."""
    models: tuple[str, ...] = ()
    """The order of the checkpoints, oldest first; by default that of their names, which is that of iterations."""
    found: Summary | None = None
    """The statistics of all matches, where they are known already."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What stands above every table of a comparison: judge, prompts, n, temperature."""
    categories: tuple[Category, ...] = ()
    """Win rates by a column of the prompts."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Tags and notes that people put on the run (`results.notes`)."""
    training: tuple[TrainingPair, ...] = ()
    """Pairs that reward models learned from, some of each iteration."""
    spent: tuple[Spent, ...] = ()
    seeds: tuple[BetweenSeeds, ...] = ()
    """Win rates between the seeds of one recipe."""

    @property
    def evaluated(self) -> list[Iteration]:
        """Iterations after the start that have been evaluated."""
        return [one for one in self.iterations if one.number and one.evaluation is not None]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.config.get("name") or self.path.name)

    @property
    def labelling_judge(self) -> str:
        """File of the judge whose verdicts are learned from."""
        return str((self.config.get("judge") or {}).get("file") or "the judge")

    @property
    def audited(self) -> bool:
        """Whether the judge that measures is another than the one that labels."""
        return (self.config.get("evaluate") or {}).get("judge") not in (None, self.labelling_judge)

    @cached_property
    def table(self) -> VoteTable:
        """All matches as votes, checkpoints in the order of their iterations."""
        return self.votes or vote_table(self.matches, self.models)

    @cached_property
    def summary(self) -> Summary | None:
        """Statistics of all matches; `None` before the first evaluation."""
        if not self.table.prompts:
            return None
        resamples = int((self.config.get("evaluate") or {}).get("resamples") or 2000)
        found = self.found or summarise(self.table, resamples=resamples)
        known = [one.comparison(key) for one in self.evaluated for key in RATES]
        measured = {(one.a, one.b): one for one in known if one is not None}
        return found.model_copy(update={"pairs": [_as_measured(pair, measured) for pair in found.pairs]})

    def pair(self, a: str, b: str) -> PairSummary | None:
        """Return the statistics of checkpoint a over b."""
        pairs = self.summary.pairs if self.summary else []
        return next((pair for pair in pairs if (pair.comparison.a, pair.comparison.b) == (a, b)), None)

    def win_rate(self, one: Iteration, key: str) -> Comparison | None:
        """Return a win rate of `RATES`, as the page shows it everywhere."""
        known = one.comparison(key)
        pair = self.pair(known.a, known.b) if known else None
        return pair.comparison if pair else known

    @cached_property
    def answers(self) -> dict[str, dict[str, Answer]]:
        """Checkpoint -> prompt id -> what it answered."""
        found: dict[str, dict[str, Answer]] = defaultdict(dict)
        for match in self.matches:
            for name, answer in match.sides():
                found[name].setdefault(match.prompt_id, answer)
        return {name: found[name] for name in self.table.models if name in found}

    @cached_property
    def profiles(self) -> dict[str, Profile]:
        """How each checkpoint writes, on the prompts that all of them answered."""
        shared = sorted(set.intersection(*map(set, self.answers.values()))) if self.answers else []
        even: dict[str, list[str]] = {name: [] for name in self.answers}
        for prompt in shared:
            for name, text in zip(even, cut_alike([self.answers[name][prompt].text for name in even]), strict=True):
                even[name].append(text)
        return {
            name: profile(name, [self.answers[name][prompt] for prompt in shared], texts)
            for name, texts in even.items()
            if shared
        }

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all finished stages."""
        return sum(value for iteration in self.iterations for value in iteration.seconds.values())


def _as_measured(pair: PairSummary, measured: Mapping[tuple[str, str], Comparison]) -> PairSummary:
    """Return a pair with the interval that evaluation.json states, for one comparison has one interval wherever it is shown."""
    known, one = measured.get((pair.comparison.a, pair.comparison.b)), pair.comparison
    if known is None or (known.n, known.ties, known.unscored) != (one.n, one.ties, one.unscored):
        return pair
    clear = known.low is not None and known.high is not None and not known.low <= 0.5 <= known.high
    return pair.model_copy(update={"comparison": known, "significant": clear and pair.p_adjusted < LEVEL})


def agrees(match: Match) -> float | None:
    """1 if the reward prefers what the judge prefers, 0 if not; `None` where one of them does not decide."""
    if match.preference in (None, 0.5) or match.a_reward is None or match.b_reward is None:
        return None
    return float((match.a_reward > match.b_reward) == (match.preference > 0.5))


def number(value: Any) -> float | None:
    """Return a number, or `None` for anything else (NaN and infinity too)."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def vote_table(matches: Sequence[Match], models: Sequence[str] = ()) -> VoteTable:
    """Return matches as votes; lengths in tokens, or in characters where tokens were not counted.

    `models` gives the order, by default that of their names, which is that of iterations.
    """
    names = models or sorted({name for match in matches for name in (match.a, match.b)})
    votes = [
        Vote(
            match.prompt_id,
            match.a,
            match.b,
            float("nan") if match.preference is None else match.preference,
            *(answer.length for _, answer in match.sides()),
        )
        for match in matches
    ]
    return tabulate(votes, models=names)


def profile(name: str, answers: Sequence[Answer], even: Sequence[str]) -> Profile:
    """Lengths and diversity of at least one answer; `even` holds the same texts cut to comparable lengths."""
    lengths = [answer.length for answer in answers]
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    related = None
    if len(rewards) == len(answers) and min(rewards) < max(rewards) and min(lengths) < max(lengths):
        related = correlation(rewards, lengths)
    return Profile(
        name=name,
        texts=len(answers),
        mean_length=sum(lengths) / len(lengths),
        p95_length=sorted(lengths)[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        truncated=sum(answer.truncated for answer in answers) / len(answers),
        distinct_1=distinct_n(even, 1),
        distinct_2=distinct_n(even, 2),
        unique=unique_share([answer.text for answer in answers]),
        reward_length=related,
    )
