"""The reward model: trained on the preferences, measured on prompts that it did not see.

Writes a checkpoint (`AutoModelForSequenceClassification`, with shift and scale in its config) and `metrics.json`:
held-out accuracy with a 95% interval, Brier score, calibration error. Left out: ties, which no loss learns from.
"""

import math
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from prompts.files import digest
from selfplay.config import Reward
from selfplay.context import RunContext
from selfplay.distributed.collectives import first_process_first
from selfplay.errors import ConfigError
from selfplay.models import encode_prompt, load_scalar_model, load_tokenizer
from selfplay.objects import source_hash
from selfplay.preflight import context_of
from selfplay.progress import is_first, log
from selfplay.rewards.ensemble import RewardEnsemble, member_folder
from selfplay.rewards.reward_model import RewardModel
from selfplay.rundir import WORK
from selfplay.stages.generate import stage_name
from selfplay.stages.given_preferences import given_rows, sample_start
from selfplay.stats.intervals import clustered_interval
from selfplay.storage.files import derived_seed, read_json, read_rows, write_json, write_json_lines
from selfplay.training.pairs import read_preferences
from selfplay.training.reward_model import Rows, train_reward_model

CALIBRATION_BINS = 10
OF_OTHERS: Any = dict.fromkeys(("python", "options", "metric", "reference"), True)
OF_OTHERS |= {"added": {"__all__": set(OF_OTHERS)}}
"""Settings of rewards of other kinds, of which a reward model knows nothing."""
ADDED = ("data", "loss", "ensemble", "conservative", "uncertainty", "normalise", "schedule", "weight_decay")
"""Settings that came later than the first runs: at their defaults they are left out of a fingerprint, as they were then."""


def sources(run: RunContext, iteration: int, extra: int) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return the label stages of this iteration, and those of earlier ones that are mixed in."""
    own = [(iteration, stage_name("label", number)) for number in range(extra + 1)]
    return own, [(before, "label") for before in range(1, iteration)] if run.recipe.reward.replay else []


def fingerprint(run: RunContext, iteration: int, extra: int = 0) -> str:
    """Return what the reward model follows from."""
    own, replayed = sources(run, iteration, extra)
    before = [(iteration - 1, folder.name) for folder in run.files.rounds(iteration - 1, "reward")[-1:]]
    data = run.recipe.reward.data
    if data is not None:
        others = [run.prompts_asked["train"], run.sampling().model_dump()]
        read = [(iteration - 1, "policy"), (0, "policy"), *before]
        named, held = (
            run.fingerprint([settings(run.recipe.reward), told, *others], *read) for told in (data, digest(data))
        )
        return named if run.made_from(iteration, stage_name("reward", extra)) == named else held
    return run.fingerprint(
        settings(run.recipe.reward),
        (iteration - 1, "policy"),
        (1, "generate"),
        *before,
        *own,
        *replayed,
    )


def settings(config: Reward) -> Any:
    """Return the settings that a reward model follows from, with the source of a loss of the user's own."""
    found = config.model_dump(exclude=OF_OTHERS)
    for name in ADDED:
        if found[name] == type(config).model_fields[name].default:
            del found[name]
    if config.loss != "python":
        return found
    return [found, config.python, source_hash(config.python), config.options]


def backbone(run: RunContext, iteration: int, member: int = 0) -> str | Path:
    """Return the checkpoint that training of a member of the ensemble starts from."""
    kind, policy = run.recipe.reward.backbone, run.files.policy(iteration - 1)
    if kind == "previous":
        before = run.files.rounds(iteration - 1, "reward")
        return member_folder(before[-1], member) if before else policy
    return {"policy": policy, "start": run.files.policy(0)}.get(kind, kind)


def check_vocabulary(kind: str, checkpoint: str | Path, tokenizer: Any) -> None:
    """Raise ConfigError if a model of the user's reads token ids differently: it is given those that the policy sampled."""
    if kind not in ("previous", "policy", "start") and load_tokenizer(checkpoint).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"reward.backbone {kind!r} has another vocabulary than the policy, whose tokens it would be given: "
            "take a model with the policy's tokenizer, or `policy`"
        )


