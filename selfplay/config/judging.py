"""The judge of a run, its model, and the server that may hold it."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selfplay.config.base import Count, NonNegative, Positive, Section, Texts
from selfplay.config.models import Architecture, Optimisation


class Endpoint(Section):
    """A server that speaks OpenAI's protocol: `vllm serve`, or a hosted model."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    """Where it is, up to and with `/v1`."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends messages; `completions` sends the text of a single message, for models without a chat template."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. The key itself never stands in a file."""
    concurrency: Count = 16
    """Most calls under way at once."""
    requests_per_minute: Count | None = None
    """Most calls begun in any minute."""
    timeout: Positive = 120.0
    """Seconds after which a call is given up, slow bytes included."""
    retries: Annotated[int, Field(ge=0)] = 5
    """How often a call that failed on the way (429, 5xx, timeout, cut connection, unreadable answer) is made again."""
    longest_wait: Positive = 60.0
    """Most seconds between two tries; they double from 1, with jitter, and a server's Retry-After counts."""
    guided: bool = True
    """Send the JSON schema with the call (`response_format`), for servers that can decode along it."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each call, such as {reasoning_effort: low}; null takes out one that is sent by default."""
    input_price: NonNegative = 0.0
    """Dollars per million tokens read."""
    output_price: NonNegative = 0.0
    """Dollars per million tokens written."""
    max_cost: Positive | None = None
    """Dollars that one run may spend; then it stops, with everything saved. Needs the prices."""

    @model_validator(mode="after")
    def _check(self) -> "Endpoint":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError(
                "max_cost limits nothing while input_price and output_price are 0: set the prices, in dollars per "
                "million tokens"
            )
        return self


class JudgeBootstrap(Section):
    """A judge from text alone: a small Llama that learns from rules to answer `judge.file`, over pairs of the built-in
    stories. It is in the run's `iteration-000/judge`."""

    rules: str = "stories"
    """The judge that teaches, of mode `rules`. Nothing else in the run sees what it says, unless it also measures."""
    also: Texts = ()
    """Further judge files that the same model learns to answer."""
    vocabulary: Annotated[int, Field(ge=512)] = 1280
    """Size of the BPE vocabulary, which is the judge's own; words of the prompts' columns are tokens of their own."""
    architecture: Architecture = Architecture(context=768)
    training: Optimisation = Optimisation(steps=1800, batch_size=16)
    """Each step learns from `batch_size` lessons it has not seen before."""
    heldout: Count = 512
    """Pairs of held-out stories on which the judge's agreement with the rules is measured."""


class Judge(Section):
    """Who says which completion is better."""

    file: str = "stories"
    """A judge file: the name of a shipped one, or the path of a YAML file of your own."""
    model: str | None = None
    """Overrides the file's model: a checkpoint, a hub id, `policy`, or an endpoint's model name."""
    bootstrap: JudgeBootstrap | None = None
    """Make the judge's model from text instead of naming one."""

    @model_validator(mode="after")
    def _check(self) -> "Judge":
        if self.model is not None and self.bootstrap is not None:
            raise ValueError(f"judge.bootstrap makes a model, and judge.model names {self.model!r}: remove one of them")
        return self
