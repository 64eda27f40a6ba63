"""Text metrics as rewards: how near a response is to the prompt's reference, or how varied it is in itself. Imports no torch.

ROUGE by rouge-score, BLEU and chrF by sacrebleu, per response and in [0, 1], as in RL4LMs (Ramamurthy et al. 2022). Left
out: metrics that need a model (BERTScore, BLEURT), which fit behind `kind: python`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from selfplay.errors import ConfigError
from selfplay.objects import shown
from selfplay.records import Completion, Prompt
from selfplay.stats.diversity import distinct_n

PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}
"""Beginning of a metric's name -> the module that computes it."""


def package_of(metric: str) -> str | None:
    """Return the module that a metric needs, None for those of our own."""
    return next((module for name, module in PACKAGES.items() if metric.startswith(name)), None)


class MetricReward:
    """A metric's value for each response, against the column `reference` of its prompt if the metric needs one."""

    def __init__(self, metric: str, reference: str) -> None:
        self.metric, self.reference = metric, reference
        self.compare = None if metric.startswith("distinct") else _comparison(metric)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Completion]) -> list[float]:
        """Return one value in [0, 1] per response. Raises ConfigError for a prompt without a reference.

        With several references ROUGE takes the nearest one; BLEU and chrF have a rule of their own. A response without an
        n-gram has diversity 0.
        """
        if self.compare is None:
            n = int(self.metric.removeprefix("distinct"))
            return [distinct_n([response.text], n) or 0.0 for response in responses]
        return [
            self.compare(response.text, references_of(prompt, self.reference))
            for prompt, response in zip(prompts, responses, strict=True)
        ]


def references_of(prompt: Prompt, column: str) -> list[str]:
    """Return the references of a prompt, one or several. Raises ConfigError if its column holds none."""
    value = prompt.meta.get(column)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) and one for one in found):
        columns = ", ".join(sorted(prompt.meta)) or "none"
        raise ConfigError(
            f"prompt {prompt.id!r} has no reference to compare with: its column {column!r} holds {shown(value)} (columns: "
            f"{columns}); name the column of texts with reward.reference"
        )
    return list(found)


def _comparison(metric: str) -> Callable[[str, list[str]], float]:
    """Return a function from a response and its references to the metric."""
    try:
        if metric.startswith("rouge"):
            from rouge_score.rouge_scorer import RougeScorer

            scorer = RougeScorer([metric], use_stemmer=True)
            return lambda text, references: float(scorer.score_multi(references, text)[metric].fmeasure)
        import sacrebleu
    except ImportError:
        raise ConfigError(
            f"the reward {metric} needs the package {package_of(metric)}, which is not installed: "
            "pip install 'selfplay-loop[metrics]'"
        ) from None
    compute: Any = sacrebleu.sentence_bleu if metric == "bleu" else sacrebleu.sentence_chrf
    return lambda text, references: float(compute(text, references).score) / 100
