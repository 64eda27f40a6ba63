"""What a judge file may say: one strict class per mode, each knob documented beneath its field.

Reading files and finding shipped judges is `judges.spec.load`; turning a spec into a judge is `judges.build`. Nothing here
loads a model or runs a user's code.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from judges.spec.base import JudgeSpec, ModelSpec
from judges.spec.sections import (
    Criterion,
    Output,
    Template,
    check_criteria,
)
from selfplay.config import Count, Endpoint, Positive, Section

CRITERION = """{% for turn in history %}
Earlier, the {{ turn.role }} said:

{{ turn.content }}

{% endfor %}
Someone was asked:

{{ prompt }}

This is the answer:

{{ response }}

{{ criterion }} End, on its own line, with {% for label in labels %}[[{{ label }}]]{{ ' or ' if not loop.last }}{% endfor %}."""


class PairwiseSpec(ModelSpec):
    """A language model is shown two responses and says which is better."""

    mode: Literal["pairwise"]
    order: Literal["both", "random", "fixed"] = "both"
    """Ask in both orders; in one drawn for each pair; or always with the first response first."""
    disagreement: Literal["mean", "tie", "drop"] = "mean"
    """What two orders that name different winners give: their mean, a tie, or no verdict."""
    criteria: Annotated[tuple[Criterion, ...], Field(strict=False)] = ()
    """What counts, for the template to list (`criteria`, with name, text and weight), or the name of a rubric: a file beside
    this one, or a shipped one. Criteria in Python are left to rubrics."""
    ties: bool = True
    """Whether the judge may say that both are equally good: then a label has the value 0.5."""

    @property
    def both_orders(self) -> bool:
        """Whether each pair gets two verdicts."""
        return self.order == "both"

    @model_validator(mode="after")
    def _check(self) -> "PairwiseSpec":
        if self.criteria and not any("criteria" in message.content for message in self.messages):
            raise ValueError("criteria: no message shows them; list them with {% for one in criteria %}...{% endfor %}")
        if self.output.labels is None:
            raise ValueError("output.range is for scores; a pairwise judge needs output.labels, such as {A: 1, B: 0}")
        if not self.ties and 0.5 in self.output.labels.values():
            raise ValueError("ties is false, but a label has the value 0.5: remove the label, or set ties to true")
        values = self.output.labels.values()
        if not (max(values) > 0.5 > min(values)):
            raise ValueError(
                f"output.labels {self.output.labels}: one label must prefer the first response (above "
                "0.5), one the second (below 0.5)"
            )
        return self


class PointwiseSpec(ModelSpec):
    """A language model scores each response by itself; the higher score wins."""

    mode: Literal["pointwise"]

    @property
    def scores(self) -> bool:
        """Always."""
        return True


class ListwiseSpec(ModelSpec):
    """A language model ranks all responses to a prompt at once; pairs follow from the ranking."""

    mode: Literal["listwise"]
    order: Literal["both", "random", "fixed"] = "both"
    """Ask for the responses as they come and reversed; in an order drawn per prompt; or as they come."""
    disagreement: Literal["mean", "tie", "drop"] = "mean"
    """What two rankings that order a pair differently give: their mean, a tie, or no verdict."""
    largest: Annotated[int, Field(ge=2, le=26)] = 10
    """Most responses in one list; they are called A, B, C, ..."""
    output: Output = Output(kind="regex", pattern=r"\[\[([A-Z](?:\s*[>=]\s*[A-Z])+)\]\]", match="line")
    """`json` or `regex`; the verdict is a ranking, best first, such as `B > A = C`."""

    @property
    def both_orders(self) -> bool:
        """Whether each pair gets two verdicts."""
        return self.order == "both"

    @model_validator(mode="after")
    def _check(self) -> "ListwiseSpec":
        if self.output.kind == "logprob" or self.output.labels is not None or self.output.range is not None:
            raise ValueError(
                "output: a listwise judge answers with a ranking: kind json or regex, no labels and no range"
            )
        if self.sampling.n > 1:
            raise ValueError("sampling.n: rankings cannot be averaged; ask a listwise judge once")
        return self


class RulesSpec(JudgeSpec):
    """Python functions score each response; the higher weighted mean wins."""

    mode: Literal["rules"]
    criteria: Annotated[tuple[Criterion, ...], Field(strict=False, min_length=1)]
    """The criteria, or the name of a rubric: a file beside this one, or a shipped one."""
    aggregation: Literal["mean", "minimum"] = "mean"
    """Weighted mean of the criteria, or the worst of them."""

    @property
    def scores(self) -> bool:
        """Always."""
        return True

    @model_validator(mode="after")
    def _check(self) -> "RulesSpec":
        check_criteria(self.criteria)
        asking = [criterion.name for criterion in self.criteria if criterion.python is None]
        if asking:
            raise ValueError(
                f"criteria: {asking[0]!r} is a question for a model; rules are in Python, so use mode rubric"
            )
        return self


class RubricSpec(ModelSpec):
    """Weighted criteria, each a Python function or a question to a language model, asked one at a time."""

    mode: Literal["rubric"]
    criteria: Annotated[tuple[Criterion, ...], Field(strict=False, min_length=1)]
    """The criteria, or the name of a rubric: a file beside this one, or a shipped one."""
    aggregation: Literal["mean", "minimum"] = "mean"
    """Weighted mean of the criteria, or the worst of them."""
    messages: Annotated[tuple[Template, ...], Field(strict=False)] = (Template(role="user", content=CRITERION),)
    output: Output = Output(kind="regex", pattern=r"\[\[([^\[\]]+)\]\]", match="line", labels={"yes": 1.0, "no": 0.0})

    @property
    def needs_model(self) -> bool:
        """Whether a criterion is a question."""
        return any(criterion.python is None for criterion in self.criteria)

    @property
    def scores(self) -> bool:
        """Always."""
        return True

    @model_validator(mode="after")
    def _check(self) -> "RubricSpec":
        check_criteria(self.criteria)
        return self


class Member(Section):
    """One judge of a jury."""

    judge: str
    """The name of a shipped judge, or the path of a judge file."""
    weight: Positive = 1.0
    """Its vote's weight."""
    model: str | None = None
    """Overrides the file's model."""
    _spec: JudgeSpec | None = PrivateAttr(default=None)

    @property
    def spec(self) -> JudgeSpec:
        """What the member's own file says."""
        assert self._spec is not None, "a jury's members are read with it, by judges.spec.load.load_spec"
        return self._spec

    def load(self, read: Callable[[str, str | None], JudgeSpec], model: str | None) -> None:
        """Read the member's file; `model` is for a member that asks a model and names none, here or in its file."""
        spec = read(self.judge, self.model)
        if model and spec.needs_model and self.model is None and getattr(spec, "model", None) is None:
            spec = read(self.judge, model)
        self._spec = spec


