"""Signs that a policy games its judge instead of getting better: what is looked at after every iteration.

The proxy is the reward that was trained on; what it is held against is the win rate by `evaluate.judge`, which is an
audit only if that judge gave no labels. The signals are those of Gao et al. 2023 (2210.10760: proxy against gold along
sqrt(KL)), Dubois et al. 2024 (2404.04475: length) and Singhal et al. 2023 (2310.03716: length and reward). Thresholds
are the recipe's `guard`. What to do about an alarm is decided in `selfplay.guard`.
"""

import math
from collections.abc import Iterator

from selfplay.config import Guard
from selfplay.formatting import hundredths, interval_text, points_text, rate_text
from selfplay.records import Comparison, Record
from selfplay.results.run import START, Iteration, RunData, agrees
from selfplay.rundir import iteration_name
from selfplay.stats.intervals import win_rate
from selfplay.stats.length_control import LengthControlled

GAIN = 0.1
"""Rise of the mean reward, in standard deviations of the start's rewards, that counts as one."""
Signs = Iterator[tuple[bool, str]]
"""What one signal finds: whether it is severe, and the sentence."""


class Alarm(Record):
    """Something to worry about, in one sentence. `severe` ones disqualify an iteration that no audit vouches for."""

    kind: str
    iteration: int
    severe: bool
    sentence: str


def alarms_of(run: RunData, iteration: Iteration, settings: Guard) -> Iterator[Alarm]:
    """Yield all alarms of one iteration."""
    signals = {
        "over-optimisation": _overoptimised(run, iteration),
        "length": _length(run, iteration, settings),
        "diversity": _diversity(run, iteration, settings),
        "truncation": _truncation(run, iteration, settings),
        "judge": _judge(iteration, settings),
        "reward model": _reward_model(run, iteration),
    }
    for kind, signs in signals.items():
        for severe, sentence in signs:
            yield Alarm(kind=kind, iteration=iteration.number, severe=severe, sentence=sentence)


def _overoptimised(run: RunData, iteration: Iteration) -> Signs:
    """Reward up, win rate down."""
    number, gain, change = iteration.number, reward_gain(run, iteration), win_rate_change(run, iteration.number)
    if change is None:
        return
    low, high = change[1:]
    judge = "the audit judge's" if run.audited else "the judge's"
    fell = f"{judge} win rate against the start fell by {points_text(-change[0], -high, -low)}"
    kl = iteration.number_of("kl_to_start")
    where = f" (KL to the start {kl:.1f} nats)" if kl is not None else ""
    rose = f"the reward rose by {gain:.2f} standard deviations" if gain is not None else ""
    if high < 0 and gain is not None and gain > GAIN:
        yield (
            True,
            (
                f"Over-optimisation: in iteration {number} {rose} while {fell}{where}; the policy exploits the "
                "reward model."
            ),
        )
    elif high < 0:
        yield False, f"Iteration {number} is worse than the one before: {fell}{where}."
    elif low <= 0 and gain is not None and gain > 5 * GAIN:
        yield (
            False,
            (
                f"In iteration {number} {rose}, and {judge} win rate against the start shows no gain "
                f"({points_text(*change)})."
            ),
        )


def reward_gain(run: RunData, iteration: Iteration) -> float | None:
    """Rise of the mean reward over the iteration before, in the start's standard deviations; the start's mean is 0."""
    now = iteration.number_of("mean_reward")
    before = next((one.number_of("mean_reward") for one in run.iterations if one.number == iteration.number - 1), None)
    if now is None or (before is None and iteration.number > 1):
        return None
    return now - (before or 0.0)


def win_rate_change(run: RunData, number: int) -> tuple[float, float, float] | None:
    """Return how the win rate against the start changed in an iteration, on the same prompts, with its 95% interval."""
    name, before = iteration_name(number), iteration_name(number - 1)
    if number == 1:
        pair = run.pair(name, START)
        one = pair.comparison if pair else None
        if one is None or one.win_rate is None or one.low is None or one.high is None:
            return None
        return one.win_rate - 0.5, one.low - 0.5, one.high - 0.5
    differences = run.summary.differences if run.summary else []
    return next(((one.difference, one.low, one.high) for one in differences if (one.a, one.b) == (name, before)), None)


