"""Many runs: listed with their state, told apart, annotated, and pruned without losing what was measured."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from making_runs import Plan, make_run
from typer.testing import CliRunner

from selfplay.catalog.diff import diff
from selfplay.catalog.listing import list_runs, size_text
from selfplay.catalog.prune import plan_pruning
from selfplay.cli import app
from selfplay.compare.head_to_head import compare
from selfplay.compare.settings import Given
from selfplay.errors import ConfigError
from selfplay.loop import run_stage
from selfplay.report.html import write_report
from selfplay.report.show import iterations
from selfplay.results.notes import add_note
from selfplay.rundir import RunDirectory
from selfplay.storage.files import write_json


def said(*arguments, answer: str = ""):
    return CliRunner().invoke(app, list(map(str, arguments)), input=answer)


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A finished real run that may be changed."""
    shutil.copytree(tiny_run, tmp_path / "runs/tiny", symlinks=True)
    return tmp_path / "runs/tiny"


def test_runs_are_listed_with_their_state(copy, tmp_path):
    made = make_run(tmp_path / "runs/stopped", Plan(prompts=12))
    shutil.rmtree(made / "iteration-002/evaluate")
    (made / "iteration-002/evaluate.partial").mkdir()
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/config.yaml").write_text("name: [")
    (tmp_path / "runs/notes.txt").write_text("no run")
    found = {Path(one.path).name: one for one in list_runs(tmp_path / "runs")}
    assert {name: one.state for name, one in found.items()} == {
        "tiny": "finished",
        "stopped": "stopped",
        "broken": "damaged",
    }
    tiny = found["tiny"]
    assert (tiny.name, tiny.iterations, tiny.wanted) == ("tiny", 2, 2)
    rate = json.loads((copy / "iteration-002/evaluate/evaluation.json").read_text())["win_rate_vs_start"]
    assert tiny.best == json.loads((copy / "outcome.json").read_text())["best"]
    assert tiny.best != 2 or tiny.win_rate == rate
    assert tiny.measured_by.endswith("tiny_judge.yaml") and tiny.bytes > 100_000
    assert found["stopped"].detail == "iteration 2, evaluate" and found["stopped"].iterations == 1
    assert "config.yaml' is damaged: it is not YAML" in found["broken"].detail


def test_a_run_that_a_process_holds_is_running_with_the_time_left(tmp_path):
    made = make_run(tmp_path / "runs/going", Plan(prompts=12))
    shutil.rmtree(made / "iteration-002/evaluate")
    (made / "iteration-002/evaluate.partial").mkdir()
    script = (
        "import sys; from selfplay.rundir import RunDirectory\n"
        f"with RunDirectory({str(made)!r}).locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as held:
        assert held.stdout.readline() == "held\n"
        (one,) = list_runs(made.parent)
        held.communicate("")
    assert (one.state, one.detail) == ("running", "iteration 2, evaluate")
    files = RunDirectory(made)
    # One iteration like the first, less what the second has spent already.
    assert one.left == pytest.approx(max(0, sum(files.seconds(1).values()) - sum(files.seconds(2).values())))
    assert list_runs(made.parent)[0].state == "stopped"


def refuse_to_open(monkeypatch, folder, flags):
    """Let `os.open` with any of the flags fail below a folder, as for another user."""
    before = os.open

    def refusing(path, given, *arguments, **named):
        if given & flags and Path(os.fspath(path)).is_relative_to(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return before(path, given, *arguments, **named)

    monkeypatch.setattr(os, "open", refusing)


def test_runs_that_this_user_may_only_read_are_listed(tmp_path, monkeypatch):
    done, cut = (make_run(tmp_path / "runs" / name, Plan(prompts=12)) for name in ("done", "cut"))
    shutil.rmtree(cut / "iteration-002/evaluate")
    (cut / "iteration-002/evaluate.partial").mkdir()
    write_json(done / "outcome.json", {"best": 2, "stopped": None})
    for one in (done, cut):
        (one / ".lock").touch()
    before = {Path(one.path).name: (one.state, one.detail) for one in list_runs(tmp_path / "runs")}
    assert before == {"done": ("finished", ""), "cut": ("stopped", "iteration 2, evaluate")}
    refuse_to_open(monkeypatch, tmp_path / "runs", os.O_RDWR | os.O_WRONLY)
    found = {Path(one.path).name: (one.state, one.detail) for one in list_runs(tmp_path / "runs")}
    assert found == {**before, "cut": ("unknown", "iteration 2, evaluate")}


@pytest.mark.parametrize("hidden", ["secret", "secret/config.yaml"])
def test_a_run_that_this_user_may_not_read_is_a_line(tmp_path, monkeypatch, hidden):
    for name in ("secret", "open"):
        make_run(tmp_path / "runs" / name, Plan(prompts=12))
    before, place = os.stat, tmp_path / "runs" / hidden
    kept = Path.read_bytes

    def refusing(path, *arguments, **named):
        if isinstance(path, str | Path) and Path(path) != tmp_path / "runs/secret" and Path(path).is_relative_to(place):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return before(path, *arguments, **named)

    def unreadable(path):
        if path == place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return kept(path)

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    if hidden == "secret":
        monkeypatch.setattr(os, "stat", refusing)
    found = {Path(one.path).name: one for one in list_runs(tmp_path / "runs")}
    assert found["open"].state == "stopped" and found["secret"].state == "unreadable"
    assert "secret" in found["secret"].detail and found["secret"].detail.endswith(": Permission denied")
    assert "unreadable" in said("runs", tmp_path / "runs").stdout


def test_the_table_and_the_json_of_runs(copy):
    add_note(copy, tags=["baseline"])
    text = said("runs", copy.parent).stdout
    assert "finished" in text and "2 of 2" in text and "baseline" in text and "state" in text.splitlines()[0]
    (one,) = json.loads(said("runs", copy.parent, "--json").stdout)
    assert one["state"] == "finished" and one["tags"] == ["baseline"]
    assert said("runs", copy / "nowhere").exception.args[0].startswith("there is no folder")


def test_two_runs_are_told_apart_in_recipe_code_data_and_outcome(copy, tmp_path, training_seed):
    other = tmp_path / "runs/other"
    shutil.copytree(copy, other, symlinks=True)
    assert diff(copy, other) == {"recipe": [], "code": [], "data": [], "outcome": []}
    (other / "provenance.json").unlink()
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(
        config.replace(f"seed: {training_seed}", f"seed: {training_seed + 7}", 1).replace(
            "iterations: 2", "iterations: 3"
        )
    )
    shutil.rmtree(other / "iteration-002/evaluate")
    found = diff(copy, other)
    assert (
        "iterations: 2 -> 3" in found["recipe"] and f"seed: {training_seed} -> {training_seed + 7}" in found["recipe"]
    )
    assert any(line.startswith("train prompts: 128 -> 128, ") for line in found["data"])
    assert any(line.startswith("torch ") and line.endswith(" -> none") for line in found["code"])
    assert any(
        line.startswith("iteration 2 beats the start: ") and line.endswith("not evaluated") for line in found["outcome"]
    )
    text = said("diff", copy, other).stdout
    assert text.startswith("recipe:\n  ") and "\ndata:\n" in text


def test_notes_and_tags_are_kept_and_shown_in_the_report(copy):
    assert said("note", copy, "KL too low; try 0.05 <b>", "--tag", "sweep-3", "--tag", "keep").exit_code == 0
    assert said("note", copy, "--untag", "keep").stdout.startswith("tags: sweep-3\n")
    text = said("note", copy).stdout
    assert "KL too low; try 0.05 <b>" in text
    page = write_report(copy).read_text()
    assert "KL too low; try 0.05 &lt;b&gt;" in page and '<span class="tag">sweep-3</span>' in page
    assert "has no tag 'x'; it has: sweep-3" in str(said("note", copy, "--untag", "x").exception)
    assert "is not a run directory" in str(said("note", copy.parent, "text").exception)


def test_pruning_asks_says_what_goes_and_leaves_a_run_that_is_read_and_compared(copy):
    before, report = iterations(copy), write_report(copy).read_text()
    best = json.loads((copy / "outcome.json").read_text())["best"]
    weights = {path for path in copy.rglob("*.safetensors") if "judge" not in path.parts}
    asked = said("prune", copy, answer="n\n")
    assert "nothing was removed" in asked.stdout and all(path.is_file() for path in weights)
    plan = plan_pruning(copy)
    assert plan.kept == (best,) and plan.bytes == sum(
        path.stat().st_size for path in weights if f"iteration-{best:03d}" not in path.parts
    )
    done = said("prune", copy, "--yes")
    assert f"frees {size_text(plan.bytes)}" in done.stdout and done.stdout.endswith("removed\n")
    left = set(copy.rglob("*.safetensors"))
    assert left == {path for path in weights if f"iteration-{best:03d}" in path.parts}
    assert iterations(copy) == before
    assert write_report(copy).read_text() == report
    result = compare([str(copy)], folder=copy.parent / "compared")
    assert result.names == ("iteration-000", "iteration-001", "iteration-002"), "from the answers that the run sampled"
    assert "there is nothing to remove" in said("prune", copy, "--yes").stdout


def test_what_needs_pruned_weights_is_refused(copy):
    said("prune", copy, "--keep", "last", "--yes")
    with pytest.raises(ConfigError, match=r"the weights of 'iteration-000' were pruned .*name another iteration"):
        compare([str(copy)], Given(temperature=0.31), folder=copy.parent / "compared")
    with pytest.raises(ConfigError, match="was pruned: the weights of iteration start, 1 are gone"):
        run_stage(copy, "generate", 2)


def test_a_pruned_run_is_finished_and_undamaged(copy):
    """Stages made from a pruned one still fit it: its manifest's hash is that of all that it wrote."""
    files = RunDirectory(copy)
    hashes = [files.manifest_hash(number, "policy") for number in (0, 1, 2)]
    said("prune", copy, "--keep", "1", "--yes")
    assert [files.manifest_hash(number, "policy") for number in (0, 1, 2)] == hashes
    assert files.pruned(0, "policy") == ["model.safetensors"] and files.pruned(1, "policy") == []
    assert list_runs(copy)[0].state == "finished"


def test_verifying_a_pruned_run_names_what_was_pruned_and_finds_no_damage(copy):
    best = json.loads((copy / "outcome.json").read_text())["best"]
    weights = {path for path in copy.rglob("*.safetensors") if path.parent.name in ("policy", "reward")}
    said("prune", copy, "--keep", "best", "--yes")
    gone = {str(path.relative_to(copy)) for path in weights if f"iteration-{best:03d}" not in path.parts}
    done = said("verify", copy)
    assert done.exit_code == 0 and "all are what was written" in done.stdout and gone
    named = re.findall(r"^left out: (\S+) \(removed on purpose, with `selfplay prune`\)$", done.stdout, re.MULTILINE)
    assert set(named) == gone and len(named) == len(gone)
    assert "damaged" not in done.stdout and said("verify", copy, "--repair").exit_code == 0
    (kept,) = [path for path in weights if path.is_file() and path.parent.name == "policy"]
    kept.unlink()
    assert f"damaged: {kept.parent}: {kept.name}: it is not there any more" in said("verify", copy).stdout


def test_a_pruning_that_was_killed_is_no_damage_and_can_be_given_again(copy):
    """Manifests are written before files go: a kill in between leaves weights that the manifest calls pruned."""
    kept = copy / "iteration-000/policy/model.safetensors"
    data = kept.read_bytes()
    said("prune", copy, "--keep", "last", "--yes")
    kept.write_bytes(data)
    done = said("verify", copy)
    assert (
        done.exit_code == 0
        and "left out: iteration-000/policy/model.safetensors (pruning it was cut short" in done.stdout
    )
    assert f"frees {size_text(len(data))}" in said("prune", copy, "--keep", "last", "--yes").stdout
    assert not kept.exists() and said("verify", copy).exit_code == 0


@pytest.mark.parametrize(("keep", "message"), [("7", "'7' cannot be kept"), ("first", "'first' cannot be kept")])
def test_what_cannot_be_kept_is_named(copy, keep, message):
    assert message in str(said("prune", copy, "--keep", keep).exception)


def test_naming_nothing_to_keep_removes_nothing(copy):
    before = set(copy.rglob("*"))
    for keep in ("", " , "):
        assert "nothing is named to keep" in str(said("prune", copy, "--keep", keep, "--yes").exception)
    assert set(copy.rglob("*")) == before


def test_files_that_go_away_while_runs_are_listed_count_nothing(copy, monkeypatch):
    (before,) = list_runs(copy)
    stale = [*copy.rglob("*"), copy / "iteration-002/gone.partial/work"]
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: iter(stale) if path == copy else iter(()))
    (after,) = list_runs(copy)
    assert after.bytes == before.bytes


@pytest.mark.parametrize("tag", ["", "two words", "tab\tbed"])
def test_a_tag_is_one_word(copy, tag):
    assert "a tag is one word" in str(said("note", copy, "--tag", tag).exception)
    assert not (copy / "notes.json").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"tags": 5}', "its tags are not a list of words"),
        ('{"tags": [5]}', "its tags are not a list of words"),
        ('{"notes": {"a": 1}}', "its notes are not a list of objects"),
        ('{"notes": ["text"]}', "its notes are not a list of objects"),
        ("[]", "it holds no JSON object"),
    ],
)
def test_notes_that_cannot_be_read_are_a_sentence_and_the_other_runs_are_listed(copy, content, problem):
    shutil.copytree(copy, copy.with_name("other"), symlinks=True)
    (copy / "notes.json").write_text(content)
    found = {Path(one.path).name: one for one in list_runs(copy.parent)}
    assert found["other"].state == "finished" and found["tiny"].state == "damaged"
    assert problem in found["tiny"].detail and "the run does not need it" in found["tiny"].detail


