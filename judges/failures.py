"""When judging stops: too many answers that cannot be read, or a judge that fails its own thresholds."""

from collections.abc import Sequence
from itertools import islice

from judges.sections import OnError
from judges.spec import JudgeSpec
from selfplay.config import ConfigError
from selfplay.records import Prompt, Verdict

EXAMPLES = 3


class JudgeStopped(ConfigError):
    """Judging was given up. The message is for the user and says why, with examples of what the judge said."""


def stop_if_failing(judge: str, verdicts: Sequence[Verdict], rule: OnError, expected: int | None = None) -> None:
    """Raise JudgeStopped if more verdicts are unscored than the judge's file allows.

    With `expected`, the number of verdicts there will be in the end, it can stop as soon as the end is certain.
    """
    failed = [verdict for verdict in verdicts if verdict.preference is None]
    total = expected or len(verdicts)
    if not failed or (rule.action == "drop" and len(failed) <= rule.max_failure_rate * total):
        return
    shown = "; ".join(
        f"{verdict.error}: {verdict.raw[:160]!r}" if verdict.raw else f"{verdict.error} ({verdict.pair_id})"
        for verdict in islice({verdict.error: verdict for verdict in failed}.values(), EXAMPLES)
    )
    allowed = f"on_error.max_failure_rate is {rule.max_failure_rate:g}"
    if rule.action == "abort":
        allowed = "on_error.action is abort"
    raise JudgeStopped(
        f"judge {judge!r} gave no verdict on {len(failed)} of {total} ({allowed}): {shown}; see what it "
        "is asked and says with `selfplay judge try`"
    )


def stop_if_unscored(spec: JudgeSpec, prompts: Sequence[Prompt], errors: Sequence[str]) -> None:
    """Raise JudgeStopped if more responses have no score than the judge's file allows; an empty error is a score."""
    verdicts = [
        Verdict(
            pair_id=f"response to {prompt.id}",
            judge=spec.name,
            order="none",
            preference=None if error else 0.5,
            error=error,
        )
        for prompt, error in zip(prompts, errors, strict=True)
    ]
    stop_if_failing(spec.name, verdicts, spec.on_error)
