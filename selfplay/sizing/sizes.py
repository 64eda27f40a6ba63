"""A recipe's models and layout on a machine, as the formulas of memory and time read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import judges
from selfplay.algorithms import algorithm_of
from selfplay.config import Recipe
from selfplay.preflight import asking
from selfplay.records import Prompt
from selfplay.sizing import memory
from selfplay.sizing.cards import Machine
from selfplay.sizing.memory import Precision
from selfplay.sizing.shapes import Shape, shape_of_bootstrap, shape_of_model
from selfplay.weights.kept_precision import SMALLEST_FOR_BFLOAT16, kept_products

BYTES_PER_TOKEN = 4
"""Of a prompt's text: what English takes with a vocabulary of 100,000 and more."""
DEFAULT_TOKENS = {"cuda": 32768, "cpu": 2048}
LARGE_MODEL_TOKENS = 512
"""Tokens of a micro-batch unless the recipe sets them, of a large model on a CPU the last (`models.training_batch_tokens`)."""


@dataclass(frozen=True)
class Sizes:
    """A recipe's models and layout on a machine. `prompt` is the longest prompt's tokens, as four bytes a token."""

    recipe: Recipe
    machine: Machine
    policy: Shape
    backbone: Shape | None
    judges: tuple[Shape, ...]
    measuring: tuple[Shape, ...]
    prompt: int

    @property
    def device(self) -> str:
        """Return where it runs, by torch's name."""
        return "cpu" if self.machine.card is None else "cuda"

    @property
    def training_tokens(self) -> int:
        """Return the tokens of a micro-batch unless the recipe sets them."""
        large = self.policy.total >= SMALLEST_FOR_BFLOAT16
        return LARGE_MODEL_TOKENS if large and self.device == "cpu" else DEFAULT_TOKENS[self.device]

    @property
    def workers(self) -> int:
        """Return the processes that sample, and train what all of them train."""
        launch = self.recipe.launch
        return 1 if launch is None else launch.size

    @cached_property
    def learners(self) -> int:
        """Return the processes that train the policy: the workers, or one if its algorithm is one process's work."""
        return self.workers if getattr(algorithm_of(self.recipe), "spreads", False) else 1

    @property
    def capacity(self) -> int:
        """Return the bytes that one of the workers may take."""
        return self.room(self.workers)

    def room(self, processes: int) -> int:
        """Return the bytes that each of so many processes may take: a card, or its part of a machine's memory."""
        if self.machine.card is not None:
            return self.machine.card.memory
        launch = self.recipe.launch
        return self.machine.memory // (1 if launch is None or processes == 1 else launch.workers)

    @property
    def trained(self) -> int:
        """Return the policy's parameters that learn: all, or its adapters'."""
        lora = self.recipe.policy.lora
        return self.policy.total if lora is None else self.policy.adapter(lora.rank, lora.targets)

    def learned(self, shape: Shape) -> int:
        """Return the parameters of a network of PPO's that learn: all, or those of adapters like the policy's."""
        lora = self.recipe.policy.lora
        return shape.adapter(lora.rank, lora.targets) if lora else shape.total if shape is self.policy else shape.body

    def products(self, shape: Shape) -> Precision:
        """Return the precision that `auto` leads to for a model: what the run has chosen already, or likely will."""
        if shape.total < SMALLEST_FOR_BFLOAT16:
            return Precision(False)
        kept = self.recipe.directory / "precision.json"
        if kept.is_file():
            return Precision(kept_products(kept) == "bfloat16")
        return Precision(self.machine.card is not None or self.machine.bfloat16)

    @property
    def precision(self) -> Precision:
        """Return the precision in which PPO computes with all its models."""
        wanted = getattr(self.recipe.algorithm, "precision", "float32")
        return self.products(self.policy) if wanted == "auto" else Precision(wanted == "bfloat16")

    @property
    def overhead(self) -> int:
        """Return what a process takes before it holds a model."""
        return memory.CUDA_CONTEXT if self.machine.card is not None else memory.LIBRARIES

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of a weight that generates."""
        return memory.BFLOAT16 if self.recipe.policy.dtype == "bfloat16" else memory.FLOAT32

    @property
    def sequence(self) -> int:
        """Return the tokens of the longest prompt with the longest answer."""
        return self.prompt + self.recipe.sampling.max_tokens


def sizes_of(recipe: Recipe, machine: Machine, prompt: int) -> Sizes | None:
    """Return the sizes of a recipe's models; None if there is no `config.json` at hand for its policy."""
    start = recipe.policy.bootstrap
    policy = shape_of_bootstrap(start) if start else shape_of_model(str(recipe.policy.model))
    if policy is None:
        return None
    kind = recipe.reward.backbone
    backbone = policy if kind in ("previous", "policy", "start") else shape_of_model(kind)
    labelling = judges.load_spec(recipe.judge.file, recipe.judge_model)
    measuring = judges.load_spec(recipe.evaluate.judge) if recipe.evaluate.judge else labelling
    made = policy if recipe.judge.bootstrap else None
    return Sizes(recipe, machine, policy, backbone, _models(labelling, made), _models(measuring, made), prompt)


def longest_prompt(prompts: Sequence[Prompt]) -> int:
    """Return about how many tokens the longest prompt has."""
    return max(map(tokens_of, prompts), default=0)


def tokens_of(prompt: Prompt) -> int:
    """Return about how many tokens a prompt has, its template included."""
    return sum(len(message.content.encode()) // BYTES_PER_TOKEN + 8 for message in prompt.messages) + 8


def _models(spec: judges.JudgeSpec, made: Shape | None) -> tuple[Shape, ...]:
    """Return the sizes of a judge's own models that run here; `made` are those of a model that the run makes."""
    names = {str(part.model) for part in asking(spec) if part.endpoint is None and part.model not in (None, "policy")}
    found = (made or shape_of_model(name) for name in sorted(names))
    return tuple(one for one in found if one is not None)
