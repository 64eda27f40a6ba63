"""The front matter of a model card, which the hub reads: license, base model, datasets, and results as `model-index`."""

from pathlib import Path
from typing import Any

import yaml

from prompts.files import names_file
from prompts.sources import BUILT_IN_PROMPTS
from selfplay.config import Recipe
from selfplay.results.run import RATES, Iteration, RunData


def front_matter(run: RunData, recipe: Recipe, one: Iteration, license: str | None = None) -> str:
    """Return it as YAML between two lines of dashes. `license` defaults to that of a base model on this machine."""
    base = recipe.policy.model
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": license or _license_of(base) or "unknown",
        "tags": ["selfplay", recipe.algorithm.kind, "rlaif"],
    }
    if base and not base.startswith((".", "/", "~")):
        found["base_model"] = base
    if datasets := _datasets(recipe):
        found["datasets"] = datasets
    if results := _results(run, recipe, one):
        found["model-index"] = [{"name": f"{run.name}, iteration {one.number}", "results": results}]
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True)}---"


def _license_of(base: str | None) -> str | None:
    """Return the license in the card of a base model that is a folder here; `None` where that does not say."""
    file = Path(base or "") / "README.md"
    if not base or not file.is_file():
        return None
    _, dashes, rest = file.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        head = yaml.safe_load(rest.partition("\n---")[0]) if dashes else None
    except yaml.YAMLError:
        return None
    return str(head["license"]) if isinstance(head, dict) and head.get("license") else None


def _datasets(recipe: Recipe) -> list[str]:
    """Return the hub's datasets among the sources: neither built in nor files."""
    made = recipe.policy.bootstrap
    taught = made.sft if made else recipe.policy.sft
    asked = [source.source for source in recipe.prompts.train_sources]
    sources = [*asked, taught.source if taught else "", made.corpus if made else ""]
    return [
        source
        for source in dict.fromkeys(sources)
        if source
        and source not in BUILT_IN_PROMPTS
        and not names_file(source)
        and not Path(source).exists()
        and not source.startswith((".", "/", "~"))
    ]


def _results(run: RunData, recipe: Recipe, one: Iteration) -> list[dict[str, Any]]:
    """Win rates as the hub shows results: shares in [0, 1], by which judge, on which prompts."""
    judge = recipe.evaluate.judge or recipe.judge.file
    heldout = recipe.prompts.heldout
    if heldout is None:
        return []
    names = ("Win rate against the start", "Win rate against the iteration before")
    metrics = [
        {"type": "win_rate", "name": f"{name}, judge {Path(judge).stem}", "value": round(rate.win_rate, 4)}
        for name, key in zip(names, RATES, strict=True)
        if (rate := run.win_rate(one, key)) is not None and rate.win_rate is not None
    ]
    if not metrics:
        return []
    return [
        {
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {"type": heldout.source, "name": f"{heldout.source}, held out", "split": heldout.split},
            "metrics": metrics,
        }
    ]