def test_what_is_not_utf_8_is_no_note_no_tag_and_no_setting(copy):
    half = b"\xed\xa0\xbd".decode(errors="surrogateescape")
    for arguments in (["note", copy, half], ["note", copy, "--tag", half], ["run", "x.yaml", f"description={half}"]):
        Path(copy / "x.yaml").write_text("description: x\n")
        arguments = [copy / one if one == "x.yaml" else one for one in arguments]
        found = said(*arguments).exception
        assert isinstance(found, ConfigError) and "is not text in UTF-8" in str(found) and str(found).encode()
    assert not (copy / "notes.json").exists()


def test_prompts_that_are_not_there_any_more_leave_the_rest_of_a_difference(copy, tmp_path):
    other = tmp_path / "runs/other"
    shutil.copytree(copy, other, symlinks=True)
    (other / "provenance.json").unlink()
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["prompts"]["heldout"]["source"] = str(tmp_path / "moved.jsonl")
    config["iterations"] = 3
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    found = diff(copy, other)
    assert "iterations: 2 -> 3" in found["recipe"]
    (line,) = found["data"]
    assert line.startswith("heldout prompts: not compared, since those of one run cannot be read now (")
    assert "moved.jsonl" in line


def test_a_run_that_goes_on_is_not_pruned(copy):
    (copy / "outcome.json").unlink()
    assert "is not finished, and going on needs its weights" in str(said("prune", copy).exception)


