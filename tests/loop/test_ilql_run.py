"""A run whose algorithm is ILQL: from the completions that an iteration judged, and from a file of rows with rewards."""

from pathlib import Path

import pytest
from tiny_run import write_recipe

from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.preflight import check
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json

RECIPE = Path(__file__).parents[2] / "runs" / "ilql.yaml"
SMALL = (
    "policy.bootstrap=null",
    "prompts.train.limit=64",
    "prompts.heldout.limit=16",
    "generate={prompts: 16, completions: 3}",
    "sampling.max_tokens=32",
    "algorithm.steps=3",
    "algorithm.batch_size=16",
    "threads=1",
)


def test_from_judged_completions(tiny_run: Path, tmp_path: Path, training_seed: int) -> None:
    judge = f"judge.file={tiny_run.parent / 'tiny_judge.yaml'}"
    model = f"policy.model={tiny_run / 'iteration-000' / 'policy'}"
    recipe = load_recipe(RECIPE, [*SMALL, judge, model, f"output={tmp_path / 'run'}", f"seed={training_seed}"])
    directory = run(recipe)
    stages = sorted(path.name for path in (directory / "iteration-001").iterdir())
    assert stages == ["evaluate", "generate", "label", "policy"], "no reward model"
    policy = RunDirectory(directory).policy(1)
    assert read_json(policy / "config.json")["tie_word_embeddings"] is False
    evaluation = read_json(directory / "iteration-001" / "evaluate" / "evaluation.json")
    assert evaluation["kl_to_start"] > 0 and evaluation["win_rate_vs_start"]["n"] > 0
    assert [row["step"] for row in RunDirectory(directory).metrics() if row["stage"] == "policy"] == [1, 2, 3]


def test_what_cannot_work_is_refused_before_work(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(ConfigError, match="there is no file 'none.jsonl'"):
        check(load_recipe(recipe, ["algorithm={kind: ilql, source: none.jsonl}"]))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Tell a story.", "completion": "The end.", "reward": null}\n')
    with pytest.raises(ConfigError, match=r"rows.jsonl, row 1: `reward` is None; it must be a finite number"):
        check(load_recipe(recipe, [f"algorithm={{kind: ilql, source: {tmp_path / 'rows.jsonl'}}}"]))
    with pytest.raises(ConfigError, match="algorithm.kind ilql adds its heads to the output embedding"):
        load_recipe(recipe, ["algorithm={kind: ilql}", "policy.lora={}"])
    with pytest.raises(ConfigError, match=r"algorithm.heads mlp .* which engine.kind vllm cannot do"):
        load_recipe(recipe, ["algorithm={kind: ilql, heads: mlp}", "engine.kind=vllm", "iterations=1"])
    with pytest.raises(ConfigError, match=r"algorithm.heads mlp leaves a policy that cannot be trained further"):
        load_recipe(recipe, ["algorithm={kind: ilql, heads: mlp}"])
