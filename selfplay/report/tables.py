"""The tables of a run's report, every cell as text."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from selfplay.formatting import (
    DASH,
    chance_text,
    display_name,
    duration,
    hundredths,
    interval_text,
    level_text,
    rate_text,
)
from selfplay.guard.alarms import reward_accuracy
from selfplay.report.svg import plain
from selfplay.results.run import START, Iteration, Profile, RunData, number
from selfplay.results.seeds import BetweenSeeds
from selfplay.stats.summary import Summary

Row = tuple[str, Sequence[str]]
"""What a row is about, and its cells."""
HEALTH = {
    "pairs": "pairs",
    "decided": "decided",
    "ties": "ties",
    "unscored": "unscored",
    "identical": "identical texts",
    "swap_consistency": "same verdict in both orders",
    "first_share": "choice of the first place",
    "longer_share": "choice of the longer",
    "unscored_answers": "answers without a verdict",
}
"""Numbers of judge_health.json in words; others stand under their own names."""


SHARES = ("swap_consistency", "first_share", "longer_share", "unscored_answers")
"""Those of them that are shares; all others are amounts."""


WRITING: tuple[tuple[str, Callable[[Profile], float | None], Callable[[float], str]], ...] = (
    ("mean length, tokens", lambda one: one.mean_length, plain),
    ("95th percentile of length", lambda one: one.p95_length, plain),
    ("cut off at the limit", lambda one: one.truncated, lambda share: tenths(share)),
    ("distinct-1", lambda one: one.distinct_1, lambda share: tenths(share)),
    ("distinct-2", lambda one: one.distinct_2, lambda share: tenths(share)),
    ("different responses", lambda one: one.unique, lambda share: f"{hundredths(share)}%"),
)
"""How a checkpoint writes: label, value of its profile, and how that is said."""


def iteration_table(run: RunData) -> list[Row]:
    """Return one cell per iteration: everything known about its policy on held-out prompts. Empty rows are left out."""

    def of(label: str, value: Callable[[Iteration], Any], form: Callable[[float], str] = plain) -> Row:
        found = [value(one) for one in run.iterations]
        return label, [DASH if one is None else one if isinstance(one, str) else form(one) for one in found]

    def written(label: str, value: Callable[[Profile], float | None], form: Callable[[float], str] = plain) -> Row:
        return of(label, lambda one: value(run.profiles[one.name]) if one.name in run.profiles else None, form)

    def measured(label: str, key: str, form: Callable[[float], str], start: float | None = None) -> Row:
        return of(label, lambda one: one.number_of(key) if one.number or start is None else start, form)

    similar = {one.number - 1: one.self_similarity for one in run.iterations}  # iteration t + 1 generates with policy t
    rows = [
        of("win rate against the start", lambda one: rate_text(run.win_rate(one, "win_rate_vs_start"))),
        of("\N{EM SPACE}at equal length", lambda one: _equal_length(run, one)),
        of("win rate against the one before", lambda one: rate_text(run.win_rate(one, "win_rate_vs_previous"))),
        measured("mean reward (sd of the start)", "mean_reward", "{:.2f}".format, start=0.0),
        measured("mean score of the judge", "mean_score", "{:.2f}".format),
        *(of(f"score on {name}", partial(_score_on, name)) for name in further_sets(run)),
        measured("KL to the start, nats", "kl_to_start", "{:.1f}".format, start=0.0),
        *(written(*row) for row in WRITING),
        of("likeness of responses to one prompt", lambda one: similar.get(one.number), "{:.2f}".format),
        written("correlation of reward and length", lambda one: one.reward_length, signed),
        of("reward agrees with the judge", lambda one: rate_text(reward_accuracy(run, one))),
        of("reward model's accuracy", _accuracy),
    ]
    return [(label, texts) for label, texts in rows if any(text != DASH for text in texts[1:])]


def further_sets(run: RunData) -> list[str]:
    """Return the names of the further held-out sets that a run measures."""
    return list(dict.fromkeys(name for one in run.iterations for name in (one.evaluation or {}).get("also", {})))


def _score_on(name: str, one: Iteration) -> str | None:
    """Return the mean score on a further held-out set, with its interval."""
    found = (one.evaluation or {}).get("also", {}).get(name)
    if found is None or found["mean"] is None:
        return None
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def tenths(share: float) -> str:
    """Return a share in percent with one decimal, or more (`hundredths`)."""
    return f"{hundredths(share, 1)}%"


def signed(value: float) -> str:
    """Return two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _equal_length(run: RunData, one: Iteration) -> str:
    pair = run.pair(one.name, START)
    return level_text(pair.length_controlled if pair else None)


