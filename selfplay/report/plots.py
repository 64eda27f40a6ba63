"""Which charts a run's report holds. Draws nothing itself (`charts`) and reads nothing (`gather`)."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence

from selfplay.formatting import display_name, duration
from selfplay.records import Comparison
from selfplay.report.charts import bar_chart, interval_chart, line_chart, matrix_chart
from selfplay.report.svg import Figure, Series, percent
from selfplay.results.run import Iteration, RunData, number

STAGES = ("bootstrap", "generate", "label", "reward", "policy", "evaluate")
"""Stages in the order of the loop; any other follows."""
MAIN_METRICS = {
    "objective/scores": "Reward per response",
    "objective/kl": "KL to the reference, nats per response",
    "objective/entropy": "Entropy, nats per response",
    "loss/policy_avg": "Policy loss",
    "loss/value_avg": "Value loss",
    "policy/clipfrac_avg": "Share of clipped tokens",
    "loss/preference": "Loss per pair",
    "rewards/margin": "Implicit reward, chosen minus rejected",
    "rewards/accuracy": "Share of pairs ranked right",
    "logprobs/chosen": "Log-probability of chosen responses, nats",
}
"""The algorithms' metrics that are always looked at."""
BINS = 200
"""Most points drawn per line; more are averaged in groups."""
AXIS = "\N{SQUARE ROOT}KL to the start (iteration)"


def rated(run: RunData, key: str) -> list[tuple[Iteration, Comparison, float]]:
    """Return iterations with a win rate under a key of evaluation.json."""
    found = [(one, run.win_rate(one, key)) for one in run.iterations]
    return [(one, rate, rate.win_rate) for one, rate in found if rate is not None and rate.win_rate is not None]


def iteration_figures(run: RunData) -> list[Figure]:
    """Curves over iterations, the start being 0."""
    marks = [(0.0, "start"), *((float(one.number), str(one.number)) for one in run.iterations if one.number)]
    written = [(float(one.number), run.profiles[one.name]) for one in run.iterations if one.name in run.profiles]
    if len(written) < 2:
        return []
    at, profiles = [place for place, _ in written], [one for _, one in written]
    lengths = [
        Series("mean", at, [one.mean_length for one in profiles]),
        Series("95th percentile", at, [one.p95_length for one in profiles], colour=1),
    ]
    words = [
        Series("distinct-1", at, [one.distinct_1 or 0.0 for one in profiles]),
        Series("distinct-2", at, [one.distinct_2 or 0.0 for one in profiles], colour=1),
    ]
    found = [
        *_win_rates(run, marks),
        line_chart("length", "Length of responses, tokens", lengths, x_label="iteration", x_ticks=marks, include=[0]),
        line_chart(
            "diversity",
            "Distinct words and pairs of words",
            words,
            x_label="iteration",
            x_ticks=marks,
            y_format=percent,
            include=[0],
        ),
    ]
    if any(one.truncated > 0.01 for one in profiles):
        cut = [Series("cut off", at, [one.truncated for one in profiles])]
        found.append(
            line_chart(
                "truncated",
                "Answers cut off at the token limit",
                cut,
                x_label="iteration",
                x_ticks=marks,
                y_format=percent,
                include=[0, 0.1],
            )
        )
    return found


def _win_rates(run: RunData, marks: Sequence[tuple[float, str]]) -> list[Figure]:
    """Win rates with their intervals; the first iteration has the start before it, so its second rate is the first again."""
    lines = []
    for colour, (key, label, first) in enumerate(
        (("win_rate_vs_start", "against the start", 1), ("win_rate_vs_previous", "against the one before", 2))
    ):
        if rows := [row for row in rated(run, key) if row[0].number >= first]:
            lines.append(
                Series(
                    label,
                    [float(one.number) for one, _, _ in rows],
                    [value for _, _, value in rows],
                    [rate.low for _, rate, _ in rows],
                    [rate.high for _, rate, _ in rows],
                    colour=colour,
                )
            )
    if not lines:
        return []
    return [
        line_chart(
            "win_rate",
            "Win rate on held-out prompts",
            lines,
            x_label="iteration",
            x_ticks=marks,
            y_format=percent,
            reference=(0.5, "even"),
            include=[0.4, 1.0],
        )
    ]


def overoptimisation_figures(run: RunData) -> list[Figure]:
    """Proxy (reward) and audit (win rate) along sqrt(KL), as Gao et al. 2023 (2210.10760) draw them."""
    place = {
        one.number: math.sqrt(max(kl, 0.0))
        for one in run.iterations
        if one.number and (kl := one.number_of("kl_to_start")) is not None
    }
    marks = _marks(place)
    proxy = [
        (place[one.number], value)
        for one in run.iterations
        if one.number in place and (value := one.number_of("mean_reward")) is not None
    ]
    found = []
    if proxy:
        line = Series("reward", [0.0, *(x for x, _ in proxy)], [0.0, *(y for _, y in proxy)])
        found.append(line_chart("proxy", "Proxy: mean reward, in sd of the start", [line], x_label=AXIS, x_ticks=marks))
    gold = [row for row in rated(run, "win_rate_vs_start") if row[0].number in place]
    if gold:
        x, y = [0.0, *(place[one.number] for one, _, _ in gold)], [0.5, *(value for _, _, value in gold)]
        low, high = [None, *(rate.low for _, rate, _ in gold)], [None, *(rate.high for _, rate, _ in gold)]
        line = Series("win rate", x, y, low, high, colour=1)
        title = "Audit: win rate against the start" if run.audited else "Win rate against the start"
        found.append(
            line_chart(
                "audit",
                title,
                [line],
                x_label=AXIS,
                x_ticks=marks,
                y_format=percent,
                reference=(0.5, "even"),
                include=[0.4],
            )
        )
    return found


