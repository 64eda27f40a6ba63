"""A run of the format before, made by version 0.1.0, is shown, reported, verified, compared, exported and gone on with.

tests/data/run_format_1.tar.gz holds the tiny project of the torture, whose first iteration is finished and whose second was
killed while it labelled, behind two of three batches.
"""

import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfplay.cli import app
from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.results.verify import verify
from selfplay.rundir import RunDirectory
from selfplay.storage.checksums import FORMAT
from selfplay.storage.files import read_json

OLD = Path(__file__).parents[1] / "data" / "run_format_1.tar.gz"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old project, which is where the commands are given."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(project: Path) -> int:
    return len((project / "asked.txt").read_text().splitlines())


def test_an_old_run_is_read_by_every_command_that_reads(project: Path) -> None:
    for command in (["show", "run"], ["report", "run"], ["verify", "run"], ["export", "run@1", "kept"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.output)
    assert (
        "unchecked: config.yaml was written by an earlier version" in CliRunner().invoke(app, ["verify", "run"]).stdout
    )
    assert (
        "</html>" in (project / "run" / "report.html").read_text()
        and (project / "kept" / "model.safetensors").is_file()
    )
    assert CliRunner().invoke(app, ["compare", "run", "--judge", "judge.yaml"]).exit_code == 0


@pytest.mark.trains  # with the seed of its recipe
def test_an_old_run_goes_on_and_pays_for_nothing_twice(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfplay.stages.label.BATCH", 4)
    monkeypatch.setattr("selfplay.stages.reward_model.above_chance", lambda run, iteration, extra: True)
    files = RunDirectory(project / "run")
    before = {number: files.manifest(number, "policy")["outputs"] for number in (0, 1)}
    assert asked(project) == 12 + 8
    # A section of which the file names a part had another rest then; the sentence says so, and its way out works.
    with pytest.raises(
        ConfigError, match=r"policy.bootstrap.sft.training.learning_rate: 0.003 -> 0.002\. Give the old"
    ):
        run(load_recipe(Path("tiny.yaml"), ["output=run", "iterations=2"]))
    old = "policy.bootstrap.sft.training.learning_rate=0.003"
    run(load_recipe(Path("tiny.yaml"), ["output=run", "iterations=2", old]))
    assert asked(project) == 24, "the third batch of the second iteration alone was asked about"
    assert files.stages(2) == ["generate", "label", "reward", "policy", "evaluate"]
    assert {number: files.manifest(number, "policy")["outputs"] for number in (0, 1)} == before
    told = read_json(project / "run" / "provenance.json")
    assert told["format"] == FORMAT and told["command"] != sys.argv and told["resumed"][0]["command"] == sys.argv
    rows = [(row["iteration"], row["stage"]) for row in files.metrics()]
    assert {(0, "bootstrap"), (1, "reward"), (1, "policy"), (2, "reward"), (2, "policy")} == set(rows)
    assert rows.count((1, "policy")) == rows.count((2, "policy")) == 2
    assert verify(project / "run").damage == []


def test_a_changed_file_of_an_old_run_is_noticed_by_its_sha256(project: Path) -> None:
    weights = project / "run" / "iteration-001" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    result = CliRunner().invoke(app, ["export", "run@1", "kept"])
    assert "its sha256 is not the one in its manifest" in str(result.exception) and not (project / "kept").exists()


def test_a_run_of_a_newer_format_is_refused_with_one_sentence(project: Path) -> None:
    from selfplay.storage import durable
    from selfplay.storage.checksums import sealed

    durable.write(project / "run" / "provenance.json", sealed({"format": FORMAT + 1}))
    for read in (RunDirectory(project / "run").recipe, lambda: run(load_recipe(Path("tiny.yaml"), ["output=run"]))):
        with pytest.raises(ConfigError, match="knows formats up to 2: install a newer one"):
            read()
    shutil.rmtree(project / "run")
