"""A run that makes its own judge: taught by rules, asked through vLLM in four formats, killed while it learns.

The rule is one that a model of 0.4M parameters learns in ten seconds, whatever its seed: is the last sentence "The end."?
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from killing import Moment, run_in_process
from taught_judge import FILES, HELDOUT, write_files

import judges
from judges.audit.calibration import calibrate
from judges.distill import agreement, decided_by
from selfplay.config import load_recipe
from selfplay.context import RunContext
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.vllm import VllmEngine
from selfplay.loop import run
from selfplay.models import load_policy, load_tokenizer
from selfplay.preflight import check
from selfplay.records import Pair
from selfplay.rundir import RunDirectory
from selfplay.stages import label
from selfplay.stages.judge_model import pairs
from selfplay.stages.rows import pair_row
from selfplay.storage.checksums import read_sealed, write_sealed
from selfplay.storage.files import read_json, read_rows, write_rows

SMALL_STEPS = 20 + 20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, training_seed: int) -> Path:
    """The folder with recipe and judge files, and under `run` a run that has its start and its judge."""
    folder = tmp_path_factory.mktemp("judge")
    run(load_recipe(write_files(folder), [f"output={folder / 'run'}", f"seed={training_seed}"]), only_start=True)
    return folder


@pytest.fixture(scope="module")
def engine(home: Path) -> Iterator[VllmEngine]:
    """vLLM over the judge that the run made."""
    opened = VllmEngine(home / "run/iteration-000/judge")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def heldout(training_seed: int) -> list[Pair]:
    """The pairs on which the run measured its judge."""
    return list(islice(pairs("heldout", training_seed), HELDOUT))


@pytest.fixture(scope="module")
def better(home: Path, heldout: list[Pair]) -> dict[str, float]:
    """What the rules say of them, less their ties: a judge is taught nothing about those."""
    verdicts = judges.build(judges.load_spec(home / "rules.yaml")).judge(heldout)
    return {row.pair_id: row.preference for row in verdicts if row.preference not in (None, 0.5)}


@pytest.fixture(scope="module")
def asked(heldout: list[Pair], better: dict[str, float]) -> list[Pair]:
    """The pairs that the rules decide."""
    return [pair for pair in heldout if pair.id in better]


def judge(home: Path, name: str, engine: Any) -> Any:
    return judges.build(judges.load_spec(home / f"{name}.yaml", "made"), engine)


def test_what_the_stage_measured_is_there(home: Path) -> None:
    found = read_json(home / "run/iteration-000/judge/judge.json")
    assert found["rules"] == "rules" and set(found["files"]) == set(FILES)
    for row in found["files"].values():
        assert row["low"] > 0.5, "it has learned something"
        assert row["unscored"] <= 0.05 * 2 * row["pairs"] and row["pairs"] > HELDOUT / 4
    logged = [row for row in RunDirectory(home / "run").metrics() if row["stage"] == "judge"]
    assert [(row["judge"], row["agreement"]) for row in logged] == [
        (name, found["files"][name]["agreement"]) for name in FILES
    ]


@pytest.mark.parametrize("name", FILES)
def test_through_vllm_it_agrees_with_the_rules_as_often(
    name: str, home: Path, engine: VllmEngine, asked: list[Pair], heldout: list[Pair]
) -> None:
    """The run asked the same of transformers. Two in a hundred answers may hang on the last digits of a logit.

    An answer is half of its pair's agreement, and changes all of its pair's consistency.
    """
    found = agreement(judges.load_spec(home / "rules.yaml"), judge(home, name, engine), heldout)
    measured = read_json(home / "run/iteration-000/judge/judge.json")["files"][name]
    assert found["pairs"] == measured["pairs"] == len(asked)
    for key, most in (("agreement", 0.02), ("swap_consistency", 0.04)):
        assert found[key] == pytest.approx(measured[key], abs=most), key


def test_one_letter_is_the_same_verdict_as_text_and_as_a_probability(
    home: Path, engine: VllmEngine, asked: list[Pair]
) -> None:
    chances, letters = (
        [verdict.preference for verdict in judge(home, name, engine).judge(asked)] for name in ("chances", "letter")
    )
    assert len(letters) == len(chances) == 2 * len(asked)
    # The greedy letter is the likelier of the two. The last digits of a chance depend on the batch.
    sure = [place for place, chance in enumerate(chances) if chance is not None and abs(chance - 0.5) > 1e-3]
    read = [place for place in sure if letters[place] is not None]
    assert [letters[place] for place in read] == [float(chances[place] > 0.5) for place in read]
    assert len(read) >= 0.9 * len(letters), "it has learned to say nothing but a letter"


def test_every_answer_in_json_can_be_read_whatever_is_asked(
    home: Path, engine: VllmEngine, heldout: list[Pair]
) -> None:
    """Decoding is guided, so that this holds for questions of a kind that no judge was taught as well.

    But for a pair that is too long to be asked: with one seed of five there is one.
    """
    said = [row for row in judge(home, "json", engine).judge(heldout) if row.order == "forward"]
    answered = [row for row in said if "that is more than the" not in row.error]
    assert len(said) == HELDOUT and len(answered) > 0.95 * HELDOUT
    assert {row.preference for row in answered} == {0.0, 1.0}


def test_transformers_and_vllm_give_the_same_chances(home: Path, engine: VllmEngine, asked: list[Pair]) -> None:
    checkpoint = home / "run/iteration-000/judge"
    other = TransformersEngine(load_policy(checkpoint), load_tokenizer(checkpoint))
    left, right = (judge(home, "chances", one).judge(asked[:20]) for one in (engine, other))
    assert [verdict.preference for verdict in left] == pytest.approx(
        [verdict.preference for verdict in right], abs=1e-4
    )


def test_its_chances_are_calibrated_against_the_rules_and_no_winner_changes(home: Path, engine: VllmEngine) -> None:
    rules = judges.build(judges.load_spec(home / "rules.yaml"))
    gold = decided_by(rules, list(islice(pairs("heldout", 4), 300)))
    found = calibrate(judges.load_spec(home / "chances.yaml", "made"), gold, engine)
    assert found.pairs == len(gold) > 80 and found.before.accuracy == found.after.accuracy > 0.65
    # A number fitted on n pairs costs 1 / (2 n) nats on others, here 0.006 at most, give or take a few of these.
    assert found.after.log_loss < found.before.log_loss + 0.05


def test_killed_once_twice_or_three_times_it_ends_the_same(home: Path, training_seed: int) -> None:
    output, seed = home / "killed", f"seed={training_seed}"
    moments = [
        Moment("selfplay.training.supervised", "Watcher.on_step_end", SMALL_STEPS + 120),
        Moment("selfplay.stages.judge_model", "agreement", 2),  # all is learned, and some of it measured
        Moment("selfplay.stages.judge_model", "write_json", 1),
    ]
    expected = read_json(home / "run/iteration-000/judge/manifest.json")["outputs"]
    for kills, moment in enumerate(moments, start=1):
        assert run_in_process(home / "recipe.yaml", [f"output={output}", seed], moment) == -9
        assert list((output / "iteration-000/judge.partial/work").glob("step-*"))
        copy = home / f"killed-{kills}"
        shutil.copytree(output, copy)
        run(load_recipe(home / "recipe.yaml", [f"output={copy}", seed]), only_start=True)
        assert read_json(copy / "iteration-000/judge/manifest.json")["outputs"] == expected


def test_it_labels_the_run_that_made_it(home: Path, asked: list[Pair], better: dict[str, float]) -> None:
    files = RunDirectory(home / "run")
    with files.writing(1, "generate", "made by hand") as folder:
        write_rows(folder / "pairs.parquet", [pair_row(pair) for pair in asked])
    with closing(RunContext(files.recipe(), files, *check(files.recipe()))) as opened:
        label.run(opened, 1)
        before = label.fingerprint(opened, 1)
        manifest = files.stage(0, "judge") / "manifest.json"
        write_sealed(manifest, {**read_sealed(manifest), "fingerprint": "that of other weights"})
        assert label.fingerprint(opened, 1) != before, "verdicts follow from the judge's weights"
    rows = read_rows(files.stage(1, "label") / "preferences.parquet")
    winners = {pair.id: (pair.first if better[pair.id] == 1 else pair.second).text for pair in asked}
    agreed = [row["chosen"][0]["content"] == winners[row["pair_id"]] for row in rows]
    assert len(agreed) > len(asked) / 2 and sum(agreed) / len(agreed) > 0.65
    health = read_json(files.stage(1, "label") / "judge_health.json")
    assert health["judge"] == "chances" and health["gold"]["accuracy"] >= 0.5
    assert {"empty", "verdict inside", "verdict to repeat"} < health["canary_wins"].keys()
