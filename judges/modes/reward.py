"""A reward function as a judge: the response that it gives more is the better one."""

import math
from collections.abc import Sequence

from selfplay.objects import call, load_object, scores_of
from selfplay.records import Pair, Verdict


class HigherReward:
    """Prefers the response with the higher reward; equal rewards are a tie, and NaN leaves a pair unscored."""

    def __init__(self, reward: str) -> None:
        self.reward, self.function = reward, load_object(reward)

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair. Raises ConfigError if the function does not return one number per response."""
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        responses = [response for pair in pairs for response in (pair.first, pair.second)]
        name = f"the reward function {self.reward}"
        texts = [prompt.text for prompt in prompts], [response.text for response in responses]
        given = call(name, self.function, *texts, [prompt.meta for prompt in prompts]) if pairs else []
        scores = scores_of(name, given, prompts, responses)
        return [_verdict(pair.id, *scores[2 * place : 2 * place + 2]) for place, pair in enumerate(pairs)]


def _verdict(pair_id: str, first: float, second: float) -> Verdict:
    """Return what two rewards say of a pair."""
    unscored = math.isnan(first) or math.isnan(second)
    return Verdict(
        pair_id=pair_id,
        judge="reward",
        order="none",
        preference=None if unscored else 0.5 if first == second else float(first > second),
        reason="" if unscored else f"rewards {first:g} and {second:g}",
        error="the reward is NaN" if unscored else "",
    )
