"""Training on pairs of responses with TRL's DPOTrainer, on token ids that are given and with the losses of `pair_losses`.

TRL's trainer tokenizes text; here the ids go through as they were sampled. The reference's log-probabilities are computed
once, before the first step, by TRL's own forward, so no second model stays in memory. Left out: f-divergences, images.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from selfplay.config import DPO, Lora
from selfplay.distributed.collectives import all_gather
from selfplay.lora import adapter_config, merged
from selfplay.training.pair_losses import PAIR_LOSSES, LogRatios
from selfplay.training.supervised import one_device, train_or_load, trainer_options

NAMES = {"loss": "loss/preference", "grad_norm": "policy/grad_norm", "learning_rate": "lr"}
"""What the trainer calls a metric -> its name in metrics.jsonl."""
NUMBERS = ("target", "chosen_wins", "rejected_wins")


class PairRow(TypedDict):
    """A pair as token ids: a prompt, and what was answered without it. The numbers are those of `LogRatios`."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    target: float
    chosen_wins: float
    rejected_wins: float


class PairTrainer(DPOTrainer):
    """TRL's trainer on `PairRow`s, with a loss of ours."""

    ref_model: Any

    def __init__(self, settings: DPO, **options: Any) -> None:
        self.settings = settings
        super().__init__(**options)

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        """Leave the token ids as they are."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Add the reference's log-probability of each response, and let a reference model go."""
        model = self.ref_model or self.model
        sums: dict[str, list[float]] = {"ref_chosen_logps": [], "ref_rejected_logps": []}
        for start in range(0, len(dataset), batch_size):
            batch = self.data_collator([dataset[row] for row in range(start, min(start + batch_size, len(dataset)))])
            ready = {key: value for key, value in self._prepare_inputs(batch).items() if key not in NUMBERS}
            for key, part in zip(sums, self.compute_ref_log_probs(model, ready), strict=True):
                sums[key] += part.tolist()
        self.ref_model = None
        for key, values in sums.items():
            dataset = dataset.add_column(key, values)
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        """Return the mean loss of a batch of pairs, and note its metrics."""
        completion = inputs["completion_mask"]
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(completion == 0, -100),
            use_cache=False,
            fused_lm_head=True,
        )
        chosen, rejected = outputs.log_probs.sum(1).chunk(2)
        tokens = completion.sum(1).chunk(2)
        pairs = LogRatios(
            chosen - inputs["ref_chosen_logps"],
            rejected - inputs["ref_rejected_logps"],
            *tokens,
            *(inputs[key] for key in NUMBERS),
        )
        losses = PAIR_LOSSES[self.settings.loss](pairs, self.settings.beta)
        sft = -chosen.sum() / tokens[0].sum()
        self._note(pairs, losses, sft, chosen, rejected, int(inputs["attention_mask"].sum()))
        return losses.mean() + self.settings.sft_coefficient * sft

    def _note(
        self, pairs: LogRatios, losses: Tensor, sft: Tensor, chosen: Tensor, rejected: Tensor, tokens: int
    ) -> None:
        """Note the metrics of a batch; the trainer averages them over the micro-batches of a step."""
        rewards = [self.settings.beta * ratios.detach() for ratios in (pairs.chosen, pairs.rejected)]
        self._total_train_tokens += sum(all_gather(tokens))
        found = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margin": rewards[0] - rewards[1],
            "rewards/accuracy": (rewards[0] > rewards[1]).float(),
            "logprobs/chosen": chosen.detach(),
            "logprobs/rejected": rejected.detach(),
            "loss/sft": sft.detach(),
        }
        metrics = self._metrics["train"]
        for key, values in found.items():
            metrics[key].append(fmean(all_gather(values.mean().item())))
        metrics["num_tokens"] = [self._total_train_tokens]


def collator(pad: int) -> Any:
    """Return a function from `PairRow`s, with or without the reference's log-probabilities, to a batch of tensors."""
    plain = DataCollatorForPreference(pad_token_id=pad)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**plain(rows), **{key: torch.tensor([row[key] for row in rows]) for key in NUMBERS}}

    return collate


def pair_trainer(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PairRow],
    config: DPO,
    lora: Lora | None,
    directory: Path,
    seed: int,
) -> PairTrainer:
    """Return a trainer that is ready to train; `reference` None is the model itself as it begins."""
    set_seed(seed)
    training = config.optimisation(len(rows), config.micro_batch)
    options = trainer_options(model, training, directory, seed, checkpoint_every=max(20, training.steps // 4))
    arguments = DPOConfig(
        **options,
        beta=config.beta,
        gradient_accumulation_steps=config.batch_size // training.batch_size,
        precompute_ref_log_probs=True,
        max_length=None,
        remove_unused_columns=False,
    )
    return PairTrainer(
        config,
        model=model,
        ref_model=reference,
        args=one_device(arguments),
        data_collator=collator(tokenizer.pad_token_id),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer,
        peft_config=adapter_config(lora) if lora else None,
    )


def train_on_pairs(trainer: PairTrainer, directory: Path) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Return the trained model, and its metrics: a row per optimizer step, named as in docs/algorithms.md.

    Stops and resumes under `directory` as `train_or_load` does, and raises what it raises.
    """
    logged = train_or_load(trainer, directory, "dpo")
    return merged(trainer.model), [
        {NAMES.get(key, key): value for key, value in row.items()} for row in logged if "loss" in row
    ]
