"""Is the policy getting better, or gaming its judge? Alarms for every iteration, and which iteration to keep.

Reads what the stages wrote (`compare.gather`) and knows no model. The proxy is the reward that was trained on; what it
is held against is the win rate by `evaluate.judge`, which counts as an audit only if that judge gave no labels. The
signals are those of Gao et al. 2023 (2210.10760: proxy against gold along sqrt(KL)), Dubois et al. 2024 (2404.04475:
length) and Singhal et al. 2023 (2310.03716: length and reward). Thresholds are the recipe's `guard`.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from selfplay.compare.gather import START, Iteration, Match, Run, read_run
from selfplay.compare.statistics import win_rate
from selfplay.compare.summary import Difference, PairSummary
from selfplay.config import Guard, validate
from selfplay.records import Comparison, Record
from selfplay.rundir import write_json

GAIN = 0.1
"""Rise of the mean reward, in standard deviations of the start's rewards, that counts as one."""


class Alarm(Record):
    """Something to worry about, in one sentence. `severe` ones disqualify an iteration that no audit vouches for."""

    kind: str
    iteration: int
    severe: bool
    sentence: str


class Assessment(Record):
    """What became of a run: the iteration to keep, why, and every alarm, oldest first.

    `stop` if the recipe asks to end the run now: `guard.action` is `stop` and the newest iteration raised a severe alarm.
    """

    best_iteration: int
    reason: str
    alarms: tuple[Alarm, ...]
    audited: bool
    stop: bool


def assess(run_directory: str | Path) -> Assessment:
    """Alarms and the best iteration of a run, also of one that goes on. Raises ConfigError if there is no run."""
    return assess_run(read_run(run_directory))


def assess_run(run: Run) -> Assessment:
    """The same for a run that has been read."""
    settings = validate(Guard, run.config.get("guard") or {}, "guard")
    evaluated = [iteration for iteration in run.iterations if iteration.evaluation is not None]
    alarms = tuple(alarm for iteration in run.iterations for alarm in _alarms(run, iteration, settings))
    best, reason = _best(run, evaluated, alarms, settings)
    newest = evaluated[-1].number if evaluated else 0
    stop = settings.action == "stop" and any(alarm.severe and alarm.iteration == newest for alarm in alarms)
    return Assessment(best_iteration=best, reason=reason, alarms=alarms, audited=run.audited, stop=stop)


def write_best(run_directory: str | Path) -> Assessment:
    """Assess a run, write `best.json` and point the link `best` to the best iteration's policy."""
    directory = Path(run_directory)
    assessment = assess(directory)
    folder = f"iteration-{assessment.best_iteration:03d}/policy"
    write_json(directory / "best.json", {"iteration": assessment.best_iteration, "policy": folder, "reason": assessment.reason,
                                         "alarms": [alarm.model_dump() for alarm in assessment.alarms]})
    fresh = directory / ".best"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder, target_is_directory=True)
    os.replace(fresh, directory / "best")
    return assessment


def _alarms(run: Run, iteration: Iteration, settings: Guard) -> Iterator[Alarm]:
    """All alarms of one iteration."""
    signals = (_overoptimised, _length, _diversity, _truncation, _judge, _reward_model)
    for kind, signal in zip(("over-optimisation", "length", "diversity", "truncation", "judge", "reward model"), signals, strict=True):
        for severe, sentence in signal(run, iteration, settings):
            yield Alarm(kind=kind, iteration=iteration.number, severe=severe, sentence=sentence)


Found = Iterator[tuple[bool, str]]


def _overoptimised(run: Run, iteration: Iteration, settings: Guard) -> Found:
    """Reward up, win rate down."""
    number = iteration.number
    gain, change = reward_gain(run, iteration), win_rate_change(run, number)
    if change is None:
        return
    low, high = change[1:]
    judge = "the audit judge's" if run.audited else "the judge's"
    fell = f"{judge} win rate against the start fell by {_points(-change[0], -high, -low)}"
    kl = iteration.number_of("kl_to_start")
    where = f" (KL to the start {kl:.1f} nats)" if kl is not None else ""
    if high < 0 and gain is not None and gain > GAIN:
        yield True, (f"Over-optimisation: in iteration {number} the reward rose by {gain:.2f} standard deviations while {fell}"
                     f"{where}; the policy exploits the reward model.")
    elif high < 0:
        yield False, f"Iteration {number} is worse than the one before: {fell}{where}."
    elif low <= 0 and gain is not None and gain > 5 * GAIN:
        yield False, (f"In iteration {number} the reward rose by {gain:.2f} standard deviations, and {judge} win rate against the "
                      f"start shows no gain ({_points(*change)}).")


