"""`selfplay verify` finds every byte that changed, a resume refuses to read it, and repairing leads back to the same run."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from judges.llm.cache import AnswerCache
from selfplay.cli import app
from selfplay.config import load_recipe
from selfplay.engines import Answer
from selfplay.engines.ledger import Ledger
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.results.damage import Verification
from selfplay.results.verify import repair, verify
from selfplay.rl.checkpoint import save_checkpoint
from selfplay.rundir import RunDirectory
from selfplay.storage.checksums import Damaged, write_checks, write_sealed
from selfplay.storage.journal import Journal, is_journal


@pytest.fixture(scope="module")
def stopped(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run with a stage under way, answers in the cache and answers of a comparison: one file of each kind."""
    home = tmp_path_factory.mktemp("stopped") / "run"
    shutil.copytree(tiny_run, home, symlinks=True)
    work = home / "iteration-003" / "policy.partial" / "work"
    work.mkdir(parents=True)
    write_sealed(work / "begun.json", {"fingerprint": "f", "seconds": 1.0})
    journal = Journal(work / "opponents.jsonl")
    for number in range(5):
        journal.append(str(number), [{"text": f"answer {number}"}])
    (work / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    save_checkpoint(work, {"fingerprint": {}, "steps_done": 2}, {"policy": torch.arange(100.0)})
    cache = AnswerCache(home / "judge_cache.sqlite")
    cache.put([(f"key {n}", Answer((f"[[{n}]]" * 9,), ("stop",), output_tokens=n)) for n in range(50)], "a model")
    cache.close()
    for name in ("compare", "score", "given-to-output"):
        (home / name / "samples").mkdir(parents=True)
        for ending in ("jsonl", "all", "scores"):
            Journal(home / name / "samples" / f"{'0a' * 12}.{ending}").append("answers", [{"text": "x"}])
    (work / "round-2.making").mkdir()
    for kind in ("round-2.making/journal-samples", "round-2.making/scores", "own", "journal-samples"):
        Journal(work / f"{kind}.jsonl").append("0", [1.0])
    (work / "round-1").mkdir()
    (work / "round-1" / "model.safetensors").write_bytes(bytes(range(100)))
    (work / "round-1" / "metrics.jsonl").write_text('{"objective/scores": 0.5}\n')
    write_checks(work / "round-1")
    ledger = Ledger(home / "spending.jsonl")
    for _ in range(4):
        call = ledger.reserve(1.0)
    ledger.settle(str(call), 0.5)
    write_sealed(home / "precision.json", {"products": "float32"})
    (home / "notes.json").write_text('{"tags": [], "notes": []}')
    return home


def covered(home: Path, found: Verification) -> list[Path]:
    """The files that were compared as a whole: all but those left out, and sqlite's."""
    every = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path: str(path.relative_to(home)) for path in every if "best" not in path.relative_to(home).parts}
    left_out = (*found.left_out, "judge_cache.sqlite")
    return sorted(path for path, name in names.items() if name not in left_out)


def test_a_run_is_what_was_written_and_what_is_left_out_is_listed_with_its_reason(stopped: Path) -> None:
    found = verify(stopped)
    assert found.damage == [] and found.unchecked == []
    assert found.answers == 50 and found.journal_lines == 5 + 9 + 4 + 5
    assert found.files == len(covered(stopped, found)) + 1
    assert found.left_out.keys() >= {"best", "report.html", "notes.json", "iteration-001/policy/README.md"}
    assert all(len(reason) > 20 for reason in found.left_out.values())


