"""Every knob of a run: strict, frozen, read from one YAML file plus dotted overrides. Imports no torch.

A knob lives here once, documented beneath its field. Whatever can be known to be wrong without loading a model is
refused here, in one sentence that names the value and the way out. What needs files or tokenizers to be checked is
checked by `selfplay.plan.check`.
"""

import codecs
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
T = TypeVar("T", bound=BaseModel)
Texts = Annotated[tuple[str, ...], Field(strict=False)]


class ConfigError(ValueError):
    """A recipe that cannot be run. The message is one for the user: what, which value, the way out."""


class Section(BaseModel):
    """Base of every section of a recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Sampling(Section):
    """How completions are drawn from a model."""

    temperature: NonNegative = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling. Must stay 1 where PPO samples: cutting the tail biases the importance ratio."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all. Must stay 0 where PPO samples."""
    max_tokens: Count = 128
    """Longest completion, in tokens."""
    stop: Texts = ()
    """Strings that end a completion, besides the model's own end tokens: text, before which the completion is cut, or
    the name of a special token, such as <|im_end|>."""
    n: Count = 1
    """Completions per prompt."""
    seed: int = 0
    """With the transformers engine a completion depends on (seed, prompt id, index) and the weights alone."""


class Endpoint(Section):
    """A server that speaks OpenAI's protocol: `vllm serve`, or a hosted model."""

    url: str
    """Where it is, up to and with `/v1`. A server that answers with a redirect is refused."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends messages; `completions` sends the text of a single message, for models without a chat template."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null for a server that needs none. The key itself never stands in a file.
    One that is not set is refused before work starts, unless it is the default and the URL begins with http://."""
    key_header: str = "Authorization"
    """Header that carries the key: `Authorization: Bearer KEY`, or, under any other name, the key alone (Azure: api-key)."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Further headers. `$NAME` stands for the environment variable NAME, which is kept as secret as the key."""
    query: dict[str, str] = Field(default_factory=dict)
    """Query parameters of every call, such as {api-version: preview}."""
    concurrency: Count = 16
    """Most calls under way at once."""
    requests_per_minute: Count | None = None
    """Most calls begun in any minute."""
    timeout: Positive = 120.0
    """Seconds by the clock after which a call is given up, from the first byte sent to the last one read."""
    retries: Annotated[int, Field(ge=0)] = 5
    """How often a call that failed on the way (429, 5xx, timeout, cut connection, unreadable answer) is made again."""
    longest_wait: Positive = 60.0
    """Most seconds between two tries; they double from 1, with jitter, and a server's Retry-After counts."""
    guided: bool = True
    """Send the JSON schema with the call (`response_format`), for servers that can decode along it."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each call, such as {reasoning_effort: low}; null takes out one that is sent by default."""
    input_price: NonNegative = 0.0
    """Dollars per million tokens read."""
    cached_input_price: NonNegative | None = None
    """Dollars per million tokens read that the server remembers from an earlier call; default `input_price`."""
    output_price: NonNegative = 0.0
    """Dollars per million tokens written, thinking included."""
    max_cost: Positive | None = None
    """Dollars that one run may spend, over all its judges; then it stops, with everything saved. Needs the prices."""

    @property
    def costs(self) -> bool:
        """Whether a call has a price."""
        return any((self.input_price, self.cached_input_price, self.output_price))

    @property
    def needs_key(self) -> bool:
        """Whether a key that is not set is a mistake: one was named, or the address is not one of a local network."""
        return self.key_variable != "OPENAI_API_KEY" or self.url.startswith("https://")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        """A value that may hold a key appears in no message."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address begins with http:// or https:// and names a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the address holds a user name or a key: take it out, and set key_variable instead")
        if parts.query or parts.fragment:
            raise ValueError("the address ends with a query: put its parameters into `query`")
        return url

    @field_validator("key_variable")
    @classmethod
    def _check_key_variable(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z_]\w{0,63}", name, re.ASCII) or LIKE_A_KEY.match(name)):
            raise ValueError("this is the name of an environment variable, such as MY_KEY, and never the key itself")
        return name

    @field_validator("headers", "query", "extra")
    @classmethod
    def _check_no_secrets(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for name, value in values.items():
            if info.field_name == "headers" and not (HEADER.fullmatch(name) and HEADER_VALUE.fullmatch(value)):
                raise ValueError(
                    f"{name!r} is no header that can be sent: names are letters, digits and -, values ASCII"
                )
            from_environment = info.field_name == "headers" and value.startswith("$")
            secret = NAMES_A_KEY if info.field_name != "extra" else NAMES_A_KEY_IN_EXTRA
            if not from_environment and (secret.search(name) or (isinstance(value, str) and LIKE_A_KEY.match(value))):
                raise ValueError(
                    f"{name!r} looks like a key, which never stands in a file: set key_variable and key_header, or give "
                    "`$NAME` as the value of a header, to read it from the environment"
                )
        return values

    @model_validator(mode="after")
    def _check(self) -> "Endpoint":
        if self.max_cost is not None and not self.costs:
            raise ValueError(
                "max_cost limits nothing while input_price and output_price are 0: set the prices, in dollars per "
                "million tokens"
            )
        return self


LIKE_A_KEY = re.compile(r"(sk|gsk|hf|xai|pk|rk|or|nvapi|AIza|Bearer )[-_A-Za-z0-9]*[-_ ]?[A-Za-z0-9]{16,}")
NAMES_A_KEY = re.compile(r"key|secret|token|authorization|password|credential", re.IGNORECASE)
NAMES_A_KEY_IN_EXTRA = re.compile(r"^(x-)?(api[-_]?key|authorization|password|secret|access[-_]?token)$", re.IGNORECASE)
HEADER = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


class PromptSource(Section):
    """Where prompts come from."""

    source: str = "stories"
    """`stories` or `instructions` (built in), a .jsonl / .parquet / .txt file, or the name of a dataset on the hub."""
    split: str = "train"
    """Split of a hub dataset, or of a built-in set (`train` and `heldout` never share a prompt)."""
    column: str = "prompt"
    """Column with the prompt: a string or a list of {role, content}. All other columns become `meta`."""
    limit: Count | None = None
    """Use the first so many prompts; a built-in set makes exactly so many (default 1,024)."""


class Prompts(Section):
    """Prompts to learn from, and prompts to measure on. The two may not overlap."""

    train: PromptSource = PromptSource()
    heldout: PromptSource = PromptSource(split="heldout", limit=256)


class Architecture(Section):
    """A Llama small enough to pretrain where you sit."""

    layers: Count = 4
    """Transformer blocks."""
    hidden_size: Count = 128
    """Width of the residual stream."""
    heads: Count = 4
    """hidden_size / heads is the head size. vLLM's CPU kernels want 32, 64, 80, 96, 112, 128, ..."""
    intermediate_size: Count = 352
    """Width inside the gated MLP."""
    context: Count = 256
    """Longest sequence, in tokens."""
    tie_embeddings: bool = True
    """Share the input and output embeddings."""

    @model_validator(mode="after")
    def _check(self) -> "Architecture":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        return self


