"""Rejection sampling, or expert iteration: sample n answers per prompt, score them, keep the best, fine-tune on them.

An iteration has `rounds`; each samples from the policy that the round before made. Answers and scores go through journals, so
a kill never loses a paid judge call, and a finished round is a checkpoint from which a killed iteration goes on. Writes the new
policy as a plain `save_pretrained` directory and `metrics.jsonl` (a row per round). Left out: best-of-n distillation losses.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfplay.algorithms.protocol import Inputs, Needs
from selfplay.config import Recipe, Rejection
from selfplay.context import draw_prompts, sample, score_in_batches
from selfplay.errors import ConfigError
from selfplay.progress import log, meter
from selfplay.records import Completion, Prompt
from selfplay.storage import durable
from selfplay.storage.checksums import is_complete, write_checks
from selfplay.storage.files import read_json_lines, write_json_lines
from selfplay.storage.journal import Journal

METRICS = "metrics.jsonl"
"""File of a finished round with its row of metrics and those of the rounds before."""
Scored = tuple[Completion, float]
"""An answer with its score, NaN where there is none."""


class RejectionAlgorithm:
    """Fine-tune on the best of n (Anthony et al. 2017; RAFT, Dong et al. 2023); see docs/algorithms.md."""

    def __init__(self, config: Rejection) -> None:
        self.config = config

    def needs(self, recipe: Recipe) -> Needs:
        """Return a reward; a reward model where the recipe's reward is one, and the pairs that train it."""
        trained = recipe.reward.kind == "model"
        return Needs(pairs=recipe.reward.needs_pairs, reward_model=trained, reward=True, critic=False)

    def settings(self) -> Any:
        """Return all settings of the section but its name."""
        return self.config.model_dump(exclude={"kind"})

    def train(self, inputs: Inputs) -> None:
        """Run the rounds that are not done. Raises ConfigError if one keeps nothing, and what `train_or_load` raises."""
        from selfplay.models import load_policy, load_tokenizer, save

        rounds = [inputs.work / f"round-{number}" for number in range(self.config.rounds + 1)]
        done = max((number for number, folder in enumerate(rounds) if number and is_whole(folder)), default=0)
        for number in range(done + 1, len(rounds)):
            before = inputs.iteration - 1 if number == 1 else rounds[number - 1]
            self._round(inputs, number, before, rounds[number])
            durable.remove_tree(rounds[number - 1])
        save(load_policy(rounds[-1]), load_tokenizer(rounds[-1]), inputs.folder)
        durable.write(inputs.folder / "metrics.jsonl", (rounds[-1] / METRICS).read_bytes())

    def _round(self, inputs: Inputs, number: int, before: int | Path, result: Path) -> None:
        """Make the policy of one round, `result`, with the rows of metrics up to it, from the policy before."""
        from selfplay.models import load_tokenizer

        run, config, work = inputs.run, self.config, result.with_suffix(".making")
        assert inputs.reward is not None
        place = ((inputs.iteration - 1) * config.rounds + number - 1) * config.prompts
        prompts = draw_prompts(run.train, config.prompts, place, run.seed("prompts"))
        label = f"iteration-{inputs.iteration}-round-{number}"
        work.mkdir(exist_ok=True)
        with meter(f"round {number}: sample", len(prompts) * config.completions, "completions") as bar:
            answers = Journal(work / "journal-samples.jsonl")
            groups = sample(run, before, prompts, config.completions, label, answers, bar)
        scores = score_in_batches(
            inputs.reward, prompts, groups, Journal(work / "scores.jsonl"), f"round {number}: score"
        )
        scored = [list(zip(group, values, strict=True)) for group, values in zip(groups, scores, strict=True)]
        kept = select(scored, config)
        row = measure(scored, kept) | {"step": number, "episode": number * config.episodes_per_step}
        if not kept:
            raise ConfigError(
                f"round {number} kept none of {len(prompts) * config.completions} answers ({row['objective/unscored']} unscored, "
                f"{row['response/truncated']:.0%} cut off at max_tokens): change keep or threshold, raise completions, or see "
                "whether the reward tells answers apart"
            )
        tokenizer = load_tokenizer(run.files.policy(inputs.iteration - 1))
        losses = self._fine_tune(inputs, number, before, tokenizer, [(prompts[p], one) for p, (one, _) in kept], work)
        row |= {"loss/sft_first": losses[0], "loss/sft": losses[-1]}
        log(
            f"  round {number}: kept {len(kept)}, mean score {row['objective/scores_kept']:.3f}; of all "
            f"{row['objective/scores']:.3f}"
        )
        rows = read_json_lines(before / METRICS) if isinstance(before, Path) else []
        write_json_lines(work / "policy" / METRICS, [*rows, row])
        write_checks(work / "policy")
        durable.publish(work / "policy", result)
        durable.remove_tree(work)

    def _fine_tune(
        self,
        inputs: Inputs,
        number: int,
        before: int | Path,
        tokenizer: Any,
        kept: Sequence[tuple[Prompt, Completion]],
        work: Path,
    ) -> list[float]:
        """Fine-tune the policy before on what was kept, into `work/policy`; gives the mean loss of each epoch."""
        from selfplay.lora import add_adapter, merged
        from selfplay.models import encode_prompt, load_policy, save
        from selfplay.training.supervised import train_supervised

        run, config = inputs.run, self.config
        run.make_room()
        model: Any = load_policy(run.files.policy(before) if isinstance(before, int) else before)
        if run.recipe.policy.lora:
            model = add_adapter(model, run.recipe.policy.lora, run.seed("adapter", inputs.iteration, number))
        rows = []
        for prompt, answer in kept:
            asked = encode_prompt(tokenizer, prompt)
            rows.append(
                {"input_ids": [*asked, *answer.token_ids], "labels": [-100] * len(asked) + list(answer.token_ids)}
            )
        each = math.ceil(len(rows) / config.batch_size)
        training = config.optimisation(len(rows))
        seed = run.seed("rejection", inputs.iteration, number)
        logged = train_supervised(model, tokenizer, rows, training, work / "train", seed, f"round {number}: fine-tune")
        durable.remove_tree(work / "policy")
        save(merged(model), tokenizer, work / "policy")
        steps = [row["loss"] for row in logged if "loss" in row]
        return [sum(steps[start : start + each]) / each for start in range(0, len(steps), each)]


