"""How much work a recipe is, over all iterations, before anything is loaded. Imports no torch."""

from collections.abc import Sequence
from typing import Any

import judges
from judges.audit.costs import Asked, judge_dollars, longest_pairs, questions
from judges.spec.load import reward_judge
from selfplay.algorithms import algorithm_of
from selfplay.config import Recipe, SamplingParams
from selfplay.engines.endpoint_calls import request_body, worst_cost
from selfplay.preflight import PromptSets
from selfplay.records import Prompt
from selfplay.rundir import RunDirectory
from selfplay.storage.files import rows_in


def work(recipe: Recipe, sets: PromptSets | None = None) -> dict[str, Any]:
    """Return how much there is to do over all iterations: completions, judge calls, episodes; tokens and dollars at most.

    The prompts are those of `sets` where they are given. Extra rounds of the reward model are left out, but for dollars. In the
    first iteration there is no opponent but the policy itself.
    """
    iterations, asked, each = recipe.iterations, recipe.generate.prompts, recipe.generate.completions
    if not algorithm_of(recipe).needs(recipe).pairs:
        asked = 0
    alone = each * (each - 1) // 2
    later = alone if recipe.generate.opponent == "self" else (each - each // 2) * (each // 2)
    pairs = asked * (alone + (iterations - 1) * later)
    sets = sets or PromptSets(recipe)
    heldout = sets.heldout
    matches = len(heldout) * (2 * iterations - 1)
    sampled, answers = iterations * asked * each, len(heldout) * (iterations + 1)
    drawn = iterations * len(heldout) * (recipe.evaluate.best_of or 0)
    if drawn:  # the best of each group meets the start and a single answer
        matches += 2 * iterations * len(heldout)
    episodes = iterations * recipe.algorithm.steps_per_iteration * recipe.algorithm.episodes_per_step
    labelling = judges.load_spec(recipe.judge.file, recipe.judge_model)
    measuring = judges.load_spec(recipe.evaluate.judge) if recipe.evaluate.judge else labelling
    rewarding = [reward_judge(recipe, part) for part in recipe.rewards if part.kind == "judge"]
    prompts = sets.train + heldout
    longest, again = longest_pairs(prompts, each, recipe.sampling.max_tokens), iterations * len(heldout) if drawn else 0
    judged = [
        Asked(labelling, pairs, sampled, iterations * asked, asked > 0, longest),
        Asked(measuring, matches, answers + again, matches, False, longest),
        *(Asked(spec, episodes + drawn, episodes + drawn, episodes + drawn, True, longest) for spec in rewarding),
        *(further := further_sets(recipe, sets)),
    ]
    answers += sum(one.answers for one in further)
    return {
        "iterations": iterations,
        "completions": sampled + answers + drawn,
        "pairs": pairs,
        "decided_pairs_about": decided_about(recipe, pairs),
        "judge_calls": sum(
            count for one in judged for _, count in questions(one.spec, one.pairs, one.answers, one.prompts)
        ),
        "episodes": episodes,
        "sampled_tokens_at_most": (sampled + answers + drawn + episodes) * recipe.sampling.max_tokens,
        **judge_dollars(judged, recipe.reward.extra_rounds, price_of_call),
    }


def further_sets(recipe: Recipe, sets: PromptSets) -> list[Asked]:
    """Return what the judges of `evaluate.also` are asked: about the start's answers and those of each iteration.

    Nothing without held-out prompts, for then nothing is measured.
    """
    if recipe.prompts.heldout is None:
        return []
    found = []
    for one, prompts in sets.also:
        longest = longest_pairs(prompts, 2, recipe.sampling.max_tokens)
        found.append(Asked(judges.load_spec(one.judge), 0, (recipe.iterations + 1) * len(prompts), 0, False, longest))
    return found


def decided_about(recipe: Recipe, pairs: int) -> int | None:
    """Return how many of a recipe's pairs its judge will decide, at the share that its run's labels have decided so far.

    None as long as nothing is labelled.
    """
    files = RunDirectory(recipe.directory)
    asked = decided = 0
    for number in files.numbers() if files.path.is_dir() else []:
        if number and files.finished(number, "label"):
            asked += rows_in(files.stage(number, "generate") / "pairs.parquet")
            decided += rows_in(files.stage(number, "label") / "preferences.parquet")
    return round(pairs * decided / asked) if asked else None


def price_of_call(part: Any, prompt: Prompt, sampling: SamplingParams, choices: Sequence[str] | None) -> float:
    """Dollars that a call of an endpoint's judge can cost at most."""
    return worst_cost(part.endpoint, request_body(part.endpoint, part.model, prompt, sampling, choices))
