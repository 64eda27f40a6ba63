"""Implicit language Q-learning, from rows with rewards or this iteration's judged completions; trained by `selfplay.ilql`.

Writes the new policy as a plain `save_pretrained` directory with the Q heads folded into its output embedding (those of two
layers in a file beside it), and `metrics.jsonl` (a row per step).
"""

from typing import Any

from selfplay.algorithms.protocol import Inputs, Needs
from selfplay.config import ILQL, Recipe
from selfplay.progress import meter
from selfplay.storage import durable
from selfplay.storage.files import hash_of
from selfplay.training.pairs import read_preferences


class ILQLAlgorithm:
    """Implicit language Q-learning (Snell et al. 2022); see docs/algorithms.md."""

    def __init__(self, config: ILQL) -> None:
        self.config = config

    def needs(self, recipe: Recipe) -> Needs:
        """Return nothing where there is a source, and else judged pairs."""
        return Needs(pairs=self.config.source is None, reward_model=False, reward=False, critic=False)

    def settings(self) -> Any:
        """Return all settings, with the content of the source for its name. Raises ConfigError for one that cannot be read."""
        settings = self.config.model_dump(exclude={"kind", "source"})
        if self.config.source is None:
            return settings
        from selfplay.ilql.rows import load_scored

        rows = [
            [one.prompt.model_dump(mode="json"), one.completion, one.reward] for one in load_scored(self.config.source)
        ]
        return {**settings, "source": hash_of(rows)}

    def train(self, inputs: Inputs) -> None:
        """Train policy and heads, then put what the heads learned into the checkpoint."""
        from selfplay.ilql.heads import put_in
        from selfplay.ilql.rows import encode_scored, fitting, load_scored, rows_of_preferences, standardised
        from selfplay.ilql.trainer import ILQLTrainer
        from selfplay.models import load_policy, load_tokenizer, save

        run, iteration, config = inputs.run, inputs.iteration, self.config
        before = run.files.policy(iteration - 1)
        model, tokenizer = load_policy(before), load_tokenizer(before)
        if config.source is not None:
            rows = encode_scored(load_scored(config.source), tokenizer)
        else:
            judged = [row for path in inputs.preferences for row in read_preferences(path)]
            rows = rows_of_preferences(judged, tokenizer)
        rows = fitting(rows, getattr(model.config, "max_position_embeddings", 1 << 30))
        rows = standardised(rows) if config.standardise else rows
        with meter("ilql", config.steps, "steps") as bar:

            def show(row: dict[str, Any]) -> None:
                bar.advance(
                    int(row["step"]) - bar.done, f"q {row['loss/q']:.3f}, imitation {row['loss/imitation']:.3f}"
                )
                run.tracker.log_step(row, before=(iteration - 1) * config.steps)

            trainer = ILQLTrainer(
                model, tokenizer, rows, config, directory=inputs.work, seed=run.seed("ilql", iteration), on_step=show
            )
            trainer.train()
        put_in(model, trainer.heads, config.beta)
        save(model, tokenizer, inputs.folder)
        durable.write(inputs.folder / "metrics.jsonl", (inputs.work / "metrics.jsonl").read_bytes())
