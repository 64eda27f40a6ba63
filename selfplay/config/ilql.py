"""The settings of implicit language Q-learning."""

from typing import Annotated, Literal

from pydantic import Field

from selfplay.config.base import AlgorithmSection, Count, NonNegative, Positive, Schedule, Unit


class ILQL(AlgorithmSection):
    """Implicit language Q-learning (Snell et al. 2022): learn offline, from completions with a reward each."""

    kind: Literal["ilql"]
    """Offline Q-learning."""
    source: str | None = None
    """A file or dataset with `prompt`, `completion` and a number `reward`; null takes the completions that this iteration
    generated, each with the share of its pairs that it won by the judge."""
    steps: Count = 300
    """Optimizer steps."""
    batch_size: Count = 100
    """Completions per step."""
    learning_rate: Positive = 1e-3
    """Peak learning rate, of the policy and of the heads."""
    schedule: Schedule = "linear"
    """How the learning rate falls over the steps."""
    warmup: Unit = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    adam_epsilon: Positive = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Maximum norm of the gradient of policy and heads together."""
    standardise: bool = True
    """Rewards to mean 0 and deviation 1 over all rows (trlX does). `beta` is in the units of the rewards that are learned."""
    discount: Unit = 0.99
    """Gamma, per token."""
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Tau of the value's loss: above 0.5 it leans towards the best that the data holds (trlX 0.8, Wordle 0.7)."""
    cql: NonNegative = 0.1
    """Weight of the cross-entropy of the Q values, which keeps those of unseen tokens low (trlX 0.1, Wordle 1e-4)."""
    awac: NonNegative = 1.0
    """Weight of the policy's own imitation of the data."""
    awac_beta: NonNegative = 0.0
    """Imitation of a token is weighted by exp(this times its advantage); 0 imitates all alike."""
    polyak: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the Q heads in a move of the target heads (trlX's wrapper says .99, its configuration .001, its example .1)."""
    target_every: Count = 5
    """Steps between two moves of the target heads."""
    heads: Literal["linear", "mlp"] = "linear"
    """`linear`: one matrix each, folded into the output embedding, so that any engine samples the checkpoint. `mlp`: two
    layers, of twice the width, with a ReLU (trlX); they stay beside the checkpoint in perturbation.safetensors, without which
    it only imitates, and the transformers engine alone samples with them."""
    beta: NonNegative = 30.0
    """Samples are drawn in proportion to exp(log p + beta Q), with Q the mean of both target heads; 0 is imitation."""
    micro_batch_tokens: Count | None = None
    """Most tokens, padding included, in one forward pass; never changes gradients. Default as PPO's."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in training; weights and losses stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint_every: Count = 50
    """Steps between checkpoints; a killed run repeats at most so many, identically."""

    @property
    def steps_per_iteration(self) -> int:
        """Return the steps."""
        return self.steps

    @property
    def summary(self) -> str:
        """Return steps, batch and what sampling follows."""
        return f"ILQL: {self.steps} steps of {self.batch_size} completions per iteration, {self.heads} heads, beta {self.beta:g}"
