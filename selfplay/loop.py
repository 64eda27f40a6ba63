"""READ FIRST. A run: for each iteration, each stage that is not done yet.

    start (given or bootstrapped), sampled on the held-out prompts; the judge's model, if the recipe makes it
    for each iteration:  generate pairs -> label -> reward model -> policy by PPO -> evaluate
    with one brake: no PPO on a reward model that is not better than chance on pairs it has not seen

Every stage reads files and writes files (`selfplay.rundir`), so running the same recipe again goes on where it stopped.
"""

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from selfplay import stopping
from selfplay.algorithms import Needs, algorithm_of
from selfplay.config import Recipe
from selfplay.context import RunContext
from selfplay.distributed.cluster import connected
from selfplay.errors import ConfigError
from selfplay.guard import selection
from selfplay.preflight import check, check_engines, refuse_pruned
from selfplay.progress import is_first, log
from selfplay.records import Prompt
from selfplay.report.html import write_report
from selfplay.report.model_card import write_cards
from selfplay.results.load import read_run
from selfplay.results.run import START, Iteration, RunData
from selfplay.rundir import RunDirectory
from selfplay.sizing.limits import refuse_what_cannot_fit
from selfplay.stages.launch import decided_by_first, refuse_many, run_on_workers, settle_libraries
from selfplay.storage.checksums import read_sealed
from selfplay.tracking import Tracker

STAGES = {name: name for name in ("generate", "label", "reward", "policy", "evaluate")} | {"reward": "reward_model"}
"""Stage -> its module in selfplay/stages."""
LEARNING = ("reward", "policy", "judge")
"""Stages that train, for which the workers that make text give up their place."""


def run(recipe: Recipe, only_start: bool = False) -> Path:
    """Run a recipe to its end and give the run's directory; goes on with a run that was stopped.

    `only_start` makes the start (bootstrapped, fine-tuned or as it is) and no more. Raises ConfigError, before anything
    expensive, for a recipe that cannot work or that differs from the one the directory was begun with.
    """
    from selfplay.stages import beforehand

    prompts = check(recipe)
    check_engines(recipe)
    refuse_what_cannot_fit(recipe, [*prompts[0], *prompts[1]], only_start)
    files = RunDirectory(recipe.directory)
    with files.locked():
        files.begin(recipe)
        if not files.finished(recipe.iterations, "evaluate" if prompts[1] else "policy"):
            refuse_pruned(files)
        with open_run(recipe, files, prompts) as current:
            looked_at = beforehand.fit_prompts(current)
            make_start(current)
            if not only_start:
                if not looked_at:
                    beforehand.fit_prompts(current)
                iterate(current)
    return files.path


@contextmanager
def open_run(recipe: Recipe, files: RunDirectory, prompts: tuple[list[Prompt], list[Prompt]]) -> Iterator[RunContext]:
    """Open a run as its stages get it, with trackers that know all that is on disk; closed at the end."""
    settle_libraries(recipe.threads)
    from selfplay.weights.precision import kept_in

    settings = recipe.model_dump(mode="json")
    with (
        connected(recipe.launch),
        closing(Tracker(recipe.report_to if is_first() else (), files.path, recipe.name, settings)) as tracker,
        closing(RunContext(recipe, files, *prompts, tracker=tracker)) as current,
        kept_in(files.path / "precision.json"),
    ):
        tell_trackers(current)
        yield current


def make_start(run: RunContext) -> None:
    """Make iteration 0: the policy that everything is compared with, and the judge's model if the run makes it."""
    from selfplay.stages import bootstrap
    from selfplay.stages import judge_model as judge

    ensure_stage(run, 0, "policy", bootstrap)
    if run.recipe.judge.bootstrap is not None:
        ensure_stage(run, 0, "judge", judge)


