"""What is looked at once, before a completion is generated: whether prompts fit the context, and whether the judge is fit.

Left out: what needs no tokenizer and no judge to answer, which `selfplay.preflight` knows before anything is loaded.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import judges
from judges.audit.check import enforce_thresholds, measure_on_gold
from judges.audit.file_tests import run_tests
from judges.audit.gold import gold_file, load_gold
from selfplay.algorithms import algorithm_of
from selfplay.context import RunContext
from selfplay.errors import ConfigError, JudgeStopped
from selfplay.models import encode_prompt, load_tokenizer
from selfplay.preflight import context_of
from selfplay.progress import log
from selfplay.records import Prompt
from selfplay.stages.label import known_judge, labelling_judge, open_judge
from selfplay.storage.checksums import read_sealed, write_sealed
from selfplay.storage.files import hash_of

SHOWN = 3
"""Prompts that a sentence names."""


def fit_prompts(run: RunContext) -> bool:
    """Tokenize every prompt once, and refuse or leave out those that do not fit, as the recipe says.

    Returns whether it could: not as long as no checkpoint is there. Raises ConfigError that names the first of them, and where
    fewer are left than the recipe draws.
    """
    checkpoint = run.files.policy(0) if run.files.finished(0, "policy") else Path(str(run.recipe.policy.model))
    context = context_of(checkpoint)
    if context is None:
        return False
    tokenizer, room = load_tokenizer(checkpoint), context - run.recipe.sampling.max_tokens
    told: list[str] = []
    kept: list[list[Prompt]] = []
    for name, prompts in (("prompts.train", run.train), ("prompts.heldout", run.heldout)):
        lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
        long = [(prompt.id, length) for prompt, length in zip(prompts, lengths, strict=True) if length > room]
        kept.append([prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= room])
        if long:
            told.append(f"{len(long)} of {len(prompts)} {name} ({_named(long)})")
    if not told:
        return True
    said = (
        f"{' and '.join(told)} leave no room for sampling.max_tokens {run.recipe.sampling.max_tokens} in the context of "
        f"{context} tokens"
    )
    if run.recipe.prompts.too_long == "refuse":
        raise ConfigError(f"{said}: shorten the answers, set prompts.train.max_characters, or prompts.too_long to skip")
    needs = algorithm_of(run.recipe).needs(run.recipe)
    drawn = run.recipe.generate.prompts if needs.pairs else 0
    wanted = max(drawn, getattr(run.recipe.algorithm, "prompts", 0), 1)
    if len(kept[0]) < wanted or (run.heldout and not kept[1]):
        raise ConfigError(f"{said}, and those that are left are too few: shorten the answers, or give more prompts")
    log(f"  {said}, and are left out")
    run.train, run.heldout = kept
    return True


def _named(long: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name!r} with {length} tokens" for name, length in long[:SHOWN])
    return f"{shown}, ..." if len(long) > SHOWN else shown


def check_judge_fitness(run: RunContext) -> None:
    """Run the labelling judge's tests, and ask about gold pairs and canaries; done once for a judge, see `judge_check.json`.

    Raises JudgeStopped, naming what is wrong, for a judge that the first labels would stop at, or whose tests fail.
    """
    if not run.recipe.judge.precheck or run.files.finished(1, "label"):
        return
    spec, file = labelling_judge(run), run.files.path / "judge_check.json"
    gold = gold_file(spec)
    asks_policy = any(getattr(part, "model", None) == "policy" for part in spec.parts)
    weights = run.files.manifest_hash(0, "policy") if asks_policy else None
    known = None if gold is None else gold.read_text(encoding="utf-8")
    made_from = hash_of([judges.digest(known_judge(run)), known, weights])
    if file.is_file() and read_sealed(file)["made_from"] == made_from:
        return
    failed = run_tests(spec)
    if failed:
        raise JudgeStopped(f"judge {spec.name!r} fails its own tests: {'; '.join(failed)}. Fix the judge or its tests")
    if gold is not None:
        log(f"  check judge {spec.name!r} on {len(load_gold(gold))} pairs with a known answer, and on canaries")
    with ExitStack() as engines:
        found = (
            {"gold": None, "canary_wins": {}} if gold is None else measure_on_gold(open_judge(run, spec, 0, engines))
        )
    enforce_thresholds(spec, found)
    write_sealed(file, {"judge": spec.name, "made_from": made_from, "tests": len(spec.tests), **found})
