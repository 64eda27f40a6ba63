"""The settings of preference optimisation: DPO and the losses of its family, on pairs or on demonstrations."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfplay.config.base import AlgorithmSection, Count, NonNegative, Positive, Section
from selfplay.config.models import Passes

TAKE_PROBABILITIES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "sppo")
"""Losses that can learn from how sure the judge is."""
TAKE_SMOOTHING = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair")
"""Losses that can expect a share of wrong labels."""


class DemonstratedPairs(Section):
    """Pairs without a judge, as in SPIN (Chen et al. 2024): a demonstration is chosen over what the policy before answers."""

    source: str = "stories"
    """`stories` (built in), a .jsonl / .parquet file or a dataset with `prompt` and `completion`."""
    count: Count = 512
    """Use so many demonstrations at most; each iteration answers the same prompts again."""


class DPO(Passes, AlgorithmSection):
    """Direct preference optimisation (Rafailov et al. 2023), with TRL's DPOTrainer on the pairs of this iteration."""

    kind: Literal["dpo"]
    """Direct preference optimisation: learn from the judged pairs, with no reward model and no sampling."""
    loss: Literal[
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "apo_zero", "apo_down", "sppo"
    ] = "sigmoid"
    """`sigmoid` (DPO), `sigmoid_norm` (the same per token), `hinge` (SLiC, Zhao et al. 2023), `ipo` (Azar et al. 2023),
    `robust` (Chowdhury et al. 2024), `exo_pair` (Ji et al. 2024), `nca_pair` (Chen et al. 2024), `apo_zero`, `apo_down`
    (D'Oosterlinck et al. 2024), `sppo` (Wu et al. 2024)."""
    beta: Positive = 0.1
    """How strongly the reference holds the policy; tau of IPO, 1 / eta of SPPO (whose paper has 0.001)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels that are expected to be wrong (conservative DPO; robust, exo_pair)."""
    soft_labels: bool = False
    """Learn the judge's probability instead of its choice; with `sppo`, the share of its pairs that an answer won."""
    pairs: Literal["all", "best-worst"] = "all"
    """All decided pairs, or of each prompt only the pair whose answers lie farthest apart by the share of their pairs that
    they won (Yuan et al. 2024, Self-Rewarding Language Models)."""
    demonstrations: DemonstratedPairs | None = None
    """Make the pairs from demonstrations instead, with no judge."""
    reference: Literal["start", "previous"] = "previous"
    """What the policy is held to: iteration 0, or the policy this iteration began with."""
    sft_coefficient: NonNegative = 0.0
    """Weight of the mean loss per token of the chosen answers (Pang et al. 2024; Llama 3: 0.2)."""
    micro_batch: Count | None = None
    """Pairs per forward pass: fewer need less memory. Default: all of a step's."""

    @property
    def summary(self) -> str:
        """Return the loss, what it learns from and its strength."""
        kind = "demonstrations against its own answers" if self.demonstrations else f"{self.pairs} pairs"
        return f"DPO: {self.loss} loss, beta {self.beta:g}, on {kind}, {self.epochs} epoch{'s' * (self.epochs > 1)} an iteration"

    @model_validator(mode="after")
    def _check(self) -> "DPO":
        if self.batch_size % (self.micro_batch or 1):
            raise ValueError(f"batch_size {self.batch_size} is not divisible by micro_batch {self.micro_batch}")
        if self.soft_labels and self.loss not in TAKE_PROBABILITIES:
            raise ValueError(
                f"soft_labels cannot be learned by loss {self.loss}: take one of {', '.join(TAKE_PROBABILITIES)}"
            )
        if self.soft_labels and self.demonstrations is not None:
            raise ValueError("soft_labels are a judge's, and demonstrations have no judge: leave one of them out")
        if self.label_smoothing and self.loss not in TAKE_SMOOTHING:
            raise ValueError(
                f"label_smoothing means nothing to loss {self.loss}: take one of {', '.join(TAKE_SMOOTHING)}"
            )
        if self.label_smoothing and self.soft_labels:
            raise ValueError("soft_labels say how sure the judge is, and label_smoothing too: set one of them")
        if self.loss in ("robust", "exo_pair") and not self.label_smoothing:
            raise ValueError(f"loss {self.loss} needs label_smoothing above 0: robust 0.1, exo_pair 0.001")
        return self
