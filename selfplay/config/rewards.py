"""What the policy is trained to increase: a reward model, a judge, a Python function, or a weighted sum."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfplay.config.base import Count, NonNegative, Positive, Section, Unit
from selfplay.config.models import Passes


class RewardParts(Section):
    """What rewards name: a function or a class in Python with its options, or a text metric with its reference."""

    function: str | None = None
    """kind function: `package.module:name` or `./file.py:name`, from (prompts, responses, meta), lists of text, text and
    the prompts' columns, to one number each; NaN leaves an episode out."""
    python: str | None = None
    """kind python: `package.module:Class` or `./file.py:Class`, with `score(prompts, completions)` that returns one number
    each, like a function's; the records are those of `selfplay.records`. With loss python, the loss."""
    options: dict[str, Any] = Field(default_factory=dict)
    """kind python: passed to the class as keywords."""
    metric: Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "distinct1", "distinct2"] | None = None
    """kind metric: F of ROUGE with stems, BLEU or chrF against a reference, or the share of a response's n-grams that
    are different; in [0, 1]. All but distinct need `pip install 'selfplay-loop[metrics]'`."""
    reference: str = "reference"
    """kind metric: column of the prompts with the reference, a text or a list of texts."""

    @model_validator(mode="after")
    def _check_python(self) -> Self:
        for name, reference in (("function", self.function), ("python", self.python), ("metric", self.metric)):
            wanted = name in (getattr(self, "kind", None), getattr(self, "loss", None))
            if wanted != (reference is not None):
                what = "metric" if name == "metric" else "Python"
                raise ValueError(f"`{name}` names the {what} of kind {name}, and only of that: set both or neither")
        if self.options and self.python is None:
            raise ValueError("`options` belong to kind python: remove them")
        return self


class AddedReward(RewardParts):
    """A reward that is added to another one."""

    kind: Literal["judge", "function", "python", "metric"]
    """A judge asked directly, a Python function, a class of your own, or a text metric."""
    weight: float = 1.0
    """Its score times this is added; below 0 it counts against a response."""
    judge: str | None = None
    """kind judge: a judge file; default the recipe's judge."""

    @model_validator(mode="after")
    def _check(self) -> "AddedReward":
        if self.judge is not None and self.kind != "judge":
            raise ValueError("`judge` belongs to kind judge: remove it")
        return self


class Reward(Passes, RewardParts):
    """What PPO follows: by default a reward model, trained on the verdicts."""

    kind: Literal["model", "judge", "function", "python", "metric"] = "model"
    """`model`: a reward model, trained on the preferences. `judge`: the recipe's judge asked about every response (one
    that compares is shown the answer of the policy before), with no pairs, labels or reward model. `function`: a function
    in Python. `python`: a class of your own. `metric`: a text metric, such as ROUGE against the prompts' references."""
    weight: Positive = 1.0
    """Its share in the sum with `added`."""
    added: Annotated[tuple[AddedReward, ...], Field(strict=False)] = ()
    """Further rewards: PPO follows the weighted sum."""
    backbone: str = "previous"
    """Weights to start from: `previous` (the reward model of the iteration before; in the first, the policy), `policy`
    (the current one), `start`, or a checkpoint or hub id."""
    loss: Literal["pairwise", "ranking", "best", "soft", "python"] = "pairwise"
    """What a reward model minimises. `pairwise`: each pair by itself, with TRL's RewardTrainer. The others take all K
    completions of a prompt at once and forward each of them once. `ranking`: the mean over the prompt's pairs (InstructGPT,
    Ouyang et al. 2022). `best`: cross-entropy on the judge's best of K (Ziegler et al. 2019). `soft`: cross-entropy on
    the judge's probability. `python`: a class or function that `python` names, from (scores, verdicts) to a scalar."""
    data: str | None = None
    """Preferences that exist already, which a reward model learns from instead of the judge's: a file, folder or dataset
    with `chosen`, `rejected` and, unless both begin with it, `prompt`, as texts, messages or HH's transcripts. Then there
    are no pairs and no labels; with backbone previous it is trained in the first iteration and kept."""
    ensemble: Count = 1
    """Reward models, trained on the same preferences from seeds and heads of their own (Coste et al. 2023)."""
    conservative: Literal["worst", "uncertainty", "mean"] = "worst"
    """An ensemble's score: its members' smallest, their mean less `uncertainty` times their variance, or their mean."""
    uncertainty: NonNegative = 0.5
    """Weight of the members' variance in a conservative score; theirs are in deviations of the start's scores."""
    normalise: Literal["after", "both"] = "after"
    """When scores get deviation 1 on the start's samples: after training, or also before it, by dividing the head
    (Ziegler et al. 2019). After training their mean there becomes 0 too."""
    epochs: Count = 2
    """Passes over the preferences."""
    batch_size: Count = 64
    """Pairs per optimiser step; with another loss than pairwise, prompts with all their completions."""
    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    warmup: Unit = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    heldout_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the prompts whose pairs are kept back to measure accuracy and calibration; a prompt is on the same side in
    all iterations. Where a hash would put all prompts of the first on one side, the share of them is taken exactly."""
    replay: Unit = 0.0
    """Share of each earlier iteration's preferences that is mixed in."""
    margin: bool = False
    """Use the verdict's margin in the loss (Touvron et al. 2023, Llama 2): pairwise, ranking, or one of your own."""
    extra_rounds: Annotated[int, Field(ge=0)] = 2
    """How often to fetch as many pairs again if the held-out accuracy is not above chance (lower bound <= 0.5)."""

    @property
    def needs_pairs(self) -> bool:
        """Whether a reward model is trained, and on the judge's verdicts."""
        return self.kind == "model" and self.data is None

    @model_validator(mode="after")
    def _check(self) -> "Reward":
        for name in ("data", "loss", "ensemble", "normalise"):
            if self.kind != "model" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"`{name}` is a reward model's, and kind is {self.kind}: remove it, or set kind to model"
                )
        if self.data is not None and self.replay:
            raise ValueError(
                "`replay` mixes in the judge's earlier preferences, and `data` takes their place: remove one"
            )
        if self.ensemble == 1 and self.conservative != "worst":
            raise ValueError(
                f"conservative {self.conservative} is about several reward models: set `ensemble`, such as 3"
            )
        if self.margin and self.loss in ("best", "soft"):
            raise ValueError(f"loss {self.loss} has no margin: remove `margin`, or take pairwise or ranking")
        return self
