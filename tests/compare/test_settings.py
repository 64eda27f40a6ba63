"""What runs must agree on to be compared: the order of targets decides nothing, and what differs is named."""

from pathlib import Path

import pytest

import prompts
from selfplay.compare.settings import Given, judging, settings_of
from selfplay.compare.targets import contestants, with_baseline_first
from selfplay.config import PromptSource, Recipe, SamplingParams
from selfplay.errors import ConfigError


def recipe(name: str, **changes) -> Recipe:
    return Recipe(**{"name": name, "output": f"runs/{name}", "policy": {"bootstrap": {}}, **changes})


def test_runs_that_differ_are_refused_with_what_differs_and_the_way_out():
    one = recipe("a", judge={"file": "stories"}, evaluate={"temperature": 0.5})
    two = recipe(
        "b", judge={"file": "quality"}, prompts={"heldout": {"source": "stories", "split": "heldout", "limit": 9}}
    )
    with pytest.raises(ConfigError) as error:
        settings_of([one, two])
    said = str(error.value)
    assert "judge (runs/a: stories, sha256 " in said and "runs/b: quality, sha256 " in said
    assert "held-out prompts (runs/a: stories heldout prompt 256, runs/b: stories heldout prompt 9)" in said
    assert "temperature (runs/a: 0.5, runs/b: 1.0)" in said
    assert "--judge ... --prompts ... --temperature ..." in said and "--like runs/a" in said
    assert "max_tokens" not in said, "what is the same is not named"


def test_what_is_given_need_not_agree_and_the_order_of_targets_changes_nothing():
    one = recipe("a", judge={"file": "stories"}, seed=3)
    two = recipe("b", judge={"file": "quality"}, evaluate={"temperature": 0.2}, seed=2)
    given = Given(judge="stories", temperature=0.7)
    assert settings_of([one, two], given) == settings_of([two, one], given)
    found = settings_of([one, two], given)
    assert (found.judge, found.sampling.temperature, found.seed) == ("stories", 0.7, 2)
    assert found.facts(judging(found), 256) == {
        "judge": "stories (version 1)",
        "prompts": "stories/heldout",
        "n": 256,
        "temperature": 0.7,
        "max_tokens": 128,
        "seed": 2,
    }


def test_a_run_can_be_named_whose_recipe_decides():
    one = recipe("a", sampling={"max_tokens": 64, "stop": ["\n"]})
    two = recipe("b", sampling={"max_tokens": 32})
    with pytest.raises(
        ConfigError, match=r"max_tokens \(.*64.*32\); stop .*say which with --max-tokens ..., or take all"
    ):
        settings_of([one, two])
    assert settings_of([one, two], like=two) == settings_of([two])
    assert settings_of([one, two], Given(max_tokens=5), like=two).sampling.max_tokens == 5


def test_two_files_of_one_judge_are_the_same_judge(tmp_path: Path):
    shipped = (Path(prompts.__file__).parent / "judges/stories.yaml").read_text()
    files = [tmp_path / "stories.yaml", tmp_path / "copy" / "stories.yaml"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(shipped)
    one, two = (recipe(name, judge={"file": str(file)}) for name, file in zip("ab", files, strict=True))
    assert settings_of([one, two]).judge in map(str, files)
    files[1].write_text(shipped.replace("weight: ", "weight: 1", 1))
    with pytest.raises(ConfigError, match="differ in what a comparison depends on: judge"):
        settings_of([one, two])


def test_the_engine_and_the_seed_are_no_difference():
    one, two = recipe("a", seed=1, engine={"kind": "vllm"}), recipe("b", seed=0)
    assert settings_of([one, two]).engine.kind == settings_of([two, one]).engine.kind == "transformers"


def test_without_runs_everything_is_given():
    found = settings_of([], Given(PromptSource(), "stories", max_tokens=7, sampling=SamplingParams(temperature=0.3)))
    assert (found.sampling.temperature, found.sampling.max_tokens) == (0.3, 7)


def test_the_baseline_is_named_by_its_target_or_its_name(tiny_run):
    found = contestants([f"{tiny_run}@start", f"{tiny_run}@1", f"{tiny_run}@2"])
    for baseline in ("run@2", f"{tiny_run}@2"):
        assert [one.name for one in with_baseline_first(found, baseline)] == ["run@2", "run@start", "run@1"]
    with pytest.raises(ConfigError, match="'run@7' is none of the checkpoints compared: run@start, run@1, run@2"):
        with_baseline_first(found, "run@7")
