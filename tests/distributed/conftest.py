"""A tiny run whose stages work on a pool: its recipe, and what one process makes of it."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from pooling import ROOT, rows

sys.path.append(str(Path(__file__).parents[1] / "rl"))
from tiny_models import build_policy, build_tokenizer

JUDGE = '''\
"""Asks its model about each pair, keeps what it says, and prefers the shorter response, which is right more often than not."""

from selfplay.config import SamplingParams
from selfplay.records import Prompt, Verdict


def score(pair):
    return float((len(pair.first.text), pair.first.text) < (len(pair.second.text), pair.second.text))


class Asking:
    def __init__(self, engine):
        self.engine = engine

    def judge(self, pairs):
        prompts = [Prompt.plain(pair.id, pair.first.text + " 3 " + pair.second.text) for pair in pairs]
        said = self.engine.generate(prompts, SamplingParams(max_tokens=5, seed=7))
        return [
            Verdict(pair_id=pair.id, judge="asking", order="none", preference=score(pair), raw=one.text)
            for pair, (one,) in zip(pairs, said, strict=True)
        ]
'''


@pytest.fixture(scope="session")
def pooled_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few words, a judge in Python that asks another such model, and 96 prompts in batches of four."""
    folder = tmp_path_factory.mktemp("pooled")
    for name, seed in (("policy", 0), ("asked", 1)):
        build_policy(seed, dtype=torch.float32, max_position_embeddings=512).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    for split in ("train", "heldout"):
        lines = [json.dumps({"id": f"{split}-{n}", "prompt": f"{n % 10} {n // 10} {len(split)}"}) for n in range(96)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "asking.py").write_text(JUDGE)
    (folder / "judge.yaml").write_text(
        f"name: asking\nmode: python\npython: {folder}/asking.py:Asking\nmodel: {folder}/asked\n"
        "thresholds: {length_bias: 1.0, canary_wins: 1.0}\n"
    )
    (folder / "pooled.yaml").write_text(
        dedent(f"""\
        threads: 1
        policy: {{model: {folder}/policy}}
        prompts: {{train: {{source: {folder}/train.jsonl}}, heldout: {{source: {folder}/heldout.jsonl}}}}
        sampling: {{max_tokens: 12}}
        engine: {{batch_size: 8}}
        generate: {{prompts: 96, completions: 2}}
        judge: {{file: {folder}/judge.yaml}}
        algorithm: {{episodes: 96}}
        """)
    )
    return folder / "pooled.yaml"


WITHOUT_RAY = """\
import sys
sys.modules["ray"] = None  # as if it were not installed
from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run, run_stage
recipe, output = sys.argv[1:]
try:
    run(load_recipe(recipe, [f"output={output}", "launch.workers=2"]))
except ConfigError as error:
    print(error)
directory = run(load_recipe(recipe, [f"output={output}"]), only_start=True)
for stage in ("generate", "label"):
    run_stage(directory, stage, 1)
"""


@pytest.fixture(scope="session")
def pooled_alone(pooled_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two stages in one process, where there is no Ray; `launch` is refused there in one sentence."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, "-c", WITHOUT_RAY, str(pooled_recipe), str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "the recipe needs the package ray, which is not installed: pip install 'selfplay-loop[ray]', or leave launch out"
    )
    assert len(rows(directory, "generate", "completions")) == 192 and len(rows(directory, "label", "verdicts")) > 50
    return directory
