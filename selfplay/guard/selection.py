"""Which iteration to keep, and whether to go on: the decision that the alarms of `guard.alarms` lead to.

Reads what the stages wrote and knows no model. The recipe's `guard.action` says what an alarm does.
"""

import contextlib
from pathlib import Path

from selfplay.config import Guard, validate
from selfplay.formatting import rate_text
from selfplay.guard.alarms import Alarm, alarms_of
from selfplay.progress import log
from selfplay.records import Comparison, Record
from selfplay.results.load import read_run
from selfplay.results.run import START, Iteration, RunData
from selfplay.rundir import iteration_name
from selfplay.storage import durable
from selfplay.storage.checksums import write_sealed
from selfplay.storage.durable import NotWritten


class Assessment(Record):
    """What became of a run: the iteration to keep, why, and every alarm, oldest first.

    `stop` says why the run should end now, empty if it should not: `guard.action` is `stop` and the newest iteration raised a
    severe alarm, or `guard.patience` iterations in a row did not beat the one before.
    """

    best_iteration: int
    reason: str
    alarms: tuple[Alarm, ...]
    audited: bool
    stop: str


def assess(run_directory: str | Path) -> Assessment:
    """Alarms and the best iteration of a run, also of one that goes on. Raises ConfigError if there is no run."""
    return assess_run(read_run(run_directory))


def assess_run(run: RunData) -> Assessment:
    """Return the same for a run that has been read."""
    settings = validate(Guard, run.config.get("guard") or {}, "guard")
    alarms = tuple(alarm for iteration in run.iterations for alarm in alarms_of(run, iteration, settings))
    best, reason = _best(run, alarms, settings)
    return Assessment(
        best_iteration=best,
        reason=reason,
        alarms=alarms,
        audited=run.audited,
        stop=_reason_to_stop(run, alarms, settings),
    )


def _reason_to_stop(run: RunData, alarms: tuple[Alarm, ...], settings: Guard) -> str:
    """Return why the run should end now, empty if it should go on."""
    newest = run.evaluated[-1].number if run.evaluated else 0
    if settings.action == "stop" and any(alarm.severe and alarm.iteration == newest for alarm in alarms):
        return f"iteration {newest} raised a severe alarm, and guard.action is stop"
    if settings.patience is None or len(run.evaluated) < settings.patience:
        return ""
    last = run.evaluated[-settings.patience :]
    found = [run.win_rate(one, "win_rate_vs_previous") for one in last]
    gains = [one for one in found if one is not None and one.win_rate is not None]
    if not gains or any((one.low or 0.0) > 0.5 for one in gains):
        return ""
    which = f"iteration {newest}" if len(last) == 1 else f"none of iterations {last[0].number} to {newest}"
    beat = "does not clearly beat" if len(last) == 1 else "clearly beats"
    return (
        f"{which} {beat} the one before ({', '.join(map(rate_text, gains))}), and guard.patience is {settings.patience}: "
        "raise guard.patience or leave it out to go on"
    )


def conclude(run_directory: str | Path, stopped: str = "") -> Assessment:
    """Assess a run, write `outcome.json` and point the link `best` to the best iteration's policy.

    `stopped` says why the run ended before its last iteration, if it did.
    """
    directory = Path(run_directory)
    assessment = assess(directory)
    folder = f"{iteration_name(assessment.best_iteration)}/policy"
    write_sealed(
        directory / "outcome.json",
        {
            "best": assessment.best_iteration,
            "reason": assessment.reason,
            "stopped": stopped or None,
            "alarms": [alarm.model_dump() for alarm in assessment.alarms],
        },
    )
    best = directory / "best"
    if best.exists() and not best.is_symlink():
        log(f"  {best} is not a link of this run and was left as it is; outcome.json names the best iteration")
    else:
        with contextlib.suppress(NotWritten):  # where there are no links, outcome.json is enough
            durable.link(best, folder)
    return assessment


def _best(run: RunData, alarms: tuple[Alarm, ...], settings: Guard) -> tuple[int, str]:
    """Return the iteration to keep, and why. A severe alarm is forgiven where an audit finds the iteration clearly better."""
    evaluated = run.evaluated
    if not evaluated:
        trained = [one.number for one in run.iterations if "policy" in one.seconds]
        if (run.config.get("prompts") or {}).get("heldout", "") is None and trained:
            return trained[
                -1
            ], f"iteration {trained[-1]} is the last one, and prompts.heldout is null: none is measured"
        return 0, "no iteration has been evaluated yet"
    if settings.action == "warn":
        return evaluated[-1].number, f"iteration {evaluated[-1].number} is the last one, and guard.action is warn"
    rates = {one.number: rate for one in evaluated if (rate := _against_start(run, one)) is not None}
    vouched = {number for number, rate in rates.items() if run.audited and (rate.low or 0.0) > 0.5}
    spoiled = {alarm.iteration for alarm in alarms if alarm.severe} - vouched
    sound = {
        number: rate.win_rate for number, rate in rates.items() if number not in spoiled and rate.win_rate is not None
    }
    best = max(sound, key=lambda number: (sound[number], -number), default=0)
    judge = "the audit judge" if run.audited else "the judge that also gave the labels"
    passed = [f"iteration {number} raised a severe alarm" for number in sorted(spoiled & rates.keys())]
    if best == 0 or sound[best] <= 0.5:
        losers = [f"iteration {number} {rate_text(rates[number])}" for number in sound]
        first = f"no iteration beats the start by {judge}" if sound else "no sound iteration is left"
        return 0, "; ".join([first, *losers, *passed])
    others = [f"iteration {number} {rate_text(rates[number])}" for number in sound if number != best]
    doubt = " (not clearly better than the start)" if (rates[best].low or 0.0) <= 0.5 else ""
    first = f"iteration {best} has the highest win rate against the start by {judge}: {rate_text(rates[best])}{doubt}"
    return best, "; ".join([first, *others, *passed])


def _against_start(run: RunData, iteration: Iteration) -> Comparison | None:
    """Return the win rate against the start, as evaluated."""
    pair = run.pair(iteration.name, START)
    return run.win_rate(iteration, "win_rate_vs_start") or (pair.comparison if pair else None)
