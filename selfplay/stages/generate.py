"""Pairs of completions to be judged: the policy against itself, or against an earlier iteration.

Writes `completions.parquet`, `pairs.parquet` and `generate.json`. The journal holds each finished batch, so a kill costs
the batch in flight. Extra rounds (`generate-extra-1`, ...) fetch as many pairs again from prompts not used yet.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product

from selfplay.context import RunContext, draw_prompts, sample
from selfplay.progress import meter
from selfplay.records import Completion, Pair, Prompt
from selfplay.rundir import WORK
from selfplay.stages.rows import pair_row
from selfplay.storage.files import derived_seed, read_json, read_rows, write_json, write_rows
from selfplay.storage.journal import Journal


def stage_name(name: str, extra: int) -> str:
    """Folder of a stage in an extra round; round 0 has the plain name."""
    return f"{name}-extra-{extra}" if extra else name


def fingerprint(run: RunContext, iteration: int, extra: int = 0) -> str:
    """Return what the completions follow from."""
    settings = [
        run.recipe.generate.model_dump(),
        run.sampling().model_dump(),
        run.prompts_asked["train"],
        run.recipe.engine.kind,
        run.recipe.policy.dtype,
        iteration,
        extra,
    ]
    labels = [(before, "label") for before in range(1, iteration)] if run.recipe.generate.focus else []
    return run.fingerprint(settings, *[(before, "policy") for before in range(iteration)], *labels)


def run(run: RunContext, iteration: int, extra: int = 0) -> None:
    """Make `iteration-NNN/generate` with the policy of the iteration before."""
    name = stage_name("generate", extra)
    first = prompts_used(run, iteration, extra)
    with run.files.writing(iteration, name, fingerprint(run, iteration, extra)) as folder:
        wanted = run.recipe.generate.prompts
        again_asked = 0 if extra else round(run.recipe.generate.focus * wanted)
        decided = decided_shares(run, iteration) if again_asked else {}
        focused = min(again_asked, len(decided))
        in_turn = draw_prompts(run.train, wanted - focused, first, run.seed("prompts"))
        prompts = [*in_turn, *most_decided(run.train, decided, in_turn, focused, run.seed("focus", iteration))]
        rivals = [opponent(run, iteration, prompt) for prompt in prompts]
        journal = Journal(folder / WORK / "journal.jsonl")
        again = f"-{extra}" if extra else ""  # other random numbers for a prompt that comes again in an extra round
        own_count, rival_count = split_completions(run.recipe.generate.completions, rivals[0] != iteration - 1)
        with meter("generate", len(prompts) * (own_count + rival_count), "completions") as bar:
            own = sample(run, iteration - 1, prompts, own_count, f"own{again}", journal, bar)
            theirs: list[list[Completion]] = [[] for _ in prompts]
            for rival in sorted(set(rivals)) if rival_count else []:
                places = [place for place, chosen in enumerate(rivals) if chosen == rival]
                found = sample(
                    run, rival, [prompts[place] for place in places], rival_count, f"rival-{rival}{again}", journal, bar
                )
                for place, completions in zip(places, found, strict=True):
                    theirs[place] = completions
        pairs = [
            pair
            for prompt, mine, others in zip(prompts, own, theirs, strict=True)
            for pair in make_pairs(prompt, mine, others, run.seed("sides"))
        ]
        write_rows(folder / "completions.parquet", [completion for group in [*own, *theirs] for completion in group])
        write_rows(folder / "pairs.parquet", [pair_row(pair) for pair in pairs])
        write_json(
            folder / "generate.json",
            {
                "prompts": len(prompts),
                "used_up_to": first + wanted - focused,
                "focused": len(prompts) - len(in_turn),
                "pairs": len(pairs),
                "opponents": sorted(set(rivals)),
            },
        )


def decided_shares(run: RunContext, iteration: int) -> dict[str, float]:
    """Prompt -> the share of its pairs that the labels of earlier iterations decided, where that is above 0."""
    asked, decided = Counter[str](), Counter[str]()
    for before in range(1, iteration):
        pairs, preferences = (
            [row["prompt_id"] for row in read_rows(run.files.stage(before, stage) / f"{name}.parquet")]
            for stage, name in (("generate", "pairs"), ("label", "preferences"))
        )
        asked.update(pairs)
        decided.update(preferences)
    return {prompt: count / asked[prompt] for prompt, count in decided.items()}


def most_decided(
    prompts: Sequence[Prompt], shares: Mapping[str, float], but: Sequence[Prompt], count: int, seed: int
) -> list[Prompt]:
    """Return the `count` prompts with the largest shares, `but` some; which of equal ones is drawn at random."""
    taken = {prompt.id for prompt in but}
    known = [prompt for prompt in prompts if prompt.id in shares and prompt.id not in taken]
    return sorted(known, key=lambda prompt: (-shares[prompt.id], derived_seed(seed, prompt.id)))[:count]


def prompts_used(run: RunContext, iteration: int, extra: int) -> int:
    """Return how many prompts earlier iterations and rounds have drawn."""
    drawn = [
        read_json(folder / "generate.json")["used_up_to"]
        for before in range(1, iteration + 1)
        for folder in run.files.rounds(before, "generate")
        if before < iteration or round_of(folder.name) < extra
    ]
    return max(drawn, default=0)


def round_of(folder: str) -> int:
    """Return the extra round that a folder `generate` or `generate-extra-N` belongs to."""
    return int(folder.rsplit("-", 1)[1]) if "-extra-" in folder else 0


def opponent(run: RunContext, iteration: int, prompt: Prompt) -> int:
    """Return the iteration whose policy answers a prompt beside the current one (`iteration - 1`)."""
    kind = run.recipe.generate.opponent
    current = iteration - 1
    if kind == "self" or current == 0:
        return current
    if kind == "previous":
        return current - 1
    return (
        0
        if kind == "start"
        else random.Random(derived_seed("pool", run.recipe.seed, iteration, prompt.id)).randrange(current)
    )


def split_completions(total: int, has_rival: bool) -> tuple[int, int]:
    """Completions per prompt of the policy and of its opponent: all its own in self-play, else half each."""
    return (total - total // 2, total // 2) if has_rival else (total, 0)


def make_pairs(prompt: Prompt, own: Sequence[Completion], rivals: Sequence[Completion], seed: int) -> list[Pair]:
    """Return all pairs of different texts, own against own or own against rivals; a hash decides who stands first."""
    found = []
    for one, other in product(own, rivals) if rivals else combinations(own, 2):
        if one.text == other.text:
            continue
        identifier = f"{one.id}|{other.id}"
        first, second = (one, other) if derived_seed(seed, identifier) % 2 else (other, one)
        found.append(Pair(id=identifier, prompt=prompt, first=first, second=second))
    return found
