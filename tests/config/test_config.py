"""Recipes: every mistake that can be known without loading anything is one sentence with the way out."""

import math
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from selfplay.config import Endpoint, Recipe, Section, apply_override, load_recipe, parse_yaml, validate
from selfplay.errors import ConfigError

MINIMAL = "policy: {model: some/model}\n"


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    """What a user is told about a recipe."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_recipe(file, overrides)
    return str(error.value).removeprefix(f"{file}: ")


def recipe_of(tmp_path: Path, text: str = MINIMAL, *overrides: str) -> Recipe:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return load_recipe(file, overrides)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("polcy: {}", "unknown setting 'polcy', did you mean 'policy'?"),
        ("algorithm: {stps: 3}", "unknown setting 'algorithm.stps', did you mean 'algorithm.steps'?"),
        ("prompts: {train: {colum: x}}", "unknown setting 'prompts.train.colum', did you mean 'prompts.train.column'?"),
        (
            "policy: {bootstrap: {architecture: {layer: 2}}}",
            "unknown setting 'policy.bootstrap.architecture.layer', did you mean 'policy.bootstrap.architecture.layers'?",
        ),
        (
            "algorithm: {pretraining: {gamma: 1, lenght: 5}}",
            "unknown setting 'algorithm.pretraining.lenght', did you mean 'algorithm.pretraining.length'?",
        ),
        ("judge: {xyzzy: 1}", "unknown setting 'judge.xyzzy'"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_known_one(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(tmp_path, text).split("; ")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("iterations: '2'", "iterations = '2': input should be a valid integer"),
        ("iterations: 2.5", "iterations = 2.5: input should be a valid integer"),
        ("iterations: true", "iterations = True: input should be a valid integer"),
        ("algorithm: {whiten_advantages: yes}", "algorithm.whiten_advantages = 'yes': input should be a valid boolean"),
        ("algorithm: {learning_rate: fast}", "algorithm.learning_rate = 'fast': input should be a valid number"),
        ("sampling: {stop: END}", "sampling.stop = 'END': input should be a valid tuple"),
        ("generate: 3", "generate = 3: input should be a valid dictionary or instance of Generate"),
        ("iterations: 0", "iterations = 0: input should be greater than or equal to 1"),
        ("generate: {completions: 1}", "generate.completions = 1: input should be greater than or equal to 2"),
        ("algorithm: {learning_rate: 0}", "algorithm.learning_rate = 0: input should be greater than 0"),
        ("algorithm: {learning_rate: .nan}", "algorithm.learning_rate = nan: input should be a finite number"),
        ("algorithm: {learning_rate: .inf}", "algorithm.learning_rate = inf: input should be a finite number"),
        ("algorithm: {discount: 1.1}", "algorithm.discount = 1.1: input should be less than or equal to 1"),
        (
            "algorithm: {schedule: cosin}",
            "algorithm.schedule = 'cosin': input should be 'linear', 'constant' or 'cosine'",
        ),
        ("engine: {kind: vlm}", "engine.kind = 'vlm': input should be 'transformers', 'vllm' or 'python'"),
        ("evaluate: {resamples: 100}", "evaluate.resamples = 100: input should be greater than or equal to 2000"),
        ("name: ../up", "name = '../up': string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'"),
    ],
)
def test_wrong_types_and_ranges(tmp_path: Path, setting: str, sentence: str) -> None:
    assert refusal(tmp_path, MINIMAL + setting) == sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("policy: {}", "policy: a policy comes either from `model` or from `bootstrap`: set exactly one of them"),
        (
            "policy: {model: m, bootstrap: {}}",
            "policy: a policy comes either from `model` or from `bootstrap`: set exactly one of them",
        ),
        (
            "policy: {bootstrap: {}, sft: {}}",
            "policy: `policy.sft` fine-tunes `policy.model`; with a bootstrap, set `policy.bootstrap.sft`",
        ),
        (
            "policy: {bootstrap: {architecture: {hidden_size: 100, heads: 3}}}",
            "policy.bootstrap.architecture: hidden_size 100 is not divisible by heads 3",
        ),
        (
            MINIMAL + "algorithm: {episodes: 100, minibatches: 3}",
            "algorithm: episodes 100 is not divisible by minibatches 3",
        ),
        (
            MINIMAL + "algorithm: {kl_in: loss}",
            "algorithm: kl_in loss with kl_estimator k1 has a gradient of mean 0, so it "
            "holds nothing back: use k2 or k3, or put k1 in the reward",
        ),
        (
            MINIMAL + "algorithm: {async_rollouts: true, importance_cap: null}",
            "algorithm: async_rollouts samples with older weights, which importance_cap corrects for: set it, for example to "
            "2.0",
        ),
        (
            MINIMAL + "algorithm: {steps: 4, critic_warmup: 4}",
            "algorithm: critic_warmup 4 leaves none of the 4 steps to the policy",
        ),
        (
            MINIMAL + "sampling: {temperature: 0}",
            "sampling.temperature is 0: greedy completions of one prompt are all the same, so there is nothing to compare; use "
            "a temperature above 0",
        ),
        (
            MINIMAL + "sampling: {top_p: 0.9}",
            "sampling.top_p and top_k bias PPO's importance ratio: leave them out",
        ),
        (
            MINIMAL + "sampling: {top_k: 50}",
            "sampling.top_p and top_k bias PPO's importance ratio: leave them out",
        ),
        (
            MINIMAL + "prompts: {train: {source: a.jsonl}, heldout: {source: a.jsonl, split: train}}",
            "prompts.train and prompts.heldout are the same ('a.jsonl', split 'train'): held-out prompts must not be trained "
            "on; name another file or split",
        ),
        ("iterations: 2", "setting 'policy' is missing"),
        (
            MINIMAL + "launch: {nodes: 2, workers: 8}",
            "launch: nodes is 2, and address names no cluster: run `ray start --head` on one machine and `ray "
            "start --address=HOST:6379` on the others, and set address to auto",
        ),
    ],
)
def test_contradictions(tmp_path: Path, settings: str, sentence: str) -> None:
    assert refusal(tmp_path, settings) == sentence


def test_what_is_allowed_at_the_edge_of_a_contradiction(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        MINIMAL + "algorithm: {kl_in: loss, kl_estimator: k2, steps: 5, critic_warmup: 4}\n"
        "sampling: {temperature: 0.01}",
    )
    assert recipe.algorithm.critic_warmup == 4 and recipe.sampling.temperature == 0.01


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "policy: {model: m}\niterations: 0\nseed: x\nengin: {}")
    assert len(said.split("; ")) == 3
    assert all(word in said for word in ("iterations = 0", "seed = 'x'", "did you mean 'engine'?"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("-2e3", -2000.0),
        ("1e+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1.5e-3", 0.0015),
        ("-.5e2", -50.0),
        ("1_000.5", 1000.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("3", 3),
        ("1_000", 1000),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("e4", "e4"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("2.5-7b", "2.5-7b"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_yaml_says_what_people_mean(text: str, value: Any) -> None:
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


def test_a_number_that_is_none_stays_none() -> None:
    assert math.isnan(parse_yaml("key: .nan")["key"])


@pytest.mark.parametrize("text", ["steps: 1\nsteps: 2", "a:\n  steps: 1\n  steps: 1", "[{x: 1, x: 2}]"])
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml is not valid YAML: .*'(steps|x)' stands twice.* line \d"):
        parse_yaml(text, "r.yaml")


def test_merged_yaml_may_override_what_it_merges() -> None:
    found = parse_yaml("base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}")
    assert found["more"] == {"a": 1, "b": 3}


def test_broken_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    assert "mine.yaml is not valid YAML" in refusal(tmp_path, "iterations: 2\npolicy: {model: [}\n")
    assert "line 2" in refusal(tmp_path, "iterations: 2\npolicy: {model: [}\n")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text).endswith("holds no mapping of settings; `selfplay init` writes one to start from")


def test_a_recipe_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recipe .*none.yaml'; write one with `selfplay init"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="binary.yaml is not text in UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_the_files_name_names_the_run(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert (recipe.name, recipe.directory) == ("mine", Path("runs/mine"))
    assert recipe_of(tmp_path, MINIMAL, "name=other").directory == Path("runs/other")
    assert recipe_of(tmp_path, MINIMAL, "output=/somewhere/else").directory == Path("/somewhere/else")


def test_overrides_reach_any_depth_and_are_read_as_yaml(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        MINIMAL + "algorithm: {steps: 7}",
        "algorithm.learning_rate=1e-4",
        "prompts.train.limit=null",
        "sampling.stop=[END, 'a=b']",
        "policy.model=null",
        "policy.bootstrap.architecture.layers=2",
        "description=a=b",
        "policy.bootstrap.sft=null",
        "iterations=3",
        "iterations=4",
    )
    assert recipe.algorithm.learning_rate == 1e-4 and recipe.algorithm.steps == 7
    assert recipe.prompts.train.limit is None and recipe.sampling.stop == ("END", "a=b")
    assert recipe.policy.bootstrap is not None and recipe.policy.bootstrap.architecture.layers == 2
    assert recipe.policy.bootstrap.sft is None and recipe.policy.bootstrap.vocabulary == 512
    assert recipe.description == "a=b" and recipe.iterations == 4, "the last one counts"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("algorithm.steps", "override 'algorithm.steps' is not of the form key=value, such as algorithm.steps=10"),
        ("=3", "override '=3' is not of the form key=value, such as algorithm.steps=10"),
        ("algorithm.stps=3", "unknown setting 'algorithm.stps', did you mean 'algorithm.steps'?"),
        ("algorithm.steps=ten", "algorithm.steps = 'ten': input should be a valid integer"),
        ("sampling.stop=[a", "the value of sampling.stop is not valid YAML"),
    ],
)
def test_overrides_that_cannot_be(tmp_path: Path, override: str, sentence: str) -> None:
    assert refusal(tmp_path, MINIMAL, override).startswith(sentence)


def test_an_override_makes_the_sections_on_its_way() -> None:
    tree: dict[str, Any] = {"policy": {"bootstrap": None, "model": "m"}}
    apply_override(tree, "policy.bootstrap.vocabulary=300")
    apply_override(tree, "engine.kind=vllm")
    assert tree == {"policy": {"bootstrap": {"vocabulary": 300}, "model": "m"}, "engine": {"kind": "vllm"}}


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe_of(tmp_path).algorithm.steps = 3  # type: ignore[misc]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, MINIMAL + "sampling: {stop: [a]}\nalgorithm: {adaptive_kl: {target: 3}}")
    assert validate(Recipe, recipe.model_dump(mode="json"), "again") == recipe


def sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and all sections in it, optional ones too."""
    yield kind
    for field in kind.model_fields.values():
        parts = get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from sections(part)