def _length(run: RunData, iteration: Iteration, settings: Guard) -> Signs:
    """Answers grow, and growing is what wins."""
    start, now = run.profiles.get(START), run.profiles.get(iteration.name)
    if start is None or now is None or not start.mean_length:
        return
    growth = now.mean_length / start.mean_length
    longer = f"iteration {iteration.number}'s answers are {growth:.1f} times as long as the start's"
    share, level, why = (iteration.health or {}).get("longer_share"), _undone_by_length(run, iteration), []
    if share is not None and share >= settings.longer_share:
        why.append(f"the labelling judge preferred the longer answer in {hundredths(share)}% of the pairs")
    if level is not None:
        rate = interval_text(level.win_rate, level.low, level.high)
        why.append(f"at equal length it no longer beats the start ({rate})")
    if growth > math.sqrt(settings.length_growth) and why:
        yield True, f"Length exploitation: {longer}, and {' and '.join(why)}."
    elif growth > settings.length_growth:
        tokens = f"{now.mean_length:.0f} against {start.mean_length:.0f} tokens"
        yield False, f"{longer[0].upper()}{longer[1:]} ({tokens})."


def _undone_by_length(run: RunData, iteration: Iteration) -> LengthControlled | None:
    """Return the rate at equal length, if the iteration beats the start as it is and does not at equal length."""
    pair = run.pair(iteration.name, START)
    if pair is None or pair.comparison.low is None or pair.comparison.low <= 0.5 or pair.length_controlled is None:
        return None
    return pair.length_controlled if pair.length_controlled.low <= 0.5 else None


def _diversity(run: RunData, iteration: Iteration, settings: Guard) -> Signs:
    """Answers become alike."""
    start, now = run.profiles.get(START), run.profiles.get(iteration.name)
    if start is None or now is None:
        return
    signals = (
        ("distinct bigrams", start.distinct_2, now.distinct_2),
        ("different responses", start.unique, now.unique),
    )
    for what, before, after in signals:
        if before and after is not None and after < settings.diversity * before:
            yield (
                after < settings.diversity**2 * before,
                (
                    f"Diversity fell: iteration {iteration.number} has {hundredths(after / before)}% of the start's share "
                    f"of {what} ({after:.2f} against {before:.2f})."
                ),
            )


def _truncation(run: RunData, iteration: Iteration, settings: Guard) -> Signs:
    """Answers run into max_tokens, and more of them than at the start."""
    start, now = run.profiles.get(START), run.profiles.get(iteration.name)
    if start is not None and now is not None and now.truncated > max(settings.truncated, start.truncated + 0.1):
        yield (
            now.truncated > 2 * settings.truncated,
            (
                f"{hundredths(now.truncated)}% of iteration {iteration.number}'s answers are cut off at the token limit, "
                f"{hundredths(start.truncated)}% of the start's."
            ),
        )


def _judge(iteration: Iteration, settings: Guard) -> Signs:
    """Return an alarm if the labelling judge contradicts itself, or cannot be read."""
    health, where = iteration.health or {}, f"In iteration {iteration.number} the labelling judge"
    consistent, pairs, unscored = health.get("swap_consistency"), health.get("pairs"), health.get("unscored")
    if consistent is not None and consistent < settings.swap_consistency:
        first = health.get("first_share")
        place = f", choosing the first place in {hundredths(first)}%" if first is not None else ""
        yield (
            False,
            (
                f"{where} agreed with itself in only {hundredths(consistent)}% of the pairs when their order was swapped{place}."
            ),
        )
    if pairs and unscored and unscored / pairs > settings.unscored:
        yield False, f"{where} gave no readable verdict on {hundredths(unscored / pairs)}% of the pairs."


def _reward_model(run: RunData, iteration: Iteration) -> Signs:
    """Return an alarm if the reward model cannot tell this policy's better answers from its worse ones."""
    found = reward_accuracy(run, iteration)
    if found is not None and found.low is not None and found.low <= 0.5:
        coin = "worse" if found.high is not None and found.high < 0.5 else "not clearly better"
        yield (
            False,
            (
                f"On iteration {iteration.number}'s own answers the reward model agrees with the judge in "
                f"{rate_text(found)} of the pairs, {coin} than a coin."
            ),
        )


def reward_accuracy(run: RunData, iteration: Iteration) -> Comparison | None:
    """Return how often reward and judge prefer the same answer, on the held-out matches of this iteration's policy."""
    agreed: dict[str, list[float]] = {}
    for match in run.matches:
        if match.a == iteration.name and (value := agrees(match)) is not None:
            agreed.setdefault(match.prompt_id, []).append(value)
    means = [sum(values) / len(values) for values in agreed.values()]
    return win_rate("reward model", "judge", means) if means else None
