"""A run on disk: whole or not there, one process at a time, and never mixed with another run's settings."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfplay.config import Recipe, validate
from selfplay.errors import ConfigError
from selfplay.records import Verdict
from selfplay.rundir import RunDirectory, differences
from selfplay.storage import durable
from selfplay.storage.checksums import hashes_of_file
from selfplay.storage.files import derived_seed, hash_of, read_json, read_json_lines, read_rows, write_json, write_rows
from selfplay.storage.journal import Journal

ROOT = Path(__file__).parents[1]
SEPARATORS = ("\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\r")
"""All that `str.splitlines` cuts at besides the line feed."""


def recipe(**changes: Any) -> Recipe:
    return validate(Recipe, {"name": "r", "policy": {"model": "m"}, **changes}, "test")


def finish(files: RunDirectory, number: int, name: str, fingerprint: str = "f", **outputs: str) -> None:
    """A stage that wrote so many files."""
    with files.writing(number, name, fingerprint) as folder:
        for file, text in outputs.items():
            (folder / file).write_text(text)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    durable.write(file, "old")

    def torn(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("selfplay.storage.durable.os.fsync", torn)
    with pytest.raises(OSError, match="disk full"):
        durable.write(file, "new and longer")
    assert file.read_text() == "old"


def test_no_reader_ever_sees_a_part(tmp_path: Path) -> None:
    """At the moment of the rename the new text is whole on disk."""
    file, seen = tmp_path / "a.txt", []
    real = os.replace

    def look(source: Any, target: Any) -> None:
        seen.append((Path(source).read_text(), Path(target).exists()))
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfplay.storage.durable.os.replace", look)
        durable.write(file, "whole é\n")
    assert seen == [("whole é\n", False)] and [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_json_keeps_text_as_it_is_and_refuses_nan(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"text": "é\u2028", "none": None})
    assert read_json(file) == {"text": "é\u2028", "none": None} and "é" in file.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"loss": math.nan})
    assert read_json(file)["none"] is None, "what was there is still there"


def test_json_lines_end_at_a_line_feed_only(tmp_path: Path) -> None:
    file, rows = tmp_path / "a.jsonl", [{"text": f"a{mark}b"} for mark in SEPARATORS]
    assert read_json_lines(file) == []
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    file.write_bytes(whole)
    assert read_json_lines(file) == rows
    for left in (b'{"text": "', b'{"text": "\xe2\x80'):  # killed within a line, within a character
        file.write_bytes(whole + left)
        assert read_json_lines(file) == rows


def test_rows_survive_parquet(tmp_path: Path) -> None:
    verdicts = [
        Verdict(pair_id="a", judge="j", order="forward", preference=0.25, reason="why\n é"),
        Verdict(pair_id="b", judge="j", order="none", preference=None, error="unreadable"),
    ]
    write_rows(tmp_path / "v.parquet", verdicts)
    assert [Verdict.model_validate(row) for row in read_rows(tmp_path / "v.parquet")] == verdicts
    write_rows(tmp_path / "m.parquet", [{"a": [1, 2]}, {"a": []}])
    assert read_rows(tmp_path / "m.parquet") == [{"a": [1, 2]}, {"a": []}]


def test_hashes_and_seeds_are_those_of_sha256(tmp_path: Path) -> None:
    assert hash_of({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a": [2], "b": 1}').hexdigest()
    (tmp_path / "f").write_bytes(b"abc")
    assert hashes_of_file(tmp_path / "f")[0] == hashlib.sha256(b"abc").hexdigest()
    # The first eight hex digits are 32 bits, of which the lowest 31 are the seed.
    digits = hashlib.sha256(b'[3, "prompts"]').hexdigest()[:8]
    assert derived_seed(3, "prompts") == int(digits, 16) % 2**31
    names = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a0", 0), ("0", "a", 0)]
    assert len({derived_seed(*name) for name in names}) == 6
    assert len({derived_seed(seed, name) for seed in range(20) for name in "abc"}) == 60


def test_a_journal_gives_back_what_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("a/0", [{"text": "line\nbreak \u2028 \u0085 é"}])
    journal.append("a/1", [])
    assert (
        Journal(tmp_path / "journal.jsonl").batches
        == journal.batches
        == {"a/0": [{"text": "line\nbreak \u2028 \u0085 é"}], "a/1": []}
    )
    assert Journal(tmp_path / "journal-2.jsonl").batches == {} and not (tmp_path / "journal-2.jsonl").exists()


@pytest.mark.parametrize("left", ["", "{", '{"key": "b", "rows": [2]}', '{"key": "b", "rows": ["\u00e9'])
def test_a_line_cut_short_is_dropped_and_the_next_one_is_whole(tmp_path: Path, left: str) -> None:
    """A kill may leave any part of the last line, even all of it but the line's end, even half a character."""
    file = tmp_path / "journal.jsonl"
    Journal(file).append("a", [1])
    whole = file.read_bytes()
    file.write_bytes(whole + left.encode()[: None if left.isascii() else -1])
    again = Journal(file)
    assert again.batches == {"a": [1]} and file.read_bytes() == whole
    again.append("b", [3])
    assert Journal(file).batches == {"a": [1], "b": [3]}