def _marks(place: dict[int, float]) -> list[tuple[float, str]]:
    """Labels below the iterations' places, 0 being the start; places too near for two labels share one: `1.9 (1, 2)`."""
    near, groups = 0.2 * max(place.values(), default=0.0), [(0.0, ["start"])]
    for iteration, x in sorted(place.items(), key=lambda one: one[1]):
        if x - groups[-1][0] < near:
            groups[-1][1].append(str(iteration))
        else:
            groups.append((x, [str(iteration)]))
    return [(x, f"{x:.1f} ({', '.join(names)})" if x else f"0 ({', '.join(names)})") for x, names in groups]


def step_figures(run: RunData, main: bool) -> list[Figure]:
    """Curves over training steps, iterations joined end to end: the algorithm's main ones, or all others of any stage."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in run.metrics:
        stage = str(row.get("stage"))
        if "step" in row or f"{stage}/step" in row:
            for key in row.keys() - {"iteration", "stage", "step", "time", f"{stage}/step"}:
                if (value := number(row[key])) is not None:
                    lines[stage, key].append((int(row.get("iteration") or 0), value))
    chosen = [
        (stage, key)
        for stage, key in sorted(lines)
        if (stage == "policy" and key in MAIN_METRICS) == main and len(lines[stage, key]) > 1
    ]
    if main:
        chosen.sort(key=lambda one: list(MAIN_METRICS).index(one[1]))
    return [_steps(stage, key, lines[stage, key]) for stage, key in chosen]


def _steps(stage: str, key: str, points: Sequence[tuple[int, float]]) -> Figure:
    """Return one metric over all steps; `points` are iterations and values in the order of time.

    Nothing is joined or averaged across iterations: reward model and reference change there.
    """
    size = math.ceil(len(points) / BINS)
    begins = [index for index in range(len(points)) if index == 0 or points[index][0] != points[index - 1][0]]
    spans = [
        (at, min(at + size, end))
        for begin, end in zip(begins, [*begins[1:], len(points)], strict=True)
        for at in range(begin, end, size)
    ]
    y = [sum(value for _, value in points[begin:end]) / (end - begin) for begin, end in spans]
    x = [(begin + 1 + end) / 2 for begin, end in spans]
    named = "iteration " if len(begins) < 8 else ""
    breaks = [(index + 0.5, f"{named}{points[index][0]}") for index in begins] if len(begins) > 1 else []
    title = (
        MAIN_METRICS[key] if stage == "policy" and key in MAIN_METRICS else f"{stage}: {key.removeprefix(f'{stage}/')}"
    )
    name = f"step-{stage}-{re.sub(r'[^a-z0-9]+', '-', key.lower())}"
    label = f"step, {size} averaged" if size > 1 else "step"
    return line_chart(name, title, [Series(key, x, y, markers=False)], x_label=label, breaks=breaks, note=key)


def comparison_figures(run: RunData) -> list[Figure]:
    """Return the matrix of win rates, and ratings where they exist."""
    summary = run.summary
    if summary is None:
        return []
    names = [display_name(name) for name in summary.models]
    found = [matrix_chart("matrix", "Win rate of the row over the column", names, summary.matrix())]
    if summary.ratings:
        rows = [(display_name(one.model), one.rating, one.low, one.high) for one in summary.ratings]
        title, label = "Bradley-Terry ratings, 95% intervals", "points; 400 are odds of 10 : 1"
        found.append(interval_chart("ratings", title, rows, label))
    return found


def stages_of(run: RunData) -> list[str]:
    """Return all stages that took time, in the order of the loop."""
    names = {stage for iteration in run.iterations for stage in iteration.seconds}
    return [stage for stage in STAGES if stage in names] + sorted(names - set(STAGES))


def time_figure(run: RunData) -> Figure | None:
    """Seconds per stage and iteration."""
    stages = stages_of(run)
    timed = [one for one in run.iterations if one.seconds]
    rows = [(display_name(one.name), [one.seconds.get(stage, 0.0) for stage in stages]) for one in timed]
    return bar_chart("time", "Time per stage", rows, stages, label=duration) if rows else None


def all_figures(run: RunData) -> list[Figure]:
    """Return every figure of the report, for `--figures`."""
    timed = time_figure(run)
    return [
        *iteration_figures(run),
        *overoptimisation_figures(run),
        *comparison_figures(run),
        *step_figures(run, main=True),
        *step_figures(run, main=False),
        *([timed] if timed else []),
    ]
