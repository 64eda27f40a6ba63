"""What every section of a recipe or a judge file is made of: strict frozen pydantic models, and the types of their values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Schedule = Literal["linear", "constant", "cosine"]


class Section(BaseModel):
    """Base of every section of a recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


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
    def summary(self) -> str:
        """One line for the model card."""
        return type(self).__name__
