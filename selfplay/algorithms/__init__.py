"""How a policy learns: one file per algorithm behind one protocol, and one dict from `algorithm.kind` to its class.

A new one is a class in a file here, its settings in a file of `selfplay/config/`, named in the
union of `selfplay/config/algorithms.py`, and an entry in ALGORITHMS. One of
a user's own is `algorithm: {kind: python, python: package.module:Class, options: {...}}`.
"""

from collections.abc import Callable
from typing import Any

from selfplay.algorithms.dpo import DPOAlgorithm
from selfplay.algorithms.ilql import ILQLAlgorithm
from selfplay.algorithms.ppo import PPOAlgorithm
from selfplay.algorithms.protocol import Algorithm, Inputs, Needs
from selfplay.algorithms.rejection import RejectionAlgorithm
from selfplay.config import Recipe
from selfplay.objects import call, load_object

__all__ = ["ALGORITHMS", "Algorithm", "Inputs", "Needs", "algorithm_of"]


def python_algorithm(config: Any) -> Algorithm:
    """Build an algorithm of the user's own. Raises ConfigError if its class is not there or refuses the options."""
    made: Algorithm = call(f"the algorithm {config.python}", load_object(config.python), **config.options)
    return made


ALGORITHMS: dict[str, Callable[[Any], Algorithm]] = {
    "ppo": PPOAlgorithm,
    "dpo": DPOAlgorithm,
    "ilql": ILQLAlgorithm,
    "rejection": RejectionAlgorithm,
    "python": python_algorithm,
}


def algorithm_of(recipe: Recipe) -> Algorithm:
    """Return the recipe's algorithm. Loads no torch for those that are shipped."""
    return ALGORITHMS[recipe.algorithm.kind](recipe.algorithm)
