"""What is refused before anything is loaded, and how much work a recipe is, counted by hand."""

import importlib.util
import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from selfplay.config import Recipe, load_recipe
from selfplay.errors import ConfigError
from selfplay.preflight import check, check_engines
from selfplay.sizing.work import work

PAIRWISE = """\
mode: pairwise
{model}
messages: [{{role: user, content: "{{{{ prompt }}}} A: {{{{ responses[0] }}}} B: {{{{ responses[1] }}}}"}}]
output: {{kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {{A: 1, B: 0}}}}
"""
SMALL = "generate: {prompts: 4}\nalgorithm: {episodes: 4, minibatches: 2}\n"


def recipe(folder: Path, text: str, *overrides: str) -> Recipe:
    file = folder / "r.yaml"
    file.write_text(text)
    return load_recipe(file, overrides)


def prompts_file(folder: Path, name: str, *texts: str) -> str:
    path = folder / name
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def bootstrapped(folder: Path, *overrides: str) -> Recipe:
    """Five prompts to learn from, three held out, the built-in judge; a model from text."""
    train = prompts_file(folder, "train.jsonl", *"abcde")
    heldout = prompts_file(folder, "heldout.jsonl", *"xyz")
    text = (
        f"policy: {{bootstrap: {{}}}}\nprompts: {{train: {{source: {train}}}, heldout: {{source: {heldout}}}}}\n"
        + SMALL
    )
    return recipe(folder, text, *overrides)


def refusal(found: Recipe) -> str:
    with pytest.raises(ConfigError) as error:
        check(found)
    return str(error.value)


def test_what_can_run_gives_its_prompts(tmp_path: Path) -> None:
    train, heldout = check(bootstrapped(tmp_path))
    assert [prompt.text for prompt in train] == list("abcde") and [prompt.text for prompt in heldout] == list("xyz")


def test_a_judge_that_leaves_earlier_turns_out_is_named_before_work_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    for name, last in (("a", "x"), ("b", "y")):
        talks = [[*turns, {"role": "user", "content": f"{last}{number}"}] for number in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": talk}) + "\n" for talk in talks))
    (tmp_path / "last.yaml").write_text(PAIRWISE.format(model="model: policy"))
    sources = [f"prompts.train.source={tmp_path / 'a.jsonl'}", f"prompts.heldout.source={tmp_path / 'b.jsonl'}"]
    small = ["generate.prompts=2", "algorithm.episodes=2", "algorithm.minibatches=1"]
    check(bootstrapped(tmp_path, *sources, *small, f"judge.file={tmp_path / 'last.yaml'}"))
    said = capsys.readouterr().err
    assert said.count("caution: judge 'last': its template shows only the last turn of a conversation, but prompt") == 1


def test_heldout_prompts_that_are_trained_on(tmp_path: Path) -> None:
    prompts_file(tmp_path, "other.jsonl", "x", "c", "y", "e")
    said = refusal(bootstrapped(tmp_path, f"prompts.heldout.source={tmp_path / 'other.jsonl'}"))
    assert said == (
        "2 of 4 held-out prompts are training prompts too, such as 'c': take them out of one of prompts.train and "
        "prompts.heldout"
    )


def test_overlap_is_of_text_and_not_of_names(tmp_path: Path) -> None:
    """The same conversation under another id, in another format, is the same prompt."""
    rows = [{"id": "other", "prompt": [{"role": "user", "content": "d"}], "extra": 1}]
    (tmp_path / "chat.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert refusal(bootstrapped(tmp_path, f"prompts.heldout.source={tmp_path / 'chat.jsonl'}")).startswith(
        "1 of 1 held-out"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "generate.prompts=6",
            "generate.prompts is 6, but there are 5 training prompts: lower it, or give more prompts",
        ),
        (
            "policy.bootstrap.architecture.context=128",
            "sampling.max_tokens is 128, which leaves no room for a prompt in "
            "policy.bootstrap.architecture.context 128: shorten the answers, or take a longer context",
        ),
        ("judge.file=storys", "there is no judge 'storys', did you mean 'stories'?"),
        ("judge.file=./none.yaml", "there is no judge file 'none.yaml'"),
        ("evaluate.judge=storys", "there is no judge 'storys', did you mean 'stories'?"),
        (
            "judge.model=some/model",
            "a judge of mode rules asks no model of its own, so 'some/model' cannot be its model",
        ),
        (
            "reward.backbone=./none",
            "reward.backbone is './none', which is not a checkpoint: there is no ./none/config.json",
        ),
        ("reward.backbone=a/b/c", "reward.backbone is 'a/b/c', which is not a checkpoint"),
        ("prompts.train.source=none.jsonl", "there is no file 'none.jsonl'"),
        ("reward={kind: function, function: ./none.py:f}", "python: there is no file './none.py', from '/"),
        (
            "reward={kind: function, function: none.py}",
            "'none.py' names no function: write ./file.py:name or package.module:name",
        ),
        (
            'reward={kind: function, function: "json:dumps"}',
            "json:dumps cannot be called with (prompts, responses, meta): too many positional arguments",
        ),
    ],
)
def test_refusals(tmp_path: Path, override: str, said: str) -> None:
    assert said in refusal(bootstrapped(tmp_path, override))


