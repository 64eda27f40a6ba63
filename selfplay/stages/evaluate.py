"""The new policy against the one before and against the start, on held-out prompts that nothing was trained on.

Writes `completions.parquet` (one answer per held-out prompt, the same seed for every iteration), `matches.parquet` (one
row per prompt and opponent) and `evaluation.json`. The start is sampled too, as iteration 0, and matched with no one.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import judges
from selfplay.compare.best_of import best, choosing_reward, kl_bound
from selfplay.context import RunContext, sample, score_in_batches
from selfplay.distributed.streaming import stream_blocks
from selfplay.engines.masking import load_mask
from selfplay.formatting import hundredths
from selfplay.models import (
    default_batch_tokens,
    device,
    encode_prompt,
    load_policy,
    load_tokenizer,
    right_pad,
    split_by_tokens,
)
from selfplay.progress import log, meter
from selfplay.records import Comparison, Completion, Pair, Verdict
from selfplay.rewards.ensemble import RewardEnsemble, load_reward_model
from selfplay.rewards.reward_model import RewardModel
from selfplay.rl.batching import collate
from selfplay.rl.networks import PolicyNetwork, packs
from selfplay.rundir import WORK, iteration_name
from selfplay.stages import further_sets
from selfplay.stages.label import ask, known_judge, labelling_judge, open_judge
from selfplay.stages.ppo_rewards import folder_of_model
from selfplay.stages.ppo_rewards import settings as reward_settings
from selfplay.stats.diversity import distinct_n, unique_share
from selfplay.stats.intervals import win_rate
from selfplay.storage.files import read_rows, write_json, write_rows
from selfplay.storage.journal import Journal


def fingerprint(run: RunContext, iteration: int) -> str:
    """Return what the evaluation follows from."""
    config, sampling = run.recipe.evaluate, run.recipe.sampling
    settings = [
        config.model_dump(exclude={"also", "best_of"}),
        *further_sets.sets_fingerprint(run),
        run.prompts_asked["heldout"],
        sampling.max_tokens,
        sampling.stop,
        judges.digest(measuring_judge(run) if config.judge else known_judge(run)),
    ]
    if config.best_of is not None:
        settings += [config.best_of, *reward_settings(run)]
    return run.fingerprint(
        settings, (iteration, "policy"), *[(number, "evaluate") for number in opponents_of(iteration)]
    )


def measuring_judge(run: RunContext) -> judges.JudgeSpec:
    """Return the judge that measures: a file of its own, or the one that labels."""
    return judges.load_spec(run.recipe.evaluate.judge) if run.recipe.evaluate.judge else labelling_judge(run)


def opponents_of(iteration: int) -> list[int]:
    """Return the iterations that an iteration is compared with."""
    return sorted({0, iteration - 1}) if iteration else []


def run(run: RunContext, iteration: int) -> None:
    """Make `iteration-NNN/evaluate`."""
    config, opponents = run.recipe.evaluate, opponents_of(iteration)
    spec = measuring_judge(run)
    with run.files.writing(iteration, "evaluate", fingerprint(run, iteration)) as folder, ExitStack() as engines:
        started = time.time()
        answers = sample_heldout(run, iteration, folder)
        judge = open_judge(run, spec, iteration, engines)
        reward = reward_of(run, iteration)
        rewards = reward.score(run.heldout, answers) if reward else None
        apart = {"reward_disagreement": reward.disagreement} if isinstance(reward, RewardEnsemble) else {}
        matches: list[dict[str, Any]] = []
        results: dict[int, Comparison] = {}
        for number in opponents:
            theirs = answers_of(run, number)
            rows, results[number] = match(run, judge, folder, answers, theirs, iteration, number)
            matches += with_rewards(rows, rewards, reward.score(run.heldout, theirs)) if reward and rewards else rows
        chosen: dict[str, Any] = {}
        if config.best_of is not None and iteration:
            more, chosen = best_of(run, judge, folder, answers, iteration, engines)
            matches += more
        also = further_sets.measure_sets(run, iteration, folder, engines)
        write_rows(folder / "completions.parquet", [answer.model_copy(update={"logprobs": None}) for answer in answers])
        if matches:
            write_rows(folder / "matches.parquet", matches)
        write_json(
            folder / "evaluation.json",
            {
                "iteration": iteration,
                "judge": spec.name,
                "win_rate_vs_start": results[0].model_dump() if iteration else None,
                "win_rate_vs_previous": results[iteration - 1].model_dump() if iteration else None,
                **measures(run, iteration, answers, rewards, judge),
                **apart,
                **({"also": also} if also else {}),
                **chosen,
                "seconds": round(time.time() - started, 3),
            },
        )
    for result in results.values():
        log_win_rate(result)


def log_win_rate(result: Comparison) -> None:
    """Say how often one checkpoint beats another, unless nothing could be scored."""
    if result.win_rate is not None:
        log(
            f"  {result.a} beats {result.b} {hundredths(result.win_rate, 1)}% of the time "
            f"[{hundredths(result.low or 0.0, 1)}%, {hundredths(result.high or 0.0, 1)}%], {result.n} prompts"
        )


def answers_of(run: RunContext, iteration: int) -> list[Completion]:
    """Return the held-out answers of an iteration that is evaluated."""
    rows = read_rows(run.files.stage(iteration, "evaluate") / "completions.parquet")
    return [Completion.model_validate(row) for row in rows]


def match(
    run: RunContext,
    judge: judges.Judge,
    folder: Path,
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
    iteration: int,
    number: int,
    suffix: str = "",
) -> tuple[list[dict[str, Any]], Comparison]:
    """Return rows for matches.parquet and the win rate of an iteration's answers over those of another, `number`.

    `suffix` is added to the iteration's name: `*16` for the best of 16.
    """
    spec, name, other = measuring_judge(run), iteration_name(iteration) + suffix, iteration_name(number)
    pairs = [
        Pair(id=f"{prompt.id}|{iteration}{suffix}|{number}", prompt=prompt, first=one, second=another)
        for prompt, one, another in zip(run.heldout, ours, theirs, strict=True)
    ]
    judged = [pair for pair in pairs if pair.first.text != pair.second.text]
    journal = folder / WORK / f"journal-{number}{'-best' if suffix else ''}.jsonl"
    verdicts = ask(judge, judged, journal, f"judge against {other}")
    preferences = preferences_of(pairs, verdicts, spec)
    rows = match_rows(pairs, verdicts, preferences, iteration, number, spec.name)
    return [row | {"a": name} for row in rows], win_rate(
        name, other, preferences, resamples=run.recipe.evaluate.resamples
    )


def best_of(
    run: RunContext,
    judge: judges.Judge,
    folder: Path,
    answers: Sequence[Completion],
    iteration: int,
    engines: ExitStack,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows for matches.parquet, and `best_of` for evaluation.json: best of n against the start and a single answer."""
    n = run.recipe.evaluate.best_of or 1
    work = folder / WORK
    with meter(f"best of {n}", len(run.heldout) * n, "completions") as bar:
        journal = Journal(work / "journal-best-samples.jsonl")
        temperature = run.recipe.evaluate.temperature
        groups = sample(run, iteration, run.heldout, n, "best-of", journal, bar, temperature)
    reward = choosing_reward(
        run.recipe,
        run.files,
        iteration,
        lambda spec: open_judge(run, spec, max(iteration - 1, 0), engines, own_engine=True),
    )
    scores = score_in_batches(
        reward, run.heldout, groups, Journal(work / "journal-best-scores.jsonl"), "choose the best"
    )
    chosen = [answer for answer, _ in best(groups, scores)]
    against = {0: answers_of(run, 0), iteration: answers}
    matched = [match(run, judge, folder, chosen, theirs, iteration, one, f"*{n}") for one, theirs in against.items()]
    for _, result in matched:
        log_win_rate(result)
    start, single = (result.model_dump() for _, result in matched)
    found = {"n": n, "kl_bound": kl_bound(n), "win_rate_vs_start": start, "win_rate_vs_single": single}
    return [row for rows, _ in matched for row in rows], {"best_of": found}