class Optimisation(Section):
    """Plain supervised training: AdamW, linear warm-up, cosine or linear decay."""

    steps: Count = 300
    """Optimiser steps."""
    batch_size: Count = 64
    """Sequences per optimiser step."""
    learning_rate: Positive = 3e-3
    """Peak learning rate."""
    warmup: Unit = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""


class Demonstrations(Section):
    """Supervised fine-tuning on prompt-response pairs, with TRL's SFTTrainer; the loss is on the response only."""

    source: str = "stories"
    """`stories` (built in, of mixed quality), a .jsonl / .parquet file or a dataset with `prompt` and `completion`."""
    count: Count = 6000
    """Use so many demonstrations at most."""
    training: Optimisation = Optimisation(steps=200, learning_rate=2e-3)


class Bootstrap(Section):
    """A policy from text alone: train a BPE tokenizer, pretrain a small Llama, fine-tune it on demonstrations."""

    corpus: str = "stories"
    """`stories` (built in), a text file, a folder of .txt files, or the name of a dataset with a `text` column."""
    documents: Count = 20000
    """Documents made of the built-in corpus, or at most used of another one."""
    vocabulary: Annotated[int, Field(ge=260)] = 512
    """Size of the byte-level BPE vocabulary, special tokens included."""
    architecture: Architecture = Architecture()
    pretrain: Optimisation = Optimisation()
    heldout_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """Share of the documents kept back to measure bits per character."""
    sft: Demonstrations | None = Demonstrations()
    """Fine-tuning after pretraining; null leaves the pretrained model as it is."""


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning. Needs the `peft` extra."""

    rank: Count = 16
    """Rank of each adapter."""
    alpha: Positive = 32.0
    """Adapters are scaled by alpha / rank."""
    targets: Texts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Modules that get an adapter; the output embedding cannot."""

    @field_validator("targets")
    @classmethod
    def _no_head(cls, targets: Texts) -> Texts:
        heads = {"lm_head", "embed_out"} & set(targets)
        if heads:
            raise ValueError(
                f"{min(heads)} cannot have an adapter: PPO multiplies by its weight in chunks, past the "
                "adapter; leave it out"
            )
        return targets


