"""A recipe: one file, one run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selfplay.config.algorithms import Algorithm
from selfplay.config.base import Count, NonNegative, Positive, Section, Unit
from selfplay.config.data import Generate, Prompts, PromptSource, Sampling
from selfplay.config.judging import Judge
from selfplay.config.launch import Launch
from selfplay.config.models import Engine, Policy
from selfplay.config.ppo import PPO
from selfplay.config.rewards import AddedReward, Reward

ONLY_VALUES = (("n", 1), ("seed", 0), ("top_p", 1), ("top_k", 0))
"""What recipes written by version 0.1 say of `sampling` besides what may be set."""


class HeldoutSet(Section):
    """A further set of held-out prompts, and the judge that scores the answers to it by themselves."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """What the set is called in tables."""
    prompts: PromptSource
    """Its prompts, of which none may be a training prompt."""
    judge: str
    """A judge file whose judge scores single responses (pointwise, rubric, rules)."""
    temperature: NonNegative | None = None
    """Temperature of the answers; default `evaluate.temperature`."""


class Evaluate(Section):
    """Comparison with the policy before and with the start, on the held-out prompts."""

    judge: str | None = None
    """Judge file that measures; default the one that labels."""
    temperature: NonNegative = 1.0
    """Temperature of the held-out answers."""
    resamples: Annotated[int, Field(ge=2000)] = 2000
    """Bootstrap resamples over prompts behind every 95% interval."""
    best_of: Annotated[int, Field(ge=2)] | None = None
    """Measure best of n too: of so many answers to a held-out prompt, the one that the run's own reward scores highest,
    against the start and against a single answer of the same policy."""
    also: Annotated[tuple[HeldoutSet, ...], Field(strict=False)] = ()
    """Further held-out sets with judges of their own, [{name, prompts, judge}, ...], scored for the start and in each
    iteration: so a capability that falls is seen."""

    @model_validator(mode="after")
    def _check(self) -> "Evaluate":
        names = [one.name for one in self.also]
        if len(set(names)) < len(names):
            raise ValueError(f"evaluate.also has two sets of one name: {', '.join(names)}")
        return self


class Guard(Section):
    """When a policy games its judge instead of getting better, and what is done then (see docs/report.md)."""

    action: Literal["warn", "stop", "keep-best"] = "keep-best"
    """`warn` only reports and takes the last iteration as the best; `keep-best` takes the one with the highest win rate
    against the start by `evaluate.judge`; `stop` does so too, and ends the run at the first severe alarm."""
    patience: Count | None = None
    """End the run once so many iterations in a row did not beat the one before by `evaluate.judge` (lower bound of the 95%
    interval at most 0.5); null never does. `prompts.heldout` decides how small a gain that can see."""
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
    launch: Launch | None = None
    """Workers of Ray on one machine or many, such as `{workers: 8}`; null runs everything in this process."""
    prompts: Prompts = Prompts()
    policy: Policy
    engine: Engine = Engine()
    sampling: Sampling = Sampling()
    generate: Generate = Generate()
    judge: Judge = Judge()
    reward: Reward = Reward()
    algorithm: Algorithm = PPO()
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

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, tree: Any) -> Any:
        """Leave out settings of `sampling` that recipes once had to have at one value."""
        sampling = tree.get("sampling") if isinstance(tree, dict) else None
        if not isinstance(sampling, dict):
            return tree
        kept = {key: value for key, value in sampling.items() if (key, value) not in ONLY_VALUES}
        if {"top_p", "top_k"} & set(kept):
            raise ValueError("sampling.top_p and top_k bias PPO's importance ratio: leave them out")
        if {"n", "seed"} & set(kept):
            raise ValueError(
                "sampling.n and sampling.seed are set by each stage: say how many completions a prompt gets "
                "in generate.completions, and change `seed` for other random numbers"
            )
        return {**tree, "sampling": kept}

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        masked = self.algorithm.kind == "ppo" and self.algorithm.nlpo is not None
        if masked and self.engine.kind != "transformers":
            raise ValueError(
                f"algorithm.nlpo masks tokens in sampling, which engine.kind {self.engine.kind} cannot do: set it to transformers"
            )
        if masked and self.policy.lora is not None:
            raise ValueError("algorithm.nlpo copies the whole policy into its target: leave policy.lora out")
        if self.algorithm.kind == "ilql" and self.policy.lora is not None:
            raise ValueError(
                "algorithm.kind ilql adds its heads to the output embedding, which adapters leave as it is: leave "
                "policy.lora out"
            )
        if self.algorithm.kind == "ilql" and self.algorithm.heads == "mlp":
            if self.engine.kind != "transformers":
                raise ValueError(
                    f"algorithm.heads mlp changes every token's probabilities in sampling, which engine.kind {self.engine.kind} "
                    "cannot do: set it to transformers, or take linear heads"
                )
            if self.iterations > 1:
                raise ValueError(
                    f"algorithm.heads mlp leaves a policy that cannot be trained further, and iterations is {self.iterations}: "
                    "set it to 1, or take linear heads"
                )
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature is 0: greedy completions of one prompt are all the same, so there "
                "is nothing to compare; use a temperature above 0"
            )
        heldout, sources = self.prompts.heldout, self.prompts.train_sources
        if heldout is None and self.guard.patience is not None:
            raise ValueError(
                f"guard.patience is {self.guard.patience}, and prompts.heldout is null: nothing is measured that could end the "
                "run; name held-out prompts, or leave patience out"
            )
        other = next((one.source for one in sources if one.source != "stories"), None)
        given = "heldout" in self.prompts.model_fields_set
        if other is not None and not (given and (heldout is None or "source" in heldout.model_fields_set)):
            missing = "names no source" if given else "is not set"
            raise ValueError(
                f"prompts.train is {other!r}, and prompts.heldout {missing}: name the prompts to measure on, which must not "
                "be among those, or say null to measure nothing"
            )
        if isinstance(self.algorithm, PPO) and (self.algorithm.overlong_buffer or 0) > self.sampling.max_tokens:
            raise ValueError(
                f"algorithm.overlong_buffer is {self.algorithm.overlong_buffer}, more than sampling.max_tokens "
                f"{self.sampling.max_tokens}: make it a part of that, such as a fifth"
            )
        if heldout is not None and any((one.source, one.split) == (heldout.source, heldout.split) for one in sources):
            raise ValueError(
                f"prompts.train and prompts.heldout are the same ({heldout.source!r}, split "
                f"{heldout.split!r}): held-out prompts must not be trained on; name another file or split"
            )
        return self
