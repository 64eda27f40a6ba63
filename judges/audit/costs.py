"""What the judges behind endpoints can cost at most, worked out before a call is made. Imports no torch.

Each judge is asked about the longest prompt there is, with answers as long as they may become, by an engine that answers
nothing and notes the price; so templates, examples and schemas count as they are sent. A byte is taken for a token, and
a token of an answer for BYTES_PER_TOKEN bytes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from judges.audit.gold import canaries, gold_file, load_gold
from judges.build import build
from judges.spec.base import JudgeSpec
from selfplay.config import SamplingParams
from selfplay.engines import Answer
from selfplay.records import Completion, Pair, Prompt

BYTES_PER_TOKEN = 8
Price = Callable[[Any, Prompt, SamplingParams, Sequence[str] | None], float]
"""(judge's spec, prompt, sampling, choices) -> the most that the call can cost, in dollars."""


class Asked(NamedTuple):
    """A judge, and how much it is asked about: pairs, single answers, and prompts for rankings."""

    spec: JudgeSpec
    pairs: int
    answers: int
    prompts: int
    watched: bool
    """Whether it is asked about its gold set and canaries too, once."""
    longest: Sequence[Pair]
    """The longest pairs that it can be shown, all of one prompt."""


class PriceTag:
    """An engine that answers nothing and notes the most that a call can cost, in dollars."""

    def __init__(self, part: Any, price: Price) -> None:
        self.part, self.price, self.dearest = part, price, 0.0

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, choices: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Answer | None, str]]:
        """No answer for any prompt."""
        for place, prompt in enumerate(prompts):
            self.dearest = max(self.dearest, self.price(self.part, prompt, sampling, choices))
            yield place, None, "not asked"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """Nothing."""
        return [[] for _ in self.stream(prompts, sampling)]

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """Nothing."""
        return [[math.nan] * len(choices) for _ in self.stream(prompts, SamplingParams(), choices)]

    def update_weights(self, model: object) -> None:
        """Do nothing: a price has no weights."""

    def close(self) -> None:
        """Do nothing: a price holds nothing."""


def judge_dollars(asked: Sequence[Asked], extra_rounds: int, price: Price) -> dict[str, float | None]:
    """Return the run's bill at endpoints, in dollars; None where an endpoint has no price, or its judge is a class of the user's.

    `judge_dollars`: every question asked once, with answers of full length. `judge_dollars_at_most`: every answer
    unreadable, every call failing as often as it may, in every extra round; but no more than `max_cost`, if all have one.
    """
    once = most = 0.0
    limits: list[float] = []
    for one in asked:
        seen = gold_and_canaries(one.spec) if one.watched else []
        extra = questions(one.spec, len(seen), 2 * len(seen), len(seen))
        for (part, count), (_, more) in zip(
            questions(one.spec, one.pairs, one.answers, one.prompts), extra, strict=True
        ):
            endpoint = getattr(part, "endpoint", None)
            if endpoint is None or not count + more:
                continue
            if not endpoint.costs or part.mode == "python":
                return {"judge_dollars": None, "judge_dollars_at_most": None}
            rounds = 1 + extra_rounds if one.watched else 1
            for number, times, groups in ((count, rounds, [one.longest]), (more, 1, [[pair] for pair in seen])):
                dearest = dearest_call(part, groups, price)
                once += number * dearest
                most += number * times * price_of_all_tries(part, dearest)
            limits.append(endpoint.max_cost or math.inf)
    return {
        "judge_dollars": to_cents(once),
        "judge_dollars_at_most": to_cents(min(most, max(limits, default=math.inf))),
    }


def price_of_all_tries(part: Any, price: float) -> float:
    """Dollars of a question that is asked again as often as the judge's file says, each time failing as often as it may."""
    attempts = 1 if part.output.kind == "logprob" else 1 + part.on_error.retries
    shown_again = part.sampling.max_tokens * BYTES_PER_TOKEN if part.on_error.repair else 0  # the answer before
    return (1 + part.endpoint.retries) * (
        attempts * price + (attempts - 1) * shown_again * part.endpoint.input_price / 1e6
    )


def to_cents(dollars: float) -> float:
    """Dollars, rounded up to whole cents."""
    return math.ceil(dollars * 100 - 1e-9) / 100


def longest_pairs(prompts: Sequence[Prompt], answers: int, max_tokens: int) -> list[Pair]:
    """Return all pairs of so many answers to the longest prompt, each as long as it may be, four bytes a letter."""
    prompt = max(prompts, key=lambda one: len(one.model_dump_json()))
    text = "\U0001f98a" * (max_tokens * BYTES_PER_TOKEN // 4)
    made = [
        Completion(
            id=f"{number}", prompt_id=prompt.id, text=f"{text}{number}", finish_reason="length", policy="longest"
        )
        for number in range(answers)
    ]
    return [
        Pair(id=f"{first.id}|{second.id}", prompt=prompt, first=first, second=second)
        for first, second in combinations(made, 2)
    ]


def dearest_call(part: Any, groups: Sequence[Sequence[Pair]], price: Price) -> float:
    """Dollars that the dearest call of a judge about one of these groups of pairs, each of one prompt, can cost."""
    tag = PriceTag(part, price)
    judge = build(part.lenient(), tag)
    for pairs in groups:
        judge.judge(pairs)
    return tag.dearest


def questions(spec: JudgeSpec, pairs: int, answers: int, prompts: int) -> list[tuple[Any, int]]:
    """Return each part of a judge that asks a model, and its questions: per answer and criterion, per prompt for
    rankings, else per pair; and per order.
    """
    found = []
    for part in spec.parts:
        if part.needs_model and part.mode != "jury":
            criteria: Any = getattr(part, "criteria", ())
            each = sum(one.python is None for one in criteria) if part.mode == "rubric" else 1
            things = answers if part.scores else prompts if part.mode == "listwise" else pairs
            found.append((part, things * each * (2 if part.both_orders else 1)))
    return found


def gold_and_canaries(spec: JudgeSpec) -> list[Pair]:
    """Return the pairs that a judge is watched on, each once per run."""
    file = gold_file(spec)
    rows = load_gold(file) if file is not None else []
    return [row.pair for row in (*rows, *canaries(rows, spec))]
