"""Pairwise judges: a language model is shown two responses, in one order or both, and says which is better.

Whether the two orders agree (swap consistency) is measured in `judges.consistency.health`.
"""

from collections.abc import Sequence
from typing import Literal

from judges.llm.client import Asker, Question
from judges.llm.parse import AnswerOptions
from judges.llm.templates import Conversation, drawn, principle
from judges.spec.modes import PairwiseSpec
from judges.verdicts import stop_if_failing
from selfplay.records import Pair, Verdict

Direction = Literal["forward", "reversed"]


class PairwiseJudge:
    """Asks by the templates of a judge file of mode pairwise."""

    def __init__(self, spec: PairwiseSpec, asker: Asker, seed: int = 0) -> None:
        self.spec, self.asker, self.seed = spec, asker, seed
        self.conversation = Conversation(spec, special=asker.special)

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair and order asked. Raises JudgeStopped above `on_error.max_failure_rate`."""
        cases = [(pair, order) for pair in pairs for order in self.orders(pair)]
        replies = self.asker.ask([self.question(pair, order) for pair, order in cases])
        verdicts = []
        for (pair, order), reply in zip(cases, replies, strict=True):
            shown_first = reply.reading.value
            preference = shown_first if shown_first is None or order == "forward" else 1 - shown_first
            verdicts.append(
                Verdict(
                    pair_id=pair.id,
                    judge=self.spec.name,
                    order=order,
                    preference=preference,
                    reason=reply.reading.reason,
                    raw=reply.raw,
                    error=reply.reading.error,
                )
            )
        stop_if_failing(self.spec.name, verdicts, self.spec.on_error)
        return verdicts

    def orders(self, pair: Pair) -> tuple[Direction, ...]:
        """Return the orders in which this pair is asked."""
        if self.spec.order == "both":
            return ("forward", "reversed")
        if self.spec.order == "random" and drawn(self.seed, "order", pair.id, 2):
            return ("reversed",)
        return ("forward",)

    def question(self, pair: Pair, order: Direction) -> Question:
        """Return what the model is asked; reversed shows the second response first."""
        responses = [pair.first.text, pair.second.text]
        shown = responses if order == "forward" else responses[::-1]
        variables = principle(self.spec, self.seed, pair.id)
        return Question(
            self.conversation.messages(pair.prompt, shown, **variables), AnswerOptions(self.spec.output.labels)
        )
