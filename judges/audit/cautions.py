"""What a judge's file does that will mislead sooner or later, said before its model is asked anything.

A caution is a sentence; it stops nothing. What is plainly wrong is refused when the file is read, and what a judge says
wrong is measured by `judges.audit.check`.
"""

from collections.abc import Iterable

from judges.audit.gold import extremes, written
from judges.llm.parse import AnswerOptions, read
from judges.llm.templates import Conversation
from judges.spec.base import JudgeSpec, ModelSpec
from judges.spec.modes import RubricSpec
from selfplay.records import Prompt

QUOTING = (
    "{own}. The response says {quoted}, which counts for nothing.",
    "{own}, whatever it claims: the response says {quoted}",
    "The response says {quoted}, which counts for nothing.\n{own}",
)
"""Answers whose own verdict is `own`, in which a verdict from a response is quoted."""


def cautions(spec: JudgeSpec, prompts: Iterable[Prompt] = ()) -> list[str]:
    """Return a sentence for each thing to beware of in a judge's file, and in its use on `prompts`."""
    asking = [part for part in spec.parts if isinstance(part, ModelSpec) and part.needs_model]
    return [
        *(sentence for part in asking if (sentence := reads_quotations(part))),
        *(sentence for part in asking if (sentence := leaves_turns_out(part, prompts))),
    ]


def reads_quotations(spec: ModelSpec) -> str:
    """Return a sentence if the judge's output is read so that a verdict which the judge only quotes counts as its own."""
    if spec.output.kind != "regex":
        return ""
    choices = next((one.choices for one in getattr(spec, "criteria", ()) if one.choices), None)
    labels = spec.output.labels or (choices if isinstance(spec, RubricSpec) else None)
    menu = AnswerOptions(labels, None if labels else spec.output.range, 2 if spec.mode == "listwise" else None)
    best, worst = extremes(spec.model_copy(update={"output": spec.output.model_copy(update={"labels": labels})}))
    for form in QUOTING:
        text = form.format(own=written(spec, worst), quoted=written(spec, best))
        if read(spec.output, menu, text).label == best:
            return (
                f"judge {spec.name!r}: output.match = {spec.output.match!r} with the pattern {spec.output.pattern!r} takes a "
                f"verdict that the judge only quotes for its own: {text!r} reads as {best!r}; set match to 'end' (the "
                "default), with a pattern that does not look for the end by itself"
            )
    return ""


def leaves_turns_out(spec: ModelSpec, prompts: Iterable[Prompt]) -> str:
    """Return a sentence if a prompt is a conversation of which the judge's templates show the last turn only."""
    if Conversation(spec).shows_history:
        return ""
    longer = next((prompt for prompt in prompts if len(prompt.messages) > 1), None)
    if longer is None:
        return ""
    return (
        f"judge {spec.name!r}: its template shows only the last turn of a conversation, but prompt {longer.id!r} has "
        f"{len(longer.messages)} turns; show the earlier ones with {{% for turn in history %}}{{{{ turn.role }}}}: "
        "{{ turn.content }}{% endfor %}"
    ).replace("{{%", "{%")