def test_a_function_as_the_reward_needs_no_prompts_for_pairs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(prompts, responses, meta):\n    return [0.0] * len(prompts)\n")
    check(bootstrapped(tmp_path, f"reward={{kind: function, function: {tmp_path}/mine.py:f}}", "generate.prompts=600"))


@pytest.mark.parametrize(
    ("package", "overrides"),
    [
        ("vllm", ["engine.kind=vllm"]),
        ("peft", ["policy.lora={rank: 4}"]),
        ("ray", ["launch={workers: 2}"]),
    ],
)
def test_packages_that_a_recipe_needs(
    tmp_path: Path, package: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    check(bootstrapped(tmp_path, *overrides))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert f"needs the package {package}, which is not installed" in refusal(bootstrapped(tmp_path, *overrides))
    check(bootstrapped(tmp_path))


def test_batches_that_workers_cannot_share(tmp_path: Path) -> None:
    said = refusal(bootstrapped(tmp_path, "launch={workers: 3}", "reward.batch_size=32"))
    assert said.startswith("reward.batch_size is 32, which 3 workers cannot share evenly: make it a multiple of that")
    said = refusal(bootstrapped(tmp_path, "launch={workers: 3}", "reward.batch_size=33"))
    assert said.startswith("policy.bootstrap.pretrain.batch_size is 64, which 3 workers")
    check(bootstrapped(tmp_path, "launch={workers: 4}", "reward.batch_size=32"))


@pytest.mark.parametrize("model", ["./none", "../none/", "/no/such/place", "~/none", "runs/none/iteration-001/policy"])
def test_a_path_that_is_not_there(tmp_path: Path, model: str) -> None:
    said = refusal(bootstrapped(tmp_path, "policy.bootstrap=null", f"policy.model={model}"))
    assert said == f"policy.model is {model!r}, which is not a checkpoint: there is no {model.rstrip('/')}/config.json"


def test_a_folder_without_a_model_and_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half").mkdir()
    assert "policy.model is 'half'" in refusal(bootstrapped(tmp_path, "policy.bootstrap=null", "policy.model=half"))
    check(bootstrapped(tmp_path, "policy.bootstrap=null", "policy.model=some-org/some-model"))


def test_a_policy_whose_context_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 128}')
    given = ("policy.bootstrap=null", f"policy.model={tmp_path / 'model'}")
    assert f"no room for a prompt in the context of {str(tmp_path / 'model')!r}, 128" in refusal(
        bootstrapped(tmp_path, *given)
    )
    check(bootstrapped(tmp_path, *given, "sampling.max_tokens=127"))


def judge_file(folder: Path, text: str, name: str = "j.yaml") -> Path:
    (folder / name).write_text(dedent(text))
    return folder / name


