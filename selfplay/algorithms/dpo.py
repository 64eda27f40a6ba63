"""Preference optimisation on the pairs of an iteration: iterative DPO and its family, SPPO, and SPIN on demonstrations.

The pairs are what the policy before answered, as the judge saw them (the stages `generate` and `label`), so each iteration
learns from its own. With `demonstrations` there are no judged pairs: the policy before answers their prompts here, through a
journal. Writes the new policy as a plain `save_pretrained` directory and `metrics.jsonl` (a row per step).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prompts.sources import load_demonstrations
from selfplay.algorithms.protocol import Inputs, Needs
from selfplay.config import DPO, Recipe
from selfplay.context import sample
from selfplay.errors import ConfigError
from selfplay.progress import is_first, log, meter
from selfplay.storage.files import hash_of, write_json_lines
from selfplay.storage.journal import Journal
from selfplay.training.pairs import prompt_ids_of, read_preferences

if TYPE_CHECKING:
    from selfplay.training.preference import PairRow


class DPOAlgorithm:
    """Direct preference optimisation (Rafailov et al. 2023) and the losses of its family; see docs/algorithms.md."""

    spreads = True

    def __init__(self, config: DPO) -> None:
        self.config = config

    def needs(self, recipe: Recipe) -> Needs:
        """Return judged pairs, or nothing if demonstrations take their place."""
        return Needs(pairs=self.config.demonstrations is None, reward_model=False, reward=False, critic=False)

    def settings(self) -> Any:
        """Return all settings but the name and what changes speed alone, with the content of demonstrations for their source.

        Raises ConfigError for demonstrations that cannot be read.
        """
        settings = self.config.model_dump(exclude={"kind", "micro_batch"})
        if self.config.demonstrations is None:
            return settings
        shown = load_demonstrations(self.config.demonstrations.source, self.config.demonstrations.count, 0)
        rows = [[prompt and prompt.model_dump(mode="json"), response] for prompt, response in shown]
        return {**settings, "demonstrations": hash_of(rows)}

    def train(self, inputs: Inputs) -> None:
        """Train on the pairs. Raises ConfigError if none of them can be learned from, and what `train_or_load` raises."""
        from selfplay.models import load_policy, load_tokenizer, save
        from selfplay.training.preference import pair_trainer, train_on_pairs

        run, iteration, config = inputs.run, inputs.iteration, self.config
        before = run.files.policy(iteration - 1)
        model, tokenizer = load_policy(before), load_tokenizer(before)
        if config.demonstrations is None:
            judged = [row for path in inputs.preferences for row in read_preferences(path)]
            rows = [pair_of(row, tokenizer, config) for row in (judged if config.pairs == "all" else farthest(judged))]
        else:
            longest = getattr(model.config, "max_position_embeddings", 1 << 30)
            rows = self._demonstrated(inputs, tokenizer, longest)
        usable = [row for row in rows if row["chosen_ids"] and row["rejected_ids"]]
        if not usable:
            raise ConfigError(f"none of the {len(rows)} pairs of iteration {iteration} has a token in both answers")
        other = config.reference == "start" and iteration > 1
        trainer = pair_trainer(
            model,
            load_policy(run.files.policy(0)) if other else None,
            tokenizer,
            usable,
            config,
            run.recipe.policy.lora,
            inputs.work,
            run.seed("dpo", iteration),
        )
        trained, logged = train_on_pairs(trainer, inputs.work)
        accuracy, margin = (logged[-1][f"rewards/{name}"] for name in ("accuracy", "margin"))
        log(f"  {len(usable)} pairs; reward accuracy {accuracy:.2f} and margin {margin:.2f} in the last step")
        if is_first():
            save(trained, tokenizer, inputs.folder)
            write_json_lines(inputs.folder / "metrics.jsonl", logged)

    def _demonstrated(self, inputs: Inputs, tokenizer: Any, longest: int) -> "list[PairRow]":
        """Return each demonstration of at most `longest` tokens with what the policy before answers to its prompt."""
        from selfplay.distributed.collectives import first_process_first
        from selfplay.training.supervised import demonstration_rows

        run, taught = inputs.run, self.config.demonstrations
        assert taught is not None
        found = load_demonstrations(taught.source, taught.count, run.seed("demonstrations"))
        shown = [(prompt, response) for prompt, response in found if prompt is not None]
        with meter("own answers", len(shown), "completions") as bar, first_process_first():
            journal = Journal(inputs.work / "own.jsonl")  # in which the others find the first one's answers
            own = sample(run, inputs.iteration - 1, [prompt for prompt, _ in shown], 1, "own", journal, bar)
        rows: list[PairRow] = []
        for pair, [answer] in zip(shown, own, strict=True):
            for row in demonstration_rows(tokenizer, [pair], longest):
                asked = row["input_ids"][: row["labels"].count(-100)]
                chosen = row["input_ids"][len(asked) :]
                if chosen != list(answer.token_ids):
                    rows.append(_row(asked, chosen, answer.token_ids, 1 - self.config.label_smoothing))
        return rows


def farthest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each prompt the one pair whose answers lie farthest apart by the share of their pairs that they won.

    That is the best against the worst, unless the judge saw no winner between those two.
    """
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["rejected_wins"] - row["chosen_wins"], row["pair_id"])):
        best.setdefault(row["prompt_id"], row)
    return list(best.values())


def pair_of(row: dict[str, Any], tokenizer: Any, config: DPO) -> "PairRow":
    """Return a row of preferences.parquet as token ids, with what its labels are taken for."""
    asked = prompt_ids_of(row, tokenizer)
    sides = [row[name][len(asked) :] for name in ("chosen_ids", "rejected_ids")]
    if any([*asked, *side] != row[name] for name, side in zip(("chosen_ids", "rejected_ids"), sides, strict=True)):
        raise ConfigError(
            f"the tokenizer reads prompt {row['prompt_id']!r} as other tokens than when its answers were sampled: was the "
            "policy's chat template changed in between?"
        )
    if config.soft_labels:
        return _row(asked, sides[0], sides[1], row["confidence"], row["chosen_wins"], row["rejected_wins"])
    return _row(asked, sides[0], sides[1], 1 - config.label_smoothing)


def _row(
    asked: list[int], chosen: Sequence[int], rejected: Sequence[int], target: float, won: float = 1.0, lost: float = 0.0
) -> "PairRow":
    return {
        "prompt_ids": asked,
        "chosen_ids": list(chosen),
        "rejected_ids": list(rejected),
        "target": target,
        "chosen_wins": won,
        "rejected_wins": lost,
    }