def test_a_stage_is_there_only_once_it_is_whole(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt), files.writing(1, "generate", "f") as folder:
        (folder / "half.txt").write_text("half")
        assert not files.finished(1, "generate") and not files.stage(1, "generate").exists()
        raise KeyboardInterrupt
    assert not files.stage(1, "generate").exists()
    with files.writing(1, "generate", "f") as folder:
        assert (folder / "half.txt").read_text() == "half", "what the same settings left is kept"
        assert not files.finished(1, "generate")
    assert files.finished(1, "generate") and not folder.exists()
    assert sorted(file.name for file in files.stage(1, "generate").iterdir()) == ["half.txt", "manifest.json"]


def test_what_other_settings_left_is_removed(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt), files.writing(1, "generate", "old") as folder:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt
    with files.writing(1, "generate", "new") as folder:
        assert [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()] == ["work/begun.json"]


def test_a_folder_that_no_stage_began_is_refused_and_left_alone(tmp_path: Path) -> None:
    partial = tmp_path / "iteration-001" / "label.partial"
    (partial / "work").mkdir(parents=True)  # what a kill before the first file leaves
    with RunDirectory(tmp_path).writing(1, "label", "f"):
        pass
    partial.mkdir()
    (partial / "thesis.tex").write_text("x")
    with (
        pytest.raises(ConfigError, match=r"label.partial' was not begun by a stage of this run; move it away"),
        RunDirectory(tmp_path).writing(1, "label", "f"),
    ):
        raise AssertionError("it was taken")
    assert (partial / "thesis.tex").read_text() == "x"


def test_a_manifest_holds_fingerprint_and_hashes(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    with files.writing(2, "reward", "print") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("abc")
    manifest = read_json(files.stage(2, "reward") / "manifest.json")
    assert manifest["fingerprint"] == "print" and manifest["seconds"] >= 0
    assert manifest["outputs"] == {"sub/a.txt": hashlib.sha256(b"abc").hexdigest()}


def test_seconds_of_an_interrupted_try_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("selfplay.rundir.time.time", lambda: now[0])
    files = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt), files.writing(1, "label", "f"):
        now[0] += 7
        raise KeyboardInterrupt
    now[0] += 1000  # nobody works
    with files.writing(1, "label", "f"):
        now[0] += 5
    assert files.seconds(1) == {"label": 12.0}