def test_a_judge_that_needs_a_model_and_has_none(tmp_path: Path) -> None:
    file = judge_file(tmp_path, PAIRWISE.format(model=""))
    assert refusal(bootstrapped(tmp_path, f"judge.file={file}")).startswith(
        "judge 'j' asks a language model, but names none: set judge.model to a checkpoint, a hub id, or `policy`"
    )
    check(bootstrapped(tmp_path, f"judge.file={file}", "judge.model=policy"))
    check(bootstrapped(tmp_path, f"judge.file={file}", "judge.model=some/model"))
    said = refusal(bootstrapped(tmp_path, f"judge.file={file}", "judge.model=./none"))
    assert said.startswith("the model of judge 'j' is './none', which is not a checkpoint")
    named = judge_file(tmp_path, PAIRWISE.format(model="model: ./gone"), "named.yaml")
    assert "the model of judge 'named' is './gone'" in refusal(bootstrapped(tmp_path, f"judge.file={named}"))


def test_the_judge_that_measures_has_a_model_of_its_own(tmp_path: Path) -> None:
    """`judge.model` is for the judge that labels."""
    file = judge_file(tmp_path, PAIRWISE.format(model=""))
    assert "names none" in refusal(
        bootstrapped(tmp_path, f"judge.file={file}", "judge.model=policy", f"evaluate.judge={file}")
    )


def test_a_juror_without_a_model(tmp_path: Path) -> None:
    judge_file(tmp_path, PAIRWISE.format(model=""), "member.yaml")
    jury = judge_file(tmp_path, "mode: jury\nmembers: [{judge: stories}, {judge: ./member.yaml}]\n", "jury.yaml")
    assert refusal(bootstrapped(tmp_path, f"judge.file={jury}")).startswith(
        "judge 'member' asks a language model, but names none"
    )
    (tmp_path / "jury.yaml").write_text(
        "mode: jury\nmembers: [{judge: stories}, {judge: ./member.yaml, model: some/model}]\n"
    )
    check(bootstrapped(tmp_path, f"judge.file={jury}"))


def test_a_key_is_there_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    remote = 'model: m\nendpoint: {url: "http://127.0.0.1:9/v1", key_variable: JUDGE_KEY}'
    file = judge_file(tmp_path, PAIRWISE.format(model=remote), "member.yaml")
    jury = judge_file(tmp_path, "mode: jury\nmembers: [{judge: stories}, {judge: ./member.yaml}]\n", "jury.yaml")
    for override in (f"judge.file={file}", f"evaluate.judge={file}", f"judge.file={jury}"):
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        assert "names the environment variable JUDGE_KEY, which is not set" in refusal(bootstrapped(tmp_path, override))
        monkeypatch.setenv("JUDGE_KEY", "sk-with a blank")
        said = refusal(bootstrapped(tmp_path, override))
        assert "JUDGE_KEY holds whitespace" in said and "sk-" not in said
        monkeypatch.setenv("JUDGE_KEY", "sk-fine")
        check(bootstrapped(tmp_path, override))


def test_a_rule_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("def good(prompt, response):\n    return 1.0\n")
    file = judge_file(tmp_path, "mode: rules\ncriteria: [{name: x, python: './rules.py:god'}]\n")
    assert "has no 'god', did you mean 'good'?" in refusal(bootstrapped(tmp_path, f"judge.file={file}"))


def test_a_ranking_of_more_than_the_judge_ranks(tmp_path: Path) -> None:
    file = judge_file(
        tmp_path,
        """\
        mode: listwise
        model: some/model
        largest: 3
        messages: [{role: user, content: "{{ prompt }}{% for response in responses %}{{ response }}{% endfor %}"}]
        """,
    )
    said = refusal(bootstrapped(tmp_path, f"judge.file={file}", "generate.completions=4"))
    assert said == (
        "judge 'j' ranks at most 3 answers, but generate.completions is 4: raise `largest` in the judge's file, or "
        "lower it"
    )
    check(bootstrapped(tmp_path, f"judge.file={file}", "generate.completions=3"))


