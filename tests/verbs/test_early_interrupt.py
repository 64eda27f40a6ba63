"""Ctrl-C before a verb runs, while selfplay is still being imported, is exit code 130 without a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay.cli import main

ROOT = Path(__file__).parents[2]
ON_IMPORT = """
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["CTRL_C_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
"""
CONSOLE_SCRIPT = ("-c", "import sys; from selfplay.cli import main; sys.exit(main())")


@pytest.mark.parametrize("entry", [CONSOLE_SCRIPT, ("-m", "selfplay"), ("-m", "selfplay.cli")], ids=" ".join)
@pytest.mark.parametrize("module", ["typer", "pydantic", "selfplay.verbs.score"])
def test_ctrl_c_during_the_imports(tmp_path: Path, entry: tuple[str, str], module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(ON_IMPORT)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *entry, "judge", "list"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "CTRL_C_AT": module},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_the_verbs_are_put_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.main.get_command", lambda app: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130 and capsys.readouterr() == ("", "")
