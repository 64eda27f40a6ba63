"""Training a reward model on preferences: TRL's RewardTrainer on pairs, or on whole groups with each completion once."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from selfplay.config import Reward
from selfplay.distributed.collectives import all_gather
from selfplay.models import right_pad
from selfplay.rewards.losses import LOSSES, RewardLoss, Verdicts
from selfplay.rewards.python import build_python_loss
from selfplay.rewards.reward_model import RewardModel
from selfplay.training.supervised import one_device, train_or_load, trainer_options

Rows = list[dict[str, Any]]


def train_reward_model(
    model: RewardModel, rows: Rows, config: Reward, work: Path, seed: int, label: str = "train reward model"
) -> list[dict[str, float]]:
    """Train in place on rows of `preferences.parquet`, and return what was logged; see `supervised.train_or_load`."""
    elements = rows if config.loss == "pairwise" else groups_of(rows, config.margin)
    training = config.optimisation(len(elements))
    options = trainer_options(model.model, training, work, seed, checkpoint_every=max(20, training.steps // 2))
    if config.loss == "pairwise":
        columns = ["chosen_ids", "rejected_ids", *(["margin"] if config.margin else [])]
        trainer = RewardTrainer(
            model=model.model,
            processing_class=model.tokenizer,
            args=one_device(RewardConfig(**options, max_length=None, dataset_num_proc=None)),
            train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in elements]),
        )
    else:
        trainer = GroupTrainer(
            build_python_loss(config) if config.loss == "python" else LOSSES[config.loss],
            model=model.model,
            processing_class=model.tokenizer,
            args=one_device(RewardConfig(**options, remove_unused_columns=False)),
            train_dataset=Dataset.from_list(elements),
        )
    return train_or_load(trainer, work, label)


def groups_of(rows: Rows, margin: bool = False) -> Rows:
    """Return one row per prompt and round of pairs: its distinct completions once each, and the verdicts on them.

    `ids`: K sequences of prompt and completion; `chosen`, `rejected`: places among them, one entry per pair;
    `probability`: the judge's, of the chosen one; `margin`: the verdict's if asked for, else 0.
    """
    groups: dict[Any, dict[str, Any]] = {}
    places: dict[Any, dict[tuple[int, ...], int]] = {}
    for row in rows:
        key = (row.get("round"), row["prompt_id"])
        group = groups.setdefault(key, {"ids": [], "chosen": [], "rejected": [], "probability": [], "margin": []})
        known = places.setdefault(key, {})
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            place = known.setdefault(tuple(ids), len(known))
            if place == len(group["ids"]):
                group["ids"].append(list(ids))
            group[side].append(place)
        group["probability"].append(float(row["confidence"]))
        group["margin"].append(float(row["margin"]) if margin else 0.0)
    return list(groups.values())


class GroupTrainer(RewardTrainer):
    """TRL's RewardTrainer with a loss over groups; its batches are groups, and each completion is forwarded once."""

    def __init__(self, loss: RewardLoss, *, processing_class: Any, **options: Any) -> None:
        self.loss = loss
        pad = processing_class.pad_token_id
        super().__init__(data_collator=lambda rows: collate(rows, pad), processing_class=processing_class, **options)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Take the token ids as they are: they are those that the policy sampled."""
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of the groups, and log what TRL's trainer logs."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = outputs.logits.squeeze(-1).float()
        parts = [scores.split(inputs["completions"].tolist())]
        for name in ("chosen", "rejected", "probability", "margin"):
            parts.append(inputs[name].split(inputs["pairs"].tolist()))
        groups = [(group, Verdicts(*verdicts)) for group, *verdicts in zip(*parts, strict=True)]
        loss = torch.stack([self.loss(group, verdicts) for group, verdicts in groups]).mean()
        gaps = torch.cat([group[verdicts.chosen] - group[verdicts.rejected] for group, verdicts in groups]).detach()
        self._total_train_tokens += sum(all_gather(int(inputs["attention_mask"].sum())))
        logged = self._metrics["train"]
        logged["num_tokens"] = [self._total_train_tokens]
        for name, value in (
            ("min_reward", scores.min()),
            ("mean_reward", scores.mean()),
            ("max_reward", scores.max()),
            ("accuracy", (gaps > 0).float().mean()),
            ("margin", gaps.mean()),
        ):
            values = all_gather(float(value))
            logged[name].append({"min_reward": min, "max_reward": max}.get(name, fmean)(values))
        return (loss, outputs) if return_outputs else loss


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """Return G groups as one batch: (B, T) ids and mask of all completions, and what splits them up again.

    `completions` and `pairs` are (G,) counts; `chosen`, `rejected`, `probability` and `margin` are (P,) over all pairs,
    the first two as places within their own group.
    """
    ids, mask = right_pad([one for row in rows for one in row["ids"]], pad, torch.device("cpu"))
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "completions": torch.tensor([len(row["ids"]) for row in rows]),
        "pairs": torch.tensor([len(row["chosen"]) for row in rows]),
    }
    for name in ("chosen", "rejected", "probability", "margin"):
        kind = torch.int64 if name in ("chosen", "rejected") else torch.float32
        batch[name] = torch.tensor([value for row in rows for value in row[name]], dtype=kind)
    return batch
