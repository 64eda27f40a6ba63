"""Best of n in the evaluation: a contestant of its own, chosen by the reward model, with the rest as it was without."""

import shutil
from pathlib import Path

import pytest
from staging import open_run

from selfplay.errors import ConfigError
from selfplay.report.html import write_report
from selfplay.stages import evaluate
from selfplay.storage.files import read_json, read_rows


def test_best_of_n_is_a_contestant_of_the_evaluation(copied: Path) -> None:
    place = copied / "iteration-002" / "evaluate"
    before, rows_before = read_json(place / "evaluation.json"), read_rows(place / "matches.parquet")
    plain, run = open_run(copied), open_run(copied, evaluate={"best_of": 4})
    assert plain.recipe.evaluate.best_of is None
    assert evaluate.fingerprint(plain, 2) != evaluate.fingerprint(run, 2)
    shutil.rmtree(place)
    evaluate.run(run, 2)
    run.close()
    after, rows = read_json(place / "evaluation.json"), read_rows(place / "matches.parquet")
    found = after.pop("best_of")
    assert {key: value for key, value in after.items() if key != "seconds"} == {
        key: value for key, value in before.items() if key != "seconds"
    }
    assert (found["n"], round(found["kl_bound"], 4)) == (4, 0.6363)
    assert [row for row in rows if row["a"] == "iteration-002"] == [
        row | {"a_reward": row["a_reward"]} for row in rows_before
    ]
    more = [row for row in rows if row["a"] == "iteration-002*4"]
    assert [row["b"] for row in more] == ["iteration-000"] * 32 + ["iteration-002"] * 32
    for other, key in (("iteration-000", "win_rate_vs_start"), ("iteration-002", "win_rate_vs_single")):
        said = [row["preference"] for row in more if row["b"] == other]
        assert found[key]["win_rate"] == pytest.approx(sum(said) / len(said))
        assert (found[key]["a"], found[key]["b"]) == ("iteration-002*4", other)
    assert "iteration 2, best of 4" in write_report(copied).read_text()


def test_a_run_without_a_reward_model_has_nothing_to_choose_by(copied: Path) -> None:
    from selfplay.config import DPO

    with pytest.raises(ConfigError, match="with algorithm.kind dpo it trains no reward model"):
        open_run(copied, evaluate={"best_of": 4}, algorithm=DPO(kind="dpo"))
