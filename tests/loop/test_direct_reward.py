"""Runs without a reward model: PPO asks a judge or a Python function, alone or in a weighted sum."""

import json
from pathlib import Path

import pytest
from tiny_run import write_recipe

from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run, run_stage
from selfplay.rundir import RunDirectory

PAIRWISE = """\
from selfplay.records import Verdict


class Shorter:
    def judge(self, pairs):
        return [Verdict(pair_id=pair.id, judge="shorter", order="none",
                        preference=float(len(pair.first.text) < len(pair.second.text))) for pair in pairs]
"""
FUNCTION = """\
def words(prompts, responses, meta):
    assert all(row["animal"] in prompt for row, prompt in zip(meta, prompts))
    return [len(response.split()) / 10 for response in responses]
"""


def samples(directory: Path) -> list[dict[str, float]]:
    lines = (RunDirectory(directory).policy(1) / "samples.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]


@pytest.fixture
def recipe(tmp_path: Path, tiny_run: Path) -> Path:
    """The tiny recipe over the tiny run's start, for one iteration without generated pairs."""
    (tmp_path / "shorter.py").write_text(PAIRWISE)
    (tmp_path / "shorter.yaml").write_text(f"name: shorter\nmode: python\npython: {tmp_path}/shorter.py:Shorter\n")
    (tmp_path / "words.py").write_text(FUNCTION)
    return write_recipe(tmp_path)


def overrides(tmp_path: Path, tiny_run: Path, *more: str) -> list[str]:
    return [
        f"output={tmp_path / 'run'}",
        "iterations=1",
        "policy.bootstrap=null",
        "algorithm.steps=2",
        f"policy.model={tiny_run / 'iteration-000' / 'policy'}",
        "algorithm.log_samples=32",
        *more,
    ]


def test_a_judge_and_a_function_in_one_sum(recipe: Path, tmp_path: Path, tiny_run: Path) -> None:
    added = f"[{{kind: function, function: '{tmp_path}/words.py:words', weight: -0.5}}]"
    directory = run(load_recipe(recipe, overrides(tmp_path, tiny_run, "reward.kind=judge", f"reward.added={added}")))
    assert sorted(path.name for path in (directory / "iteration-001").iterdir()) == ["evaluate", "policy"]
    for row in samples(directory):
        text = str(row["response"])
        # tiny_run's rules, weights 3 and 1: a full stop at the end, and 1 - characters / 400; less half a tenth per word
        rules = (3 * text.rstrip().endswith(".") + max(0.0, 1 - len(text) / 400)) / 4
        assert row["score"] == pytest.approx(rules - 0.05 * len(text.split()), abs=1e-5)
    health = json.loads((directory / "iteration-001" / "policy" / "judge_health.json").read_text())
    assert health["tiny"]["gold"] is None
    evaluation = json.loads((directory / "iteration-001" / "evaluate" / "evaluation.json").read_text())
    assert evaluation["mean_reward"] is None and evaluation["mean_score"] is not None
    assert (directory / "report.html").is_file()
    with pytest.raises(ConfigError, match="no stage 'label': with algorithm.kind ppo and reward.kind judge"):
        run_stage(directory, "label", 1)


def test_a_judge_that_compares_is_shown_what_the_policy_before_said(
    recipe: Path, tmp_path: Path, tiny_run: Path
) -> None:
    directory = run(
        load_recipe(
            recipe, overrides(tmp_path, tiny_run, "reward.kind=judge", f"judge.file={tmp_path / 'shorter.yaml'}")
        )
    )
    scores = [row["score"] for row in samples(directory)]
    # Whether shorter than the start's answer: only 0 or 1, and for two samples of one policy each comes up.
    assert set(scores) == {0.0, 1.0}
    assert not (directory / "iteration-001" / "policy" / "opponents.jsonl").exists()


def test_a_function_alone(recipe: Path, tmp_path: Path, tiny_run: Path) -> None:
    changes = ("reward.kind=function", f"reward.function={tmp_path}/words.py:words")
    directory = run(load_recipe(recipe, overrides(tmp_path, tiny_run, *changes)))
    assert all(
        row["score"] == pytest.approx(len(str(row["response"]).split()) / 10, abs=1e-6) for row in samples(directory)
    )
    (tmp_path / "words.py").write_text(FUNCTION.replace("/ 10", "/ 20"))
    with pytest.raises(ConfigError, match="policy"):
        run(load_recipe(recipe, overrides(tmp_path, tiny_run, *changes)))
