"""The settings of PPO and of what can be mixed into it."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selfplay.config.base import AlgorithmSection, Count, NonNegative, Positive, Schedule, Section, Unit

COMPARING = ("rloo", "grpo")
"""Advantages that are made from the scores of several completions of a prompt."""
OF_THE_CRITIC = ("critic_learning_rate", "value_clip", "truncated_value", "critic_warmup")
"""Settings that do nothing without a critic."""


class AdaptiveKL(Section):
    """Steers beta so that the KL meets a target (Ziegler et al. 2019): per step, beta *= 1 + error n / horizon.

    With `reference: start`, an iteration begins with the beta that the iteration before ended with.
    """

    target: Positive = 6.0
    """Wanted KL to the reference, in nats per response; the error is KL / target - 1, clipped to +-0.2."""
    horizon: Positive = 10000.0
    """Episodes over which beta may grow e^0.2-fold."""


class Pretraining(Section):
    """PPO-ptx (InstructGPT, Ouyang et al. 2022): plain language modelling mixed into every optimiser step."""

    source: str = "stories"
    """`stories` (built in), a text file, a folder of .txt files, or a dataset with a `text` column."""
    coefficient: Positive = 27.8
    """Gamma, weight of the mean loss per token of the pretraining batch."""
    batch_size: Count = 16
    """Sequences per optimiser step."""
    per_episode: Positive | None = None
    """Sequences per episode of the minibatch, instead of `batch_size` (InstructGPT: 8)."""
    length: Annotated[int, Field(ge=2)] = 128
    """Tokens per sequence; longer documents are cut."""

    @model_validator(mode="after")
    def _check(self) -> "Pretraining":
        if self.per_episode is not None and self.batch_size != type(self).model_fields["batch_size"].default:
            raise ValueError("batch_size and per_episode both say how many sequences an optimiser step has: keep one")
        return self


class NLPO(Section):
    """Natural language policy optimisation (Ramamurthy et al. 2022, RL4LMs): PPO over what a target policy finds likely.

    The mask holds in sampling and in the ratio of the loss; the KL to the reference is between whole distributions.
    """

    top_p: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the target policy's probability whose tokens are allowed, beside special tokens."""
    every: Count = 100
    """Steps between two copies of the policy into the target (RL4LMs: 100 on a toy task, 5 on IMDB)."""


