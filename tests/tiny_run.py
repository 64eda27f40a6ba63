"""The smallest recipe that does everything for real: two iterations of the whole loop in some twenty seconds on one thread.

    recipe = write_recipe(folder)                  # tiny.yaml, and its judge in two files beside it
    run(load_recipe(recipe, [f"output={folder / 'run'}"]))

The judge is a rule that a reward model learns from 150 pairs, so that the run gets past the brake on reward models that
are no better than chance.
"""

from pathlib import Path
from textwrap import dedent

JUDGE = """\
name: tiny
mode: rules
criteria:
  - {name: whole sentence, weight: 3, python: "./tiny_rules.py:ends_a_sentence"}
  - {name: letter e, weight: 1, python: "./tiny_rules.py:share_of_e"}
"""

RULES = '''\
"""Rules that anyone can check by eye."""


def ends_a_sentence(prompt, response):
    """1 if the text ends in a full stop."""
    return float(response.rstrip().endswith("."))


def share_of_e(prompt, response):
    """Share of the characters that are the letter e."""
    return response.count("e") / max(1, len(response))
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
        reward: {{learning_rate: 3e-3, batch_size: 16, epochs: 1, heldout_share: 0.3}}
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