def is_whole(folder: Path) -> bool:
    """Return whether a finished round is there and is what was written; one that is not is removed, and that is said."""
    if not folder.is_dir() or is_complete(folder):
        return folder.is_dir()
    log(f"  {folder} is damaged and was removed; its round is made again")
    durable.remove_tree(folder)
    return False


def select(groups: Sequence[Sequence[Scored]], config: Rejection) -> list[tuple[int, Scored]]:
    """Return the answers that are learned, each with the number of its prompt; no prompt's tokens twice.

    `groups` holds the answers to each prompt. The best of a prompt is kept only if it is better than another one of its
    answers, and of several best ones the first.
    """
    usable = [
        (number, (answer, score))
        for number, group in enumerate(groups)
        for answer, score in group
        if not math.isnan(score) and answer.token_ids and (config.truncated or answer.finish_reason == "stop")
    ]
    ranked = sorted(usable, key=lambda row: -row[1][1])
    if config.keep == "best":
        worst = {
            number: min((score for _, score in group if not math.isnan(score)), default=math.inf)
            for number, group in enumerate(groups)
        }
        best: dict[int, tuple[int, Scored]] = {}
        for number, one in ranked:
            if one[1] > worst[number]:
                best.setdefault(number, (number, one))
        return [best[number] for number in sorted(best)]
    if config.keep == "top":
        count = sum(not math.isnan(score) for group in groups for _, score in group)
        ranked = ranked[: math.ceil(config.share * count)]
    else:
        ranked = [row for row in ranked if row[1][1] >= (config.threshold or 0.0)]
    different = {(number, one[0].token_ids): (number, one) for number, one in reversed(ranked)}
    return sorted(different.values(), key=lambda row: row[0])


def measure(groups: Sequence[Sequence[Scored]], kept: Sequence[tuple[int, Scored]]) -> dict[str, Any]:
    """Return the metrics of what a round sampled and kept, named as in docs/algorithms.md."""
    answers = [answer for group in groups for answer, _ in group]
    scores = [score for group in groups for _, score in group if not math.isnan(score)]
    mean = sum(scores) / len(scores) if scores else None
    spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores)) if mean is not None else None
    return {
        "objective/scores": mean,
        "objective/scores_std": spread,
        "objective/scores_kept": sum(score for _, (_, score) in kept) / len(kept) if kept else None,
        "objective/unscored": len(answers) - len(scores),
        "objective/kept": len(kept),
        "objective/prompts_kept": len({number for number, _ in kept}) / len(groups),
        "response/length": sum(len(answer.token_ids) for answer in answers) / len(answers),
        "response/truncated": sum(answer.finish_reason == "length" for answer in answers) / len(answers),
    }
