"""The shape of the code: which module may import which, what the command line loads, how long a file may be."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from selfplay.config import load_recipe

ROOT = Path(__file__).parents[1]
PACKAGES = ("selfplay", "judges", "prompts")
ORDER = (
    "selfplay.errors",
    "selfplay.records",
    "selfplay.progress",
    "selfplay.stopping",
    "selfplay.storage",
    "selfplay.config",
    "selfplay.objects",
    "selfplay.stats",
    "selfplay.formatting",
    "selfplay.rundir",
    "prompts",
    "selfplay.weights",
    "selfplay.models",
    "selfplay.lora",
    "selfplay.distributed",
    "selfplay.tracking",
    "selfplay.engines",
    "judges.spec",
    "judges.criteria",
    "judges.verdicts",
    "judges.consistency",
    "judges.llm",
    "judges.modes",
    "judges.build",
    "judges",
    "judges.audit",
    "judges.distill",
    "selfplay.rewards",
    "selfplay.training",
    "selfplay.rl",
    "selfplay.ilql",
    "selfplay.context",
    "selfplay.algorithms",
    "selfplay.results",
    "selfplay.guard",
    "selfplay.report",
    "selfplay.compare",
    "selfplay.catalog",
    "selfplay.preflight",
    "selfplay.sizing",
    "selfplay.stages",
    "selfplay.loop",
    "selfplay.notebook",
    "selfplay.verbs",
    "selfplay.cli",
    "selfplay.__main__",
)
"""One strict order, from the bottom up: a module imports from its own package and from those before it, and nothing else.

`selfplay` itself only hands on names, when asked for. CONTRIBUTING states the same order.
"""
RL_MATHS = ("advantages", "losses", "kl", "logprobs")
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
MOST_FILES = 16


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported_names(tree: ast.AST) -> set[str]:
    """Every dotted name that is imported when the code runs, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        names |= imported_names(node)
    return names


def module_of(name: str) -> str:
    """The module that holds an imported name: `selfplay.config.PPO` is in `selfplay.config`."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name


IMPORTS = {
    module: {module_of(name) for name in imported_names(ast.parse(path.read_text()))} - {"", module}
    for module, path in FILES.items()
}


def place(module: str) -> int:
    """Place of a module in ORDER: that of the longest entry that names it or a package around it."""
    found = [entry for entry in ORDER if module == entry or module.startswith(entry + ".")]
    assert found, f"{module} has no place in ORDER: give it one"
    return ORDER.index(max(found, key=len))


def test_the_walk_sees_imports_inside_functions() -> None:
    assert "selfplay.stages.policy" in FILES and "selfplay.config" in IMPORTS["selfplay.loop"]
    inside = imported_names(ast.parse("def f():\n  if x:\n    from a.b import c\nif TYPE_CHECKING:\n  import d"))
    assert inside == {"a.b.c"}


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} -> {target}"
        for module, targets in IMPORTS.items()
        if module != "selfplay"
        for target in targets - {"selfplay"}
        if place(target) > place(module)
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    """A package and its own modules count as one: a name handed on by `__init__` is no circle."""
    edges = {
        module: {target for target in targets if not module.startswith(target + ".")}
        for module, targets in IMPORTS.items()
        if FILES[module].name != "__init__.py"
    }
    assert set(TopologicalSorter(edges).static_order()) >= set(edges)  # raises CycleError, which names the circle


def test_contributing_states_the_order() -> None:
    """Every package of the order, from the top down, in one line each of CONTRIBUTING's map."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [
        f"    {name.replace('.', '/')}"
        for name in reversed(ORDER)
        if name.count(".") <= 1 and name != "selfplay.__main__"
    ]
    places = [
        next((text.index(row + end) for end in ("/ ", ".py ", "/__init__.py ") if row + end in text), -1)
        for row in rows
    ]
    assert -1 not in places, f"CONTRIBUTING does not name {rows[places.index(-1)].strip()}"
    assert places == sorted(places)


def test_judges_see_the_engine_protocol_only() -> None:
    seen = {target for module, targets in IMPORTS.items() if module.startswith("judges") for target in targets}
    ours = {name for name in seen if name.startswith("selfplay")}
    packages = {".".join(name.split(".")[:2]) for name in ours}
    assert packages <= {
        f"selfplay.{name}" for name in ("config", "errors", "records", "objects", "stats", "engines", "storage")
    }
    assert not any(name.startswith("selfplay.engines.") for name in ours)


@pytest.mark.parametrize("name", RL_MATHS)
def test_the_maths_of_ppo_imports_torch_and_nothing_of_ours(name: str) -> None:
    assert all(target.startswith("selfplay.rl.") for target in IMPORTS[f"selfplay.rl.{name}"])
    assert {target.rpartition(".")[2] for target in IMPORTS[f"selfplay.rl.{name}"]} <= set(RL_MATHS)


@pytest.mark.parametrize("call", ["", "app(['--help'])"])
def test_the_command_line_loads_nothing_heavy(call: str) -> None:
    script = (
        "import atexit, sys; atexit.register(lambda: print([name for name in sys.modules if '.' not in name]))\n"
        f"from selfplay.cli import app; {call}"
    )
    *text, names = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    loaded = set(ast.literal_eval(names))
    assert "typer" in loaded
    assert not loaded & {"torch", "vllm", "transformers", "datasets", "trl", "scipy", "pandas", "pyarrow", "numpy"}
    verbs = {"init", "run", "generate", "label", "reward", "policy", "evaluate", "show", "doctor"}
    assert not call or verbs <= set(" ".join(text).split())


@pytest.mark.parametrize("path", FILES.values(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_tells_one_story(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LONGEST_FILE
    assert not text or ast.get_docstring(tree), "a module says what it does"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION]
    assert not too_long


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_parses(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_files_of_tests_have_names_of_their_own() -> None:
    """Folders of tests are no packages, so that a second file of a name is not collected."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_folder_is_crowded() -> None:
    crowded = {
        str(folder.relative_to(ROOT)): count
        for package in (*PACKAGES, "tests")
        for folder in [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]
        if (count := len(list(folder.glob("*.py")))) > MOST_FILES
    }
    assert not crowded