def counts(found: Recipe) -> dict[str, Any]:
    return work(found)


def test_the_work_of_self_play_by_hand(tmp_path: Path) -> None:
    found = counts(
        bootstrapped(tmp_path, "iterations=3", "generate.completions=4", "algorithm.steps=7", "sampling.max_tokens=10")
    )
    # 3 iterations x 4 prompts x 4 completions = 48, and 3 held-out prompts x (the start + 3) = 12.
    assert found["completions"] == 48 + 12
    assert found["pairs"] == 3 * 4 * 6, "four completions make six pairs"
    assert found["judge_calls"] == 0, "rules ask nobody"
    assert found["episodes"] == 3 * 7 * 4
    assert found["sampled_tokens_at_most"] == (60 + 84) * 10


def test_with_an_opponent_the_first_iteration_is_still_self_play(tmp_path: Path) -> None:
    found = counts(bootstrapped(tmp_path, "iterations=3", "generate.completions=5", "generate.opponent=start"))
    # First 5 x 4 / 2 = 10 pairs per prompt; then 3 of its own against 2 of the start: 6. 4 prompts.
    assert found["pairs"] == 4 * (10 + 6 + 6)


def test_calls_to_a_judge_in_both_orders(tmp_path: Path) -> None:
    file = judge_file(tmp_path, PAIRWISE.format(model="model: some/model"))
    # 2 iterations x 4 prompts x 1 pair = 8; 3 held-out prompts x (1 opponent in the first + 2 in the second) = 9.
    assert counts(bootstrapped(tmp_path, f"judge.file={file}"))["judge_calls"] == 2 * (8 + 9)
    file.write_text(PAIRWISE.format(model="model: some/model\norder: random"))
    assert counts(bootstrapped(tmp_path, f"judge.file={file}"))["judge_calls"] == 8 + 9


def test_calls_are_counted_for_the_judge_that_measures_too(tmp_path: Path) -> None:
    file = judge_file(tmp_path, PAIRWISE.format(model="model: some/model"))
    assert counts(bootstrapped(tmp_path, f"evaluate.judge={file}"))["judge_calls"] == 2 * 9
    assert counts(bootstrapped(tmp_path, f"judge.file={file}", "evaluate.judge=stories"))["judge_calls"] == 2 * 8


