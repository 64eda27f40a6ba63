"""Scores of single checkpoints: the mean that the judge gives, paired differences, categories, and IFEval's figures."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from judges.criteria.ifeval import OURS, verdicts_on
from prompts.sources import load_prompts
from selfplay.cli import app
from selfplay.compare.score import score
from selfplay.compare.settings import Given
from selfplay.config import Engine, PromptSource, SamplingParams
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.records import Completion, Prompt
from selfplay.stats.means import difference_of, mean_of
from selfplay.storage.files import read_rows

GREEDY = SamplingParams(max_tokens=24, temperature=0.0)


def test_means_and_paired_differences() -> None:
    """(1 + .5 + 0) / 3 = .5; the differences on the two prompts that both have are .5 and -.25: .125."""
    one = mean_of([1.0, 0.5, 0.0, None])
    assert (one.mean, one.n, one.unscored) == (pytest.approx(0.5), 3, 1)
    assert one.low is not None and one.high is not None and one.low < 0.5 < one.high
    apart = difference_of([1.0, None, 0.5], [0.5, 1.0, 0.75])
    assert (apart.mean, apart.n, apart.unscored) == (pytest.approx(0.125), 2, 1)
    assert mean_of([None]).mean is None


def score_of_tiny_judge(response: str) -> float:
    """A full stop at the end counts 3 of 4; the rest falls from 1 for nothing to 0 for 400 characters."""
    return (3 * response.rstrip().endswith(".") + max(0.0, 1 - len(response) / 400)) / 4


def test_a_runs_checkpoints_by_the_judge_that_labelled(tiny_run: Path, tmp_path: Path) -> None:
    found = score([f"{tiny_run}@start", f"{tiny_run}@2"], folder=tmp_path, by="animal")
    rows = read_rows(tmp_path / "scores.parquet")
    for one in found.checkpoints:
        mine = [row for row in rows if row["checkpoint"] == one.name]
        assert [row["score"] for row in mine] == pytest.approx([score_of_tiny_judge(row["response"]) for row in mine])
        assert one.score.n == len(mine) and one.score.mean == pytest.approx(
            sum(row["score"] for row in mine) / len(mine)
        )
        assert sum(part.n for part in one.categories.values()) == one.score.n and len(one.categories) > 1
        assert one.figures is None
    first, last = found.checkpoints
    assert last.above_first is not None and first.above_first is None
    assert last.above_first.mean == pytest.approx((last.score.mean or 0) - (first.score.mean or 0))
    assert json.loads((tmp_path / "scores.json").read_text())["facts"]["judge"].startswith("tiny (version")


def test_prompts_with_conditions_get_ifevals_figures(tiny_run: Path, tmp_path: Path) -> None:
    """Greedy answers of a story model to a few instructions; the share of prompts met is that of the judge's full marks."""
    source = PromptSource(source="instructions", split="heldout", limit=6)
    found = score([str(tiny_run / "iteration-002" / "policy")], Given(source, sampling=GREEDY), folder=tmp_path)
    (one,) = found.checkpoints
    assert found.facts["judge"].startswith("instructions") and one.figures is not None
    rows = read_rows(tmp_path / "scores.parquet")
    asked = {prompt.id: prompt for prompt in load_prompts(source, 0)}
    met = [verdicts_on(asked[row["prompt_id"]], row["response"], OURS) for row in rows]
    assert [row["score"] for row in rows] == [pytest.approx(sum(verdicts) / len(verdicts)) for verdicts in met]
    assert one.figures["prompt_strict"].n == 6 and one.figures["instruction_strict"].n == 12
    assert one.figures["instruction_strict"].share <= one.figures["instruction_loose"].share
    again = score([str(tiny_run / "iteration-002" / "policy")], Given(source, sampling=GREEDY), folder=tmp_path)
    assert again == found, "what was sampled is read again"


def test_on_the_command_line(tiny_run: Path, tmp_path: Path) -> None:
    words = ["score", f"{tiny_run}@start", f"{tiny_run}@2", "--output", str(tmp_path)]
    said = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert said.startswith("judge tiny (version") and "above the first" in said and "@2" in said
    found = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert len(found["checkpoints"]) == 2


def test_a_judge_that_only_compares_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compares two responses and scores none by itself"):
        score([str(tiny_run)], Given(judge="helpfulness"), folder=tmp_path)


def test_a_sampling_that_is_cut_off_goes_on_where_it_was(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that are done are not asked for again, and the scores are those of a sampling that was never stopped."""
    target = [str(tiny_run / "iteration-002" / "policy")]
    source = PromptSource(source="instructions", split="heldout", limit=12)
    given = Given(source, sampling=GREEDY, engine=Engine(batch_size=4))
    whole = score(target, given, folder=tmp_path / "whole")
    generate, asked = TransformersEngine.generate, []

    def failing(self: TransformersEngine, prompts: list[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        asked.extend(prompt.id for prompt in prompts)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return generate(self, prompts, sampling)

    monkeypatch.setattr(TransformersEngine, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        score(target, given, folder=tmp_path / "cut")
    assert score(target, given, folder=tmp_path / "cut").checkpoints == whole.checkpoints
    assert len(asked) == 16 and asked[4:8] == asked[8:12] and len(set(asked)) == 12
