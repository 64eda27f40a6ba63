"""ILQL, top to bottom: draw rows, one forward pass, four losses, one optimizer step; targets follow now and then.

Every random choice follows from (seed, step), and a checkpoint holds all that the next step depends on, so a killed
training ends with the same weights as one that was not. Left out: several processes.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfplay import stopping
from selfplay.config import ILQL, SAFE_TO_CHANGE
from selfplay.ilql.heads import ILQLHeads
from selfplay.ilql.losses import awac_weights, expectile_loss, q_loss, q_targets
from selfplay.ilql.rows import Row
from selfplay.models import logit_scale, right_pad, split_by_tokens, training_batch_tokens, weights_digest
from selfplay.rl.batching import MicroBatch, collate, prompt_order
from selfplay.rl.checkpoint import resume, save_checkpoint
from selfplay.rl.logprobs import token_logprobs
from selfplay.rl.metrics import append_rows
from selfplay.rl.networks import check_head, hidden_states, packs, precision, prepare
from selfplay.rl.optimise import Optimizer, check_norm, learning_rate_factor
from selfplay.storage.files import derived_seed, hash_of

SUMS = ("loss/q", "loss/value", "loss/cql", "loss/imitation", "ilql/q", "ilql/value", "ilql/awac_weight")


class ILQLTrainer:
    """Trains a policy and its heads in place on `rows`, whose rewards are used as they are.

    `directory` gets checkpoints and metrics.jsonl. `on_step` is called with the metrics of each step. Raises ConfigError
    for a model whose output embedding is more than one matrix.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        config: ILQL,
        *,
        directory: Path | None = None,
        seed: int = 0,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        check_head(policy)
        self.policy, self.rows, self.config, self.directory = policy, list(rows), config, directory
        self.seed, self.on_step, self.device, self.pad = seed, on_step, policy.device, tokenizer.pad_token_id
        prepare(policy.requires_grad_(True), config.gradient_checkpointing)
        embedding = policy.get_output_embeddings().weight
        heads = ILQLHeads(embedding.shape[1], embedding.shape[0], config.heads == "mlp", derived_seed(seed, "heads"))
        self.heads = heads.to(device=self.device, dtype=embedding.dtype)
        common = (config.adam_epsilon, config.weight_decay, config.max_grad_norm)
        both = nn.ModuleDict({"policy": policy, "heads": self.heads})
        self.optimizer = Optimizer(both, config.learning_rate, *common)
        self.fingerprint = {
            **config.model_dump(mode="json", exclude={*SAFE_TO_CHANGE, "beta", "source"}),
            "seed": seed,
            "rows": hash_of([vars(row) for row in self.rows]),
            "policy weights": weights_digest(policy),
        }
        self.steps_done = 0

    def train(self) -> None:
        """Run the steps that are left, from the checkpoint in `directory` if there is one; see `selfplay.stopping`."""
        if self.directory is not None:
            state = resume(self.directory, self.fingerprint, self._tensors())
            self.steps_done = 0 if state is None else state["steps_done"]
        while self.steps_done < self.config.steps:
            row = self._step(self.steps_done)
            self.steps_done += 1
            if self.steps_done == self.config.steps:
                self.optimizer.check_weights()
            if self.directory is not None:
                append_rows(self.directory / "metrics.jsonl", [row])
                due = self.steps_done == self.config.steps or self.steps_done % self.config.checkpoint_every == 0
                if due or stopping.requested():
                    state = {"fingerprint": self.fingerprint, "steps_done": self.steps_done}
                    save_checkpoint(self.directory, state, self._tensors())
            if self.on_step is not None:
                self.on_step(row)
            if self.directory is not None:
                stopping.check()

    def _step(self, step: int) -> dict[str, Any]:
        """Take one optimizer step; gives its metrics."""
        begun, config = time.perf_counter(), self.config
        factor = learning_rate_factor(step, config.steps, config.schedule, config.warmup)
        rate = self.optimizer.set_factor(factor)
        drawn = [self.rows[place] for place in prompt_order(step, config.batch_size, len(self.rows), self.seed)]
        means = self.gradients(drawn)
        norm = check_norm(float(self.optimizer.step()))
        if (step + 1) % config.target_every == 0:
            self.heads.move_targets(config.polyak)
        tokens = sum(len(row.response) for row in drawn)
        took = time.perf_counter() - begun
        timing = {"time": time.time(), "time/step": took, "response/tokens": tokens}
        return {"step": step + 1, **means, "policy/grad_norm": norm, "lr": rate, **timing}

    def gradients(self, rows: Sequence[Row]) -> dict[str, float]:
        """Leave the gradients of a batch in policy and heads; gives the means over its tokens.

        Each token's losses are divided by the tokens of the whole batch, so micro-batches change nothing.
        """
        ids, mask = right_pad([[*row.prompt, *row.response] for row in rows], self.pad, self.device)
        asked = torch.tensor([len(row.prompt) for row in rows], device=self.device)
        answered = mask.sum(1) - asked
        rewards = torch.tensor([row.reward for row in rows], device=self.device, dtype=self.heads.value.weight.dtype)
        total, sums = answered.sum(), torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        budget = self.config.micro_batch_tokens or training_batch_tokens(self.policy, self.device)
        for part in split_by_tokens(range(len(rows)), mask.sum(1).tolist(), budget):
            batch = collate(ids, asked, answered, part, packs(self.policy))
            last = torch.zeros(len(batch.tokens), dtype=torch.bool, device=self.device)
            last[answered[batch.rows].cumsum(0) - 1] = True
            at_end = torch.zeros(len(batch.tokens), device=self.device, dtype=rewards.dtype)
            at_end[last] = rewards[batch.rows]
            loss, found = self._losses(batch, at_end, last)
            (loss / total).backward()
            sums += found
        return {name: float(value) for name, value in zip(SUMS, sums / total, strict=True)}

    def _losses(self, batch: MicroBatch, rewards: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the weighted losses over a micro-batch's tokens, and the sums of SUMS, detached."""
        config, tokens = self.config, batch.tokens
        with precision(config.precision, self.device):
            hidden = hidden_states(self.policy.base_model, batch)[batch.states]
        head = self.policy.get_output_embeddings()
        temperature = 1.0 / logit_scale(self.policy.config)
        bias = getattr(head, "bias", None)
        logprobs, _ = token_logprobs(hidden, head.weight, bias, tokens, temperature, entropy=False)
        values = self.heads.value(hidden).squeeze(-1)
        with torch.no_grad():
            lowest = torch.minimum(*(target.of_tokens(hidden, tokens) for target in self.heads.targets))
        targets = q_targets(rewards, values, last, config.discount)
        of_q = torch.stack([q_loss(q.of_tokens(hidden, tokens), targets) for q in self.heads.q]).sum(0)
        of_value = expectile_loss(values, lowest, config.expectile)
        of_cql = torch.stack([q.cross_entropy(hidden, tokens) for q in self.heads.q]).sum(0)
        weights = awac_weights(lowest, values, config.awac_beta)
        imitation = -logprobs * weights
        loss = (of_q + of_value + config.cql * of_cql + config.awac * imitation).sum()
        columns = (of_q, of_value, of_cql, imitation, lowest, values, weights)
        return loss, torch.stack([column.detach().double().sum() for column in columns])

    def _tensors(self) -> dict[str, Any]:
        """Return the tensors that the next step depends on, no copies."""
        return {
            "learned": {name: one.detach() for name, one in self.optimizer.parameters.items()},
            "targets": {str(place): dict(head.state_dict()) for place, head in enumerate(self.heads.targets)},
            "optimizer": self.optimizer.tensors(),
        }
