"""The networks that PPO trains, with their optimisers: gradients of a minibatch, the updates of a step, their checkpoint.

Left out: where episodes come from, and what their advantages are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfplay.config import PPO, SamplingParams
from selfplay.distributed.collectives import all_reduce
from selfplay.distributed.sharding import home, shard
from selfplay.engines.masking import TargetMask
from selfplay.lora import unwrap_peft
from selfplay.models import default_batch_tokens
from selfplay.rl.batching import MicroBatch, micro_batches, minibatches
from selfplay.rl.experience import Experience, Tokens
from selfplay.rl.kl import KLController, kl_estimate
from selfplay.rl.losses import PolicyLoss, loss_shares, policy_loss, pool_log_ratios, value_loss
from selfplay.rl.metrics import SUMS_OF_CRITIC, SUMS_OF_POLICY, policy_sums, total_of, update_metrics
from selfplay.rl.networks import Critic, PolicyNetwork, packs, precision, prepare
from selfplay.rl.optimise import Average, Optimizer, learning_rate_factor
from selfplay.rl.pretraining import PretrainingMix
from selfplay.rl.rollouts import Episodes
from selfplay.storage.files import derived_seed
from selfplay.weights.precision import freeze


class Learner:
    """Policy, critic and reference, and how the first two learn from the experience of a step.

    `critic` None means that the settings' advantage needs none, `reference` None the policy's adapters switched off.
    `pretraining` is mixed into the policy's gradients. `sampling` is how responses are drawn, `mask` what they are held to.
    """

    def __init__(
        self,
        policy: Any,
        critic: Critic | None,
        reference: PreTrainedModel | None,
        config: PPO,
        sampling: SamplingParams,
        pretraining: PretrainingMix | None,
        seed: int,
        mask: TargetMask | None = None,
    ) -> None:
        self.mask = mask
        self.policy, self.critic, self.config, self.pretraining, self.seed = policy, critic, config, pretraining, seed
        self.device = home(policy)
        self.max_tokens, temperature = sampling.max_tokens, sampling.temperature
        if unwrap_peft(policy) is policy:
            policy.requires_grad_(True)
        prepare(policy, config.gradient_checkpointing)
        if reference is not None:
            prepare(freeze(reference, config.precision))
        half, precise = (
            (torch.bfloat16 if config.precision == "bfloat16" else None),
            torch.promote_types(unwrap_peft(policy).dtype, torch.float32),
        )
        network = PolicyNetwork(policy, temperature, config.compile, mask)
        self.policy_network = shard(network, PolicyNetwork.METHODS, precise, half)
        self.reference_network = None
        if reference is not None:
            network = PolicyNetwork(reference, temperature, config.compile)
            self.reference_network = shard(network, PolicyNetwork.METHODS, half or precise, half)
        common = (config.adam_epsilon, config.weight_decay, config.max_grad_norm, config.offload_optimizer)
        self.policy_optimiser = Optimizer(policy, config.learning_rate, *common)
        self.critic_network: Callable[[MicroBatch], tuple[Tensor, Tensor]] | None = None
        self.critic_optimiser: Optimizer | None = None
        if critic is not None:
            prepare(critic.learns(), config.gradient_checkpointing)
            shard(critic, (), precise, half, apart=[critic.head])
            self.critic_network = torch.compile(critic, dynamic=True) if config.compile else critic
            self.critic_optimiser = Optimizer(critic, config.critic_learning_rate, *common)
        self.average = None if config.ema is None else Average(policy, config.ema)
        self.controller = _controller(config)

    def move_target(self, step: int) -> None:
        """Copy the policy into the target of the mask, if there is one and it is time."""
        if self.mask is not None and self.config.nlpo is not None and step and step % self.config.nlpo.every == 0:
            with torch.no_grad():
                for target, source in zip(self.mask.model.parameters(), self.policy.parameters(), strict=True):
                    target.copy_(source)

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set and return the learning rates; the policy's schedule begins behind the critic's warm-up, at 0 before."""
        config, warming = self.config, self.config.critic_warmup
        schedule = (config.schedule, config.warmup, config.warmup_start)
        of_policy = 0.0 if step < warming else learning_rate_factor(step - warming, config.steps - warming, *schedule)
        rates = {"lr": self.policy_optimiser.set_factor(of_policy)}
        if self.critic_optimiser is not None:
            of_critic = learning_rate_factor(step, config.steps, *schedule)
            rates["critic_lr"] = self.critic_optimiser.set_factor(of_critic)
        return rates

    def learn(self, episodes: Episodes, experience: Experience, step: int) -> dict[str, float]:
        """Return all epochs over the episodes of a step; gives the update's metrics."""
        config, rows_of_metrics, steps = self.config, [], 0
        warming_up = step < config.critic_warmup
        for epoch in range(config.epochs):
            order = minibatches(
                len(episodes.prompts), config.minibatches, derived_seed(self.seed, "order", step, epoch)
            )
            for number, rows in enumerate(order):
                seed = derived_seed(self.seed, "pretraining", step, epoch, number)
                update = partial(self._update_policy, seed=seed, warming_up=warming_up)
                row = self.gradients(episodes, experience, rows, learn_policy=not warming_up, update=update)
                rows_of_metrics.append(row)
                if "policy/grad_norm" not in row:  # target_kl
                    if self.critic_optimiser is not None:
                        self.critic_optimiser.zero_grad()
                    return update_metrics(rows_of_metrics, steps)
                if self.critic_optimiser is not None:
                    row["critic/grad_norm"] = self.critic_optimiser.step()
                steps += 1
        return update_metrics(rows_of_metrics, steps)

    def _update_policy(self, row: dict[str, float], seed: int, warming_up: bool) -> None:
        """Apply the policy's gradients of a minibatch, with those of pretraining, and note their norm in the metrics.

        Drops them instead, and notes none, if the policy has moved further than `target_kl`.
        """
        if self.pretraining is not None and not warming_up:
            row["loss/pretraining"] = self.pretraining.add_gradients(self.policy_network, self.config, seed)
        if self.config.target_kl is not None and row["policy/approxkl"] > self.config.target_kl:
            self.policy_optimiser.zero_grad()
        else:
            row["policy/grad_norm"] = 0.0 if warming_up else self._step_policy()

    def _step_policy(self) -> float:
        """Apply the policy's gradients and follow it with its average; return the gradients' norm."""
        norm = self.policy_optimiser.step()
        if self.average is not None:
            self.average.update()
        return norm

    def check_weights(self) -> None:
        """Raise Diverged if policy or critic hold weights that no model computes with."""
        for optimiser in (self.policy_optimiser, self.critic_optimiser):
            if optimiser is not None:
                optimiser.check_weights()

    def take_average(self) -> None:
        """Give the policy its averaged weights, if they are kept: training is over."""
        if self.average is not None:
            self.average.apply()

    def gradients(
        self,
        episodes: Episodes,
        experience: Experience,
        rows: Sequence[int],
        learn_policy: bool = True,
        update: Callable[[dict[str, float]], None] | None = None,
    ) -> dict[str, float]:
        """Leave a minibatch's gradients in both networks; return the metrics of all processes' parts.

        Each token's loss counts by its share of the whole minibatch: the sum over micro-batches and processes is the
        same for every split. The policy's come first, and `update`, called with their metrics, may use them up before the
        critic's take memory.
        """
        config = self.config
        total = int(experience.mask[torch.as_tensor(rows, device=self.device)].sum())
        budget = config.micro_batch_tokens or default_batch_tokens(self.device)
        parts = list(micro_batches(rows, episodes.lengths, budget))
        sums = torch.zeros(len(SUMS_OF_POLICY), dtype=torch.float64, device=self.device)
        for part in parts:
            batch = episodes.batch(part, packs(self.policy))
            tokens = experience.tokens(batch.rows)
            with torch.set_grad_enabled(learn_policy), precision(config.precision, self.device):
                logprobs, entropies = self.policy_network(batch)
            log_ratios = pool_log_ratios(logprobs - tokens.old_logprobs, tokens.responses, config.ratio)
            policy = policy_loss(log_ratios, tokens.advantages, config.clip, config.dual_clip, config.clip_high)
            if learn_policy:
                shares = loss_shares(config.loss_average, tokens.lengths, total, len(rows), self.max_tokens)
                (self._objective(tokens, policy, logprobs, entropies) * shares.to(logprobs.dtype)).sum().backward()
            sums += policy_sums(tokens, logprobs, entropies, policy)
        all_reduce([sums])
        row = {name: float(value) for name, value in zip(SUMS_OF_POLICY[1:], sums[1:] / sums[0], strict=True)}
        if update is not None:
            update(row)
        if self.critic_network is not None:
            row |= self._critic_gradients(self.critic_network, episodes, experience, parts, total)
        return row

    def _critic_gradients(
        self,
        network: Callable[[MicroBatch], tuple[Tensor, Tensor]],
        episodes: Episodes,
        experience: Experience,
        parts: Sequence[Sequence[int]],
        total: int,
    ) -> dict[str, float]:
        """Leave the critic's gradients of a minibatch of `total` tokens; return the means of its metrics over them."""
        sums = torch.zeros(len(SUMS_OF_CRITIC), dtype=torch.float64, device=self.device)
        for part in parts:
            batch = episodes.batch(part, packs(self.policy))
            tokens = experience.tokens(batch.rows)
            with precision(self.config.precision, self.device):
                values, _ = network(batch)
            value = value_loss(values, tokens.old_values, tokens.returns, self.config.value_clip)
            (value.loss.sum() / total).backward()
            sums += total_of(value.loss, value.clipped)
        all_reduce([sums])
        return {name: float(value) for name, value in zip(SUMS_OF_CRITIC, sums / total, strict=True)}

    def _objective(self, tokens: Tokens, policy: PolicyLoss, logprobs: Tensor, entropies: Tensor) -> Tensor:
        """(N,) what each token's policy is to make small: the clipped loss, less entropy, more KL."""
        config, objective = self.config, tokens.weights * policy.loss
        if config.entropy_coefficient:
            objective = objective - config.entropy_coefficient * entropies
        if config.kl_in == "loss":
            kl = kl_estimate(logprobs, tokens.reference_logprobs, config.kl_estimator)
            objective = objective + self.controller.coefficient * kl
        return objective

    def tensors(self) -> dict[str, Any]:
        """Return the tensors that the next update depends on, no copies: weights that learn, moments of optimisers, averages."""
        tensors: dict[str, Any] = {
            "policy": {name: one.detach() for name, one in self.policy_optimiser.parameters.items()},
            "policy_optimiser": self.policy_optimiser.tensors(),
        }
        if self.critic is not None and self.critic_optimiser is not None:
            tensors |= {
                "critic": {name: one.detach() for name, one in self.critic_optimiser.parameters.items()},
                "critic_optimiser": self.critic_optimiser.tensors(),
            }
        if self.average is not None:
            tensors["average"] = self.average.tensors
        if self.mask is not None:
            tensors["target"] = {name: one.detach() for name, one in self.mask.model.named_parameters()}
        return tensors


def _controller(config: PPO) -> KLController:
    """Return the coefficient of the KL: fixed, or steered where the settings have a target."""
    adaptive = config.adaptive_kl
    if adaptive is None:
        return KLController(config.kl_coefficient)
    return KLController(config.kl_coefficient, adaptive.target, adaptive.horizon)
