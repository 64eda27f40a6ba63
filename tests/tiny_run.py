"""The smallest recipe that does everything for real: two iterations of the whole loop in some twenty seconds on one thread.

    recipe = write_recipe(folder)                  # tiny.yaml, and its judge in two files beside it
    directory = make_run(folder)                   # the recipe, run to its end

The judge is a rule that a reward model learns from 130 pairs, so that the run gets past the brake on reward models that
are no better than chance. The fixture `tiny_run` (conftest.py) makes one such run for the whole suite.
"""

from pathlib import Path
from textwrap import dedent

JUDGE = """\
name: tiny
mode: rules
criteria:
  - {name: whole sentence, weight: 3, python: "./tiny_rules.py:ends_a_sentence"}
  - {name: short, weight: 1, python: "./tiny_rules.py:is_short"}
"""

RULES = '''\
"""Rules that anyone can check by eye."""


def ends_a_sentence(prompt, response):
    """1 if the text ends in a full stop."""
    return float(response.rstrip().endswith("."))


def is_short(prompt, response):
    """From 1 for nothing to 0 for 400 characters."""
    return max(0.0, 1 - len(response) / 400)
'''


def tiny_recipe(judge: Path) -> str:
    """The recipe as YAML; `judge` is its judge's file."""
    return dedent(f"""\
        description: The loop at its smallest, for tests.
        iterations: 2
        threads: 1
        policy:
          bootstrap:
            documents: 600
            vocabulary: 400
            architecture: {{layers: 2, hidden_size: 64, heads: 2, intermediate_size: 128, context: 192}}
            pretrain: {{steps: 40, batch_size: 16}}
            sft: {{count: 600, training: {{steps: 40, batch_size: 16, learning_rate: 2e-3}}}}
        prompts:
          train: {{source: stories, limit: 128}}
          heldout: {{source: stories, split: heldout, limit: 32}}
        sampling: {{max_tokens: 64}}
        engine: {{batch_size: 96}}
        generate: {{prompts: 64, completions: 3}}
        judge: {{file: {judge}}}
        reward: {{learning_rate: 3e-3, batch_size: 16, epochs: 2, heldout_share: 0.3}}
        algorithm: {{steps: 3, episodes: 32, minibatches: 2, checkpoint_every: 1}}
        """)


def write_recipe(folder: Path) -> Path:
    """Write `tiny.yaml`, `tiny_judge.yaml` and `tiny_rules.py` into a folder; gives the recipe's path."""
    judge = folder.resolve() / "tiny_judge.yaml"
    judge.write_text(JUDGE)
    (folder / "tiny_rules.py").write_text(RULES)
    recipe = folder / "tiny.yaml"
    recipe.write_text(tiny_recipe(judge))
    return recipe


def make_run(folder: Path, seed: int = 0) -> Path:
    """Write the recipe into a folder and run it with a seed; gives the run's directory."""
    from selfplay.config import load_recipe
    from selfplay.loop import run

    return run(load_recipe(write_recipe(folder), [f"output={folder / 'run'}", f"seed={seed}"]))
