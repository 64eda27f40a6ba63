"""Who produces text. The protocol that every engine keeps; importing it loads neither torch nor vllm."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from selfplay.config import SamplingParams
from selfplay.records import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GuidedSampling(SamplingParams):
    """Sampling along a JSON schema. An engine without guided decoding samples freely: whoever asks checks the answer."""

    json_schema: dict[str, Any]
    """The schema that the text must fit."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt, and what that took.

    `texts` and how each ended (`stop` or `length`); or, where log-probabilities were asked for, choice -> nats. `thoughts`
    is what the model thought before each text, where a server tells it apart, else empty. `cost` is in dollars. Token
    counts are 0 where the engine does not count.
    """

    texts: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    logprobs: dict[str, float] | None = None
    thoughts: tuple[str, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Engine(Protocol):
    """Turns prompts into text with one set of weights.

    One that knows its tokenizer also has `special_tokens`: the texts that it reads as a special token
    (`prompts.cleaning.SpecialTokens`, which also finds them as its tokenizer does).
    """

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts."""
        ...

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """For each prompt, the log-probability (nats, temperature 1) of each choice as the next token.

        Raises ConfigError for a choice that is not exactly one token.
        """
        ...

    def update_weights(self, model: "PreTrainedModel") -> None:
        """Generate with the weights of `model` (same architecture) from now on."""
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


def generate_batches(
    engine: Engine, batches: Sequence[Sequence[Prompt]], sampling: SamplingParams
) -> Iterator[tuple[int, list[list[Completion]]]]:
    """Yield (place of a batch, its completions) as batches are done: one after another, or several at once."""
    if hasattr(engine, "generate_batches"):
        yield from engine.generate_batches(batches, sampling)
    else:
        yield from ((place, engine.generate(batch, sampling)) for place, batch in enumerate(batches))
