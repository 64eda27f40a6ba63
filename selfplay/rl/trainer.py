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

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from selfplay import stopping
from selfplay.config import PPO, SAFE_TO_CHANGE, SamplingParams
from selfplay.distributed.collectives import all_gather, from_first, init_process_group, rank, world_size
from selfplay.distributed.sharding import home
from selfplay.engines import Engine
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.masking import TargetMask
from selfplay.errors import ConfigError
from selfplay.lora import unwrap_peft
from selfplay.models import encode_prompt, weights_digest
from selfplay.records import Prompt
from selfplay.rewards.sources import Reward, digest_of_critic, disagreement, identity
from selfplay.rl.advantages import RunningMoments
from selfplay.rl.checkpoint import resume, save_checkpoint, setting_at_checkpoint
from selfplay.rl.experience import build_experience
from selfplay.rl.learner import Learner
from selfplay.rl.metrics import append_rows, rollout_metrics, samples
from selfplay.rl.networks import Critic, check_head
from selfplay.rl.pretraining import PretrainingMix
from selfplay.rl.rollouts import build_episodes
from selfplay.rl.sampler import Sampler, collect
from selfplay.storage.files import derived_seed, hash_of
from selfplay.weights.precision import halve_frozen, preferred
from selfplay.weights.release import trim_heap


