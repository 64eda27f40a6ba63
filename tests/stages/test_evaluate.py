"""The evaluation: log-probabilities and KL against brute force, rewards beside matches, rows by hand."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from staging import completion, open_run, prompts
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from judges import load_spec
from selfplay.config import HeldoutSet, PromptSource
from selfplay.formatting import rate_text
from selfplay.guard.alarms import reward_accuracy
from selfplay.models import encode_prompt, save
from selfplay.records import Completion, Pair, Verdict
from selfplay.results.load import read_run
from selfplay.rewards.reward_model import RewardModel
from selfplay.stages import evaluate
from selfplay.stages.evaluate import match_rows, opponents_of, preferences_of, response_logprobs, with_rewards
from selfplay.stats.intervals import win_rate
from selfplay.storage.files import read_json, read_rows

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
}


def brute_force(model: PreTrainedModel, prompt: list[int], answer: list[int], temperature: float) -> float:
    """Sum over the answer of log softmax(logits / temperature), all logits at once, without padding, in float64."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    return float(torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(answer)[:, None]).sum())


def tiny_model(kind: str) -> PreTrainedModel:
    """A head that divides its logits, one that multiplies them, and one with a bias."""
    torch.manual_seed(3)
    if kind == "granite":
        return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))
    if kind == "cohere":
        return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.125))
    model = PhiForCausalLM(PhiConfig(**SMALL))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


@pytest.mark.parametrize("kind", ["granite", "cohere", "phi"])
def test_logprobs_of_heads_that_scale_or_add(tiny_run: Path, tmp_path: Path, kind: str) -> None:
    model = tiny_model(kind).eval()
    save(model, AutoTokenizer.from_pretrained(tiny_run / "iteration-000/policy"), tmp_path)
    asked = [[7, 8, 9], [10], [11, 12, 13, 14, 15]]
    answered = [(20, 21), (22, 23, 24, 25, 26, 27), (28,)]
    answers = [completion("", tokens=tokens) for tokens in answered]
    found = response_logprobs(tmp_path, asked, answers, 0.7)
    expected = [brute_force(model, prompt, list(answer), 0.7) for prompt, answer in zip(asked, answered, strict=True)]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=2e-5), "the weights are float32"


def test_the_kl_of_a_real_run_is_that_of_all_logits(tiny_run: Path) -> None:
    run = open_run(tiny_run)
    rows = read_rows(tiny_run / "iteration-002/evaluate/completions.parquet")
    models = [
        AutoModelForCausalLM.from_pretrained(tiny_run / f"iteration-00{number}/policy").eval() for number in (2, 0)
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "iteration-000/policy")
    total = 0.0
    for prompt, row in zip(run.heldout, rows, strict=True):
        assert prompt.id == row["prompt_id"]
        ours, start = (brute_force(model, encode_prompt(tokenizer, prompt), row["token_ids"], 1.0) for model in models)
        total += ours - start
    assert read_json(tiny_run / "iteration-002/evaluate/evaluation.json")["kl_to_start"] == pytest.approx(
        total / 32, abs=1e-4
    )
    assert total / 32 > 0.1


def test_whom_an_iteration_meets() -> None:
    assert [opponents_of(number) for number in range(4)] == [[], [0], [0, 1], [0, 2]]