class JurySpec(JudgeSpec):
    """Several judges vote on each pair."""

    mode: Literal["jury"]
    members: Annotated[tuple[Member, ...], Field(strict=False, min_length=2)]
    """The judges that vote."""
    aggregation: Literal["mean", "median", "majority", "minimum"] = "mean"
    """Weighted mean or median of the preferences; the weighted majority of winners; or, most careful, the least decided
    preference if all members prefer the same response, and else a tie."""
    quorum: Count | None = None
    """Least number of members whose verdict can be read; default more than half."""

    @property
    def least(self) -> int:
        """The quorum."""
        return self.quorum or len(self.members) // 2 + 1

    @property
    def needs_model(self) -> bool:
        """Whether a member does."""
        return any(member.spec.needs_model for member in self.members)

    @property
    def scores(self) -> bool:
        """Whether all members do."""
        return all(member.spec.scores for member in self.members)

    @property
    def parts(self) -> tuple[JudgeSpec, ...]:
        """This spec and its members', juries in juries opened."""
        return (self, *(part for member in self.members for part in member.spec.parts))

    @model_validator(mode="after")
    def _check(self) -> "JurySpec":
        if self.quorum is not None and self.quorum > len(self.members):
            raise ValueError(f"quorum {self.quorum} is more than the {len(self.members)} members")
        return self


class PythonSpec(JudgeSpec):
    """A class of the user's own: `judge(pairs) -> list[Verdict]`, and if it can, `score(prompts, completions)`."""

    mode: Literal["python"]
    python: str
    """`package.module:Class` or `./file.py:Class`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the class as keywords; with a model, `engine` is passed as well."""
    model: str | None = None
    """A model whose engine the class needs, or `policy`."""
    revision: str | None = None
    endpoint: Endpoint | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a model is named."""
        return self.model is not None


MODES: dict[str, type[JudgeSpec]] = {
    "pairwise": PairwiseSpec,
    "pointwise": PointwiseSpec,
    "listwise": ListwiseSpec,
    "rubric": RubricSpec,
    "rules": RulesSpec,
    "jury": JurySpec,
    "python": PythonSpec,
}
