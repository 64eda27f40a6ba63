"""Best of n: what is chosen, by whom, how far from the policy it is, and as a target of `compare`."""

import math
from pathlib import Path
from typing import Any

import pytest

import judges
from selfplay.compare.best_of import best, check_choice, kl_bound
from selfplay.compare.head_to_head import compare
from selfplay.compare.settings import Given
from selfplay.compare.targets import contestants
from selfplay.config import PromptSource, Recipe, SamplingParams, validate
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.records import Completion
from selfplay.rewards.ensemble import load_reward_model
from selfplay.rundir import RunDirectory

GIVEN = Given(PromptSource(split="heldout", limit=12), sampling=SamplingParams(max_tokens=24))


def answer(name: str) -> Completion:
    return Completion(id=name, prompt_id="p", text=name, finish_reason="stop", policy="test")


def test_the_highest_score_is_chosen_and_the_first_of_several() -> None:
    groups = [[answer("a"), answer("b"), answer("c")], [answer("d"), answer("e")], [answer("f"), answer("g")]]
    scores = [[1.0, 2.0, 2.0], [math.nan, -5.0], [math.nan, math.nan]]
    assert [one.id for one, _ in best(groups, scores)] == ["b", "e", "f"]


def test_the_bound_on_the_kl_by_hand() -> None:
    """Uniform over two answers of which one is better: best of 2 takes it in 3 of 4 cases, KL .75 log 1.5 + .25 log .5."""
    assert kl_bound(1) == 0.0
    assert kl_bound(4) == pytest.approx(1.3862943611 - 0.75, abs=1e-9)
    exact = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert exact == pytest.approx(0.1308120, abs=1e-6) and exact < kl_bound(2) == pytest.approx(0.1931472, abs=1e-6)


def test_in_compare_the_reward_model_chooses(
    tiny_run: Path, training_seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [f"{tiny_run}@2", f"{tiny_run}@2*6"]
    first = compare(targets, GIVEN, folder=tmp_path)
    assert first.names == ("run@2", "run@2*6") and first.facts["KL of run@2*6 at most"] == "0.96 nats"
    reward = load_reward_model(RunDirectory(tiny_run).rounds(2, "reward")[-1])
    files = [file for file in (tmp_path / "samples").iterdir() if file.suffix == ".scores"]
    assert len(files) == 1
    from prompts.sources import load_prompts
    from selfplay.storage.journal import Journal

    prompts = load_prompts(PromptSource(split="heldout", limit=12), training_seed)
    scores = [score for rows in Journal(files[0]).batches.values() for score in rows]
    chosen = [Completion.model_validate(row) for row in Journal(files[0].with_suffix(".jsonl")).batches["answers"]]
    highest = [max(scores[place : place + 6]) for place in range(0, 72, 6)]
    assert reward.score(prompts, chosen) == pytest.approx(highest, abs=1e-4) and len(set(scores)) > 12
    monkeypatch.setattr(TransformersEngine, "generate", None)  # nothing is sampled again
    assert compare(targets, GIVEN, folder=tmp_path).summary == first.summary


def test_what_cannot_be_chosen_is_a_sentence(tiny_run: Path) -> None:
    with pytest.raises(
        ConfigError, match="best of n is for an iteration of a run, whose reward chooses, and n of at least 2"
    ):
        contestants([f"{tiny_run}@1", f"{tiny_run}@1*1"])
    with pytest.raises(ConfigError, match="whose reward chooses"):
        contestants([f"{tiny_run}@1", f"{tiny_run / 'iteration-001' / 'policy'}*4"])
    assert [one.name for one in contestants([f"{tiny_run}@1", f"{tiny_run}@1*4"])] == ["run@1", "run@1*4"]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"algorithm": {"kind": "dpo"}}, "with algorithm.kind dpo it trains no reward model: set reward.kind to judge"),
        ({"reward": {"kind": "judge"}}, "judge 'stories' would choose the best of n and also measure it"),
        ({"reward": {"kind": "judge"}, "judge": {"file": "helpfulness"}}, "compares answers instead of scoring them"),
    ],
)
def test_who_may_choose(sections: dict[str, Any], sentence: str) -> None:
    recipe = validate(Recipe, {"name": "r", "policy": {"model": "m"}, **sections}, "r")
    with pytest.raises(ConfigError, match=sentence):
        check_choice(recipe, judges.load_spec("stories"))


def test_another_judge_measures_what_a_judge_chose() -> None:
    recipe = validate(Recipe, {"name": "r", "policy": {"model": "m"}, "reward": {"kind": "judge"}}, "r")
    check_choice(recipe, judges.load_spec("instructions"))
