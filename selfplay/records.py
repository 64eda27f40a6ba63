"""The rows that travel between stages: frozen, strict, and free of torch.

Before judging, the two completions of a pair are `first` and `second`; afterwards they are `chosen` and `rejected`.
A verdict always speaks of the original position, whichever order the judge was shown. What a judge could not decide
is `None`, never a tie and never a number.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of every row: immutable, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Message(Record):
    """One turn of a conversation, as chat templates expect it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Prompt(Record):
    """What the policy is asked. `messages` is a conversation; a plain-text prompt is one user message."""

    id: str
    messages: Annotated[tuple[Message, ...], Field(strict=False, min_length=1)]
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last message's content: the instruction itself."""
        return self.messages[-1].content

    @classmethod
    def plain(cls, id: str, text: str, **meta: Any) -> "Prompt":
        """Return a prompt of one user message."""
        return cls(id=id, messages=(Message(role="user", content=text),), meta=meta)


class TemplatedPrompt(Prompt):
    """A prompt with options for the model's chat template, such as {"enable_thinking": false}."""

    options: dict[str, Any] = Field(default_factory=dict)


class Completion(Record):
    """One sampled answer.

    `token_ids` ends with the stop token if one was sampled (`finish_reason == "stop"`). `logprobs` has one entry per
    token, at the sampling temperature, in nats; `None` where the engine cannot give them (vLLM at temperature 0).
    """

    id: str
    prompt_id: str
    text: str
    token_ids: Annotated[tuple[int, ...], Field(strict=False)] = ()
    finish_reason: Literal["stop", "length"]
    policy: str
    logprobs: Annotated[tuple[float, ...], Field(strict=False)] | None = None


class Pair(Record):
    """Two completions of one prompt, before anyone has said which is better."""

    id: str
    prompt: Prompt
    first: Completion
    second: Completion


Order = Literal["forward", "reversed", "none"]


class Verdict(Record):
    """What a judge said of a pair.

    `preference` is the degree, in [0, 1], to which `pair.first` is better than `pair.second` (0.5 is a tie), in the
    original position even if `order` is "reversed"; `None` if the answer could not be read, and then `error` says why.
    `order` is "none" for judges that score each completion by itself.
    """

    pair_id: str
    judge: str
    order: Order
    preference: Annotated[float, Field(ge=0, le=1)] | None
    reason: str = ""
    raw: str = ""
    error: str = ""


class Preference(Record):
    """A decided pair. `margin` in (0, 1] is |2 p - 1| of the mean preference p; `confidence` = max(p, 1 - p)."""

    pair_id: str
    prompt: Prompt
    chosen: Completion
    rejected: Completion
    margin: float
    confidence: float


class Comparison(Record):
    """How often `a` beats `b`: a tie counts one half, unscored prompts count nowhere but in `unscored`.

    `win_rate`, `low` and `high` lie in [0, 1] and are `None` if no prompt could be scored; `low` and `high` bound the
    95% interval. `n` scored prompts, of which `ties` are ties.
    """

    a: str
    b: str
    win_rate: float | None
    low: float | None
    high: float | None
    n: int
    ties: int
    unscored: int


def mean_preference(verdicts: Sequence[Verdict]) -> float | None:
    """Mean of the readable verdicts on one pair; `None` if one of the orders that were asked could not be read."""
    values = [verdict.preference for verdict in verdicts]
    if not values or any(value is None for value in values):
        return None
    return sum(value for value in values if value is not None) / len(values)
