"""The top of the report: a run in one sentence, and what has to be known with it."""

from itertools import combinations
from typing import NamedTuple

from selfplay.formatting import display_name, duration, rate_text
from selfplay.guard.selection import Assessment
from selfplay.results.run import RunData
from selfplay.stats.summary import Summary


class Headline(NamedTuple):
    """The verdict, the interval of what it states, and what to do if the last iteration is not the best one."""

    verdict: str
    interval: str = ""
    advice: str = ""


def headline(run: RunData, assessment: Assessment) -> Headline:
    """Return the run in one sentence, such as `Iteration 2 beats the start 81% of the time` `[76, 86]`."""
    evaluated = run.evaluated
    if not run.iterations and run.summary is not None:
        return headline_of(run.summary)
    if not evaluated:
        return Headline("Nothing has been evaluated yet")
    best, last = assessment.best_iteration, evaluated[-1].number
    rate = next((run.win_rate(one, "win_rate_vs_start") for one in evaluated if one.number == best), None)
    if best == 0 or rate is None or rate.win_rate is None:
        rates = [run.win_rate(one, "win_rate_vs_start") for one in evaluated]
        won = any(one is not None and one.low is not None and one.low > 0.5 for one in rates)
        return Headline(f"No {'sound ' if won else ''}iteration is better than the start")
    share, _, interval = rate_text(rate).partition(" ")
    clear = rate.low is not None and rate.low > 0.5
    verdict = f"Iteration {best} {'' if clear else 'is not a clear gain: it '}beats the start {share} of the time"
    advice = f"keep it, not iteration {last}" if clear else f"iteration {last} is worse"
    return Headline(verdict, interval, "" if best == last else advice)


def headline_of(summary: Summary) -> Headline:
    """Return the two checkpoints that rate highest among those that met, in the direction and with the numbers of their row."""
    order = [one.model for one in summary.ratings or []] or summary.models
    met = {frozenset((pair.comparison.a, pair.comparison.b)): pair for pair in summary.pairs}
    for two in combinations(order, 2):
        pair = met.get(frozenset(two))
        if pair is None or pair.comparison.win_rate is None:
            continue
        one = pair.comparison
        share, _, interval = rate_text(one).partition(" ")
        a, b = display_name(one.a), display_name(one.b)
        if not pair.significant:
            return Headline(f"{a} and {b} do not differ significantly: {a} wins {share} of the time", interval)
        if pair.comparison.win_rate > 0.5:
            return Headline(f"{a} beats {b} {share} of the time", interval)
        return Headline(f"{a} loses to {b}: it wins {share} of the time", interval)
    return Headline("Nothing could be scored")


def lead(run: RunData, assessment: Assessment) -> list[str]:
    """Sentences below it: against the iteration before, why this one is kept, what was run and for how long."""
    lines = []
    if not run.iterations and run.summary is not None:
        votes = sum(pair.comparison.n for pair in run.summary.pairs)
        return [
            f"{len(run.summary.models)} checkpoints on {run.summary.prompts:,} prompts, {votes:,} comparisons scored."
        ]
    last = run.evaluated[-1] if run.evaluated else None
    if last is not None and last.number > 1 and (rate := run.win_rate(last, "win_rate_vs_previous")) is not None:
        unscored = f", {rate.unscored} unscored" if rate.unscored else ""
        lines.append(
            f"Iteration {last.number} against iteration {last.number - 1}: {rate_text(rate)} on {rate.n} "
            f"held-out prompts{unscored}."
        )
    if last is not None:
        lines.append(f"Kept: {'' if assessment.best_iteration else 'the start, since '}{assessment.reason}.")
    if run.outcome.get("stopped"):
        lines.append(f"Stopped early: {run.outcome['stopped']}.")
    done, wanted = last.number if last else 0, run.config.get("iterations")
    amount = f"{done} of {wanted}" if wanted and done < wanted else str(done)
    description = f"{run.config['description'].rstrip('.')}. " if run.config.get("description") else ""
    lines.append(f"{description}{amount} iteration{'s' * (amount != '1')}, {duration(run.seconds)} of work in all.")
    return lines
