"""Judges that are a Python class of the user's own: built here, and held to what every judge promises."""

import inspect
from collections.abc import Sequence
from typing import Any, get_args

from judges.spec.modes import PythonSpec
from judges.verdicts import stop_if_failing, stop_if_unscored
from selfplay.engines import Engine
from selfplay.errors import ConfigError
from selfplay.objects import call, listed, load_object, numbers, require_text, shown
from selfplay.records import Completion, Order, Pair, Prompt, Verdict

ORDERS: tuple[str, ...] = get_args(Order)


class PythonJudge:
    """A user's object with `judge(pairs)`, and if it can, `score(prompts, completions)`."""

    def __init__(self, spec: PythonSpec, engine: Engine | None = None) -> None:
        kind = load_object(spec.python)
        options = dict(spec.options) if spec.model is None else {**spec.options, "engine": engine}
        try:
            inspect.signature(kind).bind(**options)
        except TypeError as error:
            raise ConfigError(f"{spec.python} cannot be made with the options {sorted(options)}: {error}") from None
        self.spec, self.inner = spec, call(spec.python, kind, **options)
        if not callable(getattr(self.inner, "judge", None)):
            raise ConfigError(f"{spec.python} has no method judge(pairs): a judge of your own needs one")

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return the object's verdicts, of which each pair must have at least one. Raises ConfigError for anything else."""
        name = f"{self.spec.python}: judge(pairs)"
        verdicts = call(name, self.inner.judge, pairs)
        if not isinstance(verdicts, list):
            raise ConfigError(f"{name} returned {shown(verdicts)}; it must return a list of selfplay.records.Verdict")
        for verdict in verdicts:
            _check(name, verdict)
        missing = {pair.id for pair in pairs} ^ {verdict.pair_id for verdict in verdicts}
        if missing:
            raise ConfigError(
                f"{name} must return a verdict for each pair and no other; it returned {len(verdicts)} for {len(pairs)} "
                f"pairs, and {len(missing)} do not match, such as {sorted(missing)[0]!r}: where there is none, "
                "preference is None"
            )
        stop_if_failing(self.spec.name, verdicts, self.spec.on_error)
        return verdicts

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        """Return the object's scores, a number in [0, 1] or None per completion.

        Raises ConfigError for anything else, and JudgeStopped for more None than `on_error.max_failure_rate` allows.
        """
        if not callable(getattr(self.inner, "score", None)):
            raise ConfigError(
                f"{self.spec.python} has no method score(prompts, completions), so it cannot score one response"
            )
        name = f"{self.spec.python}: score(prompts, completions)"
        rows = [
            f"prompt {prompt.id!r}, response {shown(completion.text)}"
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        scores = listed(name, call(name, self.inner.score, prompts, completions), rows, "number or None")
        given = [(row, score) for row, score in zip(rows, scores, strict=True) if score is not None]
        wanted = "a number in [0, 1], or None where there is no score"
        numbers(name, [score for _, score in given], [row for row, _ in given], wanted, lambda value: 0 <= value <= 1)
        stop_if_unscored(self.spec, prompts, ["score is None" if score is None else "" for score in scores])
        return [None if score is None else float(score) for score in scores]


def _check(name: str, verdict: Any) -> None:
    """Raise ConfigError for what is not a verdict that can be kept, however it was made."""
    if not isinstance(verdict, Verdict):
        raise ConfigError(f"{name} returned {shown(verdict)} in its list; each must be a selfplay.records.Verdict")
    held = vars(verdict)  # model_construct checks nothing, and need not set a field
    row, value, order = f"pair {shown(held.get('pair_id'))}", held.get("preference"), held.get("order")
    for field in ("pair_id", "judge", "reason", "raw", "error"):
        require_text(name, row, field, held.get(field))
    if order not in ORDERS:
        raise ConfigError(f"{name} returned the order {shown(order)} for {row}; it must be one of {', '.join(ORDERS)}")
    if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ConfigError(f"{name} returned the preference {shown(value)} for {row}; it must be in [0, 1], or None")
