"""What every section of a recipe or a judge file is made of: strict frozen pydantic models, and the types of their values."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Schedule = Literal["linear", "constant", "cosine"]

SAFE_TO_CHANGE = frozenset(
    {
        "checkpoint_every",
        "compile",
        "gradient_checkpointing",
        "log_samples",
        "micro_batch",
        "micro_batch_tokens",
        "offload_optimizer",
    }
)
"""Settings of algorithms that change time, memory or what is written down, and nothing that is learned."""
FREE_SETTINGS = (
    "description",
    "output",
    "threads",
    "report_to",
    "iterations",
    "launch",
    "guard.patience",
    *(f"algorithm.{name}" for name in sorted(SAFE_TO_CHANGE)),
    *(f"engine.{name}" for name in ("cpu_cache_gib", "gpu_memory", "sleep", "timeout")),
)
"""Settings that may change on a run that has begun: none of them changes what its finished stages made."""


class Section(BaseModel):
    """Base of every section of a recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, tree: Any) -> Any:
        """Keep what a setting's default says of the keys that are not given: one default, however many of its keys are.

        The default's settings of a `source` are that source's own, and go with it; so are those of a `kind`, whose sections are
        left as they are given.
        """
        if not isinstance(tree, dict):
            return tree
        kept = {}
        for name, field in cls.model_fields.items():
            given, default = tree.get(name), field.default
            if not isinstance(default, Section) or "kind" in type(default).model_fields:
                continue
            if isinstance(given, dict) and "source" not in given:
                kept[name] = {**default.model_dump(exclude_unset=True), **given}
        return {**tree, **kept}


class AlgorithmSection(Section):
    """What all algorithms' settings have, for those who count work."""

    kind: str
    """Which algorithm trains the policy."""

    @property
    def steps_per_iteration(self) -> int:
        """Rows that an iteration adds to metrics.jsonl."""
        return 0

    @property
    def episodes_per_step(self) -> int:
        """Completions that a step samples."""
        return 0

    @property
    def group_size(self) -> int:
        """How many of them answer the same prompt."""
        return 1

    @property
    def learned_per_step(self) -> int:
        """Those of them that are learned from at most."""
        return self.episodes_per_step

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps of one pass over them."""
        return 1

    @property
    def estimates_logprobs(self) -> bool:
        """Whether a step asks policy and reference how likely the completions are before it learns from them."""
        return True

    @property
    def summary(self) -> str:
        """One line for the model card."""
        return type(self).__name__

    @property
    def what_is_learned(self) -> Self:
        """These settings with those in SAFE_TO_CHANGE at their defaults: the same for all that learn the same."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in SAFE_TO_CHANGE & fields.keys()})
