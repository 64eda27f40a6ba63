"""The policy and where it comes from, and the engine that samples from it."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from selfplay.config.base import Count, NonNegative, Positive, Schedule, Section, Texts, Unit

EMBEDDINGS = {"embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "word_embeddings", "tok_embeddings"}
"""Names of models' input embeddings, which get no adapters."""


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
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""


class Passes(Section):
    """Supervised training in passes over given rows: what a reward model, DPO and rejection sampling share."""

    epochs: Count = 1
    """Passes over what is learned from."""
    batch_size: Count = 32
    """Pairs, or answers, per optimiser step."""
    learning_rate: Positive = 1e-4
    """Peak learning rate. Models of a billion weights want 5e-7 to 2e-5, adapters ten times that."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up."""
    warmup: Unit = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""

    def optimisation(self, rows: int, batch_size: int | None = None) -> Optimisation:
        """Return the training by its steps on so many rows; `batch_size` is that of a forward pass, where it is another."""
        return Optimisation(
            steps=max(1, math.ceil(rows / self.batch_size) * self.epochs),
            batch_size=batch_size or self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
        )


class Demonstrations(Section):
    """Supervised fine-tuning on prompts with responses, conversations or plain texts, with TRL's SFTTrainer."""

    source: str = "stories"
    """`stories` (built in, of mixed quality), or a file, folder or dataset of conversations, prompts with answers, or texts
    (docs/data.md). In a conversation each of the assistant's turns is a demonstration."""
    count: Count = 6000
    """Use so many demonstrations at most."""
    completion_only: bool = True
    """Take the loss on the response alone; false takes it on the prompt too. A plain text is learned whole."""
    packing: bool = False
    """Put several demonstrations into one sequence of the model's context, which does not let one see the other."""
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
    """Modules that get an adapter: linear layers, but not the output embedding."""

    @field_validator("targets")
    @classmethod
    def _no_embedding(cls, targets: Texts) -> Texts:
        names = {target.rpartition(".")[2] for target in targets}
        heads, embeddings = names & {"lm_head", "embed_out"}, names & EMBEDDINGS
        if heads:
            raise ValueError(
                f"{min(heads)} cannot have an adapter: PPO multiplies by its weight in chunks, past the "
                "adapter; leave it out"
            )
        if embeddings:
            raise ValueError(
                f"{min(embeddings)} cannot have an adapter: it is an embedding, no linear layer; leave it out"
            )
        return targets


class Policy(Section):
    """The model that improves."""

    model: str | None = None
    """A checkpoint on disk, a hub id, or a GGUF file (`FILE.gguf`; needs the `gguf` extra), whose weights are dequantised."""
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

    kind: Literal["transformers", "vllm", "python"] = "transformers"
    """`transformers` runs anywhere; `vllm` is faster on a GPU and has a CPU build; `python` is a class of your own."""
    python: str | None = None
    """kind python: `package.module:Class` or `./file.py:Class`, a `selfplay.engines.Engine`; it is called with `checkpoint`,
    `name` and `dtype` as keywords."""
    options: dict[str, Any] = Field(default_factory=dict)
    """kind python: further keywords of the class."""
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
    timeout: Positive = 7200.0
    """Seconds by the clock that one call of vLLM (a start, a transfer of weights, a batch of completions) may take before it
    counts as hung and the run stops, with everything saved. That a process of vLLM's is dead is noticed within a second."""

    def prompts_at_once(self, completions: int) -> int:
        """Return the prompts of a batch whose answers are this many each, whoever samples it."""
        return max(1, self.batch_size // completions)

    @property
    def gpus_each(self) -> int:
        """GPUs that one engine takes, where there are any."""
        return self.tensor_parallel if self.kind == "vllm" else 1

    @model_validator(mode="after")
    def _check(self) -> "Engine":
        if (self.kind == "python") != (self.python is not None):
            raise ValueError("`python` names the class of kind python, and only of that: set both or neither")
        return self