def documented(kind: type[BaseModel], name: str) -> bool:
    field = kind.model_fields[name]
    held = [
        part
        for part in (field.annotation, *get_args(field.annotation))
        if isinstance(part, type) and issubclass(part, Section)
    ]
    return bool((field.description or "").strip()) or any((part.__doc__ or "").strip() for part in held)


@pytest.mark.parametrize(
    "kind", sorted(set(sections(Recipe)), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_every_setting_is_documented(kind: type[BaseModel]) -> None:
    assert "__doc__" in vars(kind) and (kind.__doc__ or "").strip()
    assert [name for name in kind.model_fields if not documented(kind, name)] == []


def test_the_walk_over_the_sections_finds_them_all() -> None:
    assert {"Lora", "AdaptiveKL", "Pretraining", "Architecture", "PromptSource", "Guard"} <= {
        kind.__name__ for kind in sections(Recipe)
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sampling: {n: 4}", "say how many completions a prompt gets in generate.completions"),
        ("sampling: {seed: 4}", "change `seed` for other random numbers"),
        ("prompts: {train: {source: mine.jsonl}}", "prompts.train is 'mine.jsonl', and prompts.heldout is not set"),
        (
            "prompts: {train: {source: instructions}, heldout: {limit: 64}}",
            "prompts.train is 'instructions', and prompts.heldout names no source: name the prompts to measure on",
        ),
    ],
)
def test_settings_that_would_do_nothing_or_the_wrong_thing(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"policy: {{bootstrap: {{}}}}\n{text}\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_recipe(file)


def test_a_limit_of_money_needs_prices() -> None:
    with pytest.raises(ValueError, match="max_cost limits nothing while input_price and output_price are 0"):
        Endpoint(url="http://x/v1", max_cost=1.0)
    assert Endpoint(url="http://x/v1", max_cost=1.0, output_price=0.5).max_cost == 1.0
