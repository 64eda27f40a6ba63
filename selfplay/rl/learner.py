"""The networks that PPO trains, with their optimisers: gradients of a minibatch, the updates of a step, their checkpoint.

Left out: where episodes come from, and what their advantages are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfplay.config import PPO, SamplingParams
from selfplay.distributed.collectives import all_reduce, world_size
from selfplay.distributed.sharding import home, shard
from selfplay.engines.masking import TargetMask
from selfplay.lora import unwrap_peft
from selfplay.models import training_batch_tokens
from selfplay.rl.batching import MicroBatch, micro_batches, minibatches
from selfplay.rl.experience import Experience, Tokens
from selfplay.rl.kl import KLController, kl_estimate
from selfplay.rl.losses import PolicyLoss, loss_shares, policy_loss, pool_log_ratios, value_loss
from selfplay.rl.metrics import SUMS_OF_CRITIC, SUMS_OF_POLICY, policy_sums, read_numbers, total_of, update_metrics
from selfplay.rl.networks import Critic, PolicyNetwork, compiled_blocks, packs, precision, prepare
from selfplay.rl.optimise import Average, Optimizer, check_norm, learning_rate_factor
from selfplay.rl.pretraining import PretrainingMix
from selfplay.rl.rollouts import Episodes, Estimates, estimate
from selfplay.storage.files import derived_seed
from selfplay.weights.half import HalfWeights, prefers_half_weights, to_half
from selfplay.weights.precision import freeze

Row = dict[str, Tensor | float]
"""Metrics of a minibatch, still on the GPU where there is one: reading a number waits for all that came before it."""


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
        self.policy, self.critic, self.pretraining, self.seed = policy, critic, pretraining, seed
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
        alone = world_size() == 1 and mask is None  # above one process FSDP2 gathers weights in bfloat16
        self.computes_in_half = half is not None and alone and prefers_half_weights(self.device)
        if self.computes_in_half:  # nothing is left for autocast to do
            config = config.model_copy(update={"precision": "float32"})
            if reference is not None:
                to_half(reference)
        self.config = config
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
            self.critic_network = shard(critic, (), precise, half, apart=[critic.head])
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

    @cached_property
    def _half_weights(self) -> tuple[HalfWeights | None, HalfWeights | None]:
        """The bfloat16 weights that policy and critic compute with; None for what is not there, or computes with its own."""
        if not self.computes_in_half:
            return None, None
        return HalfWeights(self.policy), None if self.critic is None else HalfWeights(self.critic, [self.critic.head])

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let the networks compute as the settings say: with bfloat16 weights, with compiled blocks."""
        networks = [one for one in (self.policy_network, self.reference_network, self.critic) if one is not None]
        with ExitStack() as stack:
            for half in self._half_weights:
                if half is not None:
                    stack.enter_context(half.in_use())
            if self.config.compile:
                stack.enter_context(compiled_blocks(networks))
            yield

    def estimate(self, episodes: Episodes, as_sampled: bool = False) -> Estimates:
        """Return one pass of all networks over the episodes; see `selfplay.rl.rollouts.estimate`."""
        networks = self.policy_network, self.reference_network, self.critic_network
        with self.computing():
            return estimate(episodes, *networks, self.config, as_sampled)

    def learn(self, episodes: Episodes, experience: Experience, step: int) -> dict[str, float]:
        """Go through all epochs over the episodes of a step; return the update's metrics."""
        with self.computing():
            return self._learn(episodes, experience, step)

    def _learn(self, episodes: Episodes, experience: Experience, step: int) -> dict[str, float]:
        config, steps = self.config, 0
        rows_of_metrics: list[Row] = []
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
                    return _metrics(rows_of_metrics, steps)
                if self.critic_optimiser is not None:
                    row["critic/grad_norm"] = _step(self.critic_optimiser, self._half_weights[1])
                steps += 1
        return _metrics(rows_of_metrics, steps)

    def _update_policy(self, row: Row, seed: int, warming_up: bool) -> None:
        """Apply the policy's gradients of a minibatch, with those of pretraining, and note their norm in the metrics.

        Drops them instead, and notes none, if the policy has moved further than `target_kl`.
        """
        if self.pretraining is not None and not warming_up:
            row["loss/pretraining"] = self.pretraining.add_gradients(self.policy_network, self.config, seed)
        if self.config.target_kl is not None and float(row["policy/approxkl"]) > self.config.target_kl:
            self.policy_optimiser.zero_grad()
        else:
            row["policy/grad_norm"] = 0.0 if warming_up else self._step_policy()

    def _step_policy(self) -> Tensor:
        """Apply the policy's gradients and follow it with its average; return the gradients' norm."""
        norm = _step(self.policy_optimiser, self._half_weights[0])
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
        update: Callable[[Row], None] | None = None,
    ) -> Row:
        """Leave a minibatch's gradients in both networks; return the metrics of all processes' parts.

        Each token's loss counts by its share of the whole minibatch: the sum over micro-batches and processes is the
        same for every split. The policy's come first, and `update`, called with their metrics, may use them up before the
        critic's take memory.
        """
        config = self.config
        total = episodes.response_tokens(rows)
        budget = config.micro_batch_tokens or training_batch_tokens(self.policy, self.device)
        parts = micro_batches(rows, episodes.lengths, budget)
        batches = [episodes.batch(part, packs(self.policy)) for part in parts]
        sums = torch.zeros(len(SUMS_OF_POLICY), dtype=torch.float64, device=self.device)
        for batch in batches:
            tokens = experience.tokens(batch.places)
            with torch.set_grad_enabled(learn_policy), precision(config.precision, self.device):
                logprobs, entropies = self.policy_network(batch)
            log_ratios = pool_log_ratios(logprobs - tokens.old_logprobs, tokens.responses, config.ratio)
            policy = policy_loss(log_ratios, tokens.advantages, config.clip, config.dual_clip, config.clip_high)
            if learn_policy:
                shares = loss_shares(config.loss_average, tokens.lengths, total, len(rows), self.max_tokens)
                (self._objective(tokens, policy, logprobs, entropies) * shares.to(logprobs.dtype)).sum().backward()
            sums += policy_sums(tokens, logprobs, entropies, policy)
        all_reduce([sums])
        row: Row = dict(zip(SUMS_OF_POLICY[1:], sums[1:] / sums[0], strict=True))
        if update is not None:
            update(row)
        if self.critic_network is not None:
            row |= self._critic_gradients(self.critic_network, experience, batches, total)
        return row

    def _critic_gradients(
        self,
        network: Callable[[MicroBatch], tuple[Tensor, Tensor]],
        experience: Experience,
        batches: Sequence[MicroBatch],
        total: int,
    ) -> Row:
        """Leave the critic's gradients of a minibatch of `total` tokens; return the means of its metrics over them."""
        sums = torch.zeros(len(SUMS_OF_CRITIC), dtype=torch.float64, device=self.device)
        for batch in batches:
            tokens = experience.tokens(batch.places)
            with precision(self.config.precision, self.device):
                values, _ = network(batch)
            value = value_loss(values, tokens.old_values, tokens.returns, self.config.value_clip)
            (value.loss.sum() / total).backward()
            sums += total_of(value.loss, value.clipped)
        all_reduce([sums])
        return dict(zip(SUMS_OF_CRITIC, sums / total, strict=True))

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


def _metrics(rows: Sequence[Row], steps: int) -> dict[str, float]:
    """Return the metrics of a step's minibatches. Raises Diverged for a gradient that was not finite."""
    read = read_numbers(rows)
    for row in read:
        for name in ("policy/grad_norm", "critic/grad_norm"):
            check_norm(row.get(name, 0.0))
    return update_metrics(read, steps)


def _step(optimiser: Optimizer, half: HalfWeights | None) -> Tensor:
    """Take an optimiser's step and let what its network computes with follow; return the gradients' norm."""
    norm = optimiser.step()
    if half is not None:
        half.refresh()
    return norm


def _controller(config: PPO) -> KLController:
    """Return the coefficient of the KL: fixed, or steered where the settings have a target."""
    adaptive = config.adaptive_kl
    if adaptive is None:
        return KLController(config.kl_coefficient)
    return KLController(config.kl_coefficient, adaptive.target, adaptive.horizon)
