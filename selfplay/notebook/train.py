"""A run in three lines of Python, without a recipe file: `selfplay.train`.

    trained = selfplay.train("my/model", reward=words_kept, prompts=["Tell a story.", ...])
    trained.sample(["Tell a story."], n=4)

What is given becomes a recipe and files in the run's folder `inputs`, and from there on it is a run as any other: its report,
`selfplay compare`, stop and resume by the same call. Left out: a model that lives in memory only.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfplay.config import Recipe, check_json, validate
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.notebook.trained import Trained
from selfplay.objects import LARGEST_SCORE, is_score, load_object, number, reference_to, shown, source_of
from selfplay.rundir import INPUTS
from selfplay.storage import durable
from selfplay.storage.files import hash_of, json_lines

WHERE = "selfplay.train"
RewardFunction = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]


def train(
    model: str | Path | tuple[Any, Any],
    *,
    reward: RewardFunction | str | None = None,
    prompts: Sequence[str | Mapping[str, Any]] | None = None,
    samples: Sequence[tuple[str, str]] | None = None,
    rewards: Sequence[float] | None = None,
    judge: str | None = None,
    heldout: Sequence[str | Mapping[str, Any]] | None = None,
    algorithm: str | Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    iterations: int = 1,
    **sections: Any,
) -> Trained:
    """Train a model on a reward or a judge over prompts, or on samples with a reward each; the same call goes on after a kill.

    `model` is a checkpoint, a hub id, or a model with its tokenizer. `reward` is a function of (prompts, responses, meta),
    three lists, to one number each, or its reference `./file.py:name`; `judge` names a judge instead, or beside it for
    labels and measurements. An algorithm that learns from pairs takes the response with the higher reward as the better.
    `prompts` and `heldout` are texts, or mappings with `prompt` and columns of your own, which the reward gets as meta;
    without `heldout` nothing is measured. `samples` are pairs (prompt, response), and `rewards` one number each.
    `algorithm` is a kind (default "ppo", for samples "ilql") or a mapping of its settings; `sections` are those of a
    recipe, such as sampling={"max_tokens": 64}. `output` is the run's directory, by default one that belongs to this very
    call. Raises ConfigError for whatever is wrong, before anything is loaded.
    """
    offline = samples is not None or rewards is not None
    if offline and (reward is not None or judge is not None or prompts is not None):
        raise ConfigError(
            f"{WHERE}: samples come with their rewards: leave reward, judge and prompts out, or leave them out"
        )
    if not offline and reward is None and judge is None:
        raise ConfigError(f"{WHERE}: nothing says what is good: give reward=function, a judge, or samples with rewards")
    rows = _samples(samples, rewards) if offline else []
    files = {"prompts": _prompts("prompts", [row["prompt"] for row in rows] if offline else prompts)}
    files |= {} if heldout is None else {"heldout": _prompts("heldout", heldout)}
    files |= {"samples": rows} if offline else {}
    tree = {
        "seed": seed,
        "iterations": iterations,
        **_goal(reward, judge, offline, heldout is not None),
        "algorithm": _algorithm(algorithm, offline),
        "generate": {"prompts": min(512, len({row["prompt"] for row in files["prompts"]}))},
    }
    identity = hash_of([_known(model), files, tree, _source(tree), sections])
    directory = Path(output) if output is not None else Path("runs") / f"train-{identity[:10]}"
    place = {key: str(directory / INPUTS / f"{key}.jsonl") for key in files}
    checkpoint = str(directory / INPUTS / "model") if isinstance(model, tuple) else str(model)
    tree["prompts"] = {"train": {"source": place["prompts"]}, "heldout": heldout and {"source": place["heldout"]}}
    if offline:
        tree["algorithm"]["source"] = place["samples"]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", directory.name).lstrip("._-") or "train"
    tree |= {"name": name, "output": str(directory), "policy": {"model": checkpoint}}
    recipe = validate(Recipe, _merged(tree, sections), WHERE)
    _write_inputs({place[key]: content for key, content in files.items()}, model, Path(checkpoint))
    return Trained(run(recipe))


def _goal(reward: RewardFunction | str | None, judge: str | None, offline: bool, measured: bool) -> dict[str, Any]:
    """Return the recipe's sections `reward` and `judge`."""
    if offline:
        if measured:
            raise ConfigError(
                f"{WHERE}: heldout needs someone who measures on it, and samples with rewards name nobody"
            )
        return {}
    if reward is None:
        return {"reward": {"kind": "judge"}, "judge": {"file": judge}}
    if not isinstance(reward, str) and not callable(reward):
        raise ConfigError(f"{WHERE}: reward is {shown(reward)}; give a function, or its reference ./file.py:name")
    reference = reward if isinstance(reward, str) else reference_to(reward)
    return {"reward": {"kind": "function", "function": reference}, "judge": {"file": judge or f"reward:{reference}"}}


