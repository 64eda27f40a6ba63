"""Prompts to learn from and to measure on, and how completions are drawn for them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from selfplay.config.base import Count, NonNegative, Positive, Section, Texts


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
    """`stories` or `instructions` (built in), a file (.jsonl, .json, .csv, .tsv, .parquet, .txt; also .gz), a folder of them,
    or the name of a dataset on the hub. docs/data.md has a table of the shapes of rows that are known."""
    split: str = "train"
    """Split of a hub dataset, of a folder, or of a built-in set (`train` and `heldout` never share a prompt)."""
    column: str = "prompt"
    """Column with the prompt: a string or a list of messages. Rows without a column `prompt` are known by the columns they
    have (`messages`, `conversations`, `instruction`, ...). All columns but those of the request become `meta`, and an answer
    that the row holds becomes `meta.reference`."""
    limit: Count | None = None
    """Use the first so many prompts; a built-in set makes exactly so many (default 1,024)."""
    min_characters: Annotated[int, Field(ge=0)] = 0
    """Leave out prompts whose turns together have fewer characters."""
    max_characters: Count | None = None
    """Leave out prompts whose turns together have more characters."""
    weight: Positive | None = None
    """In a list of sources: this one's part of the mixture, relative to the other weights. The mixture is the largest that
    has these proportions and repeats no prompt. Without weights, all prompts of all sources are taken."""


def _one_or_several(value: Any) -> str:
    """Tell a list of sources from one source."""
    return "(several)" if isinstance(value, list | tuple) else "(one)"


PromptSources = Annotated[
    Annotated[PromptSource, Tag("(one)")]
    | Annotated[tuple[PromptSource, ...], Field(strict=False, min_length=1), Tag("(several)")],
    Discriminator(_one_or_several),
]
"""One source, or a list of sources that are mixed."""


class Prompts(Section):
    """Prompts to learn from, and prompts to measure on. The two may not overlap."""

    train: PromptSources = PromptSource()
    """One source, or a list of them: [{source, weight}, ...]."""
    heldout: PromptSource | None = PromptSource(split="heldout", limit=256)
    """Prompts that nothing is trained on; null measures nothing: iterations have no evaluation, and the last counts as best."""

    too_long: Literal["refuse", "skip"] = "refuse"
    """What is done about prompts that leave no room for `sampling.max_tokens` in the policy's context, all of which are
    tokenized once before work starts: `refuse` names them and stops, `skip` names them and leaves them out."""

    @property
    def train_sources(self) -> tuple[PromptSource, ...]:
        """The sources of the training prompts."""
        return (self.train,) if isinstance(self.train, PromptSource) else self.train

    @model_validator(mode="after")
    def _check(self) -> "Prompts":
        weighted = [source.weight is not None for source in self.train_sources]
        if any(weighted) and not all(weighted):
            raise ValueError(
                "some sources of `train` have a `weight` and some have none: set it for all of them, or none"
            )
        return self


class Generate(Section):
    """Pairs of completions to be judged."""

    completions: Annotated[int, Field(ge=2)] = 2
    """K completions per prompt."""
    prompts: Count = 512
    """Prompts drawn from the training prompts in each iteration, without repeats until all were used."""
    focus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """From the second iteration on, so large a share of the prompts are those on which earlier labels decided the largest
    share of pairs, instead of the next ones in turn: for judges that often tie, which teach nothing on the rest."""
    opponent: Literal["self", "previous", "start", "pool"] = "self"
    """Whose completions the policy's are paired with: its own, those of the iteration before, of the start, or of an
    earlier iteration drawn at random for each prompt."""
