"""Trackers: what is read back from real TensorBoard, wandb (offline), trackio and MLflow, and what a resume adds."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker

from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.preflight import check
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json
from selfplay.tracking import Tracker, check_trackers, numbers

Points = dict[str, list[tuple[float, float]]]
"""Name of a metric -> (place, value) of every point that a tracker holds, in its order."""


def tensorboard_points(directory: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    return {key: [(one.step, one.value) for one in events.Scalars(key)] for key in events.Tags()["scalars"]}


def leveldb_records(data: bytes, taken: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, the first of which has lost `taken` bytes to a header,
    hold parts of a checksum (4 bytes), a length (2), a kind (1: whole, 2: first, 3: middle, 4: last) and that many bytes."""
    place, record = 0, b""
    while place + 7 <= len(data):
        left = 32768 - (place + taken) % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_points(directory: Path) -> Points:
    """From the logs that `wandb sync` would send, one per start."""
    from wandb.proto.wandb_internal_pb2 import Record

    histories = [
        Record.FromString(data).history.item
        for file in sorted(directory.glob("wandb/offline-run-*/*.wandb"))
        for data in leveldb_records(file.read_bytes()[7:], taken=7)
    ]
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history}
        for history in histories
        if history
    ]
    return {
        key: [(row["iteration" if key.startswith("evaluation") else "step"], row[key]) for row in rows if key in row]
        for key in ("objective/kl", "evaluation/win_rate_vs_start/win_rate")
    }


def trackio_points(directory: Path) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    name = f"title-{read_json(directory / 'tracking.json')['trackio']['run']}"
    rows = SQLiteStorage.get_logs("selfplay", name)
    return {
        key: [(row["step"], row[key]) for row in rows if key in row]
        for key in ("objective/kl", "evaluation/win_rate_vs_start/win_rate")
    }


def mlflow_points(directory: Path) -> Points:
    from mlflow import MlflowClient

    client, name = MlflowClient(), read_json(directory / "tracking.json")["mlflow"]["run"]
    assert client.get_run(name).data.params == {"judge.file": "stories", "stop": "a b"}
    return {
        key: [(one.step, one.value) for one in client.get_metric_history(name, key)]
        for key in client.get_run(name).data.metrics
    }


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers that keep everything below the test's folder and ask no account."""
    for key, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tensorboard", tensorboard_points),
        ("wandb", wandb_points),
        ("trackio", trackio_points),
        ("mlflow", mlflow_points),
    ],
)
def test_a_run_that_goes_on_adds_to_its_tracker_and_doubles_nothing(
    tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str], name: str, read: Callable[[Path], Points]
) -> None:
    """The second start says everything again, as a killed PPO does that repeats the steps behind its checkpoint."""
    for start in (1, 2):
        tracker = Tracker([name], tmp_path, "title", {"judge": {"file": "stories", "model": None}, "stop": ["a", "b"]})
        for step in range(1, 2 * start + 2):
            tracker.log_step({"step": step, "time": 1e9, "objective/kl": step / 8, "loss": float("nan")})
        for number in range(start + 1):
            rate = {"a": f"iteration-{number}", "win_rate": number / 4, "low": None}
            tracker.log_iteration(number, {"evaluation": {"win_rate_vs_start": rate}})
        tracker.close()
    found = read(tmp_path)
    assert found["objective/kl"] == [(step, step / 8) for step in range(1, 6)]
    assert found["evaluation/win_rate_vs_start/win_rate"] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert not {"time", "loss"} & found.keys()
    assert capsys.readouterr().out == "", "standard output is for JSON"


def test_numbers_are_the_finite_ones_by_their_path() -> None:
    assert numbers({"a": {"b": 1, "c": None, "d": True, "e": float("inf")}, "f": 0.5, "g": "text", "h": [1, 2]}) == {
        "a/b": 1,
        "f": 0.5,
    }


