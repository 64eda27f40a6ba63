"""PPO for language models: `PPOTrainer` and its parts. Its maths needs torch only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfplay.rl.trainer import PPOTrainer

__all__ = ["PPOTrainer"]


def __getattr__(name: str) -> Any:
    """Load the trainer when it is asked for, so that the maths can be imported without transformers."""
    if name == "PPOTrainer":
        from selfplay.rl.trainer import PPOTrainer

        return PPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
