"""How sure may a judge be? Its verdicts as probabilities, against known answers, before and after one number is fitted.

The number is a temperature: log-odds are divided by it, so that an overconfident judge says .8 where it said .99, and no
winner changes (Guo et al. 2017, 1706.04599). What is fitted is shrunk towards 1, the judge as it is, by empirical Bayes, and is
1 where the pairs cannot tell the two apart: a judge that is calibrated already loses nothing. A judge that scores each response
has no odds to divide: there the probability is a logistic function of the difference of the scores (Platt 1999), and the
temperature its scale, which nothing is known of beforehand. What is reported as "after" was fitted on other pairs: the pairs are
dealt into folds by their prompts. Left out: a bias, since which of two responses stands first is drawn, and calibration by
category.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import t as student

from judges.audit.gold import GoldPair, prompt_of
from judges.build import Judge, Opener, build
from judges.llm.cache import AnswerCache
from judges.llm.templates import drawn
from judges.modes.scoring import ScoringJudge
from judges.spec.base import JudgeSpec
from judges.verdicts import CERTAIN, aggregate_verdicts
from selfplay.engines import Engine
from selfplay.errors import ConfigError
from selfplay.stats.agreement import Z95

FOLDS = 5
BINS = 10
LEAST_PAIRS = 20
TEMPERATURES = (0.01, 100.0)
"""Where a temperature is looked for."""
Array = np.ndarray[Any, np.dtype[np.float64]]


class Quality(BaseModel):
    """How good probabilities are, over the pairs with a verdict: means over prompts, each the mean of its pairs.

    `log_loss` in nats, `brier` the mean squared error, `calibration_error` the mean distance, weighted alike, between how
    sure it is and how often it is right in ten bins of sureness from 0.5 to 1; `accuracy` counts a tie as half.
    """

    log_loss: float
    brier: float
    calibration_error: float
    accuracy: float


class Calibration(BaseModel):
    """What `judge calibrate` found. `temperature` is fitted on all pairs; above 1 the judge is too sure (where it `scores`, the
    temperature is on the scale of its scores). Its 95% interval is that of the fit before it is shrunk towards 1. The change of
    the log loss has the 95% interval of a paired t test over prompts."""

    judge: str
    pairs: int
    unscored: int
    scores: bool
    temperature: float
    temperature_low: float
    temperature_high: float | None
    """None where even no confidence at all cannot be ruled out."""
    before: Quality
    after: Quality
    log_loss_change: float
    log_loss_change_low: float
    log_loss_change_high: float

    def lines(self) -> list[str]:
        """Return the report for people."""
        high = "no bound" if self.temperature_high is None else f"{self.temperature_high:.3g}"
        rows: list[tuple[str, ...]] = [("", "log loss", "Brier", "calibration error", "accuracy")]
        for when, one in (("before", self.before), ("after", self.after)):
            figures = (one.log_loss, one.brier, one.calibration_error, one.accuracy)
            rows.append((when, *(f"{figure:.4f}" for figure in figures)))
        change, low, top = self.log_loss_change, self.log_loss_change_low, self.log_loss_change_high
        advice = (
            "it cannot tell the better response here: no temperature fixes that"
            if self.before.accuracy <= 0.5
            else f"write `verdict_temperature: {self.temperature:.4g}` into its file; {self.calibration_change}"
            if self.better
            else "calibrated already, as far as these pairs can tell: keep the file as it is"
            if self.calibrated
            else "no improvement beyond chance: leave the file as it is"
        )
        return [
            f"judge {self.judge}: {self.pairs} pairs with a verdict, {self.unscored} without",
            f"temperature {self.temperature:.4g} [{self.temperature_low:.3g}, {high}]",
            *("".join(f"{cell:<20}" for cell in row).rstrip() for row in rows),
            f"log loss, on pairs that it was not fitted on: {change:+.4f} [{low:+.4f}, {top:+.4f}]; {advice}",
        ]

    @property
    def calibration_change(self) -> str:
        """What becomes of the calibration error, in words: it may rise where the log loss falls."""
        before, after = self.before.calibration_error, self.after.calibration_error
        moves = "rises" if after > before else "falls" if after < before else "stays"
        return f"its calibration error {moves}, from {before:.4f} to {after:.4f}"

    @property
    def better(self) -> bool:
        """Whether the fitted temperature improves on pairs that it was not fitted on, beyond chance."""
        return self.log_loss_change_high < 0

    @property
    def calibrated(self) -> bool:
        """Whether the judge's own probabilities, temperature 1, lie within the interval and nothing improves on them."""
        high = math.inf if self.temperature_high is None else self.temperature_high
        return not self.better and not self.scores and self.temperature_low <= 1 <= high


