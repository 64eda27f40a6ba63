"""Text metrics as rewards: values by hand and from the libraries' own pages, references, and what is missing."""

import math
import sys
from pathlib import Path

import pytest
from tiny_run import write_recipe

from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.preflight import check
from selfplay.records import Completion, Prompt
from selfplay.rewards.metrics import MetricReward, references_of
from selfplay.rewards.sources import identity
from selfplay.storage.files import write_json_lines

FOX = "The quick brown fox jumps over the lazy dog"
LOG = "The quick brown dog jumps on the log."


def value(metric: str, text: str, reference: object) -> float:
    answer = Completion(id="p/0", prompt_id="p", text=text, finish_reason="stop", policy="test")
    [found] = MetricReward(metric, "target").score([Prompt.plain("p", "Say it.", target=reference)], [answer])
    return found


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # rouge-score's own page. 6 of 8 and of 9 words are shared: 2 (6/8) (6/9) / (6/8 + 6/9).
        ("rouge1", 0.7058823529411765),
        # "the quick brown jumps the" is in both in this order: 2 (5/8) (5/9) / (5/8 + 5/9)
        ("rougeL", 0.5882352941176471),
        # "the quick" and "quick brown", of 7 and 8 pairs: 2 (2/7) (2/8) / (2/7 + 2/8)
        ("rouge2", 4 / 15),
    ],
)
def test_rouge(metric: str, expected: float) -> None:
    assert value(metric, LOG, FOX) == pytest.approx(expected, abs=1e-12)
    assert value(metric, LOG, ["Something else.", FOX]) == pytest.approx(expected, abs=1e-12), "the nearest counts"


def test_bleu_by_hand() -> None:
    """Six tokens with the full stop, of seven. Shared runs: 6 of 6, 4 of 5, 2 of 4 ("bit the man", "the man ."), 1 of 3;
    brevity exp(1 - 7/6)."""
    expected = math.exp(1 - 7 / 6) * (1 * 4 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert value("bleu", "The dog bit the man.", "The dog had bit the man.") == pytest.approx(expected, abs=1e-9)
    assert value("bleu", "The dog bit the man.", ["No.", "The dog bit the man."]) == pytest.approx(1, abs=1e-9)


def test_chrf_by_hand() -> None:
    """abc and abd share 2 of 3 letters, 1 of 2 pairs and no triple: precision and recall (2/3 + 1/2 + 0) / 3."""
    assert value("chrf", "abc", "abd") == pytest.approx((2 / 3 + 1 / 2) / 3, abs=1e-9)


def test_diversity_by_hand() -> None:
    """Five words of which three are different; of four pairs, "a b" comes twice. It needs no reference."""
    assert value("distinct1", "A b. A b, c!", None) == pytest.approx(3 / 5, abs=1e-12)
    assert value("distinct2", "A b. A b, c!", None) == pytest.approx(3 / 4, abs=1e-12)
    assert value("distinct2", "alone", None) == 0


def test_one_metric_is_told_from_another_in_a_checkpoint() -> None:
    found = {identity(MetricReward(*pair)) for pair in (("bleu", "a"), ("bleu", "b"), ("chrf", "a"))}
    assert len(found) == 3


@pytest.mark.parametrize("meta", [{}, {"target": ""}, {"target": 3}, {"target": ["x", None]}, {"target": []}])
def test_a_prompt_without_a_reference_is_named(meta: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="prompt 'p7' has no reference .* column 'target' holds .*reward.reference"):
        references_of(Prompt.plain("p7", "Say it.", **meta), "target")


def recipe(folder: Path, reward: str) -> object:
    write_json_lines(folder / "train.jsonl", [{"prompt": f"Say {n}.", "wanted": f"{n}."} for n in range(200)])
    write_json_lines(folder / "heldout.jsonl", [{"prompt": f"Say {n}."} for n in range(200, 240)])
    places = [f"prompts.{name}={{source: {folder / name}.jsonl}}" for name in ("train", "heldout")]
    return load_recipe(write_recipe(folder), [*places, f"reward={reward}"])


def test_a_recipe_is_refused_before_work_where_references_or_packages_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(recipe(tmp_path, "{kind: metric, metric: rougeL, reference: wanted}"))  # type: ignore[arg-type]
    check(recipe(tmp_path, "{kind: metric, metric: distinct2}"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"has no reference .* column 'reference' holds None \(columns: wanted\)"):
        check(recipe(tmp_path, "{kind: metric, metric: rougeL}"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`metric` names the metric of kind metric, and only of that"):
        recipe(tmp_path, "{kind: metric}")
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    added = "{kind: judge, added: [{kind: metric, metric: rougeL, reference: wanted, weight: 0.5}]}"
    with pytest.raises(ConfigError, match=r"needs the package rouge_score.*pip install 'selfplay-loop\[metrics\]'"):
        check(recipe(tmp_path, added))  # type: ignore[arg-type]
