"""Judges that are a Python class of the user's own: built here, and held to what every judge promises."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from judges.spec.modes import PythonSpec
from judges.verdicts import stop_if_failing
from selfplay.engines import Engine
from selfplay.errors import ConfigError
from selfplay.objects import load_object
from selfplay.records import Completion, Pair, Prompt, Verdict


class PythonJudge:
    """A user's object with `judge(pairs)`, and if it can, `score(prompts, completions)`."""

    def __init__(self, spec: PythonSpec, engine: Engine | None = None) -> None:
        kind = load_object(spec.python)
        options = dict(spec.options) if spec.model is None else {**spec.options, "engine": engine}
        try:
            inspect.signature(kind).bind(**options)
        except TypeError as error:
            raise ConfigError(f"{spec.python} cannot be made with the options {sorted(options)}: {error}") from None
        self.spec, self.inner = spec, kind(**options)
        if not callable(getattr(self.inner, "judge", None)):
            raise ConfigError(f"{spec.python} has no method judge(pairs): a judge of your own needs one")

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The object's verdicts, of which each pair must have at least one. Raises ConfigError for anything else."""
        verdicts: Any = self.inner.judge(pairs)
        if not isinstance(verdicts, list) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
            raise ConfigError(f"{self.spec.python}: judge(pairs) must return a list of selfplay.records.Verdict")
        missing = {pair.id for pair in pairs} ^ {verdict.pair_id for verdict in verdicts}
        if missing:
            raise ConfigError(
                f"{self.spec.python}: judge(pairs) must return a verdict for each pair and no other; "
                f"{len(missing)} do not match, such as {sorted(missing)[0]!r}: where there is none, "
                "preference is None"
            )
        stop_if_failing(self.spec.name, verdicts, self.spec.on_error)
        return verdicts

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        """The object's scores, one number or None per completion. Raises ConfigError if it has none to give."""
        if not callable(getattr(self.inner, "score", None)):
            raise ConfigError(
                f"{self.spec.python} has no method score(prompts, completions), so it cannot score one response"
            )
        scores = list(self.inner.score(prompts, completions))
        if len(scores) != len(completions):
            raise ConfigError(f"{self.spec.python}: score gave {len(scores)} scores for {len(completions)} completions")
        return [float(score) if score is not None and math.isfinite(score) else None for score in scores]