class Policy(Section):
    """The model that improves."""

    model: str | None = None
    """A checkpoint on disk or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    bootstrap: Bootstrap | None = None
    """Make the start from text instead of naming a model."""
    sft: Demonstrations | None = None
    """Fine-tune the named model first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights when generating; training keeps float32 master weights."""
    lora: Lora | None = None

    @model_validator(mode="after")
    def _check(self) -> "Policy":
        if (self.model is None) == (self.bootstrap is None):
            raise ValueError("a policy comes either from `model` or from `bootstrap`: set exactly one of them")
        if self.bootstrap is not None and self.sft is not None:
            raise ValueError("`policy.sft` fine-tunes `policy.model`; with a bootstrap, set `policy.bootstrap.sft`")
        return self


class Engine(Section):
    """Who produces text."""

    kind: Literal["transformers", "vllm"] = "transformers"
    """`transformers` runs anywhere; `vllm` is faster on a GPU and has a CPU build."""
    batch_size: Count = 256
    """Rows decoded at once by the transformers engine."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of the GPU's memory that vLLM takes."""
    cpu_cache_gib: Count = 1
    """Size of vLLM's KV cache on a CPU, in GiB."""
    sleep: bool = False
    """Let vLLM give its GPU memory to PPO between rollouts: room for larger models, a second or so per step."""
    tensor_parallel: Count = 1
    """GPUs that one vLLM engine is spread over."""


class Generate(Section):
    """Pairs of completions to be judged."""

    completions: Annotated[int, Field(ge=2)] = 2
    """K completions per prompt."""
    prompts: Count = 512
    """Prompts drawn from the training prompts in each iteration, without repeats until all were used."""
    opponent: Literal["self", "previous", "start", "pool"] = "self"
    """Whose completions the policy's are paired with: its own, those of the iteration before, of the start, or of an
    earlier iteration drawn at random for each prompt."""


class JudgeBootstrap(Section):
    """A judge from text alone: a small Llama that learns from rules to answer `judge.file`, over pairs of the built-in
    stories. It is in the run's `iteration-000/judge`."""

    rules: str = "stories"
    """The judge that teaches, of mode `rules`. Nothing else in the run sees what it says, unless it also measures."""
    also: Texts = ()
    """Further judge files that the same model learns to answer."""
    vocabulary: Annotated[int, Field(ge=512)] = 1280
    """Size of the BPE vocabulary, which is the judge's own; words of the prompts' columns are tokens of their own."""
    architecture: Architecture = Architecture(context=768)
    training: Optimisation = Optimisation(steps=1800, batch_size=16)
    """Each step learns from `batch_size` lessons it has not seen before."""
    heldout: Count = 512
    """Pairs of held-out stories on which the judge's agreement with the rules is measured."""


class Judge(Section):
    """Who says which completion is better."""

    file: str = "stories"
    """A judge file: the name of a shipped one, or the path of a YAML file of your own."""
    model: str | None = None
    """Overrides the file's model: a checkpoint, a hub id, `policy`, or an endpoint's model name."""
    bootstrap: JudgeBootstrap | None = None
    """Make the judge's model from text instead of naming one."""

    @model_validator(mode="after")
    def _check(self) -> "Judge":
        if self.model is not None and self.bootstrap is not None:
            raise ValueError(f"judge.bootstrap makes a model, and judge.model names {self.model!r}: remove one of them")
        return self


