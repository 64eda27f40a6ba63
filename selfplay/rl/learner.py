"""The networks that PPO trains, with their optimisers: gradients of a minibatch, the updates of a step, their checkpoint.

Left out: where episodes come from, and what their advantages are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from selfplay.config import PPO
from selfplay.distributed.collectives import all_reduce
from selfplay.distributed.sharding import home, shard
from selfplay.lora import unwrap_peft
from selfplay.models import default_batch_tokens
from selfplay.rl.batching import derive_seed, micro_batches, minibatches
from selfplay.rl.experience import Experience
from selfplay.rl.kl import KLController, kl_estimate
from selfplay.rl.losses import policy_loss, value_loss
from selfplay.rl.metrics import SUMS, token_sums, update_metrics
from selfplay.rl.networks import Critic, PolicyNetwork, packs, precision, prepare
from selfplay.rl.optimise import Optimizer, learning_rate_factor
from selfplay.rl.pretraining import PretrainingMix
from selfplay.rl.rollouts import Episodes


class Learner:
    """Policy, critic and reference, and how the first two learn from the experience of a step.

    `reference` None means the policy's adapters switched off. `pretraining` is mixed into the policy's gradients.
    """

    def __init__(
        self,
        policy: Any,
        critic: Critic,
        reference: PreTrainedModel | None,
        config: PPO,
        temperature: float,
        pretraining: PretrainingMix | None,
        seed: int,
    ) -> None:
        self.policy, self.critic, self.config, self.pretraining, self.seed = policy, critic, config, pretraining, seed
        self.device = home(policy)
        critic.requires_grad_(True)
        if unwrap_peft(policy) is policy:
            policy.requires_grad_(True)
        for network in (policy, critic):
            prepare(network, config.gradient_checkpointing)
        if reference is not None:
            prepare(reference.requires_grad_(False))
        half, precise = (
            (torch.bfloat16 if config.precision == "bfloat16" else None),
            torch.promote_types(unwrap_peft(policy).dtype, torch.float32),
        )
        network = PolicyNetwork(policy, temperature, config.compile)
        self.policy_network = shard(network, PolicyNetwork.METHODS, precise, half)
        self.reference_network = None
        if reference is not None:
            network = PolicyNetwork(reference, temperature, config.compile)
            self.reference_network = shard(network, PolicyNetwork.METHODS, half or precise, half)
        shard(critic, (), precise, half, apart=[critic.head])
        self.critic_network = torch.compile(critic, dynamic=True) if config.compile else critic
        common = (config.adam_epsilon, config.weight_decay, config.max_grad_norm)
        self.policy_optimiser = Optimizer(policy, config.learning_rate, *common)
        self.critic_optimiser = Optimizer(critic, config.critic_learning_rate, *common)
        self.controller = _controller(config)

    def set_learning_rates(self, step: int) -> tuple[float, float]:
        """Set and give both learning rates; the policy's schedule begins behind the critic's warm-up, at 0 before."""
        config, warming = self.config, self.config.critic_warmup
        of_critic = learning_rate_factor(step, config.steps, config.schedule, config.warmup)
        of_policy = (
            0.0
            if step < warming
            else learning_rate_factor(step - warming, config.steps - warming, config.schedule, config.warmup)
        )
        return self.policy_optimiser.set_factor(of_policy), self.critic_optimiser.set_factor(of_critic)

    def learn(self, episodes: Episodes, experience: Experience, step: int) -> dict[str, float]:
        """Return all epochs over the episodes of a step; gives the update's metrics."""
        config, rows_of_metrics, steps = self.config, [], 0
        warming_up = step < config.critic_warmup
        for epoch in range(config.epochs):
            order = minibatches(len(episodes.prompts), config.minibatches, derive_seed(self.seed, "order", step, epoch))
            for number, rows in enumerate(order):
                row = self.gradients(episodes, experience, rows, learn_policy=not warming_up)
                if self.pretraining is not None and not warming_up:
                    seed = derive_seed(self.seed, "pretraining", step, epoch, number)
                    row["loss/pretraining"] = self.pretraining.add_gradients(self.policy_network, config, seed)
                rows_of_metrics.append(row)
                if config.target_kl is not None and row["policy/approxkl"] > config.target_kl:
                    self.policy_optimiser.zero_grad()
                    self.critic_optimiser.zero_grad()
                    return update_metrics(rows_of_metrics, steps)
                row["critic/grad_norm"] = self.critic_optimiser.step()
                row["policy/grad_norm"] = 0.0 if warming_up else self.policy_optimiser.step()
                steps += 1
        return update_metrics(rows_of_metrics, steps)

    def gradients(
        self, episodes: Episodes, experience: Experience, rows: Sequence[int], learn_policy: bool = True
    ) -> dict[str, float]:
        """Leave a minibatch's gradients in both networks; return the metrics of all processes' parts.

        Each token's loss is divided by the tokens of the whole minibatch: the sum over micro-batches and processes is
        the same for every split.
        """
        config = self.config
        total = experience.mask[torch.as_tensor(rows, device=self.device)].sum()
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        budget = config.micro_batch_tokens or default_batch_tokens(self.device)
        for part in micro_batches(rows, episodes.lengths, budget):
            batch = episodes.batch(part, packs(self.policy))
            tokens = experience.tokens(batch.rows)
            with torch.set_grad_enabled(learn_policy), precision(config.precision, self.device):
                logprobs, entropies = self.policy_network(batch)
            policy = policy_loss(logprobs, tokens.old_logprobs, tokens.advantages, config.clip, config.dual_clip)
            objective = tokens.weights * policy.loss
            if config.entropy_coefficient:
                objective = objective - config.entropy_coefficient * entropies
            if config.kl_in == "loss":
                kl = kl_estimate(logprobs, tokens.reference_logprobs, config.kl_estimator)
                objective = objective + self.controller.coefficient * kl
            if learn_policy:
                (objective.sum() / total).backward()
            with precision(config.precision, self.device):
                values, _ = self.critic_network(batch)
            value = value_loss(values, tokens.old_values, tokens.returns, config.value_clip)
            (value.loss.sum() / total).backward()
            sums += token_sums(tokens, logprobs, entropies, policy, value)
        all_reduce([sums])
        return {name: float(value) for name, value in zip(SUMS[1:], sums[1:] / sums[0], strict=True)}

    def tensors(self) -> dict[str, Any]:
        """Return the tensors that the next update depends on, no copies: weights that learn, moments of both optimisers."""
        return {
            "policy": {name: one.detach() for name, one in self.policy_optimiser.parameters.items()},
            "critic": self.critic.state_dict(),
            "policy_optimiser": self.policy_optimiser.tensors(),
            "critic_optimiser": self.critic_optimiser.tensors(),
        }


def _controller(config: PPO) -> KLController:
    """Return the coefficient of the KL: fixed, or steered where the settings have a target."""
    adaptive = config.adaptive_kl
    if adaptive is None:
        return KLController(config.kl_coefficient)
    return KLController(config.kl_coefficient, adaptive.target, adaptive.horizon)
