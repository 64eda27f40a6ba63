"""Scores from functions, judges, reward models and sums of them."""

import math

import pytest
import torch
from tiny_models import PolicyMaker
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from selfplay.errors import ConfigError
from selfplay.records import Completion, Pair, Prompt, Verdict
from selfplay.rewards.reward_model import RewardModel
from selfplay.rewards.sources import FunctionReward, JudgeReward, WeightedSum


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


def test_a_function_that_gives_the_wrong_thing_is_named(prompts: list[Prompt]) -> None:
    responses = [answer(prompts[0], "a"), answer(prompts[1], "b")]

    def short(*_: object) -> list[float]:
        return [1.0]

    def words(*_: object) -> list[str]:
        return ["good", "bad"]

    with pytest.raises(ConfigError, match="short gave 1 scores for 2 responses"):
        FunctionReward(short).score(prompts[:2], responses)
    with pytest.raises(ConfigError, match=r"words gave \['good', 'bad'\] \.\.\. where numbers"):
        FunctionReward(words).score(prompts[:2], responses)  # type: ignore[arg-type]


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
