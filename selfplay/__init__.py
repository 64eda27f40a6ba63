"""Improve a language model by its own play: generate, judge, train a reward model, PPO, compare, repeat.

The command line's verbs are functions: `load_recipe` and `run` here, loaded when they are asked for, `compare` in
`selfplay.compare.head_to_head` (a subpackage has its name). `train` is a run without a recipe file, for a notebook.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfplay.config import load_recipe
    from selfplay.errors import ConfigError
    from selfplay.loop import run
    from selfplay.notebook.train import train

__version__ = "0.2.0"
__all__ = ["ConfigError", "load_recipe", "run", "train"]

_HOMES = {
    "ConfigError": "selfplay.config",
    "load_recipe": "selfplay.config",
    "run": "selfplay.loop",
    "train": "selfplay.notebook.train",
}


def __getattr__(name: str) -> Any:
    """Load a verb's module when the verb is first used."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
