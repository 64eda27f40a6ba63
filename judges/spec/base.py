"""What every judge file may say, and what every judge file whose judge asks a language model may say."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from judges.spec.sections import (
    Example,
    JudgeSampling,
    JudgeTest,
    Limits,
    OnError,
    Output,
    Reasoning,
    Template,
    Thresholds,
    Untrusted,
)
from selfplay.config import Count, Endpoint, Positive, Section, Texts, Unit

Mode = Literal["pairwise", "pointwise", "listwise", "rubric", "rules", "jury", "python"]


class JudgeSpec(Section):
    """What all judges have."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """What verdicts and reports call it; default the file's name."""
    version: Count = 1
    """Raise it when the judge changes its mind on purpose."""
    description: str = ""
    """A sentence for `selfplay judge list`."""
    mode: Mode
    """pairwise, pointwise, listwise, rubric (questions and Python), rules (Python), jury, python."""
    margin: Unit = 0.0
    """Scores this close, or a mean preference with |2 p - 1| this small, are a tie."""
    verdict_temperature: Positive | None = None
    """Fitted by `selfplay judge calibrate`: the log-odds of a pair's preference are divided by it. Where each response has a
    score, the preference becomes 1 / (1 + exp(-difference / temperature)). No winner changes; null leaves all as it is."""
    on_error: OnError = OnError()
    """What happens when an answer cannot be read."""
    thresholds: Thresholds = Thresholds()
    """What it must reach to be trusted."""
    tests: Annotated[tuple[JudgeTest, ...], Field(strict=False)] = ()
    """Cases with the verdict that must come out, run without a model by `selfplay judge check --tests-only`."""
    gold: str | None = None
    """Pairs with a known answer, a .jsonl file beside this one with `prompt`, `chosen`, `rejected` and the row's own
    columns; default the built-in set."""

    def lenient(self, **changes: Any) -> Self:
        """Return the judge, but asked to the end however often it fails; `changes` are for `on_error`."""
        allowed = {"action": "drop", "max_failure_rate": 1.0, **changes}
        return self.model_copy(update={"on_error": self.on_error.model_copy(update=allowed)})

    @property
    def needs_model(self) -> bool:
        """Whether `build` needs an engine."""
        return False

    @property
    def scores(self) -> bool:
        """Whether the judge can score one response by itself."""
        return False

    @property
    def compares_scores(self) -> bool:
        """Whether the verdict on a pair follows from the scores of its responses."""
        return self.mode in ("pointwise", "rubric", "rules")

    @property
    def both_orders(self) -> bool:
        """Whether each pair gets two verdicts, one per order."""
        return False

    @property
    def parts(self) -> tuple["JudgeSpec", ...]:
        """The specs of all judges inside, this one first: more than one in a jury."""
        return (self,)


class ModelSpec(JudgeSpec):
    """What all judges that ask a language model have."""

    model: str | None = None
    """A checkpoint, a hub id, the model's name at `endpoint`, or `policy`: the model under training judges itself."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible server that has the model."""
    sampling: JudgeSampling = JudgeSampling()
    """How its answers are drawn."""
    reasoning: Reasoning = Reasoning()
    """How it thinks before it answers, if it does: only what stands behind the thinking is read."""
    messages: Annotated[tuple[Template, ...], Field(strict=False)] = ()
    """The templates of what it is asked."""
    examples: Annotated[tuple[Example, ...], Field(strict=False)] = ()
    """Solved cases, shown before the real one."""
    output: Output
    """How its answer is read."""
    limits: Limits = Limits()
    """Bounds on what judging may take."""
    untrusted: Untrusted = Untrusted()
    """How prompts, responses and columns are put into the messages."""
    principles: Texts = ()
    """A constitution: one is drawn for each pair, the same in both orders, and is `principle` in the template."""
    reference: str = "reference"
    """The column of the row that holds the reference answer, `reference` in the template."""

    @property
    def needs_model(self) -> bool:
        """Always."""
        return True

    @model_validator(mode="after")
    def _check_messages(self) -> "ModelSpec":
        if not self.messages:
            raise ValueError("messages: a judge that asks a model needs at least one message, of role user")
        if self.messages[-1].role != "user":
            raise ValueError(
                f"messages: the last one has the role {self.messages[-1].role}, but the judge answers the user"
            )
        if self.endpoint is not None and self.model is None:
            raise ValueError("endpoint is set but model is not: name the model as the server calls it")
        if self.mode != "listwise" and self.output.labels is None and self.output.range is None:
            raise ValueError("output: name what the judge may say: either `labels` ({A: 1, B: 0}) or `range` ([1, 10])")
        return self
