"""A real language model as its own judge: `judge check` says what is wrong with it, and a run with it stops before it generates.

    make test-real

Asked for the letter of the better answer, SmolLM2-135M names the same place in both orders, whatever the answers say.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from judges.audit.gold import BUILT_IN
from selfplay.cli import app
from selfplay.config import load_recipe
from selfplay.errors import JudgeStopped
from selfplay.loop import run

SHIPPED = Path(__file__).parents[2] / "prompts/judges/helpfulness-logprob.yaml"
EVERY = 24
"""One of so many built-in gold pairs is asked about: 5 of 120, in both orders, and 35 canaries."""
RECIPE = """
iterations: 1
policy: {{model: {model}}}
prompts:
  train: {{source: instructions, limit: 8}}
  heldout: {{source: instructions, split: heldout, limit: 4}}
sampling: {{max_tokens: 8}}
generate: {{prompts: 8, completions: 2}}
engine: {{batch_size: 16}}
judge: {{file: {judge}, model: policy}}
"""
ONE_PLACE = "always the same place:"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped judge, with a part of the built-in gold set."""
    folder = tmp_path_factory.mktemp("judge")
    rows = BUILT_IN.read_text().splitlines()[::EVERY]
    (folder / "gold.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "judge.yaml").write_text(f"{SHIPPED.read_text()}gold: gold.jsonl\n")
    return folder / "judge.yaml"


def test_judge_check_names_what_is_wrong(judge: Path, smollm2: Path) -> None:
    said = CliRunner().invoke(app, ["judge", "check", str(judge), "--model", str(smollm2)])
    assert said.exit_code == 1, said.output
    assert "tests in the file: 4 of 4 pass" in said.output and ONE_PLACE in said.output


def test_a_run_is_refused_before_anything_is_generated(judge: Path, smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "judged.yaml").write_text(RECIPE.format(model=smollm2, judge=judge))
    with pytest.raises(JudgeStopped, match=ONE_PLACE):
        run(load_recipe(tmp_path / "judged.yaml", [f"output={tmp_path / 'run'}"]))
    assert (tmp_path / "run/iteration-000/policy").is_dir()
    assert not list((tmp_path / "run").rglob("completions*")) and not list((tmp_path / "run").glob("iteration-001/*"))