class PPOTrainer:
    """Trains `policy` in place (a causal language model, or a PEFT model around one) to get more of `reward`.

    `engine` samples, by default transformers with the policy's own weights. `critic` is a model with a scalar head
    that is copied, by default the policy's body with a new head, and of a PEFT policy it is frozen as it is, under
    adapters like the policy's; none is made where `config.advantage` needs none.
    `reference` is what the KL is measured against, by default a frozen copy of the policy as it comes (or, for a PEFT
    model, its adapters switched off). `corpus` is the text of `config.pretraining`. `directory` gets checkpoint-N,
    metrics.jsonl and samples.jsonl. `on_step` is called with the metrics of each step. `half_base` lets what a PEFT policy and
    its critic keep frozen lie in bfloat16 where products run in it: half the memory and the same products, but the caller must
    then add the trained adapters to weights of its own. Raises ConfigError for what cannot be trained.
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
        half_base: bool = False,
    ) -> None:
        _check(tokenizer, prompts, sampling, config, corpus, critic)
        init_process_group()
        from_first(lambda: check_head(policy))
        self.directory = None if directory is None else Path(directory)
        if config.precision == "auto":
            chosen = from_first(lambda: setting_at_checkpoint(self.directory, "precision") or preferred(policy))
            config = config.model_copy(update={"precision": chosen})
        self.policy, self.tokenizer, self.reward, self.prompts, self.config = policy, tokenizer, reward, prompts, config
        self.seed, self.on_step = seed, on_step
        self.device = home(policy)
        self.encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        if reference is None and unwrap_peft(policy) is policy:
            reference = deepcopy(policy)
        self.fingerprint = from_first(lambda: self._fingerprint(sampling, corpus, critic, reference))
        self.sampler = Sampler(engine, policy, tokenizer, prompts, config, sampling, seed)
        self.learner = Learner(
            policy,
            _critic(policy, critic, seed) if config.has_critic else None,
            reference,
            config,
            sampling,
            None
            if config.pretraining is None
            else PretrainingMix(tokenizer, corpus or (), config.pretraining, self.device),
            seed,
            _mask(policy, tokenizer, config, self.sampler),
        )
        if half_base and unwrap_peft(policy) is not policy:
            halve_frozen(unwrap_peft(policy), config.precision)
            if self.learner.critic is not None:
                halve_frozen(self.learner.critic, config.precision)
            if isinstance(self.sampler.engine, TransformersEngine):
                self.sampler.engine.products = config.precision
        self.moments = RunningMoments()
        self.steps_done, self.episodes_done = 0, 0

    def _fingerprint(
        self, sampling: SamplingParams, corpus: Sequence[str] | None, critic: Any, reference: Any
    ) -> dict[str, Any]:
        """Return what a checkpoint must agree on to be resumed: settings, reward, prompts, corpus and the weights at
        the start.
        """
        return {
            **self.config.model_dump(mode="json", exclude=set(SAFE_TO_CHANGE)),
            "seed": self.seed,
            "sampling": sampling.model_dump(mode="json"),
            "reward": identity(self.reward),
            "prompts": hash_of([prompt.model_dump(mode="json") for prompt in self.prompts]),
            "corpus": hash_of(corpus),
            "policy weights": weights_digest(self.policy),
            "reference weights": None if reference is None else weights_digest(reference),
            "critic weights": digest_of_critic(critic, self.reward),
        }

    def train(self) -> None:
        """Run the steps that are left, from the checkpoint in `directory` if there is one; see `selfplay.stopping`."""
        self._resume()
        try:
            while self.steps_done < self.config.steps:
                row = self._step(self.steps_done)
                self.steps_done += 1
                asked = any(all_gather(stopping.requested()))  # a signal need not reach all processes in the same step
                last = self.steps_done == self.config.steps
                if last:
                    self.learner.check_weights()
                due = last or self.steps_done % self.config.checkpoint_every == 0
                if self.directory is not None and (asked or due):
                    self._save()
                if self.on_step is not None and rank() == 0:
                    self.on_step(row)
                if asked and self.directory is not None:
                    raise stopping.stopped()
            self.learner.take_average()
        finally:
            self.sampler.close()

    def _step(self, step: int) -> dict[str, Any]:
        """Sample, score, estimate, learn; gives the metrics."""
        begun = perf_counter()
        set_seed(derived_seed(self.seed, "step", step, rank()) % 2**32)  # for a reward that draws random numbers
        self.learner.move_target(step)
        rates = self.learner.set_learning_rates(step)
        scored, sampling, replaced = collect(self.sampler, step, self.reward)
        pad = self.tokenizer.pad_token_id
        episodes, unscored = build_episodes(scored, self.prompts, self.encoded, self.reward, self.device, pad)
        collected, learner = perf_counter(), self.learner
        estimates = learner.estimate(episodes, as_sampled=step > 0 and self.sampler.samples_as_trained)
        coefficient = learner.controller.coefficient
        experience = build_experience(episodes, estimates, self.config, coefficient, self.moments, learner.max_tokens)
        trim_heap()  # the update's tensors are of other sizes
        estimated = perf_counter()
        learned = learner.learn(episodes, experience, step)
        metrics = rollout_metrics(episodes, estimates, experience, self.config, coefficient)
        if step >= self.config.critic_warmup:  # before, the policy is the one it began with, whatever beta is
            learner.controller.update(metrics["objective/kl"], len(episodes.prompts))
        ended = perf_counter()
        self.episodes_done += len(episodes.prompts)
        row = {
            "step": step + 1,
            "time": time(),
            "episode": self.episodes_done,
            "objective/unscored": unscored,
            **disagreement(self.reward),
            **metrics,
            **learned,
            **rates,
            **({"objective/kl_coefficient_next": learner.controller.coefficient} if self.config.adaptive_kl else {}),
            **({"group/resampled": replaced} if self.config.resample else {}),
            "time/rollout": sampling,
            "time/score": collected - begun - sampling,
            "time/estimate": estimated - collected,
            "time/update": ended - estimated,
            "time/step": ended - begun,
            "episodes_per_second": len(episodes.prompts) / (ended - begun),
        }
        if self.directory is not None and rank() == 0:
            texts = samples(episodes, estimates, step + 1, self.config.log_samples)
            append_rows(self.directory / "samples.jsonl", texts)
            append_rows(self.directory / "metrics.jsonl", [row])
        return row

    def _save(self) -> None:
        """Write the checkpoint, all processes together: all that the next step depends on."""
        state = {
            "fingerprint": self.fingerprint,
            "steps_done": self.steps_done,
            "episodes_done": self.episodes_done,
            "kl_coefficient": self.learner.controller.coefficient,
            "moments": vars(self.moments),
            "ahead": self.sampler.state(),
        }
        if self.directory is not None:
            save_checkpoint(self.directory, state, self.learner.tensors())

    def _resume(self) -> None:
        """Go back to the checkpoint, if there is one, and forget what was logged behind it."""
        if self.directory is None:
            return
        state = resume(self.directory, self.fingerprint, self.learner.tensors())
        if state is not None:
            self.learner.controller.coefficient = state["kl_coefficient"]
            self.moments = RunningMoments(**state["moments"])
            self.sampler.restore(state["ahead"])
            self.steps_done, self.episodes_done = state["steps_done"], state["episodes_done"]


def _critic(policy: Any, given: Any, seed: int) -> Critic:
    """Return a critic that begins as a given scalar model, or else as the policy with a new head."""
    if given is not None:
        return Critic.from_scalar_model(given, policy, derived_seed(seed, "critic"))
    return Critic.from_policy(policy, derived_seed(seed, "critic"))


def _mask(policy: Any, tokenizer: PreTrainedTokenizerBase, config: PPO, sampler: Sampler) -> TargetMask | None:
    """Return the mask of NLPO, in use by the engine from now on; None without `nlpo`."""
    if config.nlpo is None:
        return None
    if not isinstance(sampler.engine, TransformersEngine) or unwrap_peft(policy) is not policy or world_size() > 1:
        raise ConfigError(
            "nlpo masks what is sampled by a copy of the whole policy: use the transformers engine, no adapters and one process"
        )
    sampler.engine.mask = TargetMask.of(deepcopy(policy), tokenizer, config.nlpo.top_p)
    return sampler.engine.mask


def _check(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    config: PPO,
    corpus: Sequence[str] | None,
    critic: Any,
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
    if critic is not None and not config.has_critic:
        raise ConfigError(
            f"advantage {config.advantage} learns without a critic, and one was passed: leave `critic` out"
        )
    if config.pretraining is not None and not corpus:
        raise ConfigError("algorithm.pretraining needs text: pass `corpus`, or leave the section out")
