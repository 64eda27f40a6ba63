"""Finds and reads judge files: names of shipped judges, files beside a judge file, Python named in it.

What a file refers to (templates, rubrics, members, Python files) is resolved relative to the file, so that a judge can
live anywhere. Python is looked up here but not run before a judge is built.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Template

from judges.spec.base import JudgeSpec, ModelSpec
from judges.spec.modes import MODES, JurySpec, PythonSpec
from prompts.render import compile_template
from selfplay.config import AddedReward, Recipe, Reward, parse_yaml, read_text, validate
from selfplay.config.load import hide_keys
from selfplay.errors import ConfigError
from selfplay.objects import source_of

HIGHER_REWARD = "judges.modes.reward:HigherReward"
"""The judge that a reward function makes."""
SHIPPED = Path(__file__).parents[2] / "prompts" / "judges"
RUBRICS = Path(__file__).parents[2] / "prompts" / "rubrics"
WITHOUT_EFFECT: Any = {
    "description": True,
    "thresholds": True,
    "tests": True,
    "gold": True,
    "limits": {"calls", "tokens"},
    "endpoint": {
        "key_variable",
        "key_header",
        "cached_input_price",
        "concurrency",
        "requests_per_minute",
        "timeout",
        "retries",
        "longest_wait",
        "input_price",
        "output_price",
        "max_cost",
    },
}
"""Parts of a judge's file that change no answer."""
VARIABLES = ("prompt", "history", "responses", "names", "labels", "reference", "criteria", "principle", "meta")
VARIABLES_OF_MODE = {"pointwise": ("response",), "rubric": ("response", "criterion")}
"""What a template may use: everywhere, and beside it in some modes."""