def iterate(run: RunContext) -> None:
    """All stages of all iterations, and `outcome.json` at the end."""
    from selfplay.stages import beforehand, evaluate, policy

    if algorithm_of(run.recipe).needs(run.recipe).pairs:
        beforehand.check_judge_fitness(run)
    if run.heldout:
        ensure_stage(run, 0, "evaluate", evaluate)
    write_cards(read_run(run.files.path))
    stopped = ""
    for iteration in range(1, run.recipe.iterations + 1):
        if not learn_reward(run, iteration):
            rounds = extra_rounds(run)
            more = f", even after {rounds} more round{'s' * (rounds > 1)} of them" if rounds else ""
            stopped = (
                f"the reward model of iteration {iteration} is not better than chance on held-out pairs{more}: training on "
                "it would follow noise. Look at judge_health.json beside the labels; in a new output a clearer "
                "judge, more generate.prompts, another reward.learning_rate or, if few pairs were held back, a larger "
                "reward.heldout_share may help"
            )
            break
        ensure_stage(run, iteration, "policy", policy)
        if run.heldout:
            ensure_stage(run, iteration, "evaluate", evaluate)
        found = read_run(run.files.path)
        write_cards(found)
        if stopped := selection.assess_run(found).stop:
            break
    conclude(run, stopped)


def learn_reward(run: RunContext, iteration: int) -> bool:
    """Generate, label and train a reward model; more pairs while it is no better than chance. False if it stays so.

    Only what the recipe's algorithm needs of this happens.
    """
    from selfplay.stages import generate, reward_model

    needs = algorithm_of(run.recipe).needs(run.recipe)
    rounds = extra_rounds(run)
    for extra in range(rounds + 1):
        for name in stages_before_policy(needs):
            ensure_stage(run, iteration, generate.stage_name(name, extra), module_of(name), extra)
        if not needs.reward_model or reward_model.above_chance(run, iteration, extra):
            return True
        if extra < rounds:
            log(f"  not above chance: round {extra + 1} of {rounds} of more pairs")
    return False


def extra_rounds(run: RunContext) -> int:
    """Return how often more pairs may be fetched for a reward model: never where they come from a file."""
    return run.recipe.reward.extra_rounds if run.recipe.reward.data is None else 0


def stages_before_policy(needs: Needs) -> list[str]:
    """Return the stages of an iteration that come before the policy's."""
    return [*(("generate", "label") if needs.pairs else ()), *(("reward",) if needs.reward_model else ())]


def module_of(stage: str) -> ModuleType:
    """Return a stage's module."""
    return importlib.import_module(f"selfplay.stages.{STAGES[stage]}")


def ensure_stage(run: RunContext, iteration: int, name: str, stage: ModuleType, *extra: int) -> None:
    """Run one stage if it is not done; raises ConfigError if it was done from something else than what is there now.

    Raises Stopped, between stages and within them, if a signal asked to stop.
    """
    stopping.check()
    if decided_by_first(lambda: is_done(run, iteration, name, stage, *extra)):
        return
    log(f"iteration {iteration}: {name if stage.__name__ != 'selfplay.stages.bootstrap' else 'start'}")
    if name.partition("-")[0] in LEARNING:
        run.make_room()
    run_on_workers(run, iteration, name, stage, *extra)
    tell_trackers(run)


def is_done(run: RunContext, iteration: int, name: str, stage: ModuleType, *extra: int) -> bool:
    """Return whether a stage is done, from what is there now; one that a kill left almost done is finished first."""
    made_from = stage.fingerprint(run, iteration, *extra)
    run.files.recover(iteration, name, made_from)
    if not run.files.finished(iteration, name):
        return False
    run.files.check_fingerprint(iteration, name, made_from)
    return True


