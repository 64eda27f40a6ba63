"""PPO on a language model, top to bottom: sample, score, estimate, learn, log, and start over.

    trainer = PPOTrainer(policy, tokenizer, reward, prompts, PPO(), SamplingParams(max_tokens=64), directory=Path("run"))
    trainer.train()
    trainer.policy.save_pretrained("trained")

Policy and critic are two networks with an optimiser each. Every random choice follows from (seed, step), so a run
that was killed takes the identical next step from its last checkpoint. Left out: saving models, which is the caller's.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from time import perf_counter, time
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from selfplay import stopping
from selfplay.config import PPO, SamplingParams
from selfplay.distributed.collectives import all_gather, all_reduce, broadcast, init_process_group, rank, world_size
from selfplay.engines import Engine
from selfplay.errors import ConfigError
from selfplay.lora import unwrap_peft
from selfplay.models import default_batch_tokens, encode_prompt, split_by_tokens, weights_digest
from selfplay.records import Prompt
from selfplay.rewards.sources import Reward, identity
from selfplay.rl.advantages import RunningMoments
from selfplay.rl.batching import derive_seed, minibatches, shard_by_tokens
from selfplay.rl.checkpoint import load_checkpoint, restore_logs, save_checkpoint
from selfplay.rl.experience import Experience, build_experience
from selfplay.rl.kl import KLController, kl_estimate
from selfplay.rl.losses import policy_loss, value_loss
from selfplay.rl.metrics import (
    SUMS,
    append_rows,
    rollout_metrics,
    samples,
    token_sums,
    update_metrics,
)
from selfplay.rl.networks import Critic, PolicyNetwork, check_head, packs, precision, prepare
from selfplay.rl.optimise import Optimizer, learning_rate_factor
from selfplay.rl.pretraining import PretrainingMix
from selfplay.rl.rollouts import Episodes, Sampler, estimate, score
from selfplay.storage.files import hash_of

SAFE_TO_CHANGE = {"checkpoint_every", "log_samples", "micro_batch_tokens", "compile", "gradient_checkpointing"}


class PPOTrainer:
    """Trains `policy` in place (a causal language model, or a PEFT model around one) to get more of `reward`.

    `engine` samples, by default transformers with the policy's own weights. `critic` is a model with a scalar head
    that is copied, by default the policy's body with a new head. `reference` is what the KL is measured against, by
    default a frozen copy of the policy as it comes (or, for a PEFT model, its adapters switched off). `corpus` is the
    text of `config.pretraining`. `directory` gets checkpoint.pt, metrics.jsonl and samples.jsonl. `on_step` is called
    with the metrics of each step. Raises ConfigError for what cannot be trained.
    """

    def __init__(
        self,
        policy: Any,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        prompts: Sequence[Prompt],
        config: PPO,
        sampling: SamplingParams,
        *,
        engine: Engine | None = None,
        critic: Any = None,
        reference: PreTrainedModel | None = None,
        corpus: Sequence[str] | None = None,
        directory: Path | None = None,
        seed: int = 0,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        _check(tokenizer, prompts, sampling, config, corpus)
        check_head(policy)
        init_process_group()
        broadcast(policy.parameters())  # new adapters may have been drawn differently
        self.policy, self.tokenizer, self.reward, self.prompts, self.config = policy, tokenizer, reward, prompts, config
        self.directory = None if directory is None else Path(directory)
        self.seed, self.on_step = seed, on_step
        self.device = unwrap_peft(policy).device
        self.encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        if reference is None and unwrap_peft(policy) is policy:
            reference = deepcopy(policy)
        if reference is not None:
            prepare(reference.requires_grad_(False))
        self.critic = (
            Critic.from_policy(policy, derive_seed(seed, "critic"))
            if critic is None
            else Critic.from_scalar_model(critic)
        )
        self.critic.requires_grad_(True)
        broadcast(self.critic.parameters())
        if unwrap_peft(policy) is policy:
            policy.requires_grad_(True)
        for network in (policy, self.critic):
            prepare(network, config.gradient_checkpointing)
        temperature = sampling.temperature
        self.policy_network = PolicyNetwork(policy, temperature, config.compile)
        self.reference_network = None if reference is None else PolicyNetwork(reference, temperature, config.compile)
        self.critic_network = torch.compile(self.critic, dynamic=True) if config.compile else self.critic
        common = (config.adam_epsilon, config.weight_decay, config.max_grad_norm)
        self.policy_optimiser = Optimizer(policy.parameters(), config.learning_rate, *common)
        self.critic_optimiser = Optimizer(self.critic.parameters(), config.critic_learning_rate, *common)
        self.pretraining = (
            None
            if config.pretraining is None
            else PretrainingMix(tokenizer, corpus or (), config.pretraining, self.device)
        )
        self.controller = _controller(config)
        self.moments = RunningMoments()
        self.sampler = Sampler(engine, policy, tokenizer, prompts, config, sampling, seed)
        self.fingerprint = self._fingerprint(sampling, corpus, None if critic is None else weights_digest(critic))
        self.steps_done, self.episodes_done = 0, 0

    def _fingerprint(
        self, sampling: SamplingParams, corpus: Sequence[str] | None, critic: str | None
    ) -> dict[str, Any]:
        """Return what a checkpoint must agree on to be resumed: settings, reward, prompts, corpus and the weights at
        the start.
        """
        reference = self.reference_network
        return {
            **self.config.model_dump(mode="json", exclude=SAFE_TO_CHANGE),
            "seed": self.seed,
            "sampling": sampling.model_dump(mode="json"),
            "reward": identity(self.reward),
            "prompts": hash_of([prompt.model_dump(mode="json") for prompt in self.prompts]),
            "corpus": hash_of(corpus),
            "policy weights": weights_digest(self.policy),
            "reference weights": None if reference is None else weights_digest(reference.model),
            "critic weights": critic,
        }

    def train(self) -> None:
        """Run the steps that are left, from the checkpoint in `directory` if there is one; see `selfplay.stopping`."""
        self._resume()
        try:
            while self.steps_done < self.config.steps:
                row = self._step(self.steps_done)
                self.steps_done += 1
                asked = any(all_gather(stopping.requested()))  # a signal need not reach all processes in the same step
                due = self.steps_done == self.config.steps or self.steps_done % self.config.checkpoint_every == 0
                if self.directory is not None and (asked or due):
                    self._save()
                if self.on_step is not None and rank() == 0:
                    self.on_step(row)
                if asked and self.directory is not None:
                    raise stopping.stopped()
        finally:
            self.sampler.close()

    def _step(self, step: int) -> dict[str, Any]:
        """Sample, score, estimate, learn; gives the metrics."""
        begun = perf_counter()
        set_seed(derive_seed(self.seed, "step", step, rank()) % 2**32)  # for a reward that draws random numbers
        rates = self._set_learning_rates(step)
        answers = self.sampler.answers(step)
        sampled = perf_counter()
        episodes, unscored = score(
            answers, self.prompts, self.encoded, self.reward, self.device, self.tokenizer.pad_token_id
        )
        scored = perf_counter()
        estimates = estimate(episodes, self.policy_network, self.reference_network, self.critic_network, self.config)
        coefficient = self.controller.coefficient
        experience = build_experience(episodes, estimates, self.config, coefficient, self.moments)
        estimated = perf_counter()
        learned = self._learn(episodes, experience, step)
        metrics = rollout_metrics(episodes, estimates, experience, self.config, coefficient)
        if step >= self.config.critic_warmup:  # before, the policy is the one it began with, whatever beta is
            self.controller.update(metrics["objective/kl"], len(episodes.prompts))
        ended = perf_counter()
        self.episodes_done += len(episodes.prompts)
        row = {
            "step": step + 1,
            "time": time(),
            "episode": self.episodes_done,
            "objective/unscored": unscored,
            **metrics,
            **learned,
            "lr": rates[0],
            "critic_lr": rates[1],
            "time/rollout": sampled - begun,
            "time/score": scored - sampled,
            "time/estimate": estimated - scored,
            "time/update": ended - estimated,
            "time/step": ended - begun,
            "episodes_per_second": len(episodes.prompts) / (ended - begun),
        }
        if self.directory is not None and rank() == 0:
            texts = samples(episodes, estimates, step + 1, self.config.log_samples)
            append_rows(self.directory / "samples.jsonl", texts)
            append_rows(self.directory / "metrics.jsonl", [row])
        return row

    def _set_learning_rates(self, step: int) -> tuple[float, float]:
        """Set and give both learning rates; the policy's schedule begins behind the critic's warm-up, at 0 before."""
        config, warming = self.config, self.config.critic_warmup
        of_critic = learning_rate_factor(step, config.steps, config.schedule, config.warmup)
        of_policy = (
            0.0
            if step < warming
            else learning_rate_factor(step - warming, config.steps - warming, config.schedule, config.warmup)
        )
        return self.policy_optimiser.set_factor(of_policy), self.critic_optimiser.set_factor(of_critic)

    def _learn(self, episodes: Episodes, experience: Experience, step: int) -> dict[str, float]:
        """Return all epochs over the episodes of a step; gives the update's metrics."""
        config, rows_of_metrics, steps = self.config, [], 0
        warming_up = step < config.critic_warmup
        for epoch in range(config.epochs):
            order = minibatches(len(episodes.prompts), config.minibatches, derive_seed(self.seed, "order", step, epoch))
            for number, rows in enumerate(order):
                row = self._gradients(episodes, experience, rows, learn_policy=not warming_up)
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

    def _gradients(
        self, episodes: Episodes, experience: Experience, rows: Sequence[int], learn_policy: bool = True
    ) -> dict[str, float]:
        """Leave in both networks this process's part of a minibatch's gradients; gives the metrics of all parts.

        Each token's loss is divided by the tokens of the whole minibatch: the sum over micro-batches and processes is
        the same for every split.
        """
        config = self.config
        total = experience.mask[torch.as_tensor(rows, device=self.device)].sum()
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        budget = config.micro_batch_tokens or default_batch_tokens(self.device)
        for part in split_by_tokens(
            shard_by_tokens(rows, episodes.lengths, world_size())[rank()], episodes.lengths, budget
        ):
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

    def _state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        trained = {name: tensor for name, tensor in self.policy.named_parameters() if tensor.requires_grad}
        return {
            "fingerprint": self.fingerprint,
            "steps_done": self.steps_done,
            "episodes_done": self.episodes_done,
            "policy": trained,
            "critic": self.critic.state_dict(),
            "policy_optimiser": self.policy_optimiser.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
            "kl_coefficient": self.controller.coefficient,
            "moments": vars(self.moments),
            "ahead": self.sampler.state(),
        }

    def _save(self) -> None:
        """Write the checkpoint; the first process does, and all agree on what was sampled ahead."""
        state = self._state()
        if self.directory is not None and rank() == 0:
            save_checkpoint(self.directory, state)

    def _resume(self) -> None:
        """Go back to the checkpoint, if there is one, and forget what was logged behind it."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        state = load_checkpoint(self.directory, self.fingerprint)
        if state is not None:
            with torch.no_grad():
                trained = dict(self.policy.named_parameters())
                for name, tensor in state["policy"].items():
                    trained[name].copy_(tensor)
            self.critic.load_state_dict(state["critic"])
            self.policy_optimiser.load_state_dict(state["policy_optimiser"])
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])
            self.controller.coefficient = state["kl_coefficient"]
            self.moments = RunningMoments(**state["moments"])
            self.sampler.restore(state["ahead"])
            self.steps_done, self.episodes_done = state["steps_done"], state["episodes_done"]
        if len(set(all_gather(self.steps_done))) > 1:
            raise ConfigError(
                f"the processes found different checkpoints in {self.directory}: put it on a disk that all "
                "of them share"
            )
        if rank() == 0:
            restore_logs(self.directory, self.steps_done)


def _controller(config: PPO) -> KLController:
    """Return the coefficient of the KL: fixed, or steered where the settings have a target."""
    adaptive = config.adaptive_kl
    if adaptive is None:
        return KLController(config.kl_coefficient)
    return KLController(config.kl_coefficient, adaptive.target, adaptive.horizon)


def _check(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    config: PPO,
    corpus: Sequence[str] | None,
) -> None:
    """Raise ConfigError for inputs that PPO cannot learn from."""
    if not prompts:
        raise ConfigError("PPO needs at least one prompt, and got none")
    if sampling.temperature == 0 or sampling.top_p < 1 or sampling.top_k > 0:
        raise ConfigError(
            f"PPO samples from the whole distribution, but temperature is {sampling.temperature}, top_p "
            f"{sampling.top_p}, top_k {sampling.top_k}: use a temperature above 0, top_p 1, top_k 0"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            "the tokenizer pads with its end token, so the end of a response cannot be told from "
            "padding: load it with selfplay.models.load_tokenizer, or set another pad_token"
        )
    if config.pretraining is not None and not corpus:
        raise ConfigError("algorithm.pretraining needs text: pass `corpus`, or leave the section out")
