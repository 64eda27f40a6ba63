"""For the whole suite: a small real run and a run directory that tests share, and the rule that nothing is skipped in CI.

Where nothing may be skipped (SELFPLAY_SKIP_NOTHING=1, as in .ci/run), a skip fails the run.
"""

import os
from pathlib import Path

import pytest
import tiny_run as tiny
from making_runs import Plan, make_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of two iterations, made in some twenty seconds. Read it; copy it to change it."""
    return tiny.make_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run of two iterations on 256 held-out prompts, the second better than the first, for report and guard."""
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart", Plan())


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
