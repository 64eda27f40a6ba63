"""Prompts to learn from and to measure on, and how completions are drawn for them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from selfplay.config.base import Count, NonNegative, Section, Texts


class Sampling(Section):
    """How completions are drawn from the policy: from its whole distribution, as learning from them needs."""

    temperature: NonNegative = 1.0
    """Divides the logits. Completions of one prompt differ only above 0."""
    max_tokens: Count = 128
    """Longest completion, in tokens."""
    stop: Texts = ()
    """Strings that end a completion, besides the model's own end tokens: text, before which the completion is cut, or
    the name of a special token, such as <|im_end|>."""


class SamplingParams(Sampling):
    """What an engine is told about one call. Stages set what a recipe does not."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    n: Count = 1
    """Completions per prompt."""
    seed: int = 0
    """With the transformers engine a completion depends on (seed, prompt id, index) and the weights alone."""

    @classmethod
    def of(cls, sampling: Sampling, **changes: Any) -> "SamplingParams":
        """Return the parameters of a call: a recipe's sampling and what the stage sets."""
        return cls(**{**sampling.model_dump(), **changes})


class PromptSource(Section):
    """Where prompts come from."""

    source: str = "stories"
    """`stories` or `instructions` (built in), a .jsonl / .parquet / .txt file, or the name of a dataset on the hub."""
    split: str = "train"
    """Split of a hub dataset, or of a built-in set (`train` and `heldout` never share a prompt)."""
    column: str = "prompt"
    """Column with the prompt: a string or a list of {role, content}. All other columns become `meta`."""
    limit: Count | None = None
    """Use the first so many prompts; a built-in set makes exactly so many (default 1,024)."""


class Prompts(Section):
    """Prompts to learn from, and prompts to measure on. The two may not overlap."""

    train: PromptSource = PromptSource()
    heldout: PromptSource = PromptSource(split="heldout", limit=256)


class Generate(Section):
    """Pairs of completions to be judged."""

    completions: Annotated[int, Field(ge=2)] = 2
    """K completions per prompt."""
    prompts: Count = 512
    """Prompts drawn from the training prompts in each iteration, without repeats until all were used."""
    opponent: Literal["self", "previous", "start", "pool"] = "self"
    """Whose completions the policy's are paired with: its own, those of the iteration before, of the start, or of an
    earlier iteration drawn at random for each prompt."""