def _accuracy(one: Iteration) -> str | None:
    """Return the reward model's accuracy on pairs held back from its training: a number, or a mapping with an interval."""
    found = (one.reward or {}).get("accuracy")
    inner = found if isinstance(found, dict) else {"value": found}
    value = number(inner.get("value", inner.get("win_rate")))
    low, high = number(inner.get("low")), number(inner.get("high"))
    if value is None:
        return None
    return f"{hundredths(value)}%" if low is None or high is None else interval_text(value, low, high)


def health_table(run: RunData) -> list[Row]:
    """Return one cell per iteration that was labelled: how the judge behaved."""
    health = [one.health for one in run.iterations if one.health]
    others = {key for one in health for key, value in one.items() if number(value) is not None} - HEALTH.keys()
    table = [
        (HEALTH.get(key, key.replace("_", " ")), [_amount(key, one.get(key)) for one in health])
        for key in (*HEALTH, *sorted(others))
    ]
    return [(label, texts) for label, texts in table if any(text != DASH for text in texts)]


def _amount(key: str, value: Any) -> str:
    """Return a share as a percentage, seconds as a duration, anything else as a number."""
    amount = number(value)
    if amount is None:
        return DASH
    if key in SHARES:
        return tenths(amount)
    if key == "seconds":
        return duration(amount)
    return plain(amount) if isinstance(value, float) else f"{value:,}"


def comparison_table(run: RunData) -> list[Row]:
    """Return one row per pair of checkpoints: win rate, at equal length, prompts, ties, unscored, p, significant, needed."""
    rows: list[Row] = []
    for pair in run.summary.pairs if run.summary else []:
        one = pair.comparison
        counts = [str(one.n), str(one.ties), str(one.unscored)]
        told = [chance_text(pair.p_adjusted), "yes" if pair.significant else "no"]
        needed = f"{pair.prompts_needed:,}" if pair.prompts_needed else DASH
        rows.append(
            (
                f"{display_name(one.a)} against {display_name(one.b)}",
                [rate_text(one), level_text(pair.length_controlled), *counts, *told, needed],
            )
        )
    return rows


SEEDS_TITLES = ("between seeds: row against column", "wins, mean of seeds", "each seed", "seeds")
"""Titles of `seeds_table`, the first for what a row is about."""


def seeds_table(found: Iterable[BetweenSeeds]) -> list[Row]:
    """Return one row per pair that was measured with several seeds: the mean with its interval, each seed's, how many."""
    return [
        (
            f"{one.a} against {one.b}",
            (
                rate_text(one.comparison()),
                " ".join(f"{hundredths(rate)}%" for rate in one.rates),
                str(len(one.rates)),
            ),
        )
        for one in found
    ]


def category_table(run: RunData) -> list[Row]:
    """Return one row per pair of checkpoints, one cell per category: the win rate on its prompts."""
    if not run.categories:
        return []
    return [
        (
            f"{display_name(pair.a)} against {display_name(pair.b)}",
            [rate_text(category.pairs[place]) for category in run.categories],
        )
        for place, pair in enumerate(run.categories[0].pairs)
    ]


def writing_table(run: RunData) -> list[Row]:
    """Return how each checkpoint of a comparison writes, one cell for each; of a run the iterations' table says so."""
    if run.iterations or not run.profiles:
        return []
    return [
        (label, [DASH if (value := of(one)) is None else form(value) for one in run.profiles.values()])
        for label, of, form in WRITING
    ]


def time_table(run: RunData, stages: Sequence[str]) -> list[Row]:
    """Seconds per stage, one cell per iteration that took any."""
    timed = [one.seconds for one in run.iterations if one.seconds]
    rows = [(stage, [f"{one[stage]:,.1f}" if stage in one else DASH for one in timed]) for stage in stages]
    return [*rows, ("all", [f"{sum(one.values()):,.1f}" for one in timed])]


def spent_table(run: RunData) -> list[Row]:
    """Return one row per model that judged: answers, tokens read, tokens written, dollars."""
    return [
        (
            one.model or "the judge's model",
            [
                f"{one.answers:,}",
                f"{one.input_tokens:,}",
                f"{one.output_tokens:,}",
                f"{one.cost:,.2f}" if one.cost else DASH,
            ],
        )
        for one in run.spent
    ]


def group_sentences(summary: Summary) -> list[str]:
    """Return each group of checkpoints of which no two differ significantly, in words."""
    return [", ".join(map(display_name, group)) for group in summary.groups]


def cycle_sentences(summary: Summary) -> list[str]:
    """Return each non-transitive triple in words."""
    found = []
    for cycle in summary.cycles:
        a, b, c = map(display_name, cycle.models)
        x, y, z = (f"{hundredths(rate)}%" for rate in cycle.win_rates)
        found.append(f"{a} beats {b} ({x}), {b} beats {c} ({y}), and {c} beats {a} ({z})")
    return found


def flat_facts(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Return every scalar of nested mappings with its dotted name, as text; lists in one line, what is empty left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat_facts(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, " ".join(map(str, value))
    elif value not in (None, ""):
        yield prefix, str(value)
