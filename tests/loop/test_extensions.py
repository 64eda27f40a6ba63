"""One of each from outside the package: an algorithm, an engine, a reward and a judge of a user's own, in real runs."""

from pathlib import Path
from textwrap import dedent

import pytest
import torch
from tiny_run import write_recipe
from transformers import AutoModelForCausalLM

from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.loop import run, run_stage
from selfplay.storage.files import read_json_lines, read_rows

OWN = '''\
"""Everything a user may bring, in one file."""

import torch

from selfplay.algorithms import Needs
from selfplay.engines.hf import TransformersEngine
from selfplay.models import load_policy, load_tokenizer, save
from selfplay.records import Verdict
from selfplay.training.pairs import read_preferences


class Imitate:
    """Learn the chosen responses by plain gradient descent."""

    def __init__(self, rate):
        self.rate = rate

    def needs(self, recipe):
        return Needs(pairs=True, reward_model=False, reward=False, critic=False)

    def settings(self):
        return {"rate": self.rate}

    def train(self, inputs):
        before = inputs.run.files.policy(inputs.iteration - 1)
        model, tokenizer = load_policy(before), load_tokenizer(before)
        for path in inputs.preferences:
            for row in read_preferences(path)[:8]:
                ids = torch.tensor([row["chosen_ids"]])
                model(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= self.rate * parameter.grad
        save(model, tokenizer, inputs.folder)
        (inputs.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\\n')


class Loud(TransformersEngine):
    """The transformers engine, which ends every text in a mark."""

    def __init__(self, checkpoint, name, dtype, mark):
        super().__init__(load_policy(checkpoint, dtype=dtype), load_tokenizer(checkpoint), name, 64)
        self.mark = mark

    def generate(self, prompts, sampling):
        return [
            [one.model_copy(update={"text": one.text + self.mark}) for one in group]
            for group in super().generate(prompts, sampling)
        ]


class Shorter:
    """The shorter text is better."""

    def judge(self, pairs):
        return [
            Verdict(pair_id=pair.id, judge="own", order="none",
                    preference=float(len(pair.first.text) < len(pair.second.text)))
            for pair in pairs
        ]


class Brief:
    """Minus the length in words, times a factor."""

    def __init__(self, factor):
        self.factor = factor

    def score(self, prompts, completions):
        return [-self.factor * len(one.text.split()) for one in completions]


class Hinge:
    """At least so far apart."""

    def __init__(self, gap):
        self.gap = gap

    def __call__(self, scores, verdicts):
        return (self.gap - scores[verdicts.chosen] + scores[verdicts.rejected]).clamp_min(0).mean()


def squared(scores, verdicts):
    """The same as a function, softer."""
    return ((9 - scores[verdicts.chosen] + scores[verdicts.rejected]) ** 2).mean()


class Silent:
    """No reward at all."""
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text("name: own\nmode: python\npython: ./own.py:Shorter\n")
    write_recipe(tmp_path)
    return tmp_path


def overrides(folder: Path, start: Path, *more: str) -> list[str]:
    common = ["iterations=1", "policy.bootstrap=null", "generate.prompts=16", f"policy.model={start}"]
    return [f"output={folder / 'run'}", *common, *more]


def test_an_algorithm_an_engine_and_a_judge_from_outside(folder: Path, tiny_run: Path) -> None:
    start = tiny_run / "iteration-000" / "policy"
    recipe = dedent(f"""\
        algorithm: {{kind: python, python: '{folder}/own.py:Imitate', options: {{rate: 0.01}}}}
        engine: {{kind: python, python: '{folder}/own.py:Loud', options: {{mark: ' (end)'}}, batch_size: 32}}
        judge: {{file: {folder}/own.yaml}}
        """)
    text = (folder / "tiny.yaml").read_text().split("\n")
    kept = [line for line in text if not line.startswith(("algorithm:", "engine:", "judge:"))]
    (folder / "tiny.yaml").write_text("\n".join(kept) + "\n" + recipe)
    loaded = load_recipe(folder / "tiny.yaml", overrides(folder, start))
    directory = run(loaded) / "iteration-001"
    assert sorted(path.name for path in directory.iterdir()) == ["evaluate", "generate", "label", "policy"]
    assert all(row["text"].endswith(" (end)") for row in read_rows(directory / "generate" / "completions.parquet"))
    assert {row["judge"] for row in read_rows(directory / "label" / "verdicts.parquet")} == {"own"}
    assert read_json_lines(directory / "policy" / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (start, directory / "policy"))
    moved = [not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)]
    assert all(moved)
    with pytest.raises(ConfigError, match="has no stage 'reward'.* generate, label, policy, evaluate"):
        run_stage(directory.parent, "reward", 1)


def test_a_reward_from_outside(folder: Path, tiny_run: Path) -> None:
    reward = f"reward={{kind: python, python: '{folder}/own.py:Brief', options: {{factor: 0.5}}}}"
    more = ("algorithm.steps=1", "algorithm.log_samples=32", reward)
    start = tiny_run / "iteration-000" / "policy"
    directory = run(load_recipe(folder / "tiny.yaml", overrides(folder, start, *more)))
    rows = read_json_lines(directory / "iteration-001" / "policy" / "samples.jsonl")
    assert len(rows) == 32
    for row in rows:
        assert row["score"] == -0.5 * len(row["response"].split())


@pytest.mark.parametrize("loss", ["Hinge, options: {gap: 90.0}", "squared"])
def test_a_reward_models_loss_from_outside(folder: Path, tiny_run: Path, loss: str) -> None:
    """Untrained scores lie close together, so the first loss is the gap asked for less their mean margin, or its square.

    With two completions a prompt has one pair, so that the loss, a mean over prompts, and the margin, over pairs, weigh alike.
    """
    name, _, options = loss.partition(",")
    made = f"loss: python, python: '{folder}/own.py:{name}',{options or ' options: {}'}"
    more = f"reward={{{made}, heldout_share: 0.3, batch_size: 64}}"
    start = tiny_run / "iteration-000" / "policy"
    pairs = "generate={prompts: 64, completions: 2}"
    settings = [*overrides(folder, start, more), pairs, "algorithm.steps=1", "reward.extra_rounds=0"]
    directory = run(load_recipe(folder / "tiny.yaml", settings)) / "iteration-001"
    rows = read_json_lines(directory / "reward" / "metrics.jsonl")
    assert len(rows) == 2, "64 prompts are one batch, of two epochs"
    least = 90 - rows[0]["reward/margin"] if options else (9 - rows[0]["reward/margin"]) ** 2
    # A mean of squares is the square of the mean and the variance of the margins, some 1 in a model whose scores have variance 1.
    assert -1e-3 < rows[0]["reward/loss"] - least < (1e-3 if options else 9)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("reward={{kind: python, python: '{own}:Silent'}}", "is a Silent without `score`"),
        ("reward={{kind: python, python: '{own}:Brief', options: {{f: 1}}}}", "Brief .*unexpected keyword argument"),
        ("reward={{kind: python}}", "`python` names the Python of kind python, and only of that"),
        ("reward={{kind: python, python: '{own}:Brieg'}}", "has no 'Brieg', did you mean 'Brief'"),
        ("reward={{loss: python, python: '{own}:Hinge'}}", "the loss .*missing 1 required"),
        ("reward={{loss: python, python: '{own}:squared', options: {{a: 1}}}}", "is a function, which takes no `options`"),
        ("reward={{loss: python, python: '{own}:Silent'}}", "is a Silent without `__call__`"),
        ("reward={{loss: python}}", "`python` names the Python of kind python"),
        ("reward={{loss: soft, kind: judge}}", "`loss` is a reward model's, and kind is judge"),
        ("reward={{loss: best, margin: true}}", "loss best has no margin"),
        ("algorithm={{kind: python, python: '{own}:Imitate'}}", "the algorithm .*missing 1 required"),
        ("algorithm={{kind: dpo2}}", "algorithm"),
        ("engine={{kind: vllm, python: 'a:b'}}", "`python` names the class of kind python, and only of that"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_before_work_starts(folder: Path, tiny_run: Path, setting: str, sentence: str) -> None:
    start = tiny_run / "iteration-000" / "policy"
    with pytest.raises(ConfigError, match=sentence):
        run(load_recipe(folder / "tiny.yaml", overrides(folder, start, setting.format(own=folder / "own.py"))))
    assert not (folder / "run").exists()


def test_errors_in_the_section_of_an_algorithm_name_the_setting_as_it_is_written(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'algorithm.step', did you mean 'algorithm.steps'\?"):
        load_recipe(folder / "tiny.yaml", ["algorithm.step=2"])
    with pytest.raises(ConfigError, match=r"algorithm.epochs = 0: input should be greater than or equal to 1"):
        load_recipe(folder / "tiny.yaml", ["algorithm.epochs=0"])
    assert load_recipe(folder / "tiny.yaml").algorithm.kind == "ppo"
