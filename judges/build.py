"""From a judge file's spec to a judge that can be asked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from judges.llm.cache import AnswerCache
from judges.llm.client import Asker
from judges.modes.jury import JuryJudge
from judges.modes.listwise import ListwiseJudge
from judges.modes.pairwise import PairwiseJudge
from judges.modes.pointwise import PointwiseJudge, RubricJudge
from judges.modes.python import PythonJudge
from judges.modes.rules import RulesJudge
from judges.spec.base import JudgeSpec, ModelSpec
from judges.spec.modes import JurySpec, ListwiseSpec, PairwiseSpec, PointwiseSpec, PythonSpec, RubricSpec, RulesSpec
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
    if isinstance(spec, RulesSpec):
        return RulesJudge(spec)
    answers = cache if isinstance(cache, AnswerCache) else AnswerCache(cache)
    if isinstance(spec, JurySpec):
        members = [member.spec.lenient() for member in spec.members]
        return JuryJudge(
            spec, [build(one, engine, answers, seed=seed, weights=weights, advance=advance) for one in members]
        )
    opened = None
    if engine is not None and spec.needs_model:
        opened = cast(Engine, engine) if hasattr(engine, "generate") else cast(Callable[..., Engine], engine)(spec)
    if isinstance(spec, PythonSpec):
        return PythonJudge(spec, opened)
    if not isinstance(spec, ModelSpec):
        raise ConfigError(f"judge {spec.name!r} has the mode {spec.mode!r}, which cannot be built")
    behind = weights.get(spec.model or "", "")
    kept = AnswerCache() if spec.model == "policy" and not behind else answers
    asker = Asker(spec, opened, kept, seed, behind, advance) if opened else None
    if isinstance(spec, RubricSpec):
        return RubricJudge(spec, asker, seed)
    assert asker is not None
    if isinstance(spec, PairwiseSpec):
        return PairwiseJudge(spec, asker, seed)
    if isinstance(spec, ListwiseSpec):
        return ListwiseJudge(spec, asker, seed)
    return PointwiseJudge(cast(PointwiseSpec, spec), asker, seed)


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
