"""A user's own checkpoint, prompts and judge, none of them in this repository: two iterations raise the judge's score."""

from pathlib import Path
from textwrap import dedent

import pytest
from killing import run_in_process

from prompts.sources import load_documents
from selfplay.report.show import iterations

SHARED = Path(__file__).parents[3] / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared, with the pretrained model and the corpus, is absent"
)

RULES = '''\
def speaks(prompt, response):
    """1 if somebody says something."""
    return float("said" in response or "asked" in response)


def is_glad(prompt, response):
    """Half for each of two glad words."""
    return sum(word in response for word in ("happy", "smile")) / 2
'''


def write_files(folder: Path) -> Path:
    """The recipe, a judge in one YAML file and one Python function file, and prompts from the corpus's first sentences."""
    stories = load_documents(str(SHARED / "data/corpora/tinystories_10k.txt"), 1000, 0)
    openings = list(dict.fromkeys(story.split(".")[0].strip() + "." for story in stories))
    openings = [opening for opening in openings if 20 < len(opening) < 120 and "\n" not in opening]
    (folder / "heldout.txt").write_text("\n".join(openings[:96]))
    (folder / "train.txt").write_text("\n".join(openings[96:608]))
    (folder / "rules.py").write_text(RULES)
    (folder / "judge.yaml").write_text(
        dedent("""\
        name: glad-talk
        mode: rules
        criteria:
          - {name: somebody speaks, weight: 1, python: "./rules.py:speaks"}
          - {name: glad, weight: 2, python: "./rules.py:is_glad"}
        """)
    )
    recipe = folder / "own.yaml"
    recipe.write_text(
        dedent(f"""\
        iterations: 2
        policy: {{model: {SHARED / "models/stories260k"}}}
        prompts: {{train: {{source: {folder / "train.txt"}}}, heldout: {{source: {folder / "heldout.txt"}}}}}
        sampling: {{max_tokens: 64}}
        generate: {{prompts: 192, completions: 3}}
        judge: {{file: {folder / "judge.yaml"}}}
        reward: {{learning_rate: 1e-3, epochs: 1, batch_size: 16, extra_rounds: 6}}
        algorithm: {{steps: 6, critic_warmup: 1, episodes: 96, learning_rate: 5e-4}}
        """)
    )
    return recipe


# The judge ties most pairs, and of the rest few are held back, 20 at first: seed 0 needed two rounds more, then one, before the
# reward model's lower bound passed one half. The scores of seeds 0, 1 and 2 were .09, .30, .56; .08, .26, .62; and .10, .31, .34,
# where the second iteration is no more above the first than chance (.54 [.50, .59]); the last win rates' least bound was .80.
@needs_shared
@pytest.mark.timeout(1800)  # up to seven rounds of pairs in each iteration
def test_two_iterations_raise_the_score_of_a_judge_of_ones_own(tmp_path: Path, training_seed: int) -> None:
    overrides = [f"output={tmp_path / 'run'}", f"seed={training_seed}"]
    assert run_in_process(write_files(tmp_path), overrides) == 0
    start, first, second = iterations(tmp_path / "run")
    assert start["mean_score"] + 0.1 < min(first["mean_score"], second["mean_score"])
    assert second["win_rate_vs_start"]["low"] > 0.6
