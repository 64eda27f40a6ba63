"""The new policy, by the recipe's algorithm: what it needs is prepared here, how it learns is in `selfplay.algorithms`."""

from contextlib import ExitStack
from pathlib import Path

from selfplay.algorithms import Algorithm, Inputs, algorithm_of
from selfplay.context import RunContext
from selfplay.rundir import WORK
from selfplay.stages.ppo_rewards import build_reward, folder_of_model
from selfplay.stages.ppo_rewards import settings as reward_settings


def fingerprint(run: RunContext, iteration: int) -> str:
    """Return what the new policy follows from, whatever time and memory it may take.

    One of before those settings were free goes by them as they are.
    """
    recipe = run.recipe
    plain = recipe.model_copy(update={"algorithm": recipe.algorithm.what_is_learned})
    learned = _fingerprint(run, iteration, algorithm_of(plain))
    known = None if plain == recipe else run.made_from(iteration, "policy")
    if known in (None, learned):
        return learned
    given = _fingerprint(run, iteration, algorithm_of(recipe))
    return given if known == given else learned


def _fingerprint(run: RunContext, iteration: int, algorithm: Algorithm) -> str:
    lora, needs = run.recipe.policy.lora, algorithm.needs(run.recipe)
    settings = [
        algorithm.settings(),
        run.sampling().model_dump(),
        run.prompts_asked["train"],
        run.recipe.engine.kind,
        lora.model_dump() if lora else None,
        reward_settings(run) if needs.reward else [],
    ]
    made: list[tuple[int, str]] = []
    if needs.reward_model:
        model = folder_of_model(run, iteration)
        made = [] if model is None else [(iteration, model.name)]
    elif needs.pairs:
        made = [(iteration, folder.name) for folder in run.files.rounds(iteration, "label")]
    pretraining = getattr(run.recipe.algorithm, "pretraining", None)
    sources = [] if pretraining is None else [pretraining.source]
    return run.fingerprint_with(
        (iteration, "policy"), sources, settings, (iteration - 1, "policy"), (0, "policy"), *made
    )


def run(run: RunContext, iteration: int) -> None:
    """Make `iteration-NNN/policy` from the policy before and what the algorithm needs."""
    algorithm = algorithm_of(run.recipe)
    needs = algorithm.needs(run.recipe)
    writing = run.writing(iteration, "policy", fingerprint(run, iteration))
    with writing as folder, ExitStack() as engines:
        algorithm.train(
            Inputs(
                run,
                iteration,
                folder,
                folder / WORK,
                build_reward(run, iteration, folder, engines) if needs.reward else None,
                folder_of_model(run, iteration) if needs.reward_model else None,
                preference_files(run, iteration) if needs.pairs else (),
            )
        )


def preference_files(run: RunContext, iteration: int) -> tuple[Path, ...]:
    """Return the preferences of every finished round of an iteration."""
    return tuple(folder / "preferences.parquet" for folder in run.files.rounds(iteration, "label"))
