"""Runs of one recipe with several seeds: how they are made, found, shown and compared as one."""

import shutil
from pathlib import Path

import pytest
from making_runs import Plan, make_run
from tiny_run import write_recipe
from typer.testing import CliRunner

from selfplay.cli import app
from selfplay.compare.head_to_head import between_seeds
from selfplay.compare.targets import Contestant, contestants
from selfplay.errors import ConfigError
from selfplay.report.html import write_report
from selfplay.results.load import read_run
from selfplay.results.run import Match
from selfplay.results.seeds import BetweenSeeds, by_iteration, folder_of_seed, seed_runs, siblings
from selfplay.rundir import RunDirectory
from selfplay.stats.intervals import between_runs
from selfplay.storage.files import read_json


def test_the_interval_between_runs_is_students() -> None:
    # mean .6, deviation .1, t with 2 degrees of freedom 4.302653: .6 -+ 4.302653 x .1 / sqrt(3)
    assert between_runs([0.5, 0.6, 0.7]) == pytest.approx((0.6, 0.6 - 0.2484138, 0.6 + 0.2484138), abs=1e-6)
    assert between_runs([0.7, 0.7]) == pytest.approx((0.7, 0.7, 0.7), abs=1e-12)
    with pytest.raises(ValueError, match="needs two at least, not 1"):
        between_runs([0.5])
    one = BetweenSeeds("a", "b", (0.5, 0.9)).comparison()  # .7 -+ 12.7062 x .2: held within a share's bounds
    assert (one.win_rate, one.low, one.high, one.n) == (pytest.approx(0.7), 0.0, 1.0, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a recipe `mine`, and a run of another whose name begins alike."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 2, 10):
        make_run(folder / f"mine-seed{seed}", Plan(prompts=32, iterations=2, hostile=False, seed=seed))
    make_run(folder / "mine-too", Plan(prompts=32, iterations=1, hostile=False))
    return folder


def test_a_name_stands_for_its_seeds(folder: Path) -> None:
    assert [path.name for path in seed_runs(folder / "mine")] == ["mine-seed0", "mine-seed2", "mine-seed10"]
    assert seed_runs(folder / "mine-too") == [] and seed_runs(folder / "none") == []
    assert siblings(folder / "mine-seed2") == seed_runs(folder / "mine") and siblings(folder / "mine-too") == []


def test_a_copy_is_no_further_seed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 2):
        shutil.copytree(folder / f"mine-seed{seed}", tmp_path / f"mine-seed{seed}")
    shutil.copytree(folder / "mine-seed0", tmp_path / "mine-seed1")
    other = make_run(tmp_path / "mine-seed3", Plan(prompts=32, iterations=1, hostile=False, seed=3)) / "config.yaml"
    other.write_text(other.read_text().replace("name: mine-seed3", "name: another"))
    assert [path.name for path in seed_runs(tmp_path / "mine")] == ["mine-seed0", "mine-seed2"]
    said = capsys.readouterr().err
    assert "mine-seed1 is left out of the seeds: it is a run of the recipe 'mine-seed0' with seed 0" in said
    assert "mine-seed3 is left out of the seeds: it is a run of the recipe 'another' with seed 3" in said
    (tmp_path / "mine-seed2" / "config.yaml").write_text("name: [")
    assert [path.name for path in seed_runs(tmp_path / "mine")] == ["mine-seed0"]
    assert "mine-seed2 is left out of the seeds: " in capsys.readouterr().err


@pytest.mark.parametrize("directory", [".", "..", "/"])
def test_a_directory_without_a_name_stands_for_no_seeds(directory: str) -> None:
    with pytest.raises(ConfigError, match="has no name to put -seed1 behind: give one, such as output="):
        folder_of_seed(Path(directory), 1)


def test_win_rates_between_seeds(folder: Path) -> None:
    found = by_iteration(seed_runs(folder / "mine"))
    assert [(one.a, one.b) for one in found] == [
        ("iteration 1", "start"), ("iteration 2", "start"), ("iteration 2", "iteration 1")
    ]  # fmt: skip
    files = [RunDirectory(path).stage(2, "evaluate") / "evaluation.json" for path in seed_runs(folder / "mine")]
    assert found[1].rates == tuple(read_json(file)["win_rate_vs_start"]["win_rate"] for file in files)