def require_function(kind: str, function: str | None) -> None:
    """Raise ValueError unless a function is named for a reward of kind function and for no other."""
    if (kind == "function") != (function is not None):
        raise ValueError("`function` names the Python of kind function, and only of that: set both or neither")


class AddedReward(Section):
    """A reward that is added to another one."""

    kind: Literal["judge", "function"]
    """A judge asked directly, or a Python function."""
    weight: float = 1.0
    """Its score times this is added; below 0 it counts against a response."""
    judge: str | None = None
    """kind judge: a judge file; default the recipe's judge."""
    function: str | None = None
    """kind function: `package.module:name` or `./file.py:name`, from (prompts, responses, meta), lists of text, text and
    the prompts' columns, to one number each; NaN leaves an episode out."""

    @model_validator(mode="after")
    def _check(self) -> "AddedReward":
        require_function(self.kind, self.function)
        if self.judge is not None and self.kind != "judge":
            raise ValueError("`judge` belongs to kind judge: remove it")
        return self


class Reward(Section):
    """What PPO follows: by default a reward model, trained on the verdicts with TRL's RewardTrainer."""

    kind: Literal["model", "judge", "function"] = "model"
    """`model`: a reward model, trained on the preferences. `judge`: the recipe's judge asked about every response (one
    that compares is shown the answer of the policy before), with no pairs, labels or reward model. `function`: Python."""
    function: str | None = None
    """kind function: `package.module:name` or `./file.py:name`, from (prompts, responses, meta) to one number each."""
    weight: Positive = 1.0
    """Its share in the sum with `added`."""
    added: Annotated[tuple[AddedReward, ...], Field(strict=False)] = ()
    """Further rewards: PPO follows the weighted sum."""
    backbone: str = "previous"
    """Weights to start from: `previous` (the reward model of the iteration before; in the first, the policy), `policy`
    (the current one), `start`, or a checkpoint or hub id."""
    epochs: Count = 2
    """Passes over the preferences."""
    batch_size: Count = 64
    """Pairs per optimiser step."""
    learning_rate: Positive = 1e-4
    """Peak learning rate; falls linearly to 0."""
    warmup: Unit = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    heldout_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the prompts whose pairs are kept back to measure accuracy and calibration."""
    replay: Unit = 0.0
    """Share of each earlier iteration's preferences that is mixed in."""
    margin: bool = False
    """Use the verdict's margin in the loss (Touvron et al. 2023, Llama 2)."""
    extra_rounds: Annotated[int, Field(ge=0)] = 2
    """How often to fetch as many pairs again if the held-out accuracy is not above chance (lower bound <= 0.5)."""

    @model_validator(mode="after")
    def _check(self) -> "Reward":
        require_function(self.kind, self.function)
        return self


class AdaptiveKL(Section):
    """Steers beta so that the KL meets a target (Ziegler et al. 2019): per step, beta *= 1 + error n / horizon."""

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
    length: Annotated[int, Field(ge=2)] = 128
    """Tokens per sequence; longer documents are cut."""


