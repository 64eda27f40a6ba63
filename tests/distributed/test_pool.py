"""A pool of Ray actors, for real: calls shared out, actors and nodes that die, engines that fail, errors that are told.

And what `selfplay doctor` says of a cluster's machines.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from selfplay.cli import main
from selfplay.config import Launch
from selfplay.distributed.pool import Holder, Opening, Pool
from selfplay.errors import ConfigError, EngineFailed, SelfplayError
from selfplay.storage.checksums import Damaged
from selfplay.verbs import doctor, doctor_cluster

TWO = Launch(workers=2)


class Mine(Exception):
    """An error that takes two arguments, and keeps one."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"{number} {what}")


class Doubler:
    """Doubles numbers; kills its process, or fails as an engine does, where a file says so, once."""

    special = "known"

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        (self.folder / f"opened-{os.getpid()}").touch()

    def double(self, numbers: list[int]) -> list[int]:
        (self.folder / f"{numbers[0]}-{os.getpid()}-{time.monotonic_ns()}").touch()
        for what in ("kill", "fail"):
            order = self.folder / f"{what}-at-{numbers[0]}"
            if order.is_file():
                if order.read_text() == "once":
                    order.unlink()
                if what == "kill":
                    os.kill(os.getpid(), 9)
                raise EngineFailed("its processes are dead")
        if numbers[0] == -2:
            raise Damaged(self.folder, "it is cut", "put it back")
        if numbers[0] == -3:
            raise Mine(numbers[0], "of the user's own")
        if numbers[0] < 0:
            raise ConfigError(f"{numbers[0]} is below 0: give numbers from 0 on")
        return [2 * number for number in numbers]

    def slowly(self, number: int) -> tuple[int, str]:
        time.sleep(0.7)
        return number, ray.get_runtime_context().get_node_id()

    def close(self) -> None:
        (self.folder / "closed").touch()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A simulated node; a test adds another one and removes it."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    ray.init(
        address=made.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys_path())}}
    )
    yield made
    ray.shutdown()
    made.shutdown()


def sys_path() -> list[str]:
    return [str(Path(__file__).parent), *filter(None, sys.path)]


@contextlib.contextmanager
def another_node(cluster: Cluster, cores: int) -> Iterator[object]:
    """A second node, which is gone at the end whatever happened: other tests use the cluster too."""
    node = cluster.add_node(num_cpus=cores, object_store_memory=100 * 2**20)
    try:
        cluster.wait_for_nodes()
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


@pytest.fixture(scope="module")
def pool(cluster: Cluster) -> Iterator[Pool]:
    made = Pool(TWO)
    all_come_up(made)
    yield made
    made.close()


def all_come_up(pool: Pool) -> None:
    """Wait until every actor is idle, so that the next two calls go to two of them."""
    while pool._busy:
        for reference in ray.wait(list(pool._busy))[0]:
            pool._settle(reference)


def doubler(folder: Path, slot: str = "one") -> Opening:
    return Opening(slot, Doubler, (str(folder),))


def calls(*starts: int) -> list[tuple[list[int]]]:
    return [([start, start + 1],) for start in starts]


def cores_come_free(cores: int) -> None:
    """Wait until a cluster has so many: those of actors that were ended are given back in a moment."""
    until = time.monotonic() + 60
    while (free := ray.available_resources().get("CPU", 0)) < cores:
        assert time.monotonic() < until, (
            f"{free:g} of {cores} cores are free: an actor goes on that nobody calls any more"
        )
        time.sleep(0.1)


def attempts(folder: Path, start: int) -> int:
    return len(list(folder.glob(f"{start}-*")))


def test_calls_are_shared_out_and_a_lost_one_is_made_again_once(pool: Pool, tmp_path: Path) -> None:
    found = dict(pool.map(doubler(tmp_path), calls(*range(0, 12, 2)), "double"))
    assert found == {place: [4 * place, 4 * place + 2] for place in range(6)}
    opened = len(list(tmp_path.glob("opened-*")))
    assert opened == 2, "both actors worked"
    (tmp_path / "kill-at-4").write_text("once")
    (tmp_path / "fail-at-8").write_text("once")
    again = dict(pool.map(doubler(tmp_path), calls(*range(0, 12, 2)), "double"))
    assert again == found
    assert [attempts(tmp_path, start) for start in range(0, 12, 2)] == [2, 2, 3, 2, 3, 2], "nothing else was repeated"
    all_come_up(pool)
    dict(pool.map(doubler(tmp_path), calls(0, 2), "double"))
    assert len(list(tmp_path.glob("opened-*"))) == 4, "each dead actor was replaced, and the dead engine with it"


