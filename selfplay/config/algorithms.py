"""The section `algorithm` of a recipe: one class of settings per algorithm, in a file of its own each."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from selfplay.config.base import AlgorithmSection
from selfplay.config.dpo import DPO
from selfplay.config.ilql import ILQL
from selfplay.config.ppo import PPO
from selfplay.config.rejection import Rejection


class PythonAlgorithm(AlgorithmSection):
    """An algorithm of your own: a class with `needs`, `settings` and `train` (see `selfplay.algorithms.protocol`)."""

    kind: Literal["python"]
    """A class of your own."""
    python: str
    """`package.module:Class` or `./file.py:Class`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the class as keywords."""

    @property
    def summary(self) -> str:
        """Return what is named and its options."""
        return f"algorithm {self.python} with {self.options}"


def _ppo_unless_named(value: Any) -> Any:
    """Read a section without `kind` as PPO's, as recipes were written before there was a choice."""
    return {"kind": "ppo", **value} if isinstance(value, dict) else value


Algorithm = Annotated[
    PPO | DPO | Rejection | ILQL | PythonAlgorithm,
    Field(discriminator="kind"),
    BeforeValidator(_ppo_unless_named),
]
"""The section `algorithm` of a recipe: the settings of one algorithm, chosen by `kind`."""