def test_every_one_of_200_random_changes_of_a_byte_is_found(stopped: Path) -> None:
    draw = random.Random(0)
    files = covered(stopped, verify(stopped))
    weights = [path.stat().st_size ** 0.5 for path in files]
    chosen = [*files, *draw.choices(files, weights, k=180 - len(files))]
    for path in chosen:
        data = path.read_bytes()
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :])
        found = verify(stopped)
        path.write_bytes(data)
        assert found.damage, f"{path}, byte {place}"
    path = stopped / "judge_cache.sqlite"  # its answers; sqlite's own free space says nothing
    data = path.read_bytes()
    for _ in range(20):
        place = data.index(f"[[{draw.randrange(50)}]]".encode()) + draw.randrange(-30, 60)
        path.write_bytes(data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :])
        assert verify(stopped).damage, f"byte {place} of the cache"
        path.write_bytes(data)
    assert verify(stopped).damage == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("iteration-002/policy/model.safetensors", ["generate", "label", "reward"]),
        ("iteration-002/reward/manifest.json", ["generate", "label"]),
        ("iteration-001/generate/completions.parquet", []),
        ("iteration-002/evaluate/evaluation.json", ["generate", "label", "reward", "policy"]),
    ],
)
def test_a_resume_that_would_read_a_changed_file_refuses_and_repairing_makes_it_anew(
    tiny_run: Path, training_seed: int, tmp_path: Path, name: str, kept: list[str]
) -> None:
    home = tmp_path / "run"
    shutil.copytree(tiny_run, home, symlinks=True)
    files = RunDirectory(home)
    data = bytearray((home / name).read_bytes())
    data[len(data) // 2] ^= 4
    (home / name).write_bytes(bytes(data))
    recipe = load_recipe(tiny_run.parent / "tiny.yaml", [f"output={home}", f"seed={training_seed}", "iterations=3"])
    with pytest.raises(
        Damaged, match=rf"{Path(name).name}' is damaged: .*; `selfplay verify .*run --repair` removes it"
    ):
        run(recipe)
    assert verify(home).damage
    assert "removed" in repair(home)[0] and verify(home).damage == [] and repair(home) == []
    number = int(name[10:13])
    assert files.stages(number) == kept and files.finished(number - 1, "evaluate")
    assert files.stages(3) == [] and (files.stages(2) == []) == (number == 1)


def test_an_unfinished_stage_without_its_mark_is_damaged(stopped: Path, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(stopped, home, symlinks=True)
    (home / "iteration-003" / "policy.partial" / "work" / "begun.json").unlink()
    assert [one.problem for one in verify(home).damage] == ["begun.json is not there any more"]
    assert repair(home) == [f"{home / 'iteration-003/policy.partial/work'}: its unfinished stage was removed"]
    assert list((home / "iteration-003").iterdir()) == []


def test_each_damaged_journal_is_found_repaired_and_read_again(stopped: Path, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(stopped, home, symlinks=True)
    journals = [path for path in home.rglob("*") if path.is_file() and is_journal(path)]
    assert len(journals) == 1 + 9 + 4
    for path in journals:
        Journal(path).append("more", [2.0])
        data = path.read_bytes()
        path.write_bytes(data[:25] + b"~" + data[26:])
        with pytest.raises(Damaged, match="selfplay verify .*run --repair"):
            Journal(path)
        assert repair(home) == [f"{path}: its damaged lines were removed; what a stage finds missing is made again"]
        assert "more" in Journal(path).batches
    with pytest.raises(ValueError, match="'answers.jsonl' is not in selfplay.storage.journal.NAMES"):
        Journal(home / "answers.jsonl")


def test_a_ledger_that_was_cut_is_found_and_repaired_with_its_total(stopped: Path, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(stopped, home, symlinks=True)
    path = home / "spending.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for left in (lines[:3], lines[1:], []):
        path.write_bytes(b"".join(left))
        with pytest.raises(Damaged, match=r"run --repair` keep what is known of it, or delete it and 'spending_total"):
            Ledger(path)
        assert [one.path for one in verify(home).damage] == [path]
        assert len(repair(home)) == 1 and verify(home).damage == [] and Ledger(path).total == 3.5


def test_files_of_others_in_a_stages_folder_are_kept(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "run"
    shutil.copytree(stopped, home, symlinks=True)
    own = ["iteration-001/policy/work/analysis.txt", "iteration-002/evaluate/notes.txt", "iteration-002/evaluate/my/a"]
    for name in own:
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(name)
    assert {verify(home).left_out[name] for name in own} == {"this run did not make it"}
    RunDirectory(home).tidy()
    assert all((home / name).read_text() == name for name in own)
    path = home / "iteration-002" / "evaluate" / "evaluation.json"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    assert len(repair(home)) == 1 and not path.parent.exists()
    assert all((home / "kept" / name).read_text() == name for name in own[1:])
    assert "my/a was not made by the run, and was moved to" in capsys.readouterr().err.replace("\n", "")
    assert [str(file.relative_to(home / "kept")) for file in (home / "kept").rglob("*") if file.is_file()] == own[1:]
    work = home / "iteration-001" / "policy" / "work"  # as a kill leaves it behind the rename
    write_sealed(work / "begun.json", {"fingerprint": "f", "seconds": 1.0})
    RunDirectory(home).tidy()
    assert not work.exists()


def test_what_stands_where_people_look_is_covered_too(tiny_run: Path, training_seed: int, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(tiny_run, home, symlinks=True)
    text = (home / "config.yaml").read_text()
    (home / "config.yaml").write_text(text.replace(f"seed: {training_seed}", f"seed: {training_seed + 7}"))
    with pytest.raises(Damaged, match="config.yaml' is damaged: it is not the one that this run wrote; put it back"):
        RunDirectory(home).recipe()
    assert [one.path.name for one in verify(home).damage] == ["config.yaml"]
    assert repair(home) == [f"{home / 'config.yaml'}: removed; `selfplay run RECIPE` writes it again"]
    RunDirectory(home).begin(load_recipe(tiny_run.parent / "tiny.yaml", [f"output={home}", f"seed={training_seed}"]))
    assert verify(home).damage == []
    (home / "metrics.jsonl").write_text((home / "metrics.jsonl").read_text().replace("1", "2", 1))
    assert [one.path.name for one in verify(home).damage] == ["metrics.jsonl"]
    RunDirectory(home).tidy()
    assert verify(home).damage == []


def test_a_run_of_the_format_before_is_read_and_said_to_be_unchecked(tiny_run: Path, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(tiny_run, home, symlinks=True)
    for path in [*home.rglob("manifest.json"), home / "provenance.json", home / "outcome.json"]:
        value = json.loads(path.read_text())
        path.write_text(
            json.dumps({k: v for k, v in value.items() if k not in ("format", "check", "checks", "config")})
        )
    found = verify(home)
    assert found.damage == [] and {"config.yaml", "provenance.json", "outcome.json"} <= set(found.unchecked)
    assert "iteration-001/policy/manifest.json" in found.unchecked
    weights = home / "iteration-001" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")  # whose sha256 is known all the same
    os.utime(weights)
    assert [one.path.name for one in verify(home).damage] == ["policy"]


def test_the_command_lists_damage_and_ends_with_1(tiny_run: Path, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(tiny_run, home, symlinks=True)
    assert "all are what was written" in CliRunner().invoke(app, ["verify", str(home)]).stdout
    (home / "iteration-002" / "evaluate" / "matches.parquet").write_bytes(b"")
    broken = CliRunner().invoke(app, ["verify", str(home)])
    assert broken.exit_code == 1 and "1 damaged; --repair removes them" in broken.stdout
    found = json.loads(CliRunner().invoke(app, ["verify", str(home), "--json"]).stdout)
    assert found["damage"][0]["problem"].startswith("matches.parquet: it has 0 bytes, and") and found["files"] > 40
    fixed = CliRunner().invoke(app, ["verify", str(home), "--repair"])
    assert fixed.exit_code == 0 and "removed, with evaluations from iteration 2 on" in fixed.stdout
    with pytest.raises(ConfigError, match="is not a run directory"):
        verify(tmp_path)