def tell_trackers(run: RunContext) -> None:
    """Send the trackers the steps and the evaluated iterations that are on disk and that they were not sent yet."""
    if not run.tracker.open:
        return
    found = read_run(run.files.path)
    learned = [row for row in found.metrics if row["stage"] == "policy" and row["iteration"]]
    rows = Counter(row["iteration"] for row in learned)
    for row in sorted(learned, key=lambda row: (row["iteration"], row["step"])):
        before = sum(count for iteration, count in rows.items() if iteration < row["iteration"])
        run.tracker.log_step(row, before)
    for one in found.iterations:
        if one.evaluation is not None:
            run.tracker.log_iteration(
                one.number,
                {
                    "evaluation": one.evaluation,
                    "reward_model": one.reward or {},
                    "judge": one.health or {},
                    "seconds": one.seconds,
                },
                completions_of(found, one),
            )


def completions_of(found: RunData, one: Iteration, most: int = 64) -> list[dict[str, Any]]:
    """Return some held-out prompts, evenly chosen, with what an iteration and the start answered and what the judge said."""
    matches = [match for match in found.matches if (match.a, match.b) == (one.name, START)]
    chosen = [matches[index * len(matches) // most] for index in range(most)] if len(matches) > most else matches
    return [
        {
            "prompt": match.prompt,
            "answer": match.a_text,
            "answer of the start": match.b_text,
            "preference": match.preference,
            "tokens": match.a_tokens,
            "reward": match.a_reward,
            "reason": match.reason or match.error,
        }
        for match in chosen
    ]


def run_stage(directory: Path, name: str, iteration: int) -> Path:
    """Run one stage of a run alone, on what the stages before it left; gives its folder."""
    from selfplay.stages import beforehand

    files = RunDirectory(directory)
    recipe = files.recipe().model_copy(update={"output": str(directory)})
    stages = [*stages_before_policy(algorithm_of(recipe).needs(recipe)), "policy"]
    stages += ["evaluate"] if recipe.prompts.heldout is not None else []
    if name not in stages:
        raise ConfigError(
            f"this run has no stage {name!r}: with algorithm.kind {recipe.algorithm.kind} and reward.kind "
            f"{recipe.reward.kind}, an iteration has the stages {', '.join(stages)}"
        )
    needed = missing_before(files, stages, name, iteration)
    if needed is not None:
        raise ConfigError(
            f"stage {name!r} of iteration {iteration} needs {needed}, which is not there: run that stage first, "
            f"or the whole recipe with `selfplay run`"
        )
    prompts = check(recipe)
    refuse_pruned(files)
    refuse_many(recipe, name, module_of(name))
    with files.locked() if is_first() else nullcontext(), open_run(recipe, files, prompts) as current:
        if is_first():
            files.tidy()
        beforehand.fit_prompts(current)
        ensure_stage(current, iteration, name, module_of(name))
        if name == "evaluate":
            write_cards(read_run(directory))
    return files.stage(iteration, name)


def missing_before(files: RunDirectory, stages: list[str], name: str, iteration: int) -> Path | None:
    """Return the folder of the stage before, of an iteration's `stages`, if it is missing."""
    if iteration < 1:
        raise ConfigError(f"iteration {iteration} has no stages: iterations are counted from 1")
    place = stages.index(name)
    before = (iteration - 1, "policy") if place == 0 else (iteration, stages[place - 1])
    needed = [before, *([(iteration - 1, "evaluate")] if name == "evaluate" else [])]
    return next((files.stage(*one) for one in needed if not files.finished(*one)), None)


def conclude(run: RunContext, stopped: str) -> None:
    """Say which iteration is best and why, and write the report."""
    found = selection.conclude(run.files.path, stopped)
    if stopped:
        log(f"stopped: {stopped}")
    for alarm in found.alarms:
        log(f"alarm: {alarm.sentence}")
    log(f"best: {found.reason}")
    log(f"report: {write_report(run.files.path)}")


def outcome(directory: Path) -> dict[str, Any]:
    """Return what a finished run concluded: `best`, `reason`, `stopped`. Raises ConfigError while it is not finished."""
    file = directory / "outcome.json"
    if not file.is_file():
        raise ConfigError(f"the run {str(directory)!r} is not finished: go on with `selfplay run`")
    return read_sealed(file)
