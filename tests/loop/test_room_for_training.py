"""Before a stage that trains, an engine that opens in a moment is closed; a vLLM, which starts slowly, stays."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfplay import loop
from selfplay.config import load_recipe
from selfplay.context import RunContext
from selfplay.rundir import RunDirectory


class Open:
    """An engine that says whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("kind", "stage", "closed"),
    [
        ("transformers", "reward", True),
        ("transformers", "policy", True),
        ("transformers", "evaluate", False),
        ("vllm", "reward", False),
    ],
)
def test_engines_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stage: str, closed: bool
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"policy: {{bootstrap: {{}}}}\nengine: {{kind: {kind}}}\noutput: {tmp_path / 'run'}\n"
    )
    files = RunDirectory(tmp_path / "run")
    run = RunContext(load_recipe(tmp_path / "r.yaml", []), files, [], [])
    there: Any = Open()
    run._engine = there
    seen: list[bool] = []
    monkeypatch.setattr(loop, "is_done", lambda *arguments: False)
    monkeypatch.setattr(loop, "run_on_workers", lambda *arguments: seen.append(there.closed))
    loop.ensure_stage(run, 1, stage, SimpleNamespace(__name__=f"selfplay.stages.{stage}"))  # type: ignore[arg-type]
    assert seen == [closed] and (run._engine is None) == closed