def test_show_and_the_report_know_them(folder: Path) -> None:
    said = CliRunner().invoke(app, ["show", str(folder / "mine")])
    assert said.exit_code == 0 and "iteration 2 against iteration 1" in said.stdout and "mine-seed10" in said.stdout
    assert len(read_run(folder / "mine-seed0").seeds) == 3 and read_run(folder / "mine-too").seeds == ()
    page = write_report(folder / "mine-seed0", folder / "page.html").read_text()
    assert "<h2>Between seeds</h2>" in page and "iteration 2 against iteration 1" in page
    assert "<h2>Between seeds</h2>" not in write_report(folder / "mine-too", folder / "page.html").read_text()
    assert CliRunner().invoke(app, ["report", str(folder / "mine")]).exit_code == 0
    assert all((path / "report.html").is_file() for path in seed_runs(folder / "mine"))
    refused = CliRunner().invoke(app, ["report", str(folder / "mine"), "--output", str(folder / "x.html")])
    assert isinstance(refused.exception, ConfigError) and "stands for 3 seeds" in str(refused.exception)


def test_compare_names_them_by_their_recipe(folder: Path) -> None:
    for path in seed_runs(folder / "mine"):
        for number in (0, 1, 2):
            (RunDirectory(path).policy(number)).mkdir(parents=True, exist_ok=True)
            (RunDirectory(path).policy(number) / "manifest.json").write_text(
                '{"fingerprint": "", "outputs": {}, "seconds": 1}'
            )
    found = contestants([str(folder / "mine@1"), str(folder / "mine@start")])
    assert [one.name for one in found] == [
        *(f"mine-seed{seed}@1" for seed in (0, 2, 10)), *(f"mine-seed{seed}@start" for seed in (0, 2, 10))
    ]  # fmt: skip
    assert [one.recipe for one in found] == ["mine@1"] * 3 + ["mine@start"] * 3
    alone = contestants([str(folder / "mine")])
    assert [one.recipe for one in alone] == ["mine@start"] * 3 + ["mine@best"] * 3
    with pytest.raises(ConfigError, match="every iteration of every seed: name one"):
        contestants([str(folder / "mine@all")])


def test_seeds_meet_in_their_order_and_one_checkpoint_meets_them_all() -> None:
    def match(a: str, b: str, preference: float | None, prompt: str = "p") -> Match:
        return Match(prompt, "", a, b, "", "", preference)

    ours = [Contestant(f"r{seed}", "", recipe="r") for seed in (0, 1)]
    theirs = [Contestant(f"s{seed}", "", recipe="s") for seed in (0, 1)]
    base = Contestant("base", "")
    matches = [
        match("s0", "r0", 1.0), match("s0", "r0", 0.5, "q"), match("s1", "r1", 0.0), match("s1", "r1", None, "q"),
        match("s0", "r1", 0.123), match("r1", "r0", 0.123),
        match("r0", "base", 1.0), match("r1", "base", 0.0), match("s0", "base", 1.0), match("s1", "base", 1.0),
    ]  # fmt: skip
    found = between_seeds([base, *ours, *theirs], matches)
    # r against base: 1 and 0. s against r: (1 + .5) / 2 of the first seeds, 0 of the second (the unscored prompt is left out).
    assert [(one.a, one.b, one.rates) for one in found] == [
        ("r", "base", (1.0, 0.0)), ("s", "base", (1.0, 1.0)), ("s", "r", (0.75, 0.0))
    ]  # fmt: skip


def test_run_with_seeds(tiny_run: Path, tmp_path: Path, training_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(
        "def brief(prompts, responses, meta):\n    return [-len(one) / 100 for one in responses]\n"
    )
    changes = [
        "iterations=1", "policy.bootstrap=null", f"policy.model={tiny_run / 'iteration-000' / 'policy'}", "algorithm.steps=1",
        "reward.kind=function", "reward.function=./rewards.py:brief", f"seed={training_seed}", "output=mine",
    ]  # fmt: skip
    command = ["run", str(write_recipe(tmp_path)), *changes, "--seeds", "2"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    runs = seed_runs(tmp_path / "mine")
    assert [RunDirectory(path).recipe().seed for path in runs] == [training_seed, training_seed + 1]
    assert "iteration 1 against start" in said.stdout
    times = [(path / "iteration-001" / "policy" / "metrics.jsonl").stat().st_mtime_ns for path in runs]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert times == [(path / "iteration-001" / "policy" / "metrics.jsonl").stat().st_mtime_ns for path in runs]
    refused = CliRunner().invoke(app, ["run", command[1], *changes, f"output={runs[0]}", "--seeds", "2"])
    assert isinstance(refused.exception, ConfigError) and "is a run already" in str(refused.exception)