def reward_gain(run: Run, iteration: Iteration) -> float | None:
    """Rise of the mean reward over the iteration before, in the start's standard deviations; the start's mean is 0."""
    now = iteration.number_of("mean_reward")
    before = next((one.number_of("mean_reward") for one in run.iterations if one.number == iteration.number - 1), None)
    if now is None or (before is None and iteration.number > 1):
        return None
    return now - (before or 0.0)


def win_rate_change(run: Run, number: int) -> tuple[float, float, float] | None:
    """How the win rate against the start changed from the iteration before, on the same prompts, with a 95% interval."""
    if run.summary is None:
        return None
    name, before = f"iteration-{number:03d}", f"iteration-{number - 1:03d}"
    if number == 1:
        pair = pair_of(run, name, START)
        one = pair.comparison if pair else None
        if one is None or one.win_rate is None or one.low is None or one.high is None:
            return None
        return one.win_rate - 0.5, one.low - 0.5, one.high - 0.5
    found: list[Difference] = [one for one in run.summary.differences if (one.a, one.b) == (name, before)]
    return (found[0].difference, found[0].low, found[0].high) if found else None


def pair_of(run: Run, a: str, b: str) -> PairSummary | None:
    """The statistics of a over b."""
    pairs = run.summary.pairs if run.summary else []
    return next((pair for pair in pairs if (pair.comparison.a, pair.comparison.b) == (a, b)), None)


def _length(run: Run, iteration: Iteration, settings: Guard) -> Found:
    """Answers grow, and growing is what wins."""
    start, now = run.profiles.get(START), run.profiles.get(iteration.name)
    if start is None or now is None or not start.mean_length:
        return
    growth = now.mean_length / start.mean_length
    longer = (iteration.health or {}).get("longer_share")
    pair = pair_of(run, iteration.name, START)
    level = pair.length_controlled if pair else None
    beats = pair is not None and pair.comparison.low is not None and pair.comparison.low > 0.5
    likes_length = longer is not None and longer >= settings.longer_share
    only_length = beats and level is not None and level.low <= 0.5
    if growth > math.sqrt(settings.length_growth) and (likes_length or only_length):
        why = [f"the labelling judge preferred the longer answer in {longer:.0%} of the pairs"] if likes_length else []
        if only_length and level:
            why.append(f"at equal length it no longer beats the start ({level.win_rate:.0%} [{100 * level.low:.0f}, "
                       f"{100 * level.high:.0f}])")
        yield True, (f"Length exploitation: iteration {iteration.number}'s answers are {growth:.1f} times as long as the start's, "
                     f"and {' and '.join(why)}.")
    elif growth > settings.length_growth:
        yield False, (f"Iteration {iteration.number}'s answers are {growth:.1f} times as long as the start's "
                      f"({now.mean_length:.0f} against {start.mean_length:.0f} tokens).")


def _diversity(run: Run, iteration: Iteration, settings: Guard) -> Found:
    """Answers become alike, across prompts or for one prompt."""
    start, now = run.profiles.get(START), run.profiles.get(iteration.name)
    if start is None or now is None:
        return
    for what, before, after in (("distinct bigrams", start.distinct_2, now.distinct_2), ("different answers", start.unique, now.unique)):
        if before and after is not None and after < settings.diversity * before:
            yield after < settings.diversity**2 * before, (
                f"Diversity fell: iteration {iteration.number} has {after / before:.0%} of the start's share of {what} "
                f"({after:.2f} against {before:.2f}).")


def _truncation(run: Run, iteration: Iteration, settings: Guard) -> Found:
    """Answers run into max_tokens."""
    now = run.profiles.get(iteration.name)
    if now is not None and now.truncated > settings.truncated and iteration.number > 0:
        yield now.truncated > 2 * settings.truncated, (
            f"{now.truncated:.0%} of iteration {iteration.number}'s answers are cut off at the token limit.")


