"""Who prefers what. A judge is one YAML file; `load_spec` reads it, `build` makes the judge.

spec = load_spec("stories")
judge = build(spec)                      # with a model: build(spec, engine, cache=Path("judge_cache.sqlite"))
verdicts = judge.judge(pairs)
preferences, counts = to_preferences(pairs, verdicts, spec)
"""

from judges.building import Judge, build
from judges.failures import JudgeStopped
from judges.results import health, settle, to_preferences
from judges.spec.load import digest, load_spec, shipped
from judges.spec.modes import JudgeSpec

__all__ = [
    "Judge",
    "JudgeSpec",
    "JudgeStopped",
    "build",
    "digest",
    "health",
    "load_spec",
    "settle",
    "shipped",
    "to_preferences",
]