def _source(tree: Mapping[str, Any]) -> str:
    """Return the source of the reward function, so that another one begins another run."""
    reference = (tree.get("reward") or {}).get("function")
    if reference is None:
        return ""
    load_object(reference)
    return source_of(reference).hex()


def _algorithm(given: str | Mapping[str, Any] | None, offline: bool) -> dict[str, Any]:
    """Return the recipe's section `algorithm`."""
    default = "ilql" if offline else "ppo"
    if given is not None and not isinstance(given, str | Mapping):
        raise ConfigError(f"{WHERE}: algorithm is {shown(given)}; give a kind, such as {default!r}, or its settings")
    chosen = {"kind": given} if isinstance(given, str) else {"kind": default, **(given or {})}
    if offline and chosen["kind"] != "ilql":
        raise ConfigError(f"{WHERE}: samples with rewards are learned from by ilql, not by {shown(chosen['kind'])}")
    return chosen


def _prompts(name: str, given: Any) -> list[dict[str, Any]]:
    """Return prompts as rows with a column `prompt`. Raises ConfigError for what is none."""
    if given is None or isinstance(given, str | Mapping) or not isinstance(given, Sequence) or not given:
        raise ConfigError(f"{WHERE}: {name} is {shown(given)}; give a list of texts, or of mappings with `prompt`")
    rows = [dict(one) if isinstance(one, Mapping) else {"prompt": one} for one in given]
    for place, row in enumerate(rows):
        if not isinstance(row.get("prompt"), str | list) or not row["prompt"]:
            raise ConfigError(
                f"{WHERE}: {name}[{place}] is {shown(given[place])}; give a text, or a mapping with `prompt`"
            )
        _check_row(row, f"{name}[{place}]")
    return rows


def _check_row(row: dict[str, Any], place: str) -> None:
    """Raise ConfigError naming the place of a row that no file of JSON lines can hold."""
    try:
        check_json(row)
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{WHERE}: {place} cannot be written as JSON: {error}; columns hold texts, finite numbers, lists and mappings"
        ) from None


def _samples(samples: Any, rewards: Any) -> list[dict[str, Any]]:
    """Return samples as rows of prompt, completion and reward. Raises ConfigError for what is none."""
    if samples is None or rewards is None or len(samples) != len(rewards) or not len(samples):
        counts = [0 if one is None else len(one) for one in (samples, rewards)]
        raise ConfigError(
            f"{WHERE}: there are {counts[0]} samples and {counts[1]} rewards; give one reward for each sample"
        )
    rows = []
    for place, (sample, reward) in enumerate(zip(samples, rewards, strict=True)):
        if (
            not isinstance(sample, list | tuple)
            or len(sample) != 2
            or not all(isinstance(one, str) and one for one in sample)
        ):
            raise ConfigError(f"{WHERE}: samples[{place}] is {shown(sample)}; give a pair of texts (prompt, response)")
        value = number(reward)
        if value is None or not is_score(value):
            raise ConfigError(
                f"{WHERE}: rewards[{place}] is {shown(reward)}; give a finite number, of {LARGEST_SCORE:g} at most"
            )
        rows.append({"prompt": sample[0], "completion": sample[1], "reward": value})
        _check_row(rows[-1], f"samples[{place}]")
    return rows


def _merged(tree: dict[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's tree with further settings, section by section. Raises ConfigError for one that has its own argument."""
    own = {"name", "output", "seed", "iterations", "prompts", "algorithm", "reward", "judge"}
    for key in own & set(sections):
        raise ConfigError(f"{WHERE}: {key!r} cannot be given as a section, for it follows from the other arguments")
    both = {key: {**tree[key], **value} for key, value in sections.items() if isinstance(tree.get(key), dict)}
    return {**tree, **sections, **both}


def _known(model: Any) -> str:
    """Return what tells one model from another. Raises ConfigError for what is none."""
    if isinstance(model, str | Path):
        return str(model)
    if not isinstance(model, tuple) or len(model) != 2 or not hasattr(model[0], "save_pretrained"):
        raise ConfigError(f"{WHERE}: model is {shown(model)}; give a path, a hub id, or a pair (model, tokenizer)")
    from selfplay.models import weights_digest

    return weights_digest(model[0])


def _write_inputs(files: Mapping[str, list[dict[str, Any]]], model: Any, checkpoint: Path) -> None:
    """Write rows, and a model that is in memory, where a call before has not written the same."""
    for name, rows in files.items():
        path, text = Path(name), json_lines(rows)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write(path, text)
    if isinstance(model, tuple) and not (checkpoint / "config.json").is_file():
        from selfplay.models import save

        beside = checkpoint.with_name("model.partial")
        durable.remove_tree(beside)
        save(model[0], model[1], beside)
        durable.publish(beside, checkpoint)
