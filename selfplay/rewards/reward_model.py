"""The reward model: a scalar model whose scores have mean 0 and deviation 1 on the start's samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfplay.distributed.collectives import all_gather, from_first, world_size
from selfplay.distributed.sharding import home, load_on_first, shard
from selfplay.models import (
    default_batch_tokens,
    encode_prompt,
    load_scalar_model,
    load_tokenizer,
    right_pad,
    save,
    split_by_tokens,
    weights_digest,
)
from selfplay.records import Completion, Prompt
from selfplay.weights.precision import freeze, preferred, products_in


def score_shift_and_scale(model_config: Any) -> tuple[float, float]:
    """Mean and standard deviation of a reward model's raw scores on the start's samples; 0 and 1 if it has none."""
    known = getattr(model_config, "selfplay_reward", {})
    return float(known.get("mean", 0.0)), float(known.get("deviation", 1.0))


class ScoreNetwork(nn.Module):
    """The score of each sequence of a batch, before shift and scale."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, last: Tensor) -> Tensor:
        """Return (B,) outputs of the head for token ids (B, T), at the place (B,) of each sequence's last token.

        Padding stands behind the tokens, where causal attention does not look: no mask, and the faster kernel.
        """
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        last_hidden = hidden[torch.arange(len(ids), device=ids.device), last]
        with torch.autocast(ids.device.type, enabled=False):
            scores: Tensor = self.model.score(last_hidden.to(self.model.score.weight.dtype))
        return scores.squeeze(-1)


class RewardModel:
    """A scalar model with the shift and scale that make its scores mean 0, deviation 1 on the start's samples.

    The two live in the checkpoint's config.json (`selfplay_reward: {mean, deviation}`), so that they travel with it;
    `AutoModelForSequenceClassification` reads the same directory and gives the scores before shift and scale.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int | None = None
    ) -> None:
        self.model, self.tokenizer, self.network = model, tokenizer, ScoreNetwork(model)
        self.batch_tokens = batch_tokens or default_batch_tokens(home(model))
        self.precision = preferred(model)
        self.digest: str | None = None
        """Of its weights as they were read, before they were rounded or spread over processes; None for one that was not read."""
        self.spread = False
        """Whether no process holds all of its weights any more, so that all must score together."""

    @classmethod
    def load(cls, directory: str | Path, spread: bool = False) -> "RewardModel":
        """Read a checkpoint written by `save`, to score and learn no more.

        `spread` its weights over all processes, if there are several: then all must score equally often, though not equally much.
        """
        if not spread or world_size() == 1:
            found = cls(load_scalar_model(directory), load_tokenizer(directory))
            found.digest = weights_digest(found.model)
            freeze(found.model, found.precision)
            return found
        found = cls(load_on_first(load_scalar_model, directory), load_tokenizer(directory))
        found.digest = from_first(lambda: weights_digest(found.model))
        shard(found.network, dtype=torch.float32)
        found.spread = True
        return found

    @property
    def mean(self) -> float:
        """Mean of the raw scores on the start's samples."""
        return score_shift_and_scale(self.model.config)[0]

    @property
    def deviation(self) -> float:
        """Standard deviation of the raw scores on the start's samples."""
        return score_shift_and_scale(self.model.config)[1]

    def normalise(self, raw_scores: Sequence[float]) -> None:
        """Set shift and scale from raw scores on the start's samples."""
        values = torch.tensor(raw_scores, dtype=torch.float64)
        self.model.config.selfplay_reward = {"mean": float(values.mean()), "deviation": max(float(values.std()), 1e-6)}

    @torch.no_grad()
    def rescale(self, raw_scores: Sequence[float]) -> float:
        """Divide the head by the deviation of its raw scores on the start's samples, and return that.

        Ziegler et al. 2019 set a gain and a bias; a bias cancels in every loss over differences of scores.
        """
        deviation = max(float(torch.tensor(raw_scores, dtype=torch.float64).std()), 1e-6)
        self.model.score.weight /= deviation
        return deviation

    def standardise(self, raw_scores: Sequence[float]) -> list[float]:
        """Return raw scores in deviations from the start's mean."""
        return [(value - self.mean) / self.deviation for value in raw_scores]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return one score per response, higher is better, in deviations from the start's mean."""
        encoded = [
            [*encode_prompt(self.tokenizer, prompt), *response.token_ids]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self.standardise(self.raw(encoded))

    @torch.no_grad()
    def raw(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the head's output at the last token of each sequence of token ids."""
        scores = [0.0] * len(sequences)
        batches = split_by_tokens(range(len(sequences)), [len(one) for one in sequences], self.batch_tokens)
        if self.spread:  # weights are gathered by all processes together
            batches += [[] for _ in range(max(all_gather(len(batches))) - len(batches))]
        where = self.model.device
        pad = self.tokenizer.pad_token_id
        for rows in batches:
            ids, mask = right_pad([sequences[row] for row in rows] or [[pad]], pad, where)
            with products_in(self.precision, where):
                found = self.network(ids, mask.sum(1) - 1).float().tolist()
            for row, value in zip(rows, found, strict=False):
                scores[row] = value
        return scores

    def save(self, directory: str | Path) -> None:
        """Write model, tokenizer, shift and scale."""
        save(self.model, self.tokenizer, directory)
