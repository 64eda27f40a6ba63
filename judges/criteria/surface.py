"""Criteria on the surface of any text, for rubrics: what Python can see, so that no model need be asked."""

from selfplay.records import Prompt


def ends_properly(prompt: Prompt, response: str) -> float:
    """1 if the response ends as text does, and not in the middle of a sentence."""
    return float(response.rstrip().rstrip("\"'”’)]}*`|").rstrip().endswith((".", "!", "?", "…", "。", "！", "？")))
