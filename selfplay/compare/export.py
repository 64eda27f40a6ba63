"""`selfplay export`: an iteration's policy as a clean checkpoint of its own, to keep, to serve or to share."""

import os
from pathlib import Path
from typing import Any

from selfplay.compare.targets import Contestant, refuse_pruned, resolve
from selfplay.errors import ConfigError
from selfplay.report.model_card import card
from selfplay.results.load import read_run
from selfplay.rundir import RunDirectory
from selfplay.storage import durable
from selfplay.storage.files import read_json, write_json

ORIGIN = "selfplay.json"
"""File of an export that says which run and weights it came from, so that a push can be tried again."""


def export(target: str, directory: str | Path, *, push_to_hub: str | None = None, license: str | None = None) -> Path:
    """Write `RUN@best` (or `@2`, `@start`; a run alone means its best) to a new directory; returns its path.

    Holds safetensors, tokenizer, generation config (with the sampling that was measured) and model card; adapters are
    merged already. `push_to_hub` names a repository, which is made private if it is new; a push that failed is tried again
    by the same call. Raises ConfigError for a target that is not an iteration of a run, for a directory that holds something
    else, and for a push that fails.
    """
    one, final = resolve(target), Path(directory)
    if not final.name.strip("."):
        raise ConfigError(f"{str(directory)!r} is not the name of a new directory: give one, such as my-model")
    if one.run is None:
        raise ConfigError(f"{target!r} is not a run directory: name one, such as runs/quickstart@best")
    if one.best_of is not None:
        raise ConfigError(
            f"{target!r} is the best of {one.best_of} answers, which a checkpoint cannot hold: leave *{one.best_of} out to "
            "export the policy alone"
        )
    refuse_pruned(one)
    iteration = int(Path(one.checkpoint).parent.name.rpartition("-")[2])
    origin = {
        "run": str(one.run.resolve()),
        "iteration": iteration,
        "weights": RunDirectory(one.run).manifest_hash(iteration, "policy"),
        "repository": push_to_hub,
    }
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        if push_to_hub is None or not (final / ORIGIN).is_file() or read_json(final / ORIGIN) != origin:
            raise ConfigError(f"{str(final)!r} is not empty; name a new directory")
    else:
        with durable.new_folder(final) as folder:
            _save(one, folder)
            text = card(read_run(one.run), iteration, where=push_to_hub or ".", license=license)
            durable.write(folder / "README.md", text)
            write_json(folder / ORIGIN, origin)
            _open_modes(folder)
    if push_to_hub is not None:
        _push(final, push_to_hub)
    return final


def _save(one: Contestant, folder: Path) -> None:
    """Weights in the precision they were saved in, tokenizer, and a generation config that samples as was measured.

    A mask that the checkpoint needs goes with it.
    """
    from selfplay.engines.masking import load_mask
    from selfplay.models import load_policy, load_tokenizer, save

    model, tokenizer = load_policy(one.checkpoint, dtype="auto"), load_tokenizer(one.checkpoint)
    for name, value in sampling_of(one).items():
        setattr(model.generation_config, name, value)
    save(model, tokenizer, folder)
    if (mask := load_mask(one.checkpoint)) is not None:
        mask.save(folder, tokenizer)


def sampling_of(one: Contestant) -> dict[str, Any]:
    """Return how a run sampled what it measured, in the words of a generation config; greedy has no temperature."""
    assert one.run is not None
    recipe = RunDirectory(one.run).recipe()
    temperature, sampling = recipe.evaluate.temperature, recipe.sampling
    if temperature == 0:
        return {"do_sample": False, "max_new_tokens": sampling.max_tokens}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": sampling.max_tokens,
    }


def _open_modes(folder: Path) -> None:
    """Give every file the mode that the user's umask says: safetensors and tokenizers write some for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _push(folder: Path, repository: str) -> None:
    """Upload a directory to the hub, with the login that the hub's own client has. Raises ConfigError if that fails."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # whatever a server, a network or a missing login may do
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{str(folder)!r} is written, and pushing it to {repository!r} failed: {type(error).__name__}: {reason}; give "
            "the same command again to push it (`hf auth login` makes a login)"
        ) from error