def learned_rows(run: RunContext, iteration: int, extra: int, tokenizer: Any) -> tuple[Rows, Rows]:
    """Return the preferences to train on and those to measure on. Raises ConfigError if one of the two would be empty.

    No prompt changes sides from one iteration to the next, or a model that goes on from the one before would be measured on
    what that one learned: the first iteration alone moves prompts, and a later one whose pairs lie all on one side takes
    the other from the iterations before it.
    """
    config, seed = run.recipe.reward, run.seed("reward split")
    if config.data is not None:
        rows, earlier = given_rows(config.data, tokenizer, context_of(run.files.policy(iteration - 1))), []
    else:
        rows, earlier = (
            [row for stage in stages for row in preferences(run, *stage)] for stages in sources(run, iteration, extra)
        )
    first = rows if config.data is not None or iteration == 1 else all_rounds(run, 1)
    moved = moved_prompts(first, config.heldout_share, seed)
    train, heldout = split(rows, config.heldout_share, seed, moved)
    mixed_in = split(earlier, config.heldout_share, seed, moved)[0]
    train += draw(mixed_in, config.replay, run.seed("reward", iteration, extra))
    if iteration > 1 and config.data is None and not (train and heldout):
        before = [row for number in range(1, iteration) for row in all_rounds(run, number)]
        others = split(before, config.heldout_share, seed, moved)
        train, heldout = train or others[0], heldout or others[1]
        log(
            "  all prompts are on one side of the held-out split: the pairs of the other side are from earlier iterations"
        )
    if not train or not heldout:
        prompts = len({row["prompt_id"] for row in rows})
        raise ConfigError(
            f"{len(rows)} decided pairs of {prompts} prompt{'s' * (prompts != 1)} are too few to train a reward model on and "
            "measure it on another prompt: "
            + ("raise generate.prompts, in a new `output`" if config.data is None else "give more rows in reward.data")
        )
    return train, heldout


def run(run: RunContext, iteration: int, extra: int = 0) -> None:
    """Make `iteration-NNN/reward` from the preferences of all rounds of this iteration, or from those of `reward.data`."""
    config, name = run.recipe.reward, stage_name("reward", extra)
    with run.writing(iteration, name, fingerprint(run, iteration, extra)) as folder:
        seed = run.seed("reward", iteration, extra)
        tokenizer = load_tokenizer(run.files.policy(iteration - 1))
        train, heldout = learned_rows(run, iteration, extra, tokenizer)
        check_vocabulary(config.backbone, backbone(run, iteration), tokenizer)
        with first_process_first():  # the others find the answers in the journal
            given = config.data is not None
            samples = sample_start(run, folder / WORK, tokenizer) if given else start_samples(run, tokenizer)
        rows_of_metrics, members = [], []
        for number in range(config.ensemble):
            own_seed = run.seed("reward", iteration, extra, number) if number else seed
            work = member_folder(folder / WORK, number)
            member, logged = train_member(run, iteration, tokenizer, train, samples, work, own_seed, number)
            members.append(member)
            which = {} if config.ensemble == 1 else {"member": number + 1}
            rows_of_metrics += [{"reward/" + key: value for key, value in (row | which).items()} for row in logged]
        ensemble = RewardEnsemble(members, config.conservative, config.uncertainty)
        model = ensemble if config.ensemble > 1 else members[0]
        metrics = measure(model, heldout) | {
            "trained_on": len(train),
            "mean": members[0].mean,
            "deviation": members[0].deviation,
        }
        if config.ensemble > 1:
            metrics["disagreement"] = ensemble.disagreement
            metrics["members"] = [measure(member, heldout)["accuracy"]["value"] for member in members]
        if is_first():
            model.save(folder)
            write_json(folder / "metrics.json", metrics)
            write_json_lines(folder / "metrics.jsonl", rows_of_metrics)
    accuracy = metrics["accuracy"]
    log(
        f"  reward model: held-out accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] on "
        f"{accuracy['n']} pairs"
    )


def train_member(
    run: RunContext,
    iteration: int,
    tokenizer: Any,
    rows: Rows,
    samples: list[list[int]],
    work: Path,
    seed: int,
    number: int,
) -> tuple[RewardModel, list[dict[str, float]]]:
    """Return a reward model trained on the rows, and what its training logged.

    `number` is its place in the ensemble, from 0; `samples` are the start's, on which its scores get mean 0 and deviation 1.
    One that goes on from the iteration before has seen the rows of `reward.data`: it is kept as it is.
    """
    config = run.recipe.reward
    set_seed(seed)
    model = RewardModel(load_scalar_model(backbone(run, iteration, number)), tokenizer)
    model.model.config.pad_token_id = tokenizer.pad_token_id
    if config.data is not None and config.backbone == "previous" and iteration > 1:
        return model, []
    if config.normalise == "both":
        model.rescale(model.raw(samples))
    label = "train reward model" + (f" {number + 1} of {config.ensemble}" if config.ensemble > 1 else "")
    logged = train_reward_model(model, rows, config, work, seed, label)
    model.normalise(model.raw(samples))
    return model, logged


