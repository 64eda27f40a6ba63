"""A real run whose judge likes nothing but length, audited by rules that it never sees: the exploitation is named.

The audit is the tiny run's judge, to whom an answer that runs on to the token limit is a bad one.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from selfplay.config import load_recipe
from selfplay.guard.selection import assess, conclude
from selfplay.report.html import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_run import tiny_recipe, write_recipe

JUDGE = 'name: longer\nmode: rules\ncriteria:\n  - {name: length, python: "./longer_rules.py:length"}\n'
RULES = '''\
"""Longer is better."""


def length(prompt, response):
    """From 0 for nothing to 1 for 600 characters."""
    return min(1.0, len(response) / 600)
'''
GREED = (
    "prompts.heldout.limit=64",
    "algorithm.steps=10",
    "algorithm.episodes=64",
    "algorithm.learning_rate=2e-3",
    "algorithm.kl_coefficient=0.0",
    "algorithm.missing_eos_penalty=0",
    "sampling.max_tokens=128",
    "iterations=1",
)
"""PPO without a brake: large steps, no KL, nothing lost by running on."""


@pytest.fixture(scope="module")
def hacked(tmp_path_factory, training_seed) -> Path:
    from selfplay.loop import run

    folder = tmp_path_factory.mktemp("hacked")
    write_recipe(folder)
    (folder / "longer.yaml").write_text(JUDGE)
    (folder / "longer_rules.py").write_text(RULES)
    (folder / "hacked.yaml").write_text(tiny_recipe(folder / "longer.yaml"))
    audit = f"evaluate.judge={folder / 'tiny_judge.yaml'}"
    overrides = [f"output={folder / 'run'}", f"seed={training_seed}", audit, *GREED]
    return run(load_recipe(folder / "hacked.yaml", overrides))


def test_length_exploitation_is_named_and_the_last_iteration_is_not_kept(hacked):
    found = conclude(hacked)
    said = [alarm for alarm in found.alarms if (alarm.kind, alarm.iteration) == ("length", 1)]
    assert (
        len(said) == 1 and said[0].severe and said[0].sentence.startswith("Length exploitation: iteration 1's answers")
    )
    assert found.audited and found.best_iteration == 0
    assert json.loads((hacked / "outcome.json").read_text())["best"] == found.best_iteration
    assert (hacked / "best").resolve() == (hacked / f"iteration-00{found.best_iteration}/policy").resolve()
    assert "Length exploitation: iteration 1&#39;s answers are" in write_report(hacked).read_text()


def test_without_its_audit_no_exploiting_iteration_is_kept(hacked, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(hacked, copy, symlinks=True)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["evaluate"]["judge"] = None
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (copy / "provenance.json").unlink()  # which knows the recipe that the run was begun with
    found = assess(copy)
    assert not found.audited and found.best_iteration == 0 and "raised a severe alarm" in found.reason
