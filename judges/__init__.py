"""Who prefers what. A judge is one YAML file; `load_spec` reads it, `build` makes the judge.

spec = load_spec("stories")
judge = build(spec)                      # with a model: build(spec, engine, cache=Path("judge_cache.sqlite"))
verdicts = judge.judge(pairs)
preferences, counts = to_preferences(pairs, verdicts, spec)
"""

from judges.build import Judge, build
from judges.consistency import health
from judges.spec.base import JudgeSpec
from judges.spec.load import digest, load_spec, shipped
from judges.verdicts import aggregate_verdicts, to_preferences
from selfplay.errors import JudgeStopped

__all__ = [
    "Judge",
    "JudgeSpec",
    "JudgeStopped",
    "aggregate_verdicts",
    "build",
    "digest",
    "health",
    "load_spec",
    "shipped",
    "to_preferences",
]