def test_calls_to_a_judge_that_scores_answers(tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("def good(prompt, response):\n    return 1.0\n")
    file = judge_file(
        tmp_path,
        """\
        mode: rubric
        model: some/model
        criteria:
          - {name: one, text: "Is it good?"}
          - {name: two, text: "Is it short?"}
          - {name: three, python: "./rules.py:good"}
        """,
    )
    found = counts(bootstrapped(tmp_path, f"judge.file={file}", "generate.completions=3"))
    # Two questions for each of 2 x 4 x 3 = 24 completions and 3 x (1 + 2) = 9 held-out answers.
    assert found["judge_calls"] == 2 * (24 + 9)


def test_checking_loads_no_torch(tmp_path: Path) -> None:
    import subprocess

    bootstrapped(tmp_path)
    script = (
        "import sys; from selfplay.config import load_recipe; from selfplay.preflight import check; "
        "from selfplay.sizing.work import work; "
        f"recipe = load_recipe({str(tmp_path / 'r.yaml')!r}); check(recipe); work(recipe); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout == "False\n"


def test_a_reward_model_needs_a_second_prompt_to_be_measured_on(tmp_path: Path) -> None:
    rest = "a reward model is measured on prompts that it does not learn from"
    one = ["generate.prompts=1", "algorithm.steps=2"]
    assert refusal(bootstrapped(tmp_path, *one)) == f"generate.prompts is 1, and {rest}: raise it to 2 at least"
    check(bootstrapped(tmp_path, "generate.prompts=2"))
    check(bootstrapped(tmp_path, *one, "reward.kind=judge"))
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": prompt, "chosen": f"yes {n}", "rejected": "no"} for n, prompt in enumerate("aab")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    said = refusal(bootstrapped(tmp_path, f"reward.data={data}"))
    assert said == f"all pairs of reward.data '{data}' have one prompt, and {rest}: give pairs of more prompts"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(bootstrapped(tmp_path, *one, f"reward.data={data}"))


def test_rewards_that_ppo_asks_directly(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def score(prompts, responses, meta):\n    return [0.0 for _ in responses]\n")
    function = f"{tmp_path}/score.py:score"
    found = bootstrapped(tmp_path, "reward.kind=function", f"reward.function={function}", "algorithm.steps=2")
    check(found)
    done = work(found)
    # 2 iterations of 2 steps of 4 episodes, 3 held-out answers of 3 policies, and no pairs
    assert (done["pairs"], done["completions"], done["episodes"], done["judge_calls"]) == (0, 9, 16, 0)
    assert refusal(bootstrapped(tmp_path, "reward.kind=function", f"reward.function={function[:-1]}")).endswith(
        "score.py has no 'scor', did you mean 'score'?"
    )
    judge = tmp_path / "asks.yaml"
    judge.write_text("name: asks\n" + PAIRWISE.format(model="model: policy"))
    asked = bootstrapped(tmp_path, f"reward.added=[{{kind: judge, judge: {judge}, weight: 0.1}}]", "algorithm.steps=2")
    check(asked)
    assert work(asked)["judge_calls"] == 2 * 16  # each episode against an opponent, in both orders
    with pytest.raises(ConfigError, match="`function` names the Python of kind function"):
        bootstrapped(tmp_path, "reward.kind=function")
    with pytest.raises(ConfigError, match="`function` names the Python of kind function"):
        bootstrapped(tmp_path, f"reward.function={function}")
    with pytest.raises(ConfigError, match="`judge` belongs to kind judge"):
        bootstrapped(tmp_path, f"reward.added=[{{kind: function, function: {function}, judge: stories}}]")


def test_a_ranking_judge_is_no_direct_reward(tmp_path: Path) -> None:
    judge = tmp_path / "ranks.yaml"
    judge.write_text(
        "name: ranks\nmode: listwise\nmodel: policy\nmessages: [{role: user, content: '{{ prompt }} "
        "{{ responses }}'}]\noutput: {kind: regex, pattern: '\\[\\[([A-Z>]+)\\]\\]'}\n"
    )
    assert "ranks several answers to one prompt, and PPO samples one" in refusal(
        bootstrapped(tmp_path, "reward.kind=judge", f"judge.file={judge}")
    )


def test_engines_that_the_workers_of_ppo_cannot_share(tmp_path: Path) -> None:
    shared = ("engine={kind: vllm, tensor_parallel: 2}", "launch={workers: 3}")
    with pytest.raises(ConfigError, match="the 3 workers of a machine cannot share engines of so many cards: make"):
        check_engines(bootstrapped(tmp_path, *shared))
    with pytest.raises(
        ConfigError, match="judge 'last' rewards PPO and its model would be opened by each of 4 workers on its own"
    ):
        (tmp_path / "last.yaml").write_text(PAIRWISE.format(model="model: policy"))
        check_engines(
            bootstrapped(
                tmp_path, shared[0], "launch={workers: 4}", "reward.kind=judge", f"judge.file={tmp_path / 'last.yaml'}"
            )
        )
    for launch in ("launch={workers: 1}", "launch={nodes: 2, workers: 1, address: auto}"):
        with pytest.raises(ConfigError, match="the 1 workers of a machine cannot share engines of so many cards"):
            check_engines(bootstrapped(tmp_path, shared[0], launch, "algorithm={kind: dpo}"))
    check_engines(bootstrapped(tmp_path, shared[0], "launch={workers: 4}"))
    check_engines(bootstrapped(tmp_path, shared[0]))
