"""The notebook docs/tour.ipynb runs from top to bottom on a real run, and what it keeps as outputs is what it gives."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from selfplay.results.load import read_run

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour.ipynb"


def execute(run: Path, folder: Path) -> nbformat.NotebookNode:
    """Run every cell in a kernel of this Python; a cell that raises fails."""
    os.environ.update(SELFPLAY_TOUR_RUN=str(run), OMP_NUM_THREADS="1")
    notebook = nbformat.read(TOUR, as_version=4)
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})


def shown(notebook: nbformat.NotebookNode) -> list[tuple[str, list[str]]]:
    """For each cell with code: what it printed, and the kinds of its other outputs."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (
            "".join(
                output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"
            ),
            [kind for output in cell.outputs for kind in output.get("data", {}) if kind != "text/plain"],
        )
        for cell in cells
    ]


@pytest.fixture(scope="module")
def executed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook as the tiny run fills it."""
    return execute(tiny_run, tmp_path_factory.mktemp("tour"))


def test_it_shows_verdicts_the_frontier_and_twenty_steps(executed: nbformat.NotebookNode, tiny_run: Path) -> None:
    cells = shown(executed)
    everything = "\n".join(text for text, _ in cells)
    summary = read_run(tiny_run).summary
    assert summary is not None
    first = summary.pairs[0].comparison
    assert f"{first.a} beats {first.b} {first.win_rate:.1%} of the time" in everything
    assert everything.count("preference 0.") + everything.count("preference 1.") == 2
    assert "step 20: score" in everything and "after PPO:" in everything
    assert [kinds.count("image/svg+xml") for _, kinds in cells if kinds] == [2, 2]  # frontier, then score and KL


def test_the_outputs_that_are_kept_are_of_the_same_kinds(executed: nbformat.NotebookNode) -> None:
    """Numbers differ from processor to processor; what is shown, and that no cell failed, does not."""
    kept = nbformat.read(TOUR, as_version=4)
    assert [kinds for _, kinds in shown(kept)] == [kinds for _, kinds in shown(executed)]
    assert [bool(text) for text, _ in shown(kept)] == [bool(text) for text, _ in shown(executed)]
    assert not any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))