def sample_heldout(run: RunContext, iteration: int, folder: Path) -> list[Completion]:
    """Return one answer of an iteration's policy to each held-out prompt."""
    journal = Journal(folder / WORK / "journal-samples.jsonl")
    with meter("answer held-out prompts", len(run.heldout), "completions") as bar:
        groups = sample(run, iteration, run.heldout, 1, "heldout", journal, bar, run.recipe.evaluate.temperature)
    return [group[0] for group in groups]


def preferences_of(pairs: Sequence[Pair], verdicts: Sequence[Verdict], spec: judges.JudgeSpec) -> list[float | None]:
    """Return one preference per pair for its first response: the same text twice is a tie, what could not be read is None."""
    settled = judges.aggregate_verdicts(verdicts, spec)
    return [0.5 if pair.first.text == pair.second.text else settled.get(pair.id) for pair in pairs]


def match_rows(
    pairs: Sequence[Pair],
    verdicts: Sequence[Verdict],
    preferences: Sequence[float | None],
    iteration: int,
    opponent: int,
    judge: str,
) -> list[dict[str, Any]]:
    """Return one row per prompt for `matches.parquet`; `a` is the iteration, `b` its opponent."""
    by_pair: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        by_pair.setdefault(verdict.pair_id, {})[verdict.order] = verdict
    rows = []
    for pair, preference in zip(pairs, preferences, strict=True):
        said = by_pair.get(pair.id, {})
        forward, backward = said.get("forward"), said.get("reversed")
        row: dict[str, Any] = {
            "prompt_id": pair.prompt.id,
            "prompt": pair.prompt.text,
            "a": iteration_name(iteration),
            "b": iteration_name(opponent),
        }
        for side, completion in (("a", pair.first), ("b", pair.second)):
            row |= {
                f"{side}_text": completion.text,
                f"{side}_tokens": len(completion.token_ids),
                f"{side}_truncated": completion.finish_reason == "length",
            }
        rows.append(
            row
            | {
                "preference": preference,
                "forward": forward and forward.preference,
                "reversed": backward and backward.preference,
                "reason": " / ".join(verdict.reason for verdict in said.values() if verdict.reason),
                "judge": judge,
                "error": " / ".join(verdict.error for verdict in said.values() if verdict.error),
            }
        )
    return rows


