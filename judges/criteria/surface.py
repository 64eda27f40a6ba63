"""Criteria on the surface of any text, for rubrics: what Python can see, so that no model need be asked."""

from selfplay.records import Prompt

SHORT = 400
"""Characters from which on a text is not short at all."""


def ends_properly(prompt: Prompt, response: str) -> float:
    """1 if the response ends as text does, and not in the middle of a sentence."""
    return float(response.rstrip().rstrip("\"'”’)]}*`|").rstrip().endswith((".", "!", "?", "…", "。", "！", "？")))


def is_short(prompt: Prompt, response: str) -> float:
    """From 1 for nothing to 0 for 400 characters and more."""
    return max(0.0, 1 - len(response) / SHORT)
