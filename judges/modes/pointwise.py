"""Judges that put questions about one response at a time to a language model: a score, or a rubric's criteria."""

from collections.abc import Sequence

from judges.llm.client import Asker, Question
from judges.llm.parse import AnswerOptions, ParsedAnswer
from judges.llm.templates import Conversation, principle
from judges.modes.rules import Function, Unscorable, aggregate, apply
from judges.modes.scoring import Assessment, ScoringJudge
from judges.spec.modes import PointwiseSpec, RubricSpec
from judges.spec.sections import Criterion
from selfplay.objects import load_object
from selfplay.records import Completion, Prompt


class PointwiseJudge(ScoringJudge):
    """Asks for one score per response, by the templates of a judge file of mode pointwise."""

    spec: PointwiseSpec

    def __init__(self, spec: PointwiseSpec, asker: Asker, seed: int = 0) -> None:
        super().__init__(spec)
        self.asker, self.seed = asker, seed
        self.conversation = Conversation(spec, special=asker.special)
        self.menu = AnswerOptions(spec.output.labels, spec.output.range)

    def assess(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Assessment]:
        """Return one question per completion."""
        questions = [
            Question(
                self.conversation.messages(prompt, [completion.text], **principle(self.spec, self.seed, prompt.id)),
                self.menu,
            )
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [
            Assessment(reply.reading.value, reason=reply.reading.reason, raw=reply.raw, error=reply.reading.error)
            for reply in self.asker.ask(questions)
        ]


class RubricJudge(ScoringJudge):
    """Values each criterion, in Python or by a question of its own, and aggregates them."""

    spec: RubricSpec

    def __init__(self, spec: RubricSpec, asker: Asker | None, seed: int = 0) -> None:
        super().__init__(spec)
        self.asker, self.seed = asker, seed
        self.conversation = Conversation(spec, special=asker.special if asker is not None else ())
        self.functions: dict[str, Function] = {
            criterion.name: load_object(criterion.python) for criterion in spec.criteria if criterion.python is not None
        }

    def assess(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Assessment]:
        """Ask every question about every completion, then apply the functions."""
        rows = list(zip(prompts, completions, strict=True))
        asked = [criterion for criterion in self.spec.criteria if criterion.text is not None]
        questions = [
            self._question(prompt, completion, criterion) for prompt, completion in rows for criterion in asked
        ]
        replies = iter(self.asker.ask(questions) if self.asker is not None else [])
        assessments = []
        for prompt, completion in rows:
            said = {criterion.name: next(replies) for criterion in asked}
            raw = "\n\n".join(f"{name}: {reply.raw}" for name, reply in said.items())
            try:
                values = {
                    criterion.name: apply(self.functions[criterion.name], criterion.name, prompt, completion.text)
                    if criterion.name in self.functions
                    else _value(criterion, said[criterion.name].reading)
                    for criterion in self.spec.criteria
                }
            except Unscorable as problem:
                assessments.append(Assessment(None, raw=raw, error=str(problem)))
            else:
                assessments.append(
                    Assessment(
                        aggregate(self.spec.criteria, values, self.spec.aggregation), tuple(values.items()), raw=raw
                    )
                )
        return assessments

    def _question(self, prompt: Prompt, completion: Completion, criterion: Criterion) -> Question:
        choices = criterion.choices or self.spec.output.labels
        variables = principle(self.spec, self.seed, prompt.id)
        messages = self.conversation.messages(
            prompt, [completion.text], criterion=criterion.text, labels=list(choices or ()), **variables
        )
        return Question(messages, AnswerOptions(choices, None if choices else self.spec.output.range))


def _value(criterion: Criterion, reading: ParsedAnswer) -> float:
    """Return a question's value; raises Unscorable if the answer could not be read."""
    if reading.value is None:
        raise Unscorable(f"criterion {criterion.name!r}: {reading.error}")
    return reading.value
