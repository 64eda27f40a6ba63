"""Trackers: wandb, TensorBoard, trackio and MLflow get the numbers of metrics.jsonl and of every iteration.

    tracker = Tracker(["tensorboard"], Path("runs/brevity"), "brevity")
    PPOTrainer(..., on_step=tracker.log_step).train()
    tracker.close()

accelerate's trackers do the talking. `tracking.json` in the directory remembers which of their runs is ours and how far
it was told, so a run that goes on adds to the same one, says nothing twice, and a tracker named later is told all there
is. Left out: figures and checkpoints, which the run's directory has.
"""

import math
import netrc
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selfplay.errors import ConfigError
from selfplay.progress import log
from selfplay.storage.checksums import read_sealed, write_sealed

PROJECT = "selfplay"
"""What wandb and trackio call a project and MLflow an experiment."""
GROUPS = ("evaluation", "reward_model", "judge", "seconds")
"""First part of the names that are logged per iteration; all others are logged per step."""


MARKUP = str.maketrans({**{letter: f"&#{ord(letter)};" for letter in "\\`*_[]<>|#&"}, "\n": "<br>"})
"""What would be more than text in a Markdown table."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is not installed, and for wandb without a login."""
    if "wandb" in names and find_spec("wandb") is not None and not _wandb_can_log():
        raise ConfigError(
            "report_to names wandb, and there is no login for it: `wandb login` makes one, WANDB_API_KEY holds one, and "
            "WANDB_MODE=offline needs none"
        )
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"report_to names {name}, which is not installed: pip install 'selfplay-loop[{name}]', or take it out"
            )


