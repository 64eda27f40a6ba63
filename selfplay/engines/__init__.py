"""Who produces text. The protocol that every engine keeps; importing it loads neither torch nor vllm."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from selfplay.config import SamplingParams
from selfplay.progress import Meter
from selfplay.records import Completion, Prompt
from selfplay.storage.journal import Journal

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


def sample_through(
    journal: Journal,
    label: str,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    size: int,
    engine: Callable[[], Engine],
    bar: Meter,
    suffix: str = "",
) -> list[list[Completion]]:
    """Return `sampling.n` completions for each prompt, in the order of the prompts, sampled batch by batch into a journal.

    A kill costs the batches in flight. A batch has `size` prompts and is kept under `label` and the place of its first, as it is
    done, by whichever worker. `engine` is called only if something is missing. Log-probabilities are left out, and `suffix`
    ends the completions' ids.
    """
    starts = {f"{label}/{start}": start for start in range(0, len(prompts), size)}
    missing = [key for key in starts if key not in journal.batches]
    bar.advance(sum(len(journal.batches[key]) for key in starts if key in journal.batches) * sampling.n)
    if missing:
        batches = [prompts[starts[key] : starts[key] + size] for key in missing]
        for place, found in generate_batches(engine(), batches, sampling):
            named = [
                [one.model_copy(update={"id": f"{one.id}{suffix}", "logprobs": None}) for one in group]
                for group in found
            ]
            journal.append(missing[place], [[one.model_dump(mode="json") for one in group] for group in named])
            bar.advance(len(found) * sampling.n)
    return [[Completion.model_validate(one) for one in group] for key in starts for group in journal.batches[key]]
