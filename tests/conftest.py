"""For the whole suite: the seed of tests that train, one small real run that tests share, and no skips in CI.

A test that trains a model, or reads what training left, asks for `training_seed` (or for `tiny_run`, which does), and
fails if it does not. Such tests are marked `trains`, and SELFPLAY_TEST_SEEDS=5 runs each of them with the seeds 0 to 4;
without it, seed 0 alone.

Where nothing may be skipped (SELFPLAY_SKIP_NOTHING=1, as in .ci/run), a skip fails the run.
"""

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_run as tiny
import torch
from making_runs import Plan, make_run
from torch.optim.optimizer import register_optimizer_step_post_hook

TRAINING_SEEDS = range(int(os.environ.get("SELFPLAY_TEST_SEEDS", "1")))
OPTIMISER_STEPS: list[int] = []
"""One entry for each step of an optimiser in this process since the last test ended."""


@pytest.fixture(scope="session", params=TRAINING_SEEDS, ids="seed{}".format)
def training_seed(request: pytest.FixtureRequest) -> int:
    """The seed of whatever a test trains. What the test expects must hold for any."""
    return int(request.param)


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Seed -> the tiny run with that seed, made once however often pytest comes back to a seed."""
    return functools.cache(lambda seed: tiny.make_run(tmp_path_factory.mktemp("tiny"), seed))


@pytest.fixture(scope="session")
def tiny_run(tiny_runs: Callable[[int], Path], training_seed: int) -> Path:
    """The directory of a finished run of two iterations, made in some twenty seconds. Read it; copy it to change it."""
    return tiny_runs(training_seed)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run of two iterations on 256 held-out prompts, the second better than the first, for report and guard."""
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart", Plan())


@pytest.fixture(autouse=True)
def training_is_seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that trains without saying so: another processor or seed would never try it."""
    yield
    steps = OPTIMISER_STEPS.copy()
    OPTIMISER_STEPS.clear()
    if steps and not request.node.get_closest_marker("trains"):
        pytest.fail("this test trains a model: let it ask for the fixture `training_seed`, and train with that seed")


def pytest_configure() -> None:
    """Watch the optimisers of this process; hear Ctrl-C, which a shell's background ignores, for tests that send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    register_optimizer_step_post_hook(lambda *_: OPTIMISER_STEPS.append(1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that train, so that `-m trains` finds them."""
    for item in items:
        if "training_seed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trains)


def pytest_report_header() -> str:
    """Say what the numbers of this run depend on."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"instruction set {instructions}, {len(TRAINING_SEEDS)} seed(s) for the tests that train"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were skipped although none may be."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get("SELFPLAY_SKIP_NOTHING"):
        terminalreporter.write_line(f"{len(skipped)} skipped, and SELFPLAY_SKIP_NOTHING is set", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a green run with skips into a red one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # not in a worker of pytest-xdist
    if reporter and exitstatus == 0 and os.environ.get("SELFPLAY_SKIP_NOTHING") and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