class PPO(Section):
    """Proximal policy optimisation (Schulman et al. 2017) as used on language models since Ziegler et al. 2019."""

    kind: Literal["ppo"] = "ppo"
    """The only algorithm so far."""
    steps: Count = 20
    """Optimisation steps: each one samples `episodes` and learns from them."""
    episodes: Count = 256
    """Prompts sampled per step, one completion each."""
    epochs: Count = 2
    """Passes over the episodes of a step, each in a fresh order."""
    minibatches: Count = 4
    """Optimiser steps per pass."""
    micro_batch_tokens: Count | None = None
    """Most tokens, padding included, in one forward pass; changes speed and memory, never the gradients. Default 2,048
    on a CPU (what its caches hold) and 32,768 on a GPU."""
    learning_rate: Positive = 3e-4
    """The policy's peak learning rate."""
    critic_learning_rate: Positive = 1e-3
    """The critic's peak learning rate."""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """How both learning rates fall over the steps: linear and cosine end near 0 (linear: N+ details 2024)."""
    warmup: Unit = 0.0
    """Share of the steps over which both learning rates rise from 0."""
    adam_epsilon: Positive = 1e-5
    """Adam's epsilon (Baselines' PPO, N+ details: 1e-5 rather than 1e-8)."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay, for both networks."""
    max_grad_norm: Positive = 1.0
    """Longest gradient, for the policy and for the critic by itself."""
    clip: Positive = 0.2
    """Clipping range of the ratio (Schulman 2017)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on -ratio * advantage, in multiples of -advantage, where the advantage is negative (Ye et al. 2020; 3)."""
    value_clip: Positive | None = 0.2
    """Clipping range of the value around its old estimate (Ziegler 2019); null for none."""
    discount: Unit = 1.0
    """Gamma."""
    gae_lambda: Unit = 0.95
    """Lambda of generalised advantage estimation (Schulman 2016)."""
    truncated_value: Literal["zero", "bootstrap"] = "zero"
    """Value after a response that was cut off: 0 (TRL, verl), or the critic's estimate there (AReaL)."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and variance 1 over all tokens of the step (N+ details; over all ranks: OpenRLHF)."""
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
    pretraining: Pretraining | None = None
    """Mix a language-modelling loss into the policy's (PPO-ptx)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in training; weights, log-probs and losses stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the bodies of policy, reference and critic: pays on GPUs and in long runs."""
    checkpoint_every: Count = 5
    """Steps between checkpoints inside PPO; a killed run repeats at most so many, identically."""
    log_samples: Annotated[int, Field(ge=0)] = 4
    """Episodes per step written to samples.jsonl with their scores."""

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
        if self.critic_warmup >= self.steps:
            raise ValueError(f"critic_warmup {self.critic_warmup} leaves none of the {self.steps} steps to the policy")
        return self


class Evaluate(Section):
    """Comparison with the policy before and with the start, on the held-out prompts."""

    judge: str | None = None
    """Judge file that measures; default the one that labels."""
    temperature: NonNegative = 1.0
    """Temperature of the held-out answers."""
    resamples: Annotated[int, Field(ge=2000)] = 2000
    """Bootstrap resamples over prompts behind every 95% interval."""


class Guard(Section):
    """When a policy games its judge instead of getting better, and what is done then (see docs/report.md)."""

    action: Literal["warn", "stop", "keep-best"] = "keep-best"
    """`warn` only reports and takes the last iteration as the best; `keep-best` takes the one with the highest win rate
    against the start by `evaluate.judge`; `stop` does so too, and ends the run at the first severe alarm."""
    length_growth: Positive = 1.5
    """Mean length, as a multiple of the start's, above which answers have grown suspiciously."""
    longer_share: Unit = 0.75
    """Share of pairs in which the judge prefers the longer answer, above which it rewards length (people: 0.64, GPT-4:
    0.68; Dubois et al. 2024)."""
    diversity: Unit = 0.7
    """Distinct bigrams and unique answers, as a share of the start's, below which answers have become too alike."""
    truncated: Unit = 0.25
    """Share of answers cut off at max_tokens above which length is out of hand; twice as many is severe."""
    swap_consistency: Unit = 0.65
    """Agreement of the judge's two orders below which it is unreliable (GPT-4: 0.65; Zheng et al. 2023)."""
    unscored: Unit = 0.05
    """Share of pairs without a readable verdict above which the judge is unreliable."""


