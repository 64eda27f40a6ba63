"""The command line: a user's mistake is exit code 2 and one sentence; results go to standard output, all else does not."""

import errno
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from tiny_run import write_recipe

from selfplay.cli import main
from selfplay.config import load_recipe
from selfplay.errors import ENDED_EARLY, ConfigError, Interrupted, SelfplayError, Stopped
from selfplay.guard.selection import Assessment
from selfplay.storage.files import read_json

ROOT = Path(__file__).parents[1]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`selfplay ...` in an empty directory, in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["selfplay", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return call


MISTAKES = [
    (("run", "none.yaml"), "there is no recipe 'none.yaml'; write one with `selfplay init none.yaml`"),
    (("run", "mine.yaml", "algorithm.stps=3"), "unknown setting 'algorithm.stps', did you mean 'algorithm.steps'?"),
    (("run", "mine.yaml", "algorithm.steps"), "override 'algorithm.steps' is not of the form key=value"),
    (("run", "mine.yaml", "algorithm.steps=many"), "algorithm.steps = 'many': input should be a valid integer"),
    (("run", "mine.yaml", "algorithm.episodes=255"), "episodes 255 is not divisible by minibatches 4"),
    (("run", "mine.yaml", "judge.file=helpfulness"), "judge 'helpfulness' asks a language model, but names none"),
    (("run", "mine.yaml", "judge.file=storys"), "there is no judge 'storys', did you mean 'stories'?"),
    (("run", "mine.yaml", "prompts.heldout.split=train"), "prompts.train and prompts.heldout are the same"),
    (("doctor", "--directory", "runs"), "no --address is given: add --address auto, or leave --directory out"),
    (
        ("run", "mine.yaml", "policy.bootstrap=null", "policy.model=./none"),
        "policy.model is './none', which is not a checkpoint",
    ),
    (("run", "mine.yaml", "generate.prompts=5000"), "generate.prompts is 5000, but there are 1024 training prompts"),
    (("run", "broken.yaml", "--dry-run"), "broken.yaml is not valid YAML"),
    (("run", "mine.yaml", "output=."), "holds files that do not belong to a run (broken.yaml, empty, mine.yaml)"),
    (("run", "."), "'.' is a folder, not a recipe: name a file in it, such as broken.yaml"),
    (
        ("run", "run"),
        "'run' is a run's folder, not a recipe: go on with it by `selfplay run run/config.yaml output=run`",
    ),
    (
        ("bootstrap", "empty"),
        "'empty' is a folder, not a recipe: name a YAML file, or write one with `selfplay init empty/",
    ),
    (("init", "mine.yaml"), "'mine.yaml' is there already; give another name, or --force to replace it"),
    (
        ("show", "nowhere"),
        "'nowhere' is not a run directory: it has no config.yaml; start one with `selfplay run RECIPE`",
    ),
    (("policy", "nowhere", "--iteration", 1), "'nowhere' is not a run directory"),
    (("judge", "check", "storys"), "there is no judge 'storys', did you mean 'stories'?"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=[" ".join(map(str, words)) for words, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(
    command: Command, tmp_path: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    assert command("init", "mine.yaml").code == 0
    (tmp_path / "broken.yaml").write_text("policy: {model: [}\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    code, out, err = command(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [("run",), ("evaluate", "x"), ("policy", "x", "-i", 0), ("shw",), ("run", "a", "--dry")]
)
def test_what_the_command_line_itself_cannot_read_is_code_2_too(
    command: Command, arguments: tuple[object, ...]
) -> None:
    code, _, err = command(*arguments)
    assert code == 2 and "Traceback" not in err and err.strip()


def test_no_traceback_from_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from selfplay.cli import main; main()", "run", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no recipe") and done.stderr.count("\n") == 1


def test_what_init_writes_dry_runs(command: Command, tmp_path: Path) -> None:
    written = command("init", "mine.yaml")
    assert written == Result(0, "wrote mine.yaml; run it with: selfplay run mine.yaml\n", "")
    code, out, err = command("run", "mine.yaml", "--dry-run")
    assert (code, err) == (0, "")
    recipe, _, work = out.partition("\n\n")
    assert yaml.safe_load(recipe) == load_recipe(tmp_path / "mine.yaml").model_dump(mode="json")
    # Of the defaults: 2 iterations x 512 prompts x 2 completions, and 256 held-out prompts x 3.
    assert "completions: 2,816" in work.splitlines()
    amounts, _, memory = work.partition("memory per process in GB, of ")
    assert "policy: update" in memory
    assert {line.partition(":")[0] for line in amounts.splitlines()} == {
        "iterations",
        "completions",
        "pairs",
        "decided pairs about",
        "judge calls",
        "judge dollars",
        "judge dollars at most",
        "episodes",
        "sampled tokens at most",
    }
    assert not (tmp_path / "runs").exists(), "a dry run makes nothing"


def test_a_dry_run_as_json_with_overrides(command: Command) -> None:
    command("init", "mine.yaml")
    code, out, _ = command("run", "mine.yaml", "iterations=3", "algorithm.learning_rate=1e-4", "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0 and found.keys() == {"recipe", "work", "machine"}
    assert found["recipe"]["iterations"] == 3 and found["recipe"]["algorithm"]["learning_rate"] == 1e-4
    assert found["work"]["completions"] == 3 * 512 * 2 + 256 * 4


@pytest.mark.parametrize("recipe", sorted((ROOT / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_dry_runs(command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the processor had been timed: a test of its own does so."""
    monkeypatch.setattr("selfplay.sizing.hours.measured_seconds", lambda task: defaultdict(lambda: 1e-6))
    code, out, err = command("run", recipe, "--dry-run", "--json")
    assert (code, err) == (0, "") and json.loads(out)["work"]["completions"] > 0


def test_show_prints_a_table_and_json(command: Command, tiny_run: Path) -> None:
    code, out, err = command("show", tiny_run)
    assert (code, err) == (0, "") and out.splitlines()[-1] == f"run: {tiny_run}"
    rows = json.loads(command("show", tiny_run, "--json").out)
    assert [row["iteration"] for row in rows] == [0, 1, 2] and rows[2]["win_rate_vs_start"]["n"] == 32


def test_show_prints_the_transcripts_of_a_prompt(command: Command, tiny_run: Path, training_seed: int) -> None:
    from prompts.stories import prompts

    [first] = prompts("heldout", 1, training_seed)
    found = json.loads(command("show", tiny_run, "--prompt", first.id, "--json").out)
    assert found["prompt_id"] == first.id and len(found["answers"]) == 3 and len(found["matches"]) == 3
    assert first.text in command("show", tiny_run, "--prompt", first.id).out.replace("\n", " ")
    code, _, err = command("show", tiny_run, "--prompt", "nobody")
    assert code == 2 and "the run has no held-out prompt 'nobody'; it has, for example, " in err


def test_a_stage_alone_that_is_done_is_left_as_it_is_and_one_too_early_is_refused(
    command: Command, tiny_run: Path
) -> None:
    manifest = (tiny_run / "iteration-001" / "label" / "manifest.json").read_bytes()
    done = command("label", tiny_run, "--iteration", 1)
    assert (done.code, done.out) == (0, f"{tiny_run / 'iteration-001' / 'label'}\n")
    assert (tiny_run / "iteration-001" / "label" / "manifest.json").read_bytes() == manifest
    code, _, err = command("reward", tiny_run, "--iteration", 3)
    assert code == 2 and "stage 'reward' of iteration 3 needs" in err and "run that stage first" in err


def test_a_changed_recipe_on_an_old_run_is_refused(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    code, _, err = command("run", write_recipe(tmp_path), f"output={tiny_run}", "algorithm.steps=4")
    assert code == 2 and "algorithm.steps: 3 -> 4" in err and "`output=...` to begin another run" in err


def test_a_problem_that_doctor_finds_is_exit_code_1(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfplay.verbs import doctor

    note = doctor.Finding("GPU", "note", "none")
    problem = doctor.Finding("trl", "problem", "trl 1.0 is not ==1.16.0", "pip install trl==1.16.0")
    monkeypatch.setattr(doctor, "diagnose", lambda: [note])
    assert command("doctor").code == 0
    monkeypatch.setattr(doctor, "diagnose", lambda: [note, problem])
    plain, as_json = command("doctor"), command("doctor", "--json")
    assert plain.code == 1 and plain.out.endswith("-> pip install trl==1.16.0\n")
    assert as_json.code == 1 and json.loads(as_json.out)[1]["state"] == "problem"


RULES = {
    "the brake": ("selfplay.loop.learn_reward", lambda run, iteration: False, "is not better than chance"),
    "the guard": (
        "selfplay.guard.selection.assess_run",
        lambda run: Assessment(
            best_iteration=0, reason="", alarms=(), audited=False, stop="iteration 1 raised a severe alarm"
        ),
        "raised a severe alarm",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_ended_by_its_own_rules_is_exit_code_3(
    command: Command, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path, rule: str
) -> None:
    """The finished tiny run given again, once as it is and once under a rule that now ends it."""
    copy = shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    again = ("run", copy / "config.yaml", f"output={copy}")
    assert command(*again).code == 0 and read_json(copy / "outcome.json")["stopped"] is None
    where, what, reason = RULES[rule]
    monkeypatch.setattr(where, what)
    ended = command(*again)
    assert ended.code == 3 and ended.out.splitlines()[-1] == f"run: {copy}"
    assert reason in read_json(copy / "outcome.json")["stopped"]
    assert command(*again, "--json").code == 3


def test_the_help_of_run_has_every_exit_code(command: Command) -> None:
    said = command("run", "--help").out
    codes = {int(code) for code in re.findall(r"^ +(\d+) ", said.partition("Exit codes:")[2], re.MULTILINE)}
    errors = (SelfplayError, ConfigError, Stopped, Interrupted)
    assert codes == {0, ENDED_EARLY, *(error.exit_code for error in errors)}


def test_doctor_as_json(command: Command) -> None:
    found = json.loads(command("doctor", "--json").out)
    assert {"state", "subject", "detail", "cure"} <= found[0].keys()


def test_a_judge_s_tests_run_without_its_model(command: Command) -> None:
    alone = command("judge", "check", "helpfulness", "--tests-only")
    assert alone.code == 0 and alone.out.startswith("tests in the file: 14 of 14 pass\n") and alone.err == ""
    as_json = command("judge", "check", "helpfulness", "--tests-only", "--json")
    assert json.loads(as_json.out)["failed_tests"] == [] and as_json.err == "tests in the file: 14 of 14 pass\n"
    asked = command("judge", "check", "helpfulness")
    assert asked.code == 2 and asked.out == "tests in the file: 14 of 14 pass\n"
    assert asked.err == NAMES_NO_MODEL.format("--model")


NAMES_NO_MODEL = (
    "error: judge 'helpfulness' asks a language model, but names none: give one with {} (a checkpoint or a hub id), or set "
    "`model` in a judge's file of your own\n"
)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("calibrate", "helpfulness"), "--model"),
        (("compare", "stories", "helpfulness", "--pairs", "pairs.jsonl"), "--other-model"),
        (("calibrate", "stories", "--pairs", "pairs.jsonl", "--teacher", "helpfulness"), "--teacher-model"),
    ],
    ids=["the judge", "the second judge", "the teacher"],
)
def test_a_judge_without_a_model_names_the_option_for_one(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], option: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}\n')
    found = command("judge", *arguments)
    assert (found.code, found.out, found.err) == (2, "", NAMES_NO_MODEL.format(option))


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "RUN", "--output", "/proc/none"),
        ("score", "RUN", "--output", "/proc/none"),
        ("compare", "RUN", "--output", "here", "--report", "/proc/none/page.html"),
        ("compare", "RUN", "--output", "here", "--table", "/proc/none/table.csv"),
        ("report", "RUN", "--output", "page.html", "--figures", "/proc/none"),
        ("report", "RUN", "--output", "/proc/none.html"),
        ("export", "RUN@2", "/proc/none"),
        ("init", "/proc/none"),
        ("run", "tiny.yaml", "output=/proc/none"),
    ],
    ids=" ".join,
)
def test_a_place_that_cannot_be_made_is_one_sentence(
    command: Command, tmp_path: Path, tiny_run: Path, words: tuple[str, ...]
) -> None:
    write_recipe(tmp_path)
    code, _, err = command(*(word.replace("RUN", str(tiny_run)) for word in words))
    said = err.splitlines()[-1]
    assert code == 2 and said.startswith("error: '/proc/none")
    another = words[0] in ("compare", "score") and words[-2] == "--output"
    way_out = "name another folder with --output" if another else "fix that and give the same command again"
    assert "could not be written: " in said and f"; {way_out}" in said


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("compare", "RUN", "--output", "here"), True),
        (("score", "RUN", "--output", "here"), True),
        (("run", "tiny.yaml"), True),
        (("evaluate", "RUN", "--iteration", 2), True),
        (("report", "RUN"), False),
        (("note", "RUN", "text"), False),
        (("export", "RUN@2", "copy"), False),
        (("init", "new.yaml"), False),
    ],
    ids=str,
)
def test_only_a_verb_that_saves_as_it_works_says_that_it_goes_on(
    command: Command,
    tmp_path: Path,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    kept: bool,
) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    if words[0] == "evaluate":
        shutil.rmtree(copy / "iteration-002/evaluate")
    write_recipe(tmp_path)

    def refuse(call: str, path: Path) -> None:
        if call == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("selfplay.storage.durable.hook", refuse)
    code, _, err = command(*(str(word).replace("RUN", str(copy)) for word in words))
    end = "free some space and give the same command again" + ", which goes on from what is saved" * kept
    assert code == 2 and err.splitlines()[-1].endswith(end)


def test_a_name_that_is_too_long_is_one_sentence_and_a_file_that_we_forgot_is_none(
    command: Command, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = command("compare", tiny_run, "--output", "x" * 300)
    assert code == 2 and "File name too long" in err and len(err.splitlines()) == 1

    def lost(*arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "of/our/own")

    monkeypatch.setattr("selfplay.report.show.transcripts", lost)
    with pytest.raises(FileNotFoundError):
        command("show", tiny_run, "--prompt", "any")


def test_a_disk_that_refuses_is_one_sentence(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    recipe = write_recipe(tmp_path)
    found = command("run", recipe, "output=file/run")
    assert (found.code, found.out) == (2, "")
    assert found.err == (
        "error: 'file/run' could not be written: Not a directory; fix that and give the same command again, which goes on "
        "from what is saved\n"
    )

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere/else")

    monkeypatch.setattr("selfplay.loop.run", full)  # a file that a library writes
    assert command("run", recipe) == Result(
        2, "", "error: somewhere/else: No space left on device; fix that and give the same command again\n"
    )