def shipped(folder: Path = SHIPPED) -> dict[str, Path]:
    """Name -> file of everything shipped in a folder, in alphabetical order."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name_or_path: str | Path, beside: Path | None = None, folder: Path = SHIPPED, what: str = "judge") -> Path:
    """Return the file of a shipped name or of a path, relative to `beside` or to here. Raises ConfigError for none."""
    text = str(name_or_path)
    looks_like_path = "/" in text or "\\" in text or text.endswith((".yaml", ".yml"))
    path = (beside or Path()) / Path(text).expanduser()
    if looks_like_path:
        if not path.is_file():
            raise ConfigError(f"there is no {what} file {str(path)!r}")
        return path
    known = shipped(folder)
    if text not in known:
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        raise ConfigError(
            f"there is no {what} {text!r}"
            + (f", did you mean {near[0]!r}?" if near else "")
            + f"; shipped are {', '.join(known)}; or give the path of a YAML file"
        )
    return known[text]


def load_spec(name_or_path: str | Path, model: str | None = None) -> JudgeSpec:
    """Read a judge: a shipped name, a YAML file, `python: package.module:Class`, or `reward: package.module:function`,
    which prefers the response that a reward function gives more. `model` overrides the file's own.

    Raises ConfigError with a sentence for whatever is wrong with it.
    """
    text = str(name_or_path)
    if text.startswith("python:"):
        reference = text.removeprefix("python:").strip()
        tree: Any = {"name": reference.partition(":")[2] or "python", "mode": "python", "python": reference}
        return parse_spec(tree, text, Path(), model)
    if text.startswith("reward:"):
        reference = text.removeprefix("reward:").strip()
        name = f"reward-{reference.rpartition(':')[2]}"
        tree = {"name": name, "mode": "python", "python": HIGHER_REWARD, "options": {"reward": reference}}
        return parse_spec(tree, text, Path(), model)
    path = find(text)
    tree = parse_yaml(read_text(path), str(path))
    if isinstance(tree, dict):
        tree.setdefault("name", path.stem)
    return parse_spec(tree, str(path), path.parent, model)


def parse_spec(tree: Any, where: str = "judge", folder: Path = Path(), model: str | None = None) -> JudgeSpec:
    """Return a judge from what its YAML holds; references are relative to `folder`. Raises ConfigError naming `where`."""
    if not isinstance(tree, dict) or not isinstance(tree.get("mode"), str) or tree["mode"] not in MODES:
        given = tree.get("mode") if isinstance(tree, dict) else None
        raise ConfigError(
            f"{where}: mode = {hide_keys(repr(given))}, but a judge file names one of the modes {', '.join(MODES)}"
        )
    kind = MODES[tree["mode"]]
    tree = dict(tree)
    if model is not None and kind is not JurySpec:
        if "model" not in kind.model_fields:
            raise ConfigError(
                f"{where}: a judge of mode {tree['mode']} asks no model of its own, so {model!r} cannot be its model"
            )
        tree["model"] = model
    resolve(tree, folder, where)
    spec = validate(kind, tree, where)
    if isinstance(spec, JurySpec):  # a mistake in a member's file shows now
        for member in spec.members:
            member.load(load_spec, model)
    if isinstance(spec, ModelSpec):
        compile_templates(spec, where)
    return spec


def compile_templates(spec: ModelSpec, where: str) -> list[tuple[str, Template]]:
    """Compile a judge's message templates, with their roles.

    Raises ConfigError, naming `where`, if one is not valid or uses a variable that does not exist.
    """
    known = VARIABLES + VARIABLES_OF_MODE.get(spec.mode, ())
    return [
        (message.role, compile_template(message.content, known, where, spec.untrusted.fence))
        for message in spec.messages
    ]


def resolve(tree: dict[str, Any], folder: Path, where: str) -> None:
    """Put what files beside the judge hold in its tree, and make the paths in it absolute; in place."""
    if isinstance(tree.get("messages"), list):
        tree["messages"] = [_with_content(item, folder, where) for item in tree["messages"]]
    if isinstance(tree.get("criteria"), str):
        rubric = find(tree["criteria"], folder, RUBRICS, "rubric")
        criteria = parse_yaml(read_text(rubric), str(rubric))
        tree["criteria"] = criteria.get("criteria") if isinstance(criteria, dict) else criteria
        _resolve_python(tree["criteria"], rubric.parent)
    else:
        _resolve_python(tree.get("criteria"), folder)
    _resolve_python([tree], folder)
    if isinstance(tree.get("gold"), str):
        tree["gold"] = str((folder / Path(tree["gold"]).expanduser()).absolute())
    if isinstance(tree.get("members"), list):
        tree["members"] = [
            dict(member, judge=str(find(member["judge"], folder).absolute()))
            if isinstance(member, dict) and isinstance(member.get("judge"), str)
            else member
            for member in tree["members"]
        ]


def _with_content(message: Any, folder: Path, where: str) -> Any:
    """Return a message whose `file` was read."""
    if not isinstance(message, dict) or "file" not in message:
        return message
    if "content" in message:
        raise ConfigError(f"{where}: messages: one has both content and file {message['file']!r}: keep one of them")
    path = folder / str(message["file"])
    if not path.is_file():
        raise ConfigError(f"{where}: messages: there is no template file {str(path)!r}")
    rest = {key: value for key, value in message.items() if key != "file"}
    return {**rest, "content": read_text(path)}


def _resolve_python(items: Any, folder: Path) -> None:
    """Make `./file.py:name` absolute in every mapping that has `python`; in place. Raises ConfigError for no file."""
    for item in items if isinstance(items, list) else []:
        reference = item.get("python") if isinstance(item, dict) else None
        if isinstance(reference, str):
            place, colon, name = reference.rpartition(":")
            if not colon or not place or not name.isidentifier():
                raise ConfigError(f"python: {reference!r} is not of the form package.module:name or ./file.py:name")
            if place.endswith(".py"):
                path = (folder / Path(place).expanduser()).absolute()
                if not path.is_file():
                    raise ConfigError(f"python: {reference!r}: there is no file {str(path)!r}")
                item["python"] = f"{path}:{name}"


def reward_judge(recipe: Recipe, part: Reward | AddedReward) -> JudgeSpec:
    """Return the judge of one of a recipe's rewards of kind judge: a file of its own, or the recipe's judge."""
    own = getattr(part, "judge", None)
    return load_spec(own) if own else load_spec(recipe.judge.file, recipe.judge_model)


def digest(spec: JudgeSpec) -> str:
    """Names exactly what the judge does: sha256 over its resolved file and over the Python files that it names.

    Left out is what never changes an answer (`WITHOUT_EFFECT`), so limits may be raised and prices fixed in a run, and
    where files lie: a project that was moved or renamed has the same judges.
    """
    total = hashlib.sha256()
    for part in spec.parts:
        total.update(json.dumps(_without_places(part.model_dump(mode="json", exclude=WITHOUT_EFFECT))).encode())
        for reference in _references(part):
            total.update(source_of(reference))
    return total.hexdigest()


def _without_places(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a judge's tree with the names of the files that it refers to instead of their paths."""
    named = {key: Path(tree[key]).name for key in ("python", "judge") if isinstance(tree.get(key), str)}
    inner = {key: [_without_places(one) for one in tree[key]] for key in ("criteria", "members") if tree.get(key)}
    return {**tree, **named, **inner}


def _references(spec: JudgeSpec) -> Iterator[str]:
    if isinstance(spec, PythonSpec):
        yield spec.python
        if spec.python == HIGHER_REWARD:
            yield str(spec.options["reward"])
    for criterion in getattr(spec, "criteria", ()):
        if criterion.python is not None:
            yield criterion.python