def _wandb_can_log() -> bool:
    """Return whether wandb has a login, as it looks for one itself, or is told to do without."""
    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    files = [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(file).authenticators(host):
                return True
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


class Tracker:
    """Sends rows of numbers to any of wandb, tensorboard, trackio and mlflow; to none, it does nothing.

    `title` is what the trackers call the run, `settings` are shown beside it. A tracker that fails on the way is left
    alone from then on, for no training should die of it: a later start catches up. Raises ConfigError for one that is
    not installed; what a tracker raises when it is opened is passed on.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        directory: Path = Path(),
        title: str = "run",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        check_trackers(names)
        self.file = Path(directory) / "tracking.json"
        self.told: dict[str, dict[str, Any]] = _told(self.file) if names else {}
        self.open: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            with redirect_stdout(sys.stderr):
                known = self.told.get(name, {}).get("run")
                self.open[name], identity = open_tracker(name, Path(directory), title, known)
                if known is None:
                    describe(name, self.open[name], settings or {})
            if known is None:
                self.told[name] = {"run": identity, "step": 0, "iteration": -1}
                write_sealed(self.file, self.told)

    def log_step(self, row: Mapping[str, Any], before: int = 0) -> None:
        """Send the metrics of PPO step `row["step"]`, `before` steps having been made in earlier iterations."""
        step = before + int(row["step"])
        values = {key: value for key, value in row.items() if key not in ("step", "time", "iteration", "stage")}
        self._send("step", step, numbers(values))

    def log_iteration(self, number: int, groups: Mapping[str, Any], texts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Send what is known of an iteration: group (see `GROUPS`) -> names and numbers, which may be nested.

        `texts` are rows of one shape, which become a table: prompts with what was answered, and what the judge said.
        """
        self._send("iteration", number, numbers(groups), texts)

    def close(self) -> None:
        """End the trackers' runs; they may go on later."""
        for name, tracker in list(self.open.items()):
            self._try(name, finisher(name, tracker))
        self.open.clear()

    def _send(self, axis: str, place: int, values: dict[str, float], texts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Send values that belong to a place of an axis to every tracker that was not told of it.

        That it was told is written down first: a kill in between costs a row, and never doubles one.
        """
        for name, tracker in list(self.open.items()):
            before = self.told[name][axis]
            if place <= before:
                continue
            self.told[name][axis] = place
            write_sealed(self.file, self.told)
            if not self._try(name, partial(send, name, tracker, axis, place, values, texts)):
                self.told[name][axis] = before
                write_sealed(self.file, self.told)

    def _try(self, name: str, action: Callable[[], object]) -> bool:
        """Do something with a tracker; if it fails, say so and use it no more."""
        try:
            with redirect_stdout(sys.stderr):  # standard output may be read as JSON
                action()
        except Exception as error:  # whatever a tracker's server or disk may do
            self.open.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            log(f"  {name} is not told any more: {type(error).__name__}: {reason}; the next start catches up")
            return False
        return True


def _told(file: Path) -> dict[str, dict[str, Any]]:
    """Return how far each tracker was told. Raises Damaged."""
    way_out = "delete it, and trackers get a run of their own from here on"
    return (
        {key: value for key, value in read_sealed(file, way_out).items() if key != "format"} if file.is_file() else {}
    )


def open_tracker(name: str, directory: Path, title: str, identity: str | None) -> tuple[Any, str]:
    """Return a tracker that has been started, and what its run is known by; `identity` is that of a run to go on with."""
    from accelerate import PartialState, tracking

    PartialState()
    own = identity or uuid.uuid4().hex[:8]
    if name == "wandb":
        tracker = tracking.WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT), id=own, name=title, resume="allow", dir=str(directory)
        )
    elif name == "tensorboard":
        tracker = tracking.TensorBoardTracker(name, logging_dir=directory)
    elif name == "trackio":
        tracker = tracking.TrackioTracker(
            os.environ.get("TRACKIO_PROJECT", PROJECT), name=f"{title}-{own}", resume="allow"
        )
    else:
        tracker = tracking.MLflowTracker(PROJECT, run_id=identity, run_name=title)
    directory.mkdir(parents=True, exist_ok=True)
    tracker.start()
    if name == "wandb":
        tracker.tracker.define_metric("*", step_metric="step")
        for group in GROUPS:
            tracker.tracker.define_metric(f"{group}/*", step_metric="iteration")
    return tracker, tracker.tracker.info.run_id if name == "mlflow" else own


def describe(name: str, tracker: Any, settings: Mapping[str, Any]) -> None:
    """Show the settings beside a new run."""
    plain = {".".join(path): value for path, value in leaves(settings)}
    if name == "tensorboard":  # whose own way makes a second run of them
        tracker.tracker.add_text("settings", "".join(f"    {key}: {value}\n" for key, value in plain.items()))
    elif plain:
        tracker.store_init_configuration(plain)


def send(
    name: str,
    tracker: Any,
    axis: str,
    place: int,
    values: dict[str, float],
    texts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Send values with their place; wandb takes the place as a value, since its own steps can never go back."""
    from accelerate import PartialState

    PartialState()
    if name == "wandb":
        tracker.log({axis: place, **values})
    else:
        tracker.log(values, step=place)
    if texts:
        send_table(name, tracker, place, texts)


def send_table(name: str, tracker: Any, place: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Send rows of one shape as the table `completions` of a place; TensorBoard, which has no tables, gets Markdown."""
    columns: list[Any] = list(rows[0])
    data = [list(row.values()) for row in rows]
    if name == "wandb":
        import wandb

        tracker.tracker.log({"iteration": place, "completions": wandb.Table(columns=columns, data=data)})
    elif name == "trackio":
        import trackio

        tracker.log({"completions": trackio.Table(columns=columns, data=data, allow_mixed_types=True)}, step=place)
    elif name == "mlflow":
        import mlflow

        table = {column: [row[column] for row in rows] for column in columns}
        run_id = tracker.tracker.info.run_id
        mlflow.log_table(table, artifact_file=f"completions/iteration-{place:03d}.json", run_id=run_id)
    else:
        lines = [columns, ["---"] * len(columns), *data]
        text = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        tracker.tracker.add_text("completions", text, global_step=place)


def _cell(value: Any) -> str:
    """Return a value in a Markdown table: one line, nothing in it ends the cell or is markup."""
    return ("" if value is None else str(value)).translate(MARKUP)


def finisher(name: str, tracker: Any) -> Callable[[], object]:
    """Return what ends a tracker's run. trackio is told itself, or it would end the run again when Python exits."""
    if name == "trackio":
        import trackio

        return trackio.finish
    return tracker.finish


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return every finite number of nested mappings, its names joined by `/`; anything else is left out."""
    return {
        "/".join(path): value
        for path, value in leaves(values)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value of nested mappings with the names that lead to it; None is left out, a list is one text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, str(key)))
        elif value is not None:
            yield (*path, str(key)), " ".join(map(str, value)) if isinstance(value, list | tuple) else value