class PPO(AlgorithmSection):
    """Proximal policy optimisation (Schulman et al. 2017) as used on language models since Ziegler et al. 2019."""

    kind: Literal["ppo"] = "ppo"
    """Which algorithm trains the policy: `ppo`, or `python` for a class of your own."""
    steps: Count = 20
    """Optimisation steps: each one samples `episodes` and learns from them."""
    episodes: Count = 256
    """Completions sampled per step, `group` for each prompt."""
    advantage: Literal["gae", "reinforce", "rloo", "grpo", "reinforce++"] = "gae"
    """What a token's return is compared with. `gae`: a critic (Schulman et al. 2016). The others have no critic, and the
    return is what is left of the response's reward. `reinforce`: nothing (Williams 1992). `rloo`: the mean score of the other
    completions of the prompt (Kool et al. 2019; Ahmadian et al. 2024). `grpo`: the mean of all of them, divided by their
    deviation (Shao et al. 2024). `reinforce++`: nothing, or with a `group` above 1 the mean of the prompt's completions, then
    whitened over the step (Hu et al. 2025)."""
    group: Count | None = None
    """Completions sampled for each prompt, a divisor of `episodes`. Default 8 for `rloo` and `grpo`, 1 for the others."""
    divide_by_deviation: bool = True
    """`grpo`: divide by the deviation of the prompt's scores; false is Dr. GRPO (Liu et al. 2025)."""
    resample: Annotated[int, Field(ge=0)] = 0
    """Rounds in which groups whose scores are all equal, from which nothing can be learned, make room for groups of fresh
    prompts (DAPO's dynamic sampling, Yu et al. 2025); what is without signal behind the last is kept."""
    epochs: Count = 2
    """Passes over the episodes of a step, each in a fresh order."""
    minibatches: Count = 4
    """Optimiser steps per pass."""
    micro_batch_tokens: Count | None = None
    """Most tokens, padding included, in one forward pass; changes speed and memory, never the gradients. Default 2,048
    on a CPU (what its caches hold; 512 where a model of 20M parameters or more learns) and 32,768 on a GPU."""
    learning_rate: Positive = 3e-4
    """The policy's peak learning rate."""
    critic_learning_rate: Positive = 1e-3
    """The critic's peak learning rate."""
    schedule: Schedule = "linear"
    """How both learning rates fall over the steps: linear and cosine end near 0 (linear: N+ details 2024)."""
    warmup: Unit = 0.0
    """Share of the steps over which both learning rates rise to their peaks."""
    warmup_start: Unit | None = None
    """Share of the peak with which that rise begins (InstructGPT: 0.1 over 10 steps); default 1 / (its steps + 1)."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average of the policy's weights, from the start on, moved behind every optimiser step; it is what the
    training hands over, while the policy itself samples (InstructGPT: 0.992)."""
    adam_epsilon: Positive = 1e-5
    """Adam's epsilon (Baselines' PPO, N+ details: 1e-5 rather than 1e-8)."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay, for both networks."""
    max_grad_norm: Positive = 1.0
    """Longest gradient, for the policy and for the critic by itself."""
    ratio: Literal["token", "sequence", "product"] = "token"
    """What is clipped, of new / old probability: each token's ratio (PPO, GRPO); the geometric mean over the response
    (GSPO, Zheng et al. 2025; `clip` is then some 1e-3); or that of the whole response, as one action (RLOO: Ahmadian et al.
    2024, TRL)."""
    clip: Positive = 0.2
    """Clipping range of the ratio (Schulman 2017)."""
    clip_high: Positive | None = None
    """Clipping range above 1, where it is not `clip` too (DAPO's clip-higher, Yu et al. 2025: 0.28)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on -ratio * advantage, in multiples of -advantage, where the advantage is negative (Ye et al. 2020; 3)."""
    loss_average: Literal["token", "sequence", "constant"] = "token"
    """How the policy's loss of a minibatch is averaged: over its tokens (PPO; DAPO), over the tokens of each response and
    then over responses (GRPO), or as a sum over tokens divided by responses x `sampling.max_tokens` (Dr. GRPO)."""
    value_clip: Positive | None = 0.2
    """Clipping range of the value around its old estimate (Ziegler 2019); null for none."""
    discount: Unit = 1.0
    """Gamma."""
    gae_lambda: Unit = 0.95
    """Lambda of generalised advantage estimation (Schulman 2016)."""
    truncated_value: Literal["zero", "bootstrap"] = "zero"
    """Value after a response that was cut off: 0 (TRL, verl), or the critic's estimate there (AReaL)."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and variance 1 over all tokens of the step (N+ details; over all ranks: OpenRLHF). Default true
    for `gae` and `reinforce++`, false for the others."""
    whiten_rewards: bool = False
    """Per-token rewards to variance 1, mean kept, before the advantages (N+ details found it harmful)."""
    entropy_coefficient: NonNegative = 0.0
    """Weight of the entropy bonus (Schulman 2017), in units of reward per nat."""
    target_kl: Positive | None = None
    """Leave the rest of a step's minibatches out once the KL to the step's start passes this (Spinning Up, TRL)."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which only the critic learns (verl); the policy's schedule and beta's steering begin after."""
    kl_coefficient: NonNegative = 0.05
    """Beta, weight of the KL to the reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of d = log p - log p_reference: d, d^2 / 2, or exp(-d) - 1 + d (Schulman 2020, "Approximating KL divergence")."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL enters: in each token's reward (Ziegler 2019), or as a loss (k2 or k3; GRPO, OpenRLHF)."""
    adaptive_kl: AdaptiveKL | None = None
    """Steer beta instead of keeping it fixed."""
    reference: Literal["start", "previous"] = "previous"
    """What the KL is measured against: iteration 0, or the policy this iteration began with."""
    missing_eos: Literal["subtract", "replace"] = "subtract"
    """A response cut off at max_tokens: penalty subtracted from its score (TRL), or score = -penalty (N+ details)."""
    missing_eos_penalty: NonNegative = 1.0
    """Penalty of a response that was cut off at max_tokens; with "subtract", 0 is none."""
    overlong_buffer: Count | None = None
    """Tokens before max_tokens over which that penalty sets in, linearly in the length, whether the response ends or not
    (DAPO's soft overlong punishment, Yu et al. 2025: a fifth of max_tokens)."""
    normalise_scores: Literal["none", "scale", "standardise"] = "none"
    """Divide scores by their running standard deviation (trlX), or also subtract their running mean."""
    score_clip: Positive | None = None
    """Bound on |score|, after normalisation and before the penalty (trlX `cliprange_reward`)."""
    importance_cap: Positive | None = 2.0
    """C in min(exp(log p_old - log p_engine), C), the weight that corrects for an engine whose probabilities differ
    from the trainer's (truncated importance sampling: Yao et al. 2025, verl, OpenRLHF); null for no correction."""
    importance_mask: Annotated[float, Field(gt=1)] | None = None
    """Leave out tokens whose p_old / p_engine lies outside [1 / this, this] (IcePop, 2025)."""
    async_rollouts: bool = False
    """Sample a step's episodes during the update before, with weights one step older (Noukhovitch et al. 2024)."""
    nlpo: NLPO | None = None
    """Sample and learn among the tokens that an older policy finds likely. The checkpoint needs its mask, which lies beside it,
    so the transformers engine alone samples it."""
    pretraining: Pretraining | None = None
    """Mix a language-modelling loss into the policy's (PPO-ptx)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products in training, and in one process on a CPU in sampling; weights, log-probs and losses stay float32.
    `auto` measures once which is faster on this machine, for a model of 20M parameters or more, and keeps to it when the run is
    resumed on another."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    offload_optimizer: bool = False
    """Keep Adam's moments, 8 bytes for each number that learns, in the machine's memory; they come to the GPU for each optimiser
    step, half a gigabyte or a tensor at a time. The same numbers; changes nothing without a GPU."""
    compile: bool = False
    """torch.compile the blocks of policy, reference and critic, and what follows the output embedding: half a minute once, less
    time and memory in each step on a GPU."""
    checkpoint_every: Count = 5
    """Steps between checkpoints inside PPO; a killed run repeats at most so many, identically."""
    log_samples: Annotated[int, Field(ge=0)] = 4
    """Episodes per step written to samples.jsonl with their scores."""

    @property
    def has_critic(self) -> bool:
        """Return whether a value network is trained."""
        return self.advantage == "gae"

    @property
    def group_size(self) -> int:
        """Return how many completions a prompt gets."""
        return self.group or (8 if self.advantage in COMPARING else 1)

    @model_validator(mode="before")
    @classmethod
    def _whiten_where_it_is_usual(cls, value: Any) -> Any:
        """Fill in the default of `whiten_advantages`, which follows from `advantage`."""
        if isinstance(value, dict) and value.get("whiten_advantages") is None:
            return {**value, "whiten_advantages": value.get("advantage", "gae") in ("gae", "reinforce++")}
        return value

    @property
    def pretraining_batch(self) -> int:
        """Return how many sequences of the corpus an optimiser step has; 0 without `pretraining`."""
        if self.pretraining is None or self.pretraining.per_episode is None:
            return self.pretraining.batch_size if self.pretraining else 0
        return max(1, round(self.pretraining.per_episode * self.episodes / self.minibatches))

    @property
    def steps_per_iteration(self) -> int:
        """Return the steps."""
        return self.steps

    @property
    def updates_per_epoch(self) -> int:
        """Return the minibatches."""
        return self.minibatches

    @property
    def episodes_per_step(self) -> int:
        """Return the episodes."""
        return self.episodes

    @property
    def prompts_per_step(self) -> int:
        """Return the episodes over the completions of a prompt."""
        return self.episodes // self.group_size

    @property
    def summary(self) -> str:
        """Return the advantage where it is not PPO's own, steps, episodes and the coefficient of the KL."""
        name = "PPO" if self.advantage == "gae" else f"PPO with advantage {self.advantage}, group {self.group_size}"
        return (
            f"{name}: {self.steps} steps of {self.episodes} episodes per iteration, KL coefficient "
            f"{self.kl_coefficient:g}"
        )

    @model_validator(mode="after")
    def _check_nlpo(self) -> "PPO":
        if self.nlpo is not None and self.async_rollouts:
            raise ValueError("nlpo moves its mask between steps, while async_rollouts samples ahead: use one of them")
        if self.nlpo is not None and self.kl_in == "loss":
            raise ValueError(
                "nlpo has its KL between whole distributions, outside the masked loss: set kl_in to reward"
            )
        return self

    @model_validator(mode="after")
    def _check_advantage(self) -> "PPO":
        idle = [] if self.has_critic else self._given(OF_THE_CRITIC)
        if idle:
            raise ValueError(
                f"advantage {self.advantage} learns without a critic, so {' and '.join(idle)} would do nothing: leave "
                "out what is the critic's, or set advantage to gae"
            )
        if self.advantage != "grpo" and not self.divide_by_deviation:
            raise ValueError(
                f"divide_by_deviation belongs to advantage grpo, and advantage is {self.advantage}: leave it out"
            )
        if self.advantage in COMPARING and self.group_size < 2:
            raise ValueError(
                f"advantage {self.advantage} compares the completions of a prompt, and group is 1: make it at least 2, "
                "better 4 to 16"
            )
        if self.resample and self.group_size < 2:
            raise ValueError(
                f"resample {self.resample} replaces groups whose scores are all equal, and group is 1: make group at "
                "least 2, or leave resample out"
            )
        if self.resample and self.async_rollouts:
            raise ValueError(
                "resample waits for a step's scores, while async_rollouts already samples the next: use one of them"
            )
        if self.overlong_buffer is not None and (self.missing_eos == "replace" or not self.missing_eos_penalty):
            raise ValueError(
                f"overlong_buffer {self.overlong_buffer} lets missing_eos_penalty set in step by step: use missing_eos "
                "subtract and a penalty above 0, or leave it out"
            )
        if self.episodes % self.group_size:
            raise ValueError(
                f"episodes {self.episodes} is not divisible by group {self.group_size}, the completions of a prompt: "
                "change one of them"
            )
        return self

    def _given(self, names: Iterable[str]) -> list[str]:
        """Return those of the settings that have been given a value that is neither null nor their default."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) not in (None, fields[name].default)]

    @model_validator(mode="after")
    def _check(self) -> "PPO":
        if self.episodes % self.minibatches:
            raise ValueError(f"episodes {self.episodes} is not divisible by minibatches {self.minibatches}")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_in loss with kl_estimator k1 has a gradient of mean 0, so it holds nothing back: use "
                "k2 or k3, or put k1 in the reward"
            )
        if self.async_rollouts and self.importance_cap is None:
            raise ValueError(
                "async_rollouts samples with older weights, which importance_cap corrects for: set it, "
                "for example to 2.0"
            )
        if self.adaptive_kl is not None and self.adaptive_kl.horizon <= self.episodes / 5:
            raise ValueError(
                f"adaptive_kl.horizon {self.adaptive_kl.horizon:g} lets one step of {self.episodes} episodes turn "
                f"beta negative: make it at least {self.episodes // 5 + 1}, better thousands"
            )
        if self.warmup_start is not None and not self.warmup:
            raise ValueError(
                f"warmup_start {self.warmup_start:g} is where a warm-up begins, and warmup is 0: set it, or leave it out"
            )
        if self.critic_warmup >= self.steps:
            raise ValueError(f"critic_warmup {self.critic_warmup} leaves none of the {self.steps} steps to the policy")
        return self
