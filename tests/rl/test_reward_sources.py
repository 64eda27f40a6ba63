"""Scores from functions, judges, reward models and sums of them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import PolicyMaker
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from selfplay.errors import ConfigError
from selfplay.models import load_scalar_model, weights_digest
from selfplay.records import Completion, Pair, Prompt, Verdict
from selfplay.rewards.reward_model import RewardModel
from selfplay.rewards.sources import FunctionReward, JudgeReward, WeightedSum, digest_of_critic, identity, spreads


def answer(prompt: Prompt, text: str, token_ids: tuple[int, ...] = ()) -> Completion:
    return Completion(
        id=f"{prompt.id}/{text}",
        prompt_id=prompt.id,
        text=text,
        token_ids=token_ids,
        finish_reason="stop",
        policy="test",
    )


def test_a_function_sees_prompts_responses_and_meta(prompts: list[Prompt]) -> None:
    def reward(asked: list[str], said: list[str], meta: list[dict[str, int]]) -> list[float]:
        return [len(a) + 10 * len(s) + 100 * m["number"] for a, s, m in zip(asked, said, meta, strict=True)]

    first, second = prompts[0], prompts[1]
    scores = FunctionReward(reward).score([first, second], [answer(first, "ab"), answer(second, "c")])
    # "0" and two letters, number 0: 1 + 20;  "5 6" and one letter, number 1: 3 + 10 + 100
    assert scores == [21.0, 113.0]


def stop() -> list[float]:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: [1.0], "returned 1 items for 2 rows ([1.0]); it must return a number for each"),
        (lambda: None, "returned None; it must return a list with a number for each of 2 rows"),
        (lambda: "ab", "returned 'ab'; it must return a list"),
        (lambda: 7.0, "returned 7.0; it must return a list"),
        (
            lambda: ["good", "bad"],
            "returned 'good' for prompt 'prompt-0', response 'one'; it must be a finite number, or",
        ),
        (lambda: [1.0, None], "returned None for prompt 'prompt-1', response 'two\\ud83d'; it must be a finite number"),
        (lambda: [1.0, "0.5"], "returned '0.5' for prompt 'prompt-1'"),
        (lambda: [1.0, math.inf], "returned inf for prompt 'prompt-1'"),
        (lambda: [1.0, -1e200], "returned -1e+200 for prompt 'prompt-1'"),  # whose square is an OverflowError
        (lambda: [1.0, [2.0]], "returned [2.0] for prompt 'prompt-1'"),
        (lambda: [1.0, 10**400], "returned 1000"),
        (lambda: {}["word"], "raised KeyError: 'word' (test_reward_sources.py, line "),
        (lambda: (1 / n for n in (1, 0)), "raised ZeroDivisionError: division by zero"),
        (lambda: "\ud83d".encode(), "raised UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud83d'"),
        (stop, "called sys.exit(0), which would end the run as if it were finished"),
    ],
)
def test_a_function_that_gives_the_wrong_thing_is_named(
    prompts: list[Prompt], made: Callable[[], Any], sentence: str
) -> None:
    def liked(*_: object) -> Any:
        return made()

    responses = [answer(prompts[0], "one"), answer(prompts[1], "two\ud83d")]
    with pytest.raises(ConfigError) as found:
        FunctionReward(liked).score(prompts[:2], responses)
    message = str(found.value)
    assert message.startswith("the reward function test_a_function_that_gives_the_wrong_thing_is_named.<locals>.liked ")
    assert sentence in message and message.encode()


def test_numbers_of_any_kind_are_taken_and_nan_is_kept(prompts: list[Prompt]) -> None:
    given = [torch.tensor(7.0), True, math.nan, np.float32(0.5)]
    scores = FunctionReward(lambda *_: given).score(prompts[:4], [answer(prompt, "a") for prompt in prompts[:4]])
    assert scores[:2] == [7.0, 1.0] and math.isnan(scores[2]) and scores[3] == 0.5


class LongerIsBetter:
    """Asks in both orders; cannot read the second order of an answer with "?"."""

    def judge(self, pairs: list[Pair]) -> list[Verdict]:
        verdicts = []
        for pair in pairs:
            preference = 1.0 if len(pair.first.text) > len(pair.second.text) else 0.2
            unread = "?" in pair.first.text
            verdicts += [
                Verdict(pair_id=pair.id, judge="longer", order="forward", preference=preference),
                Verdict(pair_id=pair.id, judge="longer", order="reversed", preference=None if unread else 0.5),
            ]
        return verdicts[::-1]


def test_a_judge_scores_against_the_opponent(prompts: list[Prompt]) -> None:
    asked = [prompts[0], prompts[0], prompts[1]]
    opponents = {prompt.id: answer(prompt, "abc") for prompt in prompts[:2]}
    # The two answers to one prompt have one id, as engines may give them: each keeps its own verdicts.
    said = [answer(prompts[0], "abcde"), answer(prompts[0], "a"), answer(prompts[1], "?????")]
    scores = JudgeReward(LongerIsBetter(), opponents).score(asked, said)
    assert scores[:2] == [0.75, 0.35] and math.isnan(scores[2])
    with pytest.raises(ConfigError, match="no opponent's completion for prompt 'prompt-2'"):
        JudgeReward(LongerIsBetter(), opponents).score([prompts[2]], [answer(prompts[2], "a")])


def test_a_weighted_sum(prompts: list[Prompt]) -> None:
    lengths = FunctionReward(lambda p, responses, m: [float(len(r)) for r in responses])
    unsure = FunctionReward(lambda p, responses, m: [math.nan if r == "x" else 3.0 for r in responses])
    responses = [answer(prompts[0], "abcd"), answer(prompts[1], "x")]
    scores = WeightedSum([(0.5, lengths), (-2.0, unsure)]).score(prompts[:2], responses)
    # 0.5 * 4 - 2 * 3
    assert scores[0] == -4.0 and math.isnan(scores[1])
    with pytest.raises(ConfigError, match="at least one"):
        WeightedSum([])


def test_a_reward_model_scores_token_ids_at_their_last_one(
    make_policy: PolicyMaker, prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    config = make_policy().config
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    responses = [answer(prompts[1], "", (5, 6, 1)), answer(prompts[2], "", (7,))]
    scores = RewardModel(model, tokenizer).score(prompts[1:3], responses)
    for prompt, response, value in zip(prompts[1:3], responses, scores, strict=True):
        ids = torch.tensor([[*tokenizer(prompt.text)["input_ids"], *response.token_ids]])
        expected = model.score(model.model(input_ids=ids).last_hidden_state[0, -1])
        assert value == pytest.approx(float(expected.detach()), abs=1e-5)


def test_a_model_that_scores_in_bfloat16_is_known_by_the_weights_that_it_was_read_with(
    make_policy: PolicyMaker, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_policy().config
    config.num_labels = 1
    RewardModel(LlamaForSequenceClassification(config), tokenizer).save(tmp_path)
    monkeypatch.setattr("selfplay.rewards.reward_model.preferred", lambda model: "bfloat16")
    read, found = load_scalar_model(tmp_path), RewardModel.load(tmp_path)
    assert weights_digest(found.model) != weights_digest(read), "rounded"
    assert identity(found) == f"model {weights_digest(read)}" and not spreads(found)
    assert digest_of_critic(found.model, found) == weights_digest(read) == digest_of_critic(read, found)
    assert digest_of_critic(None, found) is None
