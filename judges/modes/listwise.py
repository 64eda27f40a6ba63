"""Listwise judges: a language model ranks all responses to a prompt at once, and each pair's verdict follows."""

from collections.abc import Sequence
from typing import Literal

from judges.llm.client import Asker, Question, Reply
from judges.llm.parse import AnswerOptions, read_ranking
from judges.llm.templates import Conversation, drawn, principle
from judges.spec.modes import ListwiseSpec
from judges.verdicts import stop_if_failing
from selfplay.errors import ConfigError
from selfplay.records import Pair, Prompt, Verdict

Direction = Literal["forward", "reversed"]


class ListwiseJudge:
    """Asks by the templates of a judge file of mode listwise."""

    def __init__(self, spec: ListwiseSpec, asker: Asker, seed: int = 0) -> None:
        self.spec, self.asker, self.seed = spec, asker, seed
        self.conversation = Conversation(spec, special=asker.special)

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair and order asked, from one ranking per prompt and order.

        Raises JudgeStopped above `on_error.max_failure_rate`, and ConfigError for more responses than `largest`.
        """
        prompts = {pair.prompt.id: pair.prompt for pair in pairs}
        texts = self._texts(pairs)
        cases = [(prompt, order) for prompt in prompts.values() for order in self._orders(prompt)]
        replies = self.asker.ask([self._question(prompt, texts[prompt.id], order) for prompt, order in cases])
        found = {(prompt.id, order): reply for (prompt, order), reply in zip(cases, replies, strict=True)}
        verdicts = [
            self._verdict(pair, order, texts[pair.prompt.id], found[pair.prompt.id, order])
            for pair in pairs
            for order in self._orders(pair.prompt)
        ]
        stop_if_failing(self.spec.name, verdicts, self.spec.on_error)
        return verdicts

    def _texts(self, pairs: Sequence[Pair]) -> dict[str, list[str]]:
        """Prompt id -> its different responses, in the order in which the pairs name them."""
        texts: dict[str, dict[str, None]] = {}
        for pair in pairs:
            texts.setdefault(pair.prompt.id, {}).update(dict.fromkeys((pair.first.text, pair.second.text)))
        for prompt_id, responses in texts.items():
            if len(responses) > self.spec.largest:
                raise ConfigError(
                    f"judge {self.spec.name!r} ranks at most {self.spec.largest} responses, but prompt "
                    f"{prompt_id!r} "
                    f"has {len(responses)}: raise `largest`, or generate fewer completions"
                )
        return {prompt_id: list(responses) for prompt_id, responses in texts.items()}

    def _orders(self, prompt: Prompt) -> tuple[Direction, ...]:
        if self.spec.order == "both":
            return ("forward", "reversed")
        if self.spec.order == "random" and drawn(self.seed, "order", prompt.id, 2):
            return ("reversed",)
        return ("forward",)

    def _question(self, prompt: Prompt, texts: list[str], order: Direction) -> Question:
        messages = self.conversation.messages(
            prompt, texts if order == "forward" else texts[::-1], **principle(self.spec, self.seed, prompt.id)
        )
        return Question(messages, AnswerOptions(ranking=len(texts)))

    def _verdict(self, pair: Pair, order: Direction, texts: list[str], reply: Reply) -> Verdict:
        preference = None
        if reply.reading.readable:
            ranks = read_ranking(reply.reading.label, len(texts))
            shown = texts if order == "forward" else texts[::-1]
            first, second = ranks[shown.index(pair.first.text)], ranks[shown.index(pair.second.text)]
            preference = 0.5 if first == second else float(first < second)
        return Verdict(
            pair_id=pair.id,
            judge=self.spec.name,
            order=order,
            preference=preference,
            reason=reply.reading.reason,
            raw=reply.raw,
            error=reply.reading.error,
        )
