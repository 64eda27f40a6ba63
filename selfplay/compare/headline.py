"""The top of the report: a run in one sentence, and what has to be known with it."""

from typing import NamedTuple

from selfplay.compare.rundata import Run
from selfplay.compare.wording import duration, rate_text
from selfplay.guard import Assessment


class Headline(NamedTuple):
    """The verdict, the interval of what it states, and what to do if the last iteration is not the best one."""

    verdict: str
    interval: str = ""
    advice: str = ""


def headline(run: Run, assessment: Assessment) -> Headline:
    """The run in one sentence, such as `Iteration 2 beats the start 81% of the time` `[76, 86]`."""
    evaluated = [iteration for iteration in run.iterations if iteration.evaluation is not None]
    if not evaluated:
        return Headline("Nothing has been evaluated yet")
    best, last = assessment.best_iteration, evaluated[-1].number
    rate = next((one.comparison("win_rate_vs_start") for one in evaluated if one.number == best), None)
    if best == 0 or rate is None or rate.win_rate is None:
        return Headline("No iteration is better than the start")
    share, _, interval = rate_text(rate).partition(" ")
    clear = rate.low is not None and rate.low > 0.5
    verdict = f"Iteration {best} {'' if clear else 'is no clear gain: it '}beats the start {share} of the time"
    advice = f"keep it, not iteration {last}" if clear else f"iteration {last} is worse"
    return Headline(verdict, interval, "" if best == last else advice)


def lead(run: Run, assessment: Assessment) -> list[str]:
    """Sentences below it: against the iteration before, why this one is kept, what was run and for how long."""
    lines = []
    last = next((one for one in reversed(run.iterations) if one.evaluation is not None), None)
    if last is not None and last.number > 1 and (rate := last.comparison("win_rate_vs_previous")) is not None:
        unscored = f", {rate.unscored} unscored" if rate.unscored else ""
        lines.append(f"Iteration {last.number} against iteration {last.number - 1}: {rate_text(rate)} on {rate.n} "
                     f"held-out prompts{unscored}.")
    if last is not None:
        lines.append(f"Kept: {assessment.reason}.")
    done, wanted = last.number if last else 0, run.config.get("iterations")
    amount = f"{done} of {wanted}" if wanted and done < wanted else str(done)
    description = f"{run.config['description'].rstrip('.')}. " if run.config.get("description") else ""
    lines.append(f"{description}{amount} iteration{'s' * (amount != '1')}, {duration(run.seconds)} of work in all.")
    return lines