def test_what_a_slot_holds_is_replaced(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        assert dict(pool.map(doubler(tmp_path / folder), calls(*range(4)), "double"))[3] == [6, 8]
    assert (tmp_path / "a" / "closed").is_file() and not (tmp_path / "b" / "closed").exists()
    assert dict(pool.map(doubler(tmp_path / "b"), [()], "special")) == {0: "known"}
    assert dict(pool.map(doubler(tmp_path / "b"), [()], "unknown")) == {0: None}


def test_a_closed_pool_begins_anew_when_it_is_asked(pool: Pool, tmp_path: Path) -> None:
    before, _ = (dict(pool.map(doubler(tmp_path), calls(*range(4)), "double")), pool.close())
    first = set(tmp_path.glob("opened-*"))
    assert dict(pool.map(doubler(tmp_path), calls(*range(4)), "double")) == before
    assert set(tmp_path.glob("opened-*")) - first, "by other actors"
    all_come_up(pool)
    assert len(pool._idle) == 2


def test_an_error_of_a_call_is_raised_as_it_was_and_the_pool_goes_on(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^-1 is below 0: give numbers from 0 on$"):
        dict(pool.map(doubler(tmp_path), calls(-1, 2, 4, 6), "double"))
    assert dict(pool.map(doubler(tmp_path), calls(2, 4), "double")) == {0: [4, 6], 1: [8, 10]}


def test_an_error_that_cannot_be_sent_is_told_all_the_same(pool: Pool, tmp_path: Path) -> None:
    """Its class takes other arguments than its message, so that pickle cannot make it again."""
    with pytest.raises(SelfplayError, match=r"is damaged: it is cut; put it back$") as found:
        dict(pool.map(doubler(tmp_path), calls(-2), "double"))
    assert found.value.exit_code == ConfigError.exit_code
    with pytest.raises(RuntimeError, match=r"^Mine: -3 of the user's own$"):
        dict(pool.map(doubler(tmp_path), calls(-3), "double"))
    assert (attempts(tmp_path, -2), attempts(tmp_path, -3)) == (1, 1), "no worker was lost"


@pytest.mark.parametrize(("number", "itself"), [(-1, True), (-3, False)])
def test_an_error_has_no_cause_but_one_that_could_not_be_sent(tmp_path: Path, number: int, itself: bool) -> None:
    with pytest.raises(Exception, match=str(number)) as found:
        Holder(os.getcwd()).call(doubler(tmp_path), "double", ([number],))
    assert (found.value.__cause__ is None) is itself and found.value.__cause__ is not found.value


def test_actors_that_die_while_they_are_idle_cost_no_call_a_restart(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_come_up(pool)
    dict(pool.map(doubler(tmp_path), calls(0, 2, 4, 6), "double"))
    assert len(pool._idle) == 2
    for file in tmp_path.glob("opened-*"):
        os.kill(int(file.name.removeprefix("opened-")), 9)
    monkeypatch.setattr(pool, "restarts", 0)
    assert dict(pool.map(doubler(tmp_path), calls(2), "double")) == {0: [4, 6]}


def test_a_call_that_kills_every_worker_ends_in_one_sentence(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "fail-at-2").write_text("always")
    pool.restarts = 1
    with pytest.raises(
        EngineFailed,
        match=r"died 2 times in the same call of double \(launch.restarts 1\): its processes are dead; what is finished",
    ) as found:
        dict(pool.map(doubler(tmp_path), calls(0, 2), "double"))
    assert attempts(tmp_path, 2) == 2
    pool.close()
    cores_come_free(2)
    assert found.value.__traceback__ is not None, "the error, whose frames hold the last actor, was kept until here"


def test_a_node_that_is_lost_costs_its_calls(cluster: Cluster, pool: Pool, tmp_path: Path) -> None:
    """One call at a time on each of two nodes; the second node goes away in the middle."""
    pool.close()
    found: list[tuple[int, str]] = []
    with another_node(cluster, cores=2) as node:
        cores_come_free(4)
        made = Pool(TWO)
        all_come_up(made)
        for number, (place, (answer, where)) in enumerate(
            made.map(doubler(tmp_path), [(n,) for n in range(8)], "slowly")
        ):
            assert answer == place
            found.append((answer, where))
            if number == 2:
                cluster.remove_node(node, allow_graceful=False)
        made.close()
    assert sorted(answer for answer, _ in found) == list(range(8)), "each once"
    assert len({where for _, where in found[:4]}) == 2, "both nodes worked"


def test_the_doctor_says_what_keeps_a_machine_from_working(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two nodes that are as this process and share its disk; then with other versions here, and a path that leads elsewhere."""
    with another_node(cluster, cores=1):
        monkeypatch.setattr(doctor, "diagnose", list)
        monkeypatch.setattr(
            sys, "argv", ["selfplay", "doctor", "--address", cluster.address, "--directory", str(tmp_path)]
        )
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr().out.splitlines()  # Ray itself may tell of nodes that were lost before
        lines = [line for line in said if line.startswith(("fine ", "note ", "problem "))]
        assert done.value.code == 0 and len(lines) == 2 and lines[0] != lines[1], said
        assert all(
            line.startswith("fine     machine ") and f"versions as here, shares {tmp_path}," in line for line in lines
        )
        assert list(tmp_path.iterdir()) == []

        here = doctor_cluster.versions()
        monkeypatch.setattr(doctor_cluster, "versions", lambda: {**here, "torch": "1.0", "new": "2"})
        monkeypatch.chdir(tmp_path)
        found = doctor_cluster.examine(cluster.address, Path("/proc/self/cwd"))
        assert [(one.state, one.detail) for one in found] == 2 * [
            ("problem", f"other versions than here: new none (here 2), torch {here['torch']} (here 1.0)"),
            ("problem", "does not see what is written into /proc/self/cwd here"),
        ]
        assert all(one.cure for one in found)


def test_the_doctor_on_machines_with_gpus_and_folders_of_others() -> None:
    machine = doctor_cluster.Machine("a", {"torch": "2"}, sees=True, writes=True, gpus=8, nccl=True)
    (fine,) = doctor_cluster.findings_of("m", machine, {"torch": "2"}, Path("/runs"))
    assert (fine.state, fine.detail) == ("fine", "a: versions as here, shares /runs, 8 GPU(s), NCCL")
    found = doctor_cluster.findings_of("m", replace(machine, nccl=False, writes=False), {"torch": "2"}, Path("/runs"))
    assert [one.detail for one in found] == ["may not write into /runs", "8 GPU(s), and a torch without NCCL"]
    with pytest.raises(
        ConfigError, match=r"nothing can be written into '/none' \(No such file.*\): give --directory the folder"
    ):
        doctor_cluster.examine("auto", Path("/none"))