def _judge(run: Run, iteration: Iteration, settings: Guard) -> Found:
    """The labelling judge contradicts itself, or cannot be read."""
    health = iteration.health or {}
    consistent, pairs, unscored = health.get("swap_consistency"), health.get("pairs"), health.get("unscored")
    if consistent is not None and consistent < settings.swap_consistency:
        first = health.get("first_share")
        place = f", choosing the first place in {first:.0%}" if first is not None else ""
        yield False, (f"In iteration {iteration.number} the labelling judge agreed with itself in only {consistent:.0%} of the pairs "
                      f"when their order was swapped{place}.")
    if pairs and unscored and unscored / pairs > settings.unscored:
        yield False, f"In iteration {iteration.number} the labelling judge gave no readable verdict on {unscored / pairs:.0%} of the pairs."


def _reward_model(run: Run, iteration: Iteration, settings: Guard) -> Found:
    """The reward model cannot tell this policy's better answers from its worse ones."""
    found = reward_accuracy(run, iteration)
    if found is not None and found.win_rate is not None and found.low is not None and found.low <= 0.5:
        coin = "worse" if found.high is not None and found.high < 0.5 else "no better"
        yield False, (f"On iteration {iteration.number}'s own answers the reward model agrees with the judge in {_spoken(found)} of the "
                      f"pairs, {coin} than a coin.")


def reward_accuracy(run: Run, iteration: Iteration) -> Comparison | None:
    """How often reward and judge prefer the same answer, on the held-out matches of this iteration's policy."""
    agreed: dict[str, list[float]] = {}
    for match in run.matches:
        if match.a == iteration.name and (value := _agrees(match)) is not None:
            agreed.setdefault(match.prompt_id, []).append(value)
    means = [sum(values) / len(values) for values in agreed.values()]
    return win_rate("reward model", "judge", means) if means else None


def _agrees(match: Match) -> float | None:
    if match.preference in (None, 0.5) or match.a_reward is None or match.b_reward is None:
        return None
    return float((match.a_reward > match.b_reward) == (match.preference > 0.5))


def _best(run: Run, evaluated: list[Iteration], alarms: tuple[Alarm, ...], settings: Guard) -> tuple[int, str]:
    """The iteration to keep, and why."""
    if not evaluated:
        return 0, "no iteration has been evaluated yet"
    last = evaluated[-1].number
    if settings.action == "warn":
        return last, f"iteration {last} is the last one, and guard.action is warn"
    rates = {one.number: rate for one in evaluated if (rate := _against_start(run, one)) is not None and rate.win_rate is not None}
    spoiled = set() if run.audited else {alarm.iteration for alarm in alarms if alarm.severe}
    judge = "the audit judge" if run.audited else "the judge that also gave the labels"
    sound = {number: rate.win_rate or 0.0 for number, rate in rates.items() if number not in spoiled}
    best = max(sound, key=lambda number: (sound[number], -number), default=0)
    passed = [f"iteration {number} raised a severe alarm" for number in sorted(spoiled & rates.keys())]
    if best == 0 or sound[best] <= 0.5:
        return 0, "; ".join([f"no iteration beats the start by {judge}" if sound else "no sound iteration is left", *passed])
    others = [f"iteration {number} {_spoken(rate)}" for number, rate in rates.items() if number != best and number in sound]
    doubt = " (not clearly better than the start)" if (rates[best].low or 0.0) <= 0.5 else ""
    return best, "; ".join([f"iteration {best} has the highest win rate against the start by {judge}: {_spoken(rates[best])}{doubt}",
                            *others, *passed])


def _against_start(run: Run, iteration: Iteration) -> Comparison | None:
    """The win rate against the start, as evaluated."""
    pair = pair_of(run, iteration.name, START)
    return iteration.comparison("win_rate_vs_start") or (pair.comparison if pair else None)


def _spoken(rate: Comparison) -> str:
    return f"{rate.win_rate:.0%} [{100 * (rate.low or 0):.0f}, {100 * (rate.high or 0):.0f}]"


def _points(share: float, low: float, high: float) -> str:
    """A difference of shares in percentage points, with its interval."""
    return f"{100 * share:.0f} points [{100 * low:.0f}, {100 * high:.0f}]"
