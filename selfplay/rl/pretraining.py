"""PPO-ptx: the gradient of language modelling on a corpus, added to the policy's (InstructGPT, Ouyang et al. 2022).

Left out: streaming from disk; the corpus is tokenized once and kept in memory.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from selfplay.config import PPO, Pretraining
from selfplay.distributed.collectives import all_reduce
from selfplay.errors import ConfigError
from selfplay.models import training_batch_tokens
from selfplay.rl.batching import collate, micro_batches
from selfplay.rl.networks import PolicyNetwork, packs, precision


class PretrainingMix:
    """Documents as token ids, and the gradients of their negative log-likelihood."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, corpus: Sequence[str], config: Pretraining, where: torch.device
    ) -> None:
        encoded = tokenizer(list(corpus), truncation=True, max_length=config.length)["input_ids"]
        kept = [ids for ids in encoded if len(ids) > 1]
        if not kept:
            raise ConfigError(f"algorithm.pretraining.source {config.source!r} holds no document of two tokens or more")
        width = max(map(len, kept))
        self.config = config
        self.lengths = [len(ids) for ids in kept]
        self.tokens = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in kept], device=where)
        self.predicted = torch.tensor(self.lengths) - 1

    def add_gradients(self, policy: PolicyNetwork, config: PPO, seed: int) -> float:
        """Add coefficient x the mean loss per token of a batch drawn with `seed`; gives that mean, in nats.

        The batch is divided over processes, so the gradients are this process's part.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(self.lengths), (config.pretraining_batch,), generator=generator).tolist()
        names = list(range(len(rows)))
        lengths = [self.lengths[row] for row in rows]
        total = sum(lengths) - len(rows)
        summed = torch.zeros((), dtype=torch.float64, device=self.tokens.device)
        budget = config.micro_batch_tokens or training_batch_tokens(policy.model, self.tokens.device)
        for part in micro_batches(names, lengths, budget):
            batch = collate(
                self.tokens,
                torch.ones_like(self.predicted),
                self.predicted,
                [rows[i] for i in part],
                packs(policy.model),
            )
            with precision(config.precision, self.tokens.device):
                loss = policy.sequence_loss(batch).sum() / total
            (self.config.coefficient * loss).backward()
            summed += loss.detach().double()
        all_reduce([summed])
        return float(summed)