def test_the_hash_of_a_stage_changes_with_what_it_wrote_and_what_it_was_made_from(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    finish(files, 1, "generate", "f", a="1")
    finish(files, 2, "generate", "f", a="2")
    finish(files, 3, "generate", "g", a="1")
    finish(files, 4, "generate", "f", a="1")
    hashes = [files.manifest_hash(number, "generate") for number in (1, 2, 3, 4)]
    assert hashes[0] == hashes[3] and len(set(hashes)) == 3
    files.check_fingerprint(1, "generate", "f")
    with pytest.raises(
        ConfigError, match="was made with other settings or from other files .* delete it and the stages"
    ):
        files.check_fingerprint(1, "generate", "g")


def test_iterations_are_those_with_a_policy(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    finish(files, 0, "policy")
    finish(files, 1, "generate")
    finish(files, 10, "policy")
    finish(files, 2, "policy")
    assert files.iterations() == [0, 2, 10]
    assert files.policy(2) == tmp_path / "iteration-002" / "policy"


def test_metrics_are_those_that_the_finished_stages_left(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    assert files.metrics() == []
    finish(files, 2, "policy", **{"metrics.jsonl": '{"step": 1}\n'})
    finish(files, 1, "policy", **{"metrics.jsonl": '{"step": 1}\n{"step": 2}\n'})
    finish(files, 1, "reward-extra-1", **{"metrics.jsonl": '{"loss": 0.25}\n'})
    finish(files, 1, "reward", **{"metrics.jsonl": '{"loss": 0.5}\n'})
    finish(files, 0, "policy", **{"metrics.jsonl": '{"bits": 2}\n'})
    expected = [
        {"iteration": 0, "stage": "bootstrap", "bits": 2},
        {"iteration": 1, "stage": "reward", "loss": 0.5},
        {"iteration": 1, "stage": "reward-extra-1", "loss": 0.25},
        {"iteration": 1, "stage": "policy", "step": 1},
        {"iteration": 1, "stage": "policy", "step": 2},
        {"iteration": 2, "stage": "policy", "step": 1},
    ]
    assert files.metrics() == read_json_lines(tmp_path / "metrics.jsonl") == expected
    (tmp_path / "metrics.jsonl").write_text("damaged")
    files.tidy()
    assert files.metrics() == read_json_lines(tmp_path / "metrics.jsonl") == expected


def test_rows_of_the_format_before_are_in_the_runs_file_alone(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.stage(1, "reward").mkdir(parents=True)
    write_json(files.stage(1, "reward") / "manifest.json", {"fingerprint": "f", "seconds": 1, "outputs": {}})
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "stage": "reward", "loss": 0.5}\n')
    finish(files, 1, "policy", **{"metrics.jsonl": '{"step": 1}\n'})
    assert (
        files.metrics()
        == read_json_lines(tmp_path / "metrics.jsonl")
        == [
            {"iteration": 1, "stage": "reward", "loss": 0.5},
            {"iteration": 1, "stage": "policy", "step": 1},
        ]
    )


def test_copies_that_people_make_are_not_the_runs_own(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    finish(files, 1, "policy", "f", a="1")
    finish(files, 1, "generate", "f", a="1")
    for copy in ("iteration-001-backup", "iteration-002 (copy)", "iteration-3", "iteration-", "iteration-0001", "old"):
        shutil.copytree(tmp_path / "iteration-001", tmp_path / copy)
    for copy in ("policy-backup", "policy (copy)", "generate-extra-1-old", "generate-old", "policy.bak", "backup"):
        shutil.copytree(files.stage(1, "policy"), files.iteration(1) / copy)
    assert files.numbers() == files.iterations() == [1]
    assert files.stages(1) == ["generate", "policy"] and files.rounds(1, "generate") == [files.stage(1, "generate")]
    assert files.seconds(1).keys() == {"generate", "policy"}
    files.tidy()
    assert (files.iteration(1) / "policy (copy)" / "a").is_file()


HOLDER = """
import sys, time
from selfplay.rundir import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_a_killed_one_leaves_the_run_free(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(files.path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(
                ConfigError, match="another process is working on .*run'; wait for it, or give another `output`"
            ),
            files.locked(),
        ):
            raise AssertionError("two processes hold the run")
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=30)
        with files.locked():
            pass
        with files.locked():
            pass
    finally:
        holder.kill()
        holder.wait(timeout=30)
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_run_begins_with_its_recipe_and_what_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_write_me")
    files = RunDirectory(tmp_path)
    given = recipe(algorithm={"learning_rate": 1e-5}, sampling={"stop": ["off", "1e-4"]})
    files.begin(given)
    assert files.recipe() == given
    provenance = read_json(tmp_path / "provenance.json")
    assert {"command", "commit", "python", "platform", "cores", "packages", "started"} <= provenance.keys()
    assert provenance["packages"]["torch"] and provenance["command"] == sys.argv
    assert not any("hf_do_not_write_me" in file.read_text() for file in tmp_path.iterdir())


def test_the_same_recipe_goes_on_and_keeps_its_provenance(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.begin(recipe())
    before = (tmp_path / "provenance.json").read_text()
    files.begin(recipe())
    assert (tmp_path / "provenance.json").read_text() == before


def test_settings_that_change_nothing_that_is_finished_may_change(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.begin(recipe())
    changed = recipe(
        description="new",
        output=str(tmp_path),
        threads=3,
        report_to=["wandb"],
        iterations=9,
        launch={"workers": 2},
        guard={"patience": 2},
        algorithm={"offload_optimizer": True, "micro_batch_tokens": 512, "checkpoint_every": 1},
        engine={"sleep": True, "gpu_memory": 0.3, "timeout": 9000.0},
    )
    files.begin(changed)
    assert files.recipe() == changed


def test_a_changed_recipe_is_refused_with_what_differs_and_the_ways_out(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.begin(recipe())
    written = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ConfigError) as error:
        files.begin(recipe(seed=3, algorithm={"steps": 7}, iterations=5))
    assert str(error.value) == (
        f"{str(tmp_path)!r} was begun with other settings: algorithm.steps: 20 -> 7; seed: 0 -> 3. Give the old values to go on "
        "with it, `output=...` to begin another run, or delete it to begin anew"
    )
    assert (tmp_path / "config.yaml").read_text() == written


def test_a_section_that_comes_or_goes_is_a_difference() -> None:
    old, new = recipe().model_dump(), recipe(policy={"bootstrap": {"vocabulary": 300}}).model_dump()
    found = differences(old, new)
    assert found[0].startswith("policy.bootstrap: None -> {'corpus': 'stories'")
    assert found[1:] == ["policy.model: 'm' -> None"] and differences(old, old) == []


def test_a_nested_setting_with_the_name_of_a_free_one_counts() -> None:
    assert differences({"threads": 1, "a": {"threads": 1}}, {"threads": 2, "a": {"threads": 2}}) == [
        "a.threads: 1 -> 2"
    ]


def test_a_directory_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ConfigError, match=r"holds files that do not belong to a run \(thesis.tex\); give another `output`, or empty it"
    ):
        RunDirectory(tmp_path).begin(recipe())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_no_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="is not a run directory: it has no config.yaml; start one with `selfplay run RECIPE`"
    ):
        RunDirectory(tmp_path).recipe()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": "r", "policy": {"model": "m"}, "iteratons": 3}))
    with pytest.raises(ConfigError, match="unknown setting 'iteratons', did you mean 'iterations'"):
        RunDirectory(tmp_path).recipe()


def test_config_is_plain_yaml_that_others_can_read(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(recipe(description="Grüße"))
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "Grüße" in text and json.loads(json.dumps(yaml.safe_load(text)))["policy"]["model"] == "m"
