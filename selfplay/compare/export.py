"""`selfplay export`: an iteration's policy as a clean checkpoint of its own, to keep, to serve or to share."""

from pathlib import Path

from selfplay.compare.targets import Contestant, resolve
from selfplay.errors import ConfigError
from selfplay.report.model_card import card
from selfplay.results.load import read_run
from selfplay.storage import durable


def export(target: str, directory: str | Path, *, push_to_hub: str | None = None) -> Path:
    """Write `RUN@best` (or `@2`, `@start`; a run alone means its best) to a new directory; returns its path.

    Holds safetensors, tokenizer, generation config and model card; adapters are merged already. `push_to_hub` names a
    repository, which is made private if it is new. Raises ConfigError for a target that is no iteration of a run, and
    for a directory that holds something.
    """
    one, final = resolve(target), Path(directory)
    if one.run is None:
        raise ConfigError(f"{target!r} is no run: name one, such as runs/quickstart@best")
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ConfigError(f"{str(final)!r} is not empty; name a new directory")
    iteration = int(Path(one.checkpoint).parent.name.rpartition("-")[2])
    with durable.new_folder(final) as folder:
        _save(one, folder)
        durable.write(folder / "README.md", card(read_run(one.run), iteration))
    if push_to_hub is not None:
        _push(final, push_to_hub)
    return final


def _save(one: Contestant, folder: Path) -> None:
    """Weights in the precision they were saved in, generation config and tokenizer."""
    from selfplay.models import load_policy, load_tokenizer, save

    save(load_policy(one.checkpoint, dtype="auto"), load_tokenizer(one.checkpoint), folder)


def _push(folder: Path, repository: str) -> None:
    """Upload a directory to the hub, with the login that the hub's own client has."""
    from huggingface_hub import HfApi

    hub = HfApi()
    hub.create_repo(repository, private=True, exist_ok=True)
    hub.upload_folder(repo_id=repository, folder_path=folder)
