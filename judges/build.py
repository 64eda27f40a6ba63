"""From a judge file's spec to a judge that can be asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from judges.llm.cache import AnswerCache
from judges.llm.client import Asker
from judges.modes.jury import JuryJudge
from judges.modes.listwise import ListwiseJudge
from judges.modes.pairwise import PairwiseJudge
from judges.modes.pointwise import PointwiseJudge, RubricJudge
from judges.modes.python import PythonJudge
from judges.modes.rules import RulesJudge
from judges.spec.base import JudgeSpec
from judges.spec.modes import JurySpec
from selfplay.engines import Engine
from selfplay.errors import ConfigError
from selfplay.records import Pair, Verdict

Opener = Callable[[JudgeSpec], Engine]
Advance = Callable[[int], None]
NONE_KNOWN: Mapping[str, str] = {}


class Judge(Protocol):
    """Says which response of a pair is better. Those whose spec `scores` also have
    `score(prompts, completions) -> list[float | None]`, in [0, 1]."""

    @property
    def spec(self) -> JudgeSpec:
        """The judge's file."""
        ...

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair and order, in the order of the pairs.

        Raises JudgeStopped if more of them cannot be read than the judge's file allows.
        """
        ...


def build(
    spec: JudgeSpec,
    engine: Engine | Opener | None = None,
    cache: Path | AnswerCache | None = None,
    *,
    seed: int = 0,
    weights: Mapping[str, str] = NONE_KNOWN,
    advance: Advance = lambda count: None,
) -> Judge:
    """Return a judge as its file says.

    `engine` answers for the judge's model; a jury whose members have different models takes a function from a member's
    spec to its engine. `cache` is a sqlite file that keeps every answer. `seed` draws orders and principles. `weights`
    tells models whose name may come to stand for other weights apart in the cache: name -> such as a hash of its
    checkpoint. Without it, what the model `policy` says is not kept in `cache`, since the next iteration's would be
    mistaken for it. `advance(count)` is called as questions are settled. Raises ConfigError if the judge
    needs a model and has none, or if Python that it names cannot be found.
    """
    check_engine(spec, engine)
    answers = cache if isinstance(cache, AnswerCache) else AnswerCache(cache)
    return JUDGES[spec.mode](spec, Parts(engine, answers, seed, weights, advance))


@dataclass(frozen=True)
class Parts:
    """What judges are made of beside their files; see `build`."""

    source: Engine | Opener | None
    answers: AnswerCache
    seed: int
    weights: Mapping[str, str]
    advance: Advance

    def engine(self, spec: Any) -> Engine | None:
        """Return the engine of a judge's model, if it has one."""
        if self.source is None or not spec.needs_model:
            return None
        return cast(Engine, self.source) if hasattr(self.source, "generate") else self.source(spec)

    def asker(self, spec: Any) -> Asker:
        """Return what asks a judge's model."""
        engine, behind = self.engine(spec), self.weights.get(spec.model or "", "")
        assert engine is not None
        kept = AnswerCache() if spec.model == "policy" and not behind else self.answers
        return Asker(spec, engine, kept, self.seed, behind, self.advance)

    def members(self, spec: JurySpec) -> list[Judge]:
        """Return a jury's judges, each of which is asked to the end."""
        return [JUDGES[one.mode](one, self) for one in (member.spec.lenient() for member in spec.members)]


JUDGES: dict[str, Callable[[Any, Parts], Judge]] = {
    "pairwise": lambda spec, parts: PairwiseJudge(spec, parts.asker(spec), parts.seed),
    "pointwise": lambda spec, parts: PointwiseJudge(spec, parts.asker(spec), parts.seed),
    "listwise": lambda spec, parts: ListwiseJudge(spec, parts.asker(spec), parts.seed),
    "rubric": lambda spec, parts: RubricJudge(spec, parts.asker(spec) if spec.needs_model else None, parts.seed),
    "rules": lambda spec, parts: RulesJudge(spec),
    "jury": lambda spec, parts: JuryJudge(spec, parts.members(spec)),
    "python": lambda spec, parts: PythonJudge(spec, parts.engine(spec)),
}
"""`mode` -> how a judge is built. Its settings are in `judges.spec.modes.MODES`, under the same name."""


def check_engine(spec: JudgeSpec, engine: Engine | Opener | None) -> None:
    """Raise ConfigError if the judge needs a model and there is none, or needs several and there is one."""
    asking = [part for part in spec.parts if part.needs_model and not isinstance(part, JurySpec)]
    if asking and engine is None:
        raise ConfigError(
            f"judge {asking[0].name!r} asks a language model, but there is none: set judge.model in the "
            "recipe, or `model` in the judge's file"
        )
    models = {(getattr(part, "model", None), getattr(part, "revision", None)) for part in asking}
    if len(models) > 1 and hasattr(engine, "generate"):
        names = ", ".join(sorted(str(model) for model, _ in models))
        raise ConfigError(
            f"judge {spec.name!r} asks {len(models)} models ({names}) but got one engine: pass a "
            "function from a member's spec to its engine"
        )
