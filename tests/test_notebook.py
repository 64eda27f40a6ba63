"""`selfplay.train`: a run in three lines, by any algorithm, that stops, resumes and refuses as runs do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import selfplay
from selfplay.errors import ConfigError
from selfplay.models import load_policy, load_tokenizer
from selfplay.objects import load_object, reference_to, source_of
from selfplay.results.load import read_run
from selfplay.rewards.sources import FunctionReward
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_rows

PROMPTS = [f"Tell a story about a {animal}." for animal in ("fox", "owl", "pony", "otter")]
SMALL: dict[str, Any] = {"algorithm": {"steps": 2, "episodes": 8, "minibatches": 2}, "sampling": {"max_tokens": 12}}


def short(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    return [-float(len(response)) for response in responses]


@pytest.fixture
def model(tiny_run: Path) -> Path:
    return tiny_run / "iteration-000" / "policy"


def test_three_lines(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training_seed: int) -> None:
    monkeypatch.chdir(tmp_path)
    trained = selfplay.train(model, reward=short, prompts=PROMPTS, seed=training_seed, **SMALL)
    assert trained.directory.parent == Path("runs") and trained.directory.name.startswith("train-")
    assert trained.policy == trained.directory / "iteration-001" / "policy"
    assert [row["step"] for row in trained.metrics] == [1, 2]
    assert all(row["objective/scores"] < 0 for row in trained.metrics)
    assert [len(group) for group in trained.sample(PROMPTS[:2], n=3, temperature=0.5)] == [3, 3]
    assert (trained.directory / "report.html").is_file()
    again = selfplay.train(model, reward=short, prompts=PROMPTS, seed=training_seed, **SMALL)
    assert again.metrics == trained.metrics  # nothing was trained again: the rows hold times
    other = selfplay.train(
        model, reward=lambda p, responses, m: [0.0 for _ in responses], prompts=PROMPTS, seed=training_seed, **SMALL
    )
    assert other.directory != trained.directory and other.metrics[0]["objective/scores"] == 0


def test_heldout_prompts_are_measured_by_the_reward(model: Path, tmp_path: Path, training_seed: int) -> None:
    heldout = [{"prompt": f"Tell a story about a {animal}.", "animal": animal} for animal in ("duck", "cat", "fly")]
    seen: list[dict[str, Any]] = []

    def watched(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
        seen.extend(meta)
        return short(prompts, responses, meta)

    pair = load_policy(model), load_tokenizer(model)
    directory = selfplay.train(
        pair, reward=watched, prompts=PROMPTS, heldout=heldout, output=tmp_path / "run", seed=training_seed, **SMALL
    ).directory
    assert {row["animal"] for row in seen if row} == {"duck", "cat", "fly"}
    matches = read_rows(directory / "iteration-001" / "evaluate" / "matches.parquet")
    assert len(matches) == 3
    for row in matches:  # the shorter of two texts is the better one
        difference = len(row["b_text"]) - len(row["a_text"])
        assert row["preference"] == (0.5 if difference == 0 else float(difference > 0))
    assert load_policy(directory / "inputs" / "model").num_parameters() == pair[0].num_parameters()
    assert read_run(directory).evaluated[0].comparison("win_rate_vs_start") is not None


def test_a_call_that_was_stopped_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training_seed: int
) -> None:
    settings = {**SMALL, "algorithm": {**SMALL["algorithm"], "steps": 3, "checkpoint_every": 1}, "seed": training_seed}
    reference = f"{tmp_path}/rewards.py:short"
    (tmp_path / "rewards.py").write_text(
        "def short(prompts, responses, meta):\n    return [-len(one) for one in responses]\n"
    )
    whole = selfplay.train(model, reward=reference, prompts=PROMPTS, output=tmp_path / "whole", **settings)
    calls, score = [], FunctionReward.score

    def stopped(self: FunctionReward, *arguments: Any) -> list[float]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FunctionReward, "score", stopped)
        selfplay.train(model, reward=reference, prompts=PROMPTS, output=tmp_path / "cut", **settings)
    assert not RunDirectory(tmp_path / "cut").finished(1, "policy")
    cut = selfplay.train(model, reward=reference, prompts=PROMPTS, output=tmp_path / "cut", **settings)
    ours, theirs = load_policy(cut.policy).state_dict(), load_policy(whole.policy).state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_pairs_are_made_by_the_reward(model: Path, tmp_path: Path, training_seed: int) -> None:
    settings = {"sampling": {"max_tokens": 12}, "generate": {"completions": 3}, "seed": training_seed}
    dpo = {"kind": "dpo", "batch_size": 4}
    trained = selfplay.train(model, reward=short, prompts=PROMPTS, algorithm=dpo, output=tmp_path / "run", **settings)
    rows = read_rows(trained.directory / "iteration-001" / "label" / "preferences.parquet")
    assert rows and all(len(row["chosen"][-1]["content"]) < len(row["rejected"][-1]["content"]) for row in rows)
    assert trained.metrics and load_policy(trained.policy) is not None


def test_samples_with_rewards(model: Path, tmp_path: Path, training_seed: int) -> None:
    samples = [
        (prompt, text) for prompt in PROMPTS for text in ("The end.", "It was a good day and it ran up the hill.")
    ]
    trained = selfplay.train(
        model,
        samples=samples,
        rewards=[1.0, 0.0] * len(PROMPTS),
        algorithm={"steps": 3, "batch_size": 4},
        output=tmp_path / "run",
        seed=training_seed,
        sampling={"max_tokens": 12},
    )
    assert trained.recipe.algorithm.kind == "ilql" and [row["step"] for row in trained.metrics] == [1, 2, 3]
    assert [len(group) for group in trained.sample(PROMPTS[:1], n=2)] == [2]
    assert sorted(path.name for path in (trained.directory / "iteration-001").iterdir()) == ["policy"]
    with pytest.raises(ConfigError, match="there are 2 samples and 1 rewards; give one reward for each sample"):
        selfplay.train(model, samples=samples[:2], rewards=[1.0])
    with pytest.raises(ConfigError, match=r"samples\[0\] is 3; give a pair of texts"):
        selfplay.train(model, samples=[3], rewards=[1.0])
    with pytest.raises(ConfigError, match=r"samples\[1\] is 'x'; give a pair of texts"):
        selfplay.train(model, samples=[samples[0], "x"], rewards=[1.0, 2.0])
    with pytest.raises(ConfigError, match=r"rewards\[1\] is None; give a finite number"):
        selfplay.train(model, samples=samples[:2], rewards=[1.0, None])
    with pytest.raises(ConfigError, match="samples with rewards are learned from by ilql, not by 'ppo'"):
        selfplay.train(model, samples=samples[:2], rewards=[1.0, 2.0], algorithm="ppo")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": None}, "nothing says what is good"),
        ({"reward": 3}, "reward is 3; give a function"),
        ({"reward": "./none.py:f"}, "there is no file './none.py'"),
        ({"reward": lambda responses: [0.0]}, r"cannot be called with \(prompts, responses, meta\)"),
        ({"prompts": None}, "prompts is None; give a list of texts"),
        ({"prompts": "Tell a story."}, "prompts is 'Tell a story.'; give a list of texts"),
        ({"prompts": []}, r"prompts is \[\]; give a list of texts"),
        ({"prompts": ["Tell a story.", 3]}, r"prompts\[1\] is 3; give a text"),
        (
            {"prompts": ["Tell \ud83d."]},
            r"prompts\[0\] cannot be written as JSON: column 'prompt' holds half of a surrogate",
        ),
        (
            {"prompts": [{"prompt": "Tell.", "n": float("nan")}]},
            r"prompts\[0\] cannot be written as JSON: .*finite numbers",
        ),
        ({"heldout": [{"prompt": "Tell.", "x": {3}}]}, r"heldout\[0\] cannot be written as JSON: .*type set is not"),
        ({"heldout": [{"text": "x"}]}, r"heldout\[0\] is {'text': 'x'}; give a text, or a mapping"),
        ({"heldout": ["Tell a story about a fox."]}, "1 of 1 held-out prompts are training prompts too"),
        ({"samples": [("a", "b")], "rewards": [1.0]}, "samples come with their rewards"),
        ({"model": 3}, "model is 3; give a path"),
        ({"model": "./none"}, "policy.model is './none', which is not a checkpoint"),
        ({"algorithm": 3}, "algorithm is 3; give a kind, such as 'ppo'"),
        ({"algorithm": "pop"}, "algorithm"),
        ({"algorithm": {"stepss": 3}}, "unknown setting 'algorithm.stepss', did you mean 'algorithm.steps'"),
        ({"sampling": {"max_token": 3}}, "unknown setting 'sampling.max_token', did you mean 'sampling.max_tokens'"),
        ({"smapling": {}}, "unknown setting 'smapling', did you mean 'sampling'"),
        ({"name": "x"}, "'name' cannot be given as a section"),
        ({"judge": "storys"}, "there is no judge 'storys', did you mean 'stories'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    changes: dict[str, Any], said: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": model, "reward": short, "prompts": PROMPTS, "output": "run", **changes}
    with pytest.raises(ConfigError, match=said):
        selfplay.train(given.pop("model"), **given)
    assert not (tmp_path / "run" / "iteration-000").exists()


def test_live_functions_have_references() -> None:
    def adding(amount: float) -> Any:
        return lambda value: value + amount

    one, two = adding(1.0), adding(2.0)
    assert reference_to(short) == "test_notebook:short" and load_object(reference_to(short)) is short
    assert reference_to(one) != reference_to(two), "what a closure holds tells it from another"
    assert reference_to(one) == reference_to(adding(1.0))
    assert load_object(reference_to(two))(1) == 3 and b"value + amount" in source_of(reference_to(two))


def test_the_package_loads_no_torch() -> None:
    script = "import sys, selfplay; print('torch' in sys.modules); selfplay.train; print('torch' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert said.stdout.split()[0] == "False"
