"""What the tests of stages share: prompts and completions in one line, and a run opened for a stage."""

from pathlib import Path
from typing import Any

from selfplay.context import RunContext
from selfplay.preflight import check
from selfplay.records import Completion, Prompt
from selfplay.rundir import RunDirectory
from selfplay.stages.launch import settle_libraries


def completion(text: str, id: str = "p/0", tokens: tuple[int, ...] = (5, 6), reason: Any = "stop") -> Completion:
    return Completion(
        id=id, prompt_id=id.split("/")[0], text=text, token_ids=tokens, finish_reason=reason, policy="test"
    )


def prompts(count: int) -> list[Prompt]:
    return [Prompt.plain(f"p{number}", f"prompt {number}") for number in range(count)]


def open_run(directory: Path, **changes: Any) -> RunContext:
    """A run as the loop opens it; `changes` are to sections of its recipe, such as `generate={"opponent": "start"}`."""
    files = RunDirectory(directory)
    recipe = files.recipe()
    updates = {
        key: getattr(recipe, key).model_copy(update=value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    recipe = recipe.model_copy(update={"output": str(directory), **updates})
    settle_libraries(recipe.threads)
    return RunContext(recipe, files, *check(recipe))