def calibrate(
    spec: JudgeSpec,
    gold: Sequence[GoldPair],
    engine: Engine | Opener | None = None,
    cache: AnswerCache | None = None,
    *,
    seed: int = 0,
) -> Calibration:
    """Ask the judge about `gold`, fit its temperature and measure what it does in `FOLDS` folds.

    Raises ConfigError as `build` does, for fewer than `LEAST_PAIRS` pairs with a verdict, and for pairs whose prompts are all in
    one fold; before the judge is asked where no verdict is needed to know it.
    """
    bare = spec.lenient().model_copy(update={"verdict_temperature": None})
    judge = build(bare, engine, cache, seed=seed)
    if len(gold) < LEAST_PAIRS:
        raise ConfigError(
            f"judge {spec.name!r}: {len(gold)} pairs are too few, a temperature needs {LEAST_PAIRS}: give more"
        )
    folds_of(spec.name, gold)
    before, odds = probabilities(judge, gold)
    known = np.isfinite(before)
    if known.sum() < LEAST_PAIRS:
        raise ConfigError(
            f"judge {spec.name!r} gave a verdict on {known.sum()} of {len(gold)} pairs; a temperature needs {LEAST_PAIRS}"
        )
    rows = [row for row, there in zip(gold, known, strict=True) if there]
    unscored, scores = int((~known).sum()), isinstance(judge, ScoringJudge)
    return measure(spec.name, rows, before[known], odds[known], unscored, scores=scores)


def probabilities(judge: Judge, gold: Sequence[GoldPair]) -> tuple[Array, Array]:
    """For each pair, the probability that the judge gives to the first response, and what a temperature divides: its
    log-odds, or the difference of scores; nan without a verdict."""
    settled = aggregate_verdicts(judge.judge([row.pair for row in gold]), judge.spec)
    said = np.array([math.nan if (value := settled[row.pair.id]) is None else value for row in gold])
    if not isinstance(judge, ScoringJudge):
        return said, log_odds(said)
    both = [(row.pair.prompt, one) for row in gold for one in (row.pair.first, row.pair.second)]
    found = judge.assess([prompt for prompt, _ in both], [one for _, one in both])
    scores = np.array([math.nan if one.score is None else one.score for one in found]).reshape(-1, 2)
    return said, scores[:, 0] - scores[:, 1]


def log_odds(probability: Array) -> Array:
    """log(p / (1 - p)), of a p no closer to 0 and 1 than `CERTAIN`."""
    held = np.clip(probability, CERTAIN, 1 - CERTAIN)
    return np.log(held) - np.log1p(-held)


def measure(
    name: str, rows: Sequence[GoldPair], before: Array, odds: Array, unscored: int = 0, *, scores: bool = False
) -> Calibration:
    """Return the report on pairs that all have a verdict: `before` its probabilities, `odds` what the temperature divides.

    `scores` says that `odds` are differences of scores, of which temperature 1 means nothing.
    """
    fitted = fit if scores else fit_and_shrink
    truth = np.array([row.answer for row in rows])
    folds = folds_of(name, rows)
    after = np.empty(len(rows))
    for fold in range(FOLDS):
        held_out = folds == fold
        after[held_out] = expit(odds[held_out] / fitted(odds[~held_out], truth[~held_out])[0])
    temperature, low, high = fitted(odds, truth)
    change = per_prompt(rows, losses(after, truth) - losses(before, truth))
    weights = prompt_weights(rows)
    middle = float(change.mean())
    reach = float(student.ppf(0.975, len(change) - 1) * change.std(ddof=1) / math.sqrt(len(change)))
    return Calibration(
        judge=name,
        pairs=len(rows),
        unscored=unscored,
        scores=scores,
        temperature=temperature,
        temperature_low=low,
        temperature_high=high,
        before=quality(before, truth, weights),
        after=quality(after, truth, weights),
        log_loss_change=middle,
        log_loss_change_low=middle - reach,
        log_loss_change_high=middle + reach,
    )