class Recipe(Section):
    """One file, one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run's directory; default the recipe's file name."""
    description: str = ""
    """What the run is for; shown in reports."""
    output: str | None = None
    """The run's directory; default `runs/NAME`."""
    seed: int = 0
    """Every random choice of a run follows from it."""
    iterations: Count = 2
    """Rounds of generate, label, reward, policy, evaluate."""
    threads: Count | None = None
    """CPU threads for torch; default OMP_NUM_THREADS, or else all cores."""
    prompts: Prompts = Prompts()
    policy: Policy
    engine: Engine = Engine()
    sampling: Sampling = Sampling()
    generate: Generate = Generate()
    judge: Judge = Judge()
    reward: Reward = Reward()
    algorithm: PPO = PPO()
    evaluate: Evaluate = Evaluate()
    guard: Guard = Guard()
    report_to: Annotated[tuple[Literal["wandb", "tensorboard", "trackio", "mlflow"], ...], Field(strict=False)] = ()
    """Trackers that are told every PPO step and every iteration, beside metrics.jsonl (see docs/report.md)."""

    @property
    def directory(self) -> Path:
        """Where the run is kept."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def judge_model(self) -> str | None:
        """What answers for the judge that labels: the model that the recipe names or makes; None leaves it to the file."""
        made = self.directory.absolute() / "iteration-000" / "judge"
        return str(made) if self.judge.bootstrap else self.judge.model

    @property
    def rewards(self) -> "tuple[Reward | AddedReward, ...]":
        """What PPO follows the weighted sum of."""
        return (self.reward, *self.reward.added)

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature is 0: greedy completions of one prompt are all the same, so there "
                "is nothing to compare; use a temperature above 0"
            )
        if self.sampling.top_p < 1 or self.sampling.top_k > 0:
            raise ValueError("sampling.top_p and top_k bias PPO's importance ratio: leave them at 1 and 0")
        if self.sampling.n != 1 or self.sampling.seed != 0:
            raise ValueError(
                "sampling.n and sampling.seed are set by each stage: say how many completions a prompt gets "
                "in generate.completions, and change `seed` for other random numbers"
            )
        if self.prompts.train.source != "stories" and "heldout" not in self.prompts.model_fields_set:
            raise ValueError(
                f"prompts.train is {self.prompts.train.source!r}, and prompts.heldout is not set: name the "
                "prompts to measure on, which must not be among those"
            )
        train, heldout = self.prompts.train, self.prompts.heldout
        if train.source == heldout.source and train.split == heldout.split:
            raise ValueError(
                f"prompts.train and prompts.heldout are the same ({train.source!r}, split "
                f"{train.split!r}): held-out prompts must not be trained on; name another file or split"
            )
        return self


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without three traps: `1e-4` is a number, `on` / `off` / `yes` / `no` are text, and no key stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice, of which YAML would silently drop the first."""
        seen: set[str] = set()
        for key in (pair[0] for pair in node.value if isinstance(pair[0], yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.inf|\.nan)$"
    ),
    list("-+.0123456789"),
)


def read_text(path: Path) -> str:
    """The text of a user's file in UTF-8, or in UTF-16 as editors on Windows save it. Raises ConfigError for any other."""
    start = path.read_bytes()[:200]
    wide = b"\0" in start or start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-8-sig" if not wide else "utf-16-be" if start[:1] == b"\0" else "utf-16"
    try:
        return path.read_text(encoding=encoding)
    except UnicodeError:
        raise ConfigError(f"{path} is not text in UTF-8 or UTF-16; save it as such") from None


def parse_yaml(text: str, where: str = "the text") -> Any:
    """Parse YAML; raises ConfigError that names `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in a tree of mappings, in place; the value is read as YAML."""
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value, such as algorithm.steps=10")
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[leaf] = parse_yaml(value, f"the value of {key}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides. Raises ConfigError with a sentence for every mistake."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no recipe {str(path)!r}; write one with `selfplay init {path}`")
    tree = parse_yaml(read_text(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no mapping of settings; `selfplay init` writes one to start from")
    tree.setdefault("name", path.stem)
    for override in overrides:
        apply_override(tree, override)
    return validate(Recipe, tree, str(path))


def validate(model: type[T], tree: Any, where: str) -> T:
    """`model.model_validate(tree)` whose errors are sentences; raises ConfigError naming `where`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_sentence(model, item) for item in error.errors())) from None


def _sentence(model: type[BaseModel], error: Any) -> str:
    """One of pydantic's errors, said to a user."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_keys(model, location[:-1]), n=1, cutoff=0.5)
        return f"unknown setting {key!r}" + (f", did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else "")
    if error["type"] == "missing":
        return f"setting {key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = f"{message[0].lower()}{message[1:]}"
    if "endpoint" in location:  # a key may have been put where it does not belong
        return f"{key}: {message}"
    return f"{key} = {error['input']!r}: {message}"


def _known_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """The settings that exist at a place of the tree."""
    for part in location:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        if field is None:
            return []
        inner = [
            kind
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