def preferences(run: RunContext, iteration: int, stage: str) -> Rows:
    """Return the rows of a stage's preferences, each with the `round` of pairs that it is from."""
    rows = read_preferences(run.files.stage(iteration, stage) / "preferences.parquet")
    return [row | {"round": f"{iteration}/{stage}"} for row in rows]


def all_rounds(run: RunContext, iteration: int) -> Rows:
    """Return the rows of an iteration's preferences, those of its extra rounds included."""
    return [row for folder in run.files.rounds(iteration, "label") for row in preferences(run, iteration, folder.name)]


def split(rows: Rows, share: float, seed: int, moved: Container[str] = ()) -> tuple[Rows, Rows]:
    """Return rows to train on and rows to measure on; all pairs of one prompt go the same way.

    A hash of the prompt's id says which way, and the other one for the prompts that were `moved`.
    """
    train: Rows = []
    heldout: Rows = []
    for row in rows:
        name = row["prompt_id"]
        measured = (place_of(name, seed) < share * 10_000) != (name in moved)
        (heldout if measured else train).append(row)
    return train, heldout


def moved_prompts(rows: Rows, share: float, seed: int) -> frozenset[str]:
    """Return the prompts that must change sides because `split` would leave one of the two empty; mostly none.

    Then the share of the prompts with the smallest hashes, at least one and not all, is measured on, and the others are
    trained on. Of a single prompt nothing can be held back: it stays where it is.
    """
    places = {row["prompt_id"]: place_of(row["prompt_id"], seed) for row in rows}
    measured = {name for name, place in places.items() if place < share * 10_000}
    if len(places) < 2 or 0 < len(measured) < len(places):
        return frozenset()
    count = min(max(1, round(share * len(places))), len(places) - 1)
    return frozenset(measured ^ set(sorted(places, key=lambda name: (places[name], name))[:count]))


def place_of(prompt: str, seed: int) -> int:
    """Return a prompt's place in [0, 10000), by a hash of its id."""
    return derived_seed(seed, prompt) % 10_000


def draw(rows: Rows, share: float, seed: int) -> Rows:
    """Return a share of the rows, each by a hash of its pair's id."""
    return [row for row in rows if derived_seed(seed, row["pair_id"]) % 10_000 < share * 10_000]


def start_samples(run: RunContext, tokenizer: Any) -> list[list[int]]:
    """Prompt and completion ids of the start's own samples, from the first iteration's generation."""
    prompts = {prompt.id: encode_prompt(tokenizer, prompt) for prompt in run.train}
    rows = read_rows(run.files.stage(1, "generate") / "completions.parquet")
    return [[*prompts[row["prompt_id"]], *row["token_ids"]] for row in rows]


def measure(model: RewardModel | RewardEnsemble, rows: Rows) -> dict[str, Any]:
    """Accuracy, Brier score and expected calibration error of P = sigmoid(difference) on pairs.

    The accuracy's 95% interval counts prompts, not pairs: several pairs of one prompt share its completions.
    """
    scores = model.raw([row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows])
    gaps = [chosen - rejected for chosen, rejected in zip(scores[: len(rows)], scores[len(rows) :], strict=True)]
    correct: dict[str, list[bool]] = {}
    for row, gap in zip(rows, gaps, strict=True):
        correct.setdefault(row["prompt_id"], []).append(gap > 0)
    low, high = clustered_interval([sum(one) for one in correct.values()], [len(one) for one in correct.values()])
    probabilities = [1 / (1 + math.exp(-max(-50.0, min(50.0, gap)))) for gap in gaps]
    return {
        "accuracy": {
            "value": sum(map(sum, correct.values())) / len(rows),
            "low": low,
            "high": high,
            "n": len(rows),
        },
        "brier": sum((1 - probability) ** 2 for probability in probabilities) / len(rows),
        "calibration_error": calibration_error(probabilities),
    }


def calibration_error(probabilities: Sequence[float]) -> float:
    """Mean gap between confidence and accuracy over bins of confidence (Guo et al. 2017).

    `probabilities` are those given to the response that the judge chose; the model's confidence is max(p, 1 - p).
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(CALIBRATION_BINS)]
    for probability in probabilities:
        confidence = max(probability, 1 - probability)
        place = min(int((confidence - 0.5) * 2 * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        bins[place].append((confidence, probability > 0.5))
    gaps = [abs(sum(confidence for confidence, _ in group) - sum(right for _, right in group)) for group in bins]
    return sum(gaps) / len(probabilities)


def above_chance(run: RunContext, iteration: int, extra: int) -> bool:
    """Return whether the held-out accuracy's lower bound is above one half."""
    return read_json(run.files.stage(iteration, stage_name("reward", extra)) / "metrics.json")["accuracy"]["low"] > 0.5