def reward_of(run: RunContext, iteration: int) -> RewardModel | RewardEnsemble | None:
    """Return the reward model that an iteration's policy was trained on; the start had none, nor has a run without one."""
    folder = folder_of_model(run, iteration) if iteration else None
    return None if folder is None else load_reward_model(folder)


def with_rewards(
    rows: Sequence[dict[str, Any]], ours: Sequence[float], theirs: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows of matches with `a_reward` and `b_reward`: what one reward model gives to either answer."""
    return [row | {"a_reward": one, "b_reward": other} for row, one, other in zip(rows, ours, theirs, strict=True)]


def measures(
    run: RunContext, iteration: int, answers: Sequence[Completion], rewards: Sequence[float] | None, judge: Any
) -> dict[str, Any]:
    """Return what does not need an opponent: reward, the judge's own score, KL to the start, length, diversity."""
    lengths = sorted(len(answer.token_ids) for answer in answers)
    texts = [answer.text for answer in answers]
    scores = None
    if judge.spec.scores:
        given = [score for score in judge.score(run.heldout, answers) if score is not None]
        scores = sum(given) / len(given) if given else None
    return {
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
        "mean_score": scores,
        "kl_to_start": kl_to_start(run, iteration, answers),
        "mean_length": sum(lengths) / len(lengths),
        "p95_length": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        "truncated": sum(answer.finish_reason == "length" for answer in answers) / len(answers),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "unique": unique_share(texts),
    }


def kl_to_start(run: RunContext, iteration: int, answers: Sequence[Completion]) -> float:
    """KL to the start in nats per response: the mean of log pi(y) - log pi_0(y) over the policy's own samples.

    An estimate without bias if the samples were drawn at the temperature of `sampling`, which is also that of both
    log-probabilities here.
    """
    if iteration == 0:
        return 0.0
    tokenizer = load_tokenizer(run.files.policy(0))
    prompts = [encode_prompt(tokenizer, prompt) for prompt in run.heldout]
    totals = [
        response_logprobs(run.files.policy(number), prompts, answers, run.recipe.evaluate.temperature or 1.0)
        for number in (iteration, 0)
    ]
    return float((totals[0] - totals[1]).mean())


@torch.inference_mode()
def response_logprobs(
    checkpoint: Path, prompts: Sequence[list[int]], answers: Sequence[Completion], temperature: float
) -> torch.Tensor:
    """Log-probability of each whole response in nats, (B,) float64, by the policy in float32, a block of it at a time."""
    model, tokenizer = stream_blocks(load_policy(checkpoint, where="cpu"), device()), load_tokenizer(checkpoint)
    network = PolicyNetwork(model, temperature, mask=load_mask(checkpoint))
    ids, mask = right_pad(
        [[*prompt, *answer.token_ids] for prompt, answer in zip(prompts, answers, strict=True)],
        tokenizer.pad_token_id,
        model.device,
    )
    asked = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    answered = mask.sum(1) - asked
    totals = torch.zeros(len(answers), dtype=torch.float64)
    for rows in split_by_tokens(range(len(answers)), mask.sum(1).tolist(), default_batch_tokens(model.device)):
        logprobs = network.logprobs(collate(ids, asked, answered, rows, packs(model)))
        for row, part in zip(rows, logprobs.split(answered[rows].tolist()), strict=True):
            totals[row] = part.sum(dtype=torch.float64)
    return totals