def test_rows_of_matches_by_hand() -> None:
    one, two, three = prompts(3)
    pairs = [
        Pair(
            id=prompt.id,
            prompt=prompt,
            first=completion(text, tokens=(1, 2, 3), reason="length"),
            second=completion("b"),
        )
        for prompt, text in ((one, "a"), (two, "b"), (three, "c"))
    ]
    verdicts = [
        Verdict(pair_id="p0", judge="j", order="forward", preference=1.0, reason="clear"),
        Verdict(pair_id="p0", judge="j", order="reversed", preference=0.5),
        Verdict(pair_id="p2", judge="j", order="forward", preference=None, error="off the menu"),
        Verdict(pair_id="p2", judge="j", order="reversed", preference=0.0),
    ]
    spec = load_spec("stories")
    preferences = preferences_of(pairs, verdicts, spec)
    assert preferences == [0.75, 0.5, None], (
        "the mean of two orders; the same text is a tie; an unread order is no verdict"
    )
    rows = with_rewards(match_rows(pairs, verdicts, preferences, 2, 0, "j"), [1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert rows[0] == {
        "prompt_id": "p0",
        "prompt": "prompt 0",
        "a": "iteration-002",
        "b": "iteration-000",
        "a_text": "a",
        "a_tokens": 3,
        "a_truncated": True,
        "b_text": "b",
        "b_tokens": 2,
        "b_truncated": False,
        "preference": 0.75,
        "forward": 1.0,
        "reversed": 0.5,
        "reason": "clear",
        "judge": "j",
        "error": "",
        "a_reward": 1.0,
        "b_reward": 4.0,
    }
    assert [row["error"] for row in rows] == ["", "", "off the menu"] and rows[2]["reversed"] == 0.0
    assert [(row["a_reward"], row["b_reward"]) for row in rows] == [(1, 4), (2, 5), (3, 6)]


@pytest.mark.parametrize("number", [1, 2])
def test_rewards_of_a_real_run_are_those_of_the_iterations_own_reward_model(tiny_run: Path, number: int) -> None:
    run, folder = open_run(tiny_run), tiny_run / f"iteration-00{number}"
    rows, evaluation = read_rows(folder / "evaluate/matches.parquet"), read_json(folder / "evaluate/evaluation.json")
    model = RewardModel.load(folder / "reward")
    for name in {row["b"] for row in rows}:
        against = [row for row in rows if row["b"] == name]
        for side, source in (("a", f"iteration-00{number}"), ("b", name)):
            answers = [
                Completion.model_validate(row) for row in read_rows(tiny_run / source / "evaluate/completions.parquet")
            ]
            expected = model.score(run.heldout, answers)
            assert [row[f"{side}_reward"] for row in against] == pytest.approx(expected, abs=1e-4)
            assert [row[f"{side}_text"] for row in against] == [answer.text for answer in answers]
        mean = sum(row["a_reward"] for row in against) / len(against)
        assert evaluation["mean_reward"] == pytest.approx(mean, abs=1e-9)


def test_the_reward_models_accuracy_on_new_answers_is_in_the_report(tiny_run: Path) -> None:
    """By prompt: the share of its decided matches in which reward and judge name the same side, then the mean over prompts."""
    agreed: dict[str, list[float]] = {}
    for row in read_rows(tiny_run / "iteration-002/evaluate/matches.parquet"):
        if row["preference"] != 0.5:
            same = (row["a_reward"] > row["b_reward"]) == (row["preference"] > 0.5)
            agreed.setdefault(row["prompt_id"], []).append(float(same))
    shares = [sum(values) / len(values) for values in agreed.values()]
    run = read_run(tiny_run)
    found = reward_accuracy(run, run.iterations[2])
    assert found is not None and found.n == len(shares) > 20
    assert found.win_rate == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    assert (found.low, found.high) == (win_rate("", "", shares).low, win_rate("", "", shares).high)
    page = (tiny_run / "report.html").read_text()
    row_of_table = page[page.index("reward agrees with the judge") :][:600]
    assert rate_text(found) in row_of_table
    assert all(run.profiles[f"iteration-00{number}"].reward_length is not None for number in range(3))


def test_further_sets_are_scored_and_held_against_the_start(tiny_run: Path, tmp_path: Path) -> None:
    """The start scored again with two further sets, then iteration 1: means of the rows, differences paired by prompt."""
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    for number in range(3):
        shutil.rmtree(tmp_path / "run" / f"iteration-00{number}" / "evaluate")
    judge = str(tiny_run.parent / "tiny_judge.yaml")
    sets = tuple(
        HeldoutSet(name=name, judge=judge, prompts=PromptSource(split="heldout", limit=count))
        for name, count in (("few", 5), ("more", 9))
    )
    run = open_run(tmp_path / "run", evaluate={"also": sets})
    for number in (0, 1):
        evaluate.run(run, number)
    found = read_json(tmp_path / "run/iteration-001/evaluate/evaluation.json")["also"]
    rows = [read_rows(tmp_path / f"run/iteration-00{number}/evaluate/also.parquet") for number in (0, 1)]
    for name, count in (("few", 5), ("more", 9)):
        before, now = ([row["score"] for row in part if row["set"] == name] for part in rows)
        assert len(now) == found[name]["n"] == count and found[name]["judge"] == "tiny"
        assert found[name]["mean"] == pytest.approx(sum(now) / count)
        assert found[name]["above_start"]["mean"] == pytest.approx((sum(now) - sum(before)) / count)
    run.close()
