"""Further held-out sets, each with a judge of its own that scores: what else the policy could do, and whether it still can.

Part of the stage `evaluate`: writes `also.parquet` (one row per set and prompt) beside its other files.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import judges
from prompts.sources import load_prompts
from selfplay.context import RunContext, sample
from selfplay.progress import log, meter
from selfplay.rundir import WORK, iteration_name
from selfplay.stages.label import open_judge
from selfplay.stats.means import difference_of, mean_of
from selfplay.storage.files import hash_of, read_rows, write_rows
from selfplay.storage.journal import Journal


def sets_fingerprint(run: RunContext) -> list[Any]:
    """Return what the scores on further sets follow from; nothing where there are none."""
    return [
        [
            one.model_dump(),
            hash_of([prompt.model_dump(mode="json") for prompt in load_prompts(one.prompts, run.recipe.seed)]),
            judges.digest(judges.load_spec(one.judge)),
        ]
        for one in run.recipe.evaluate.also
    ]


def measure_sets(run: RunContext, iteration: int, folder: Path, engines: ExitStack) -> dict[str, dict[str, Any]]:
    """Return for each further set the mean score of an iteration's answers, and the paired difference to the start's."""
    rows: list[dict[str, Any]] = []
    found: dict[str, dict[str, Any]] = {}
    for one in run.recipe.evaluate.also:
        prompts = load_prompts(one.prompts, run.recipe.seed)
        journal = Journal(folder / WORK / f"journal-also-{one.name}.jsonl")
        temperature = run.recipe.evaluate.temperature if one.temperature is None else one.temperature
        with meter(f"answer {one.name}", len(prompts), "completions") as bar:
            groups = sample(run, iteration, prompts, 1, f"also-{one.name}", journal, bar, temperature)
        answers = [group[0] for group in groups]
        judge: Any = open_judge(run, judges.load_spec(one.judge), iteration, engines)
        scores = judge.score(prompts, answers)
        rows += [
            {"set": one.name, "prompt_id": prompt.id, "prompt": prompt.text, "response": answer.text, "score": score}
            for prompt, answer, score in zip(prompts, answers, scores, strict=True)
        ]
        above = difference_of(scores, start_scores(run, one.name)).model_dump() if iteration else None
        found[one.name] = {"judge": judge.spec.name, **mean_of(scores).model_dump(), "above_start": above}
        if above and above["high"] is not None and above["high"] < 0:
            log(
                f"  {one.name}: {iteration_name(iteration)} scores {above['mean']:+.3f} against the start "
                f"[{above['low']:+.3f}, {above['high']:+.3f}]"
            )
    if rows:
        write_rows(folder / "also.parquet", rows)
    return found


def start_scores(run: RunContext, name: str) -> list[float | None]:
    """Return what the start's answers to a further set were scored."""
    rows = read_rows(run.files.stage(0, "evaluate") / "also.parquet")
    return [row["score"] for row in rows if row["set"] == name]