def test_a_tracker_named_later_is_told_all_that_a_run_has_on_disk(tiny_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy, symlinks=True)
    recipe = load_recipe(copy / "config.yaml", [f"output={copy}", "report_to=[tensorboard]"])
    for _ in range(2):
        run(recipe)
    found, rows = tensorboard_points(copy), [row for row in RunDirectory(copy).metrics() if row["stage"] == "policy"]
    # Two iterations of three steps; the second goes on where the first ended.
    assert [place for place, _ in found["objective/kl"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in found["objective/kl"]] == pytest.approx(
        [row["objective/kl"] for row in rows], rel=1e-6
    )
    assert [place for place, _ in found["evaluation/mean_length"]] == [0, 1, 2]
    for number, key, file in (
        (2, "reward_model/accuracy/low", "reward/metrics.json"),
        (1, "judge/decided", "label/judge_health.json"),
    ):
        told: Any = read_json(copy / f"iteration-{number:03d}" / file)
        for part in key.split("/")[1:]:
            told = told[part]
        assert found[key][number - 1] == (number, pytest.approx(told, rel=1e-6))
    assert found["seconds/policy"][1][1] > 0


def test_a_tracker_that_fails_is_left_alone_and_catches_up_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk\nfull")

    tracker = Tracker(["tensorboard"], tmp_path, "title")
    tracker.log_step({"step": 1, "value": 1.0})
    with monkeypatch.context() as broken:
        broken.setattr(TensorBoardTracker, "log", fail)
        for step in (2, 3):
            tracker.log_step({"step": step, "value": 1.0})
    tracker.close()
    assert capsys.readouterr().err.count("tensorboard is not told any more: OSError: disk full") == 1
    tracker = Tracker(["tensorboard"], tmp_path, "title")
    for step in (1, 2, 3):
        tracker.log_step({"step": step, "value": 1.0})
    tracker.close()
    assert tensorboard_points(tmp_path)["value"] == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_no_tracker_leaves_no_trace(tmp_path: Path) -> None:
    tracker = Tracker((), tmp_path)
    tracker.log_step({"step": 1, "value": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def wandb_texts(directory: Path) -> str:
    (file,) = directory.glob("wandb/offline-run-*/files/media/table/completions*.table.json")
    return file.read_text()


def tensorboard_texts(directory: Path) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    (one,) = events.Tensors("completions/text_summary")
    assert one.step == 1
    return one.tensor_proto.string_val[0].decode()


def trackio_texts(directory: Path) -> str:
    from trackio.sqlite_storage import SQLiteStorage

    name = f"title-{read_json(directory / 'tracking.json')['trackio']['run']}"
    (row,) = [row for row in SQLiteStorage.get_logs("selfplay", name) if "completions" in row]
    if "file_path" not in row["completions"]:
        return json.dumps(row["completions"])
    files = [
        path for path in (directory / "trackio").rglob("*") if path.name == Path(row["completions"]["file_path"]).name
    ]
    import pandas

    return pandas.read_parquet(files[0]).to_json()


def mlflow_texts(directory: Path) -> str:
    from mlflow import MlflowClient

    run = read_json(directory / "tracking.json")["mlflow"]["run"]
    path = MlflowClient().download_artifacts(run, "completions/iteration-001.json", str(directory))
    return Path(path).read_text()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tensorboard", tensorboard_texts),
        ("wandb", wandb_texts),
        ("trackio", trackio_texts),
        ("mlflow", mlflow_texts),
    ],
)
def test_completions_are_a_table(tmp_path: Path, offline: None, name: str, read: Callable[[Path], str]) -> None:
    tracker = Tracker([name], tmp_path, "title")
    rows = [{"prompt": "Tell | a *story*.", "answer": f"Once {k}.", "preference": None if k else 1.0} for k in range(3)]
    tracker.log_iteration(1, {"evaluation": {"mean_length": 3.0}}, rows)
    tracker.log_iteration(1, {"evaluation": {"mean_length": 3.0}}, rows)
    tracker.close()
    text = read(tmp_path)
    assert all(f"Once {k}." in text for k in range(3)) and "answer" in text
    assert name != "tensorboard" or "| Tell &#124; a &#42;story&#42;. | Once 0. | 1.0 |" in text


def test_wandb_without_a_login_is_one_sentence_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match="there is no login for it: `wandb login` makes one"):
        check_trackers(["wandb"])
    check_trackers(["tensorboard"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    check_trackers(["wandb"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(ConfigError, match="no login"):
        check_trackers(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])


def test_what_cannot_be_reported_to_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = [f"output={tmp_path / 'r'}", "policy.bootstrap={}"]
    (tmp_path / "r.yaml").write_text("policy: {}\n")
    with pytest.raises(
        ConfigError, match="report_to.0 = 'excel': input should be 'wandb', 'tensorboard', 'trackio' or"
    ):
        load_recipe(tmp_path / "r.yaml", [*overrides, "report_to=[excel]"])
    recipe = load_recipe(tmp_path / "r.yaml", [*overrides, "report_to=[tensorboard, wandb]"])
    check(recipe)
    monkeypatch.setattr("selfplay.tracking.find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(ConfigError, match=r"wandb, which is not installed: pip install 'selfplay-loop\[wandb\]'"):
        run(recipe)
    assert not (tmp_path / "r").exists()