def folds_of(name: str, rows: Sequence[GoldPair]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return each pair's fold, all pairs of a prompt in the same. Raises ConfigError where all pairs are in one fold."""
    folds = np.array([drawn(0, "fold", prompt_of(row.pair), FOLDS) for row in rows], dtype=np.int64)
    if len(set(folds.tolist())) == 1:
        count = len({prompt_of(row.pair) for row in rows})
        what = "all pairs have one prompt" if count == 1 else f"the {count} prompts all fall into one of {FOLDS} folds"
        raise ConfigError(
            f"judge {name!r}: {what}, so that there is nothing to fit a temperature on: give pairs of more prompts"
        )
    return folds


def fit(odds: Array, truth: Array, expected: Array | float = 0.5) -> tuple[float, float, float | None]:
    """Return the temperature with the least log loss, within `TEMPERATURES`, and its 95% interval from the curvature there.

    Two further pairs are counted, spread over all, whose answers are as `expected`, a probability, so that a judge that is
    never wrong on a few pairs is not taken for infallible; with 0.5 these are Platt's targets, (n + 1) / (n + 2) and
    1 / (n + 2) for n pairs.
    """
    count = len(truth)
    target = (truth * count + 2 * expected) / (count + 2)

    def loss(log_temperature: float) -> float:
        scaled = odds * math.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - target * scaled))

    low, high = (math.log(bound) for bound in TEMPERATURES)
    slope = math.exp(-minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).x)
    reach = Z95 * slope_error(odds, slope)
    least = slope - reach
    return 1 / slope, 1 / (slope + reach), 1 / least if least > 0 else None


def fit_and_shrink(odds: Array, truth: Array) -> tuple[float, float, float | None]:
    """Return a temperature for log-odds, shrunk towards 1, and the interval that it had before.

    The two further pairs of `fit` have the judge's own probabilities. A slope b = 1 / T with the standard error s becomes
    1 + (b - 1) v / (v + s^2), where v, how far slopes of judges are from 1, is estimated as (b - 1)^2 - s^2 and is at least 0:
    the positive-part estimator of James and Stein (1961) on one number.
    """
    temperature, low, high = fit(odds, truth, expit(odds))
    away = 1 / temperature - 1
    error = slope_error(odds, 1 / temperature)
    kept = max(0.0, 1 - (error / away) ** 2) if away else 0.0
    return 1 / (1 + kept * away), low, high


def slope_error(odds: Array, slope: float) -> float:
    """Return the standard error of a slope, from the curvature of the log loss; infinite where the odds say nothing."""
    chance = expit(odds * slope)
    information = float(np.sum(odds**2 * chance * (1 - chance)))
    return 1 / math.sqrt(information) if information > 0 else math.inf


def losses(probability: Array, truth: Array) -> Array:
    """Return the log loss of each pair, in nats."""
    held = np.clip(probability, CERTAIN, 1 - CERTAIN)
    return -(truth * np.log(held) + (1 - truth) * np.log1p(-held))


def per_prompt(rows: Sequence[GoldPair], values: Array) -> Array:
    """Return the mean of the pairs of each prompt: pairs of one prompt are not independent evidence."""
    groups: dict[str, list[float]] = {}
    for row, value in zip(rows, values.tolist(), strict=True):
        groups.setdefault(prompt_of(row.pair), []).append(value)
    return np.array([np.mean(group) for group in groups.values()])


def prompt_weights(rows: Sequence[GoldPair]) -> Array:
    """Return the weight of each pair in a mean over prompts; they sum to 1."""
    count = Counter(prompt_of(row.pair) for row in rows)
    return np.array([1 / (count[prompt_of(row.pair)] * len(count)) for row in rows])


def quality(probability: Array, truth: Array, weights: Array) -> Quality:
    """Return the four figures of probabilities for the first response, of pairs with `weights` that sum to 1."""
    right = np.where(probability == 0.5, 0.5, (probability > 0.5) == (truth > 0.5)).astype(float)
    sureness = np.maximum(probability, 1 - probability)
    place = np.minimum((2 * (sureness - 0.5) * BINS).astype(int), BINS - 1)
    distance = [abs(float((weights * (right - sureness))[place == one].sum())) for one in range(BINS)]
    return Quality(
        log_loss=float(weights @ losses(probability, truth)),
        brier=float(weights @ (probability - truth) ** 2),
        calibration_error=sum(distance),
        accuracy=float(weights @ right),
    )