def test_sizes_have_three_digits():
    assert [size_text(size) for size in (7, 312_400, 4_560_000, 1_234_000_000)] == [
        "7 B",
        "312 kB",
        "4.56 MB",
        "1.23 GB",
    ]


def test_an_iteration_whose_weights_are_gone_cannot_be_kept(copy):
    best = json.loads((copy / "outcome.json").read_text())["best"]
    other = 1 if best != 1 else 2
    said("prune", copy, "--yes")
    before = set(copy.rglob("*"))
    for keep in (str(other), f"best,{other}"):
        message = str(said("prune", copy, "--keep", keep, "--yes").exception)
        assert f"iteration {other} cannot be kept: its weights were pruned before" in message
    assert set(copy.rglob("*")) == before
    (copy / f"iteration-{best:03d}/policy/model.safetensors").unlink()
    assert "its weights are gone" in str(said("prune", copy, "--keep", "best", "--yes").exception)


def test_the_best_is_not_guessed_where_evaluations_are_missing(tmp_path):
    made = make_run(tmp_path / "runs/made", Plan(prompts=12))
    outcome = {"best": 2, "reason": "", "stopped": None, "alarms": []}
    (made / "outcome.json").write_text(json.dumps(outcome))
    for folder in made.glob("iteration-*/evaluate"):
        shutil.rmtree(folder)
    with pytest.raises(
        ConfigError, match="says that the best iteration is 2, and its evaluations say 0: `selfplay verify"
    ):
        plan_pruning(made)
    assert plan_pruning(made, ["2"]).kept == (2,)


def test_an_outcome_that_cannot_be_read_is_damaged_and_no_run_is_of_the_future(copy):
    shutil.copytree(copy, copy.with_name("other"), symlinks=True)
    (copy / "outcome.json").write_text("[]")
    later = time.time() + 86400
    for name in ("provenance.json", "config.yaml"):
        os.utime(copy.with_name("other") / name, (later, later))
    found = {Path(one.path).name: one for one in list_runs(copy.parent)}
    assert (
        found["tiny"].state == "damaged" and "outcome.json' is damaged: it holds no JSON object" in found["tiny"].detail
    )
    assert found["other"].state == "finished" and found["other"].age == 0
