"""How checkpoints are compared: what the runs among them agree on, and what has to be said where they do not.

Nothing here depends on the order of the targets: what runs disagree on is refused, and what changes no verdict (seed,
engine) is taken by a rule that sees all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import judges
from selfplay.config import Engine as EngineConfig
from selfplay.config import PromptSource, Recipe, SamplingParams
from selfplay.errors import ConfigError
from selfplay.storage.files import derived_seed


@dataclass(frozen=True)
class Given:
    """What the user says about a comparison; `None` leaves it to the runs."""

    prompts: PromptSource | None = None
    judge: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    sampling: SamplingParams | None = None
    engine: EngineConfig | None = None

    def sampling_of(self, own: SamplingParams) -> SamplingParams:
        """Return how to sample, where the runs would sample so."""
        changes = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return (self.sampling or own).model_copy(
            update={key: value for key, value in changes.items() if value is not None}
        )


@dataclass(frozen=True)
class Settings:
    """How checkpoints are compared: everything that the answers and the verdicts depend on."""

    prompts: PromptSource
    judge: str
    judge_model: str | None
    """What answers for the run's labelling judge, or for another whose file names no model."""
    labelling: bool
    """Whether `judge` is the one that labelled."""
    sampling: SamplingParams
    engine: EngineConfig
    dtype: str
    seed: int

    def facts(self, spec: judges.JudgeSpec, prompts: int) -> dict[str, Any]:
        """Return what stands above every table: judge, prompts, n, temperature and the rest that answers depend on."""
        model = getattr(spec, "model", None)
        source = self.prompts.source if self.prompts.split == "train" else f"{self.prompts.source}/{self.prompts.split}"
        return {
            "judge": f"{spec.name} (version {spec.version}{f', model {model}' if model else ''})",
            "prompts": source,
            "n": prompts,
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
            "seed": self.seed,
        }


def settings_of(trained: Sequence[Recipe], given: Given | None = None, like: Recipe | None = None) -> Settings:
    """Return what is given, and for the rest what the runs' recipes agree on, or what `like` says where it is named.

    Raises ConfigError for what nothing says, and for what the runs differ in, naming each.
    """
    given = given or Given()
    asked = [like] if like is not None else list(trained)
    if not asked:
        if given.prompts is None or given.judge is None:
            raise ConfigError(
                "without a run among the checkpoints, say what to ask and who judges: --prompts FILE --judge FILE"
            )
        sampling, engine = given.sampling_of(SamplingParams()), given.engine or EngineConfig()
        return Settings(given.prompts, given.judge, None, False, sampling, engine, "float32", 0)
    each = {str(recipe.output or recipe.name): _settings_of(recipe, given) for recipe in asked}
    _refuse_differences(each)
    return min(each.values(), key=lambda one: (one.seed, one.engine.kind, one.dtype, str(one)))


def _settings_of(recipe: Recipe, given: Given) -> Settings:
    """Return what is given, and for the rest what one run's recipe says."""
    seed = derived_seed(recipe.seed, "generate", "heldout")
    own = SamplingParams.of(recipe.sampling, temperature=recipe.evaluate.temperature, seed=seed)
    file = given.judge or recipe.evaluate.judge or recipe.judge.file
    prompts = given.prompts or recipe.prompts.heldout
    if prompts is None:
        raise ConfigError(
            f"the recipe of {str(recipe.directory)!r} has no prompts to measure on (prompts.heldout is null): say what to "
            "ask with --prompts FILE"
        )
    return Settings(
        prompts,
        file,
        recipe.judge_model,
        file == recipe.judge.file,
        given.sampling_of(own),
        given.engine or recipe.engine,
        recipe.policy.dtype,
        recipe.seed,
    )


def _refuse_differences(each: dict[str, Settings]) -> None:
    """Raise ConfigError if runs differ in what a comparison depends on."""
    if len(each) < 2:
        return
    looked_at: dict[str, tuple[Callable[[Settings], Any], str]] = {
        "judge": (_judge_of, "--judge"),
        "held-out prompts": (lambda one: _prompts_of(one.prompts), "--prompts"),
        "temperature": (lambda one: one.sampling.temperature, "--temperature"),
        "max_tokens": (lambda one: one.sampling.max_tokens, "--max-tokens"),
        "stop": (lambda one: one.sampling.stop, "--like"),
        "top_p and top_k": (lambda one: (one.sampling.top_p, one.sampling.top_k), "--like"),
    }
    found, options = [], []
    for name, (of, option) in looked_at.items():
        values = {run: of(one) for run, one in each.items()}
        if len(set(values.values())) > 1:
            shown = (
                f"{run}: {value if name != 'judge' else f'{each[run].judge}, {value}'}" for run, value in values.items()
            )
            found.append(f"{name} ({', '.join(shown)})")
            options.append(option)
    if found:
        run = next(iter(each))
        give = " ".join(f"{option} ..." for option in dict.fromkeys(options) if option != "--like")
        say = f"say which with {give}, or take" if give else "take"
        raise ConfigError(
            f"the runs' recipes differ in what a comparison depends on: {'; '.join(found)}; {say} all from one run with "
            f"--like {run}"
        )


def _judge_of(one: Settings) -> str:
    """Return a run's judge by content: two files that do the same are one judge."""
    spec = judging(one)
    model = getattr(spec, "model", None)
    return f"{f'model {model}, ' if model else ''}sha256 {judges.digest(spec)[:12]}"


def judging(settings: Settings) -> judges.JudgeSpec:
    """Return the judge's file, asked in both orders whatever it says; with the recipe's model if it labelled or names none."""
    spec = judges.load_spec(settings.judge)
    if settings.judge_model and spec.needs_model and (settings.labelling or getattr(spec, "model", None) is None):
        spec = spec.model_copy(update={"model": settings.judge_model})
    if getattr(spec, "model", None) == "policy":
        raise ConfigError(
            f"judge {spec.name!r} is the policy itself, and here there are several: name a judge with a model "
            "of its own with --judge"
        )
    return spec.model_copy(update={"order": "both"}) if hasattr(spec, "order") else spec


def _prompts_of(source: PromptSource) -> str:
    """Return a source's name, split, column and limit, and what else of it is set."""
    usual = PromptSource()
    return " ".join(
        str(value)
        for name, value in source.model_dump().items()
        if name in ("source", "split", "column", "limit") or value != getattr(usual, name)
    )
