"""A run as one HTML file that works offline and can be sent: verdict first, then curves, matches, judge, transcripts.

`write_report` reads what is on disk (`gather`), decides what to show (`panels`, `transcripts`) and fills one template.
The page may run its own script and style, named by hash in its content security policy, and ask the network for
nothing; every text of a model, a prompt or a recipe is escaped. Left out on purpose: plotly and any other library.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2

from selfplay.formatting import display_name, facts_text, shortened
from selfplay.guard.selection import assess_run
from selfplay.report import plots as panels
from selfplay.report import tables
from selfplay.report.headline import headline, lead
from selfplay.report.transcripts import thinned, transcripts, visible
from selfplay.results.load import read_run
from selfplay.results.run import Match, RunData
from selfplay.results.seeds import BetweenSeeds
from selfplay.stats.summary import Category, Summary
from selfplay.stats.votes import VoteTable
from selfplay.storage import durable

MOST_BYTES = 8_000_000
"""Most bytes of transcripts in a report; of more, an even selection is shown, and the page says so."""


def write_report(run_directory: Path, output: Path | None = None) -> Path:
    """Write the report of a run, also of one that goes on, to `output` (default RUN/report.html); returns its path.

    Raises ConfigError if the directory holds no run.
    """
    path = Path(output) if output is not None else Path(run_directory) / "report.html"
    durable.write(path, render_report(read_run(run_directory)))
    return path


def render_report(run: RunData, *, live: bool = False) -> str:
    """Return the page. `live` adds a script that reloads it when the run has gone on, for `serve_report`."""
    css, early, script = (_page(name) for name in ("report.css", "early.js", "report.js"))
    script += _page("live.js") if live else ""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_page("report.html.j2"))
    policy = content_policy(css, early, script, live=live)
    return template.render(css=css, early_script=early, script=script, policy=policy, live=live, **context(run))


def write_comparison(run: RunData, output: Path) -> Path:
    """Write the report of a comparison that has no run of its own (see `as_run`); returns its path."""
    durable.make_folder(output.parent)
    durable.write(output, render_report(run))
    return output


def as_run(
    name: str,
    source: str | Path,
    *,
    matches: Sequence[Match] = (),
    votes: VoteTable | None = None,
    found: Summary | None = None,
    facts: Mapping[str, Any] | None = None,
    categories: Sequence[Category] = (),
    seeds: Sequence[BetweenSeeds] = (),
) -> RunData:
    """Wrap matches or votes as a run without iterations, for the report; `source` says where they come from."""
    return RunData(
        path=Path(source),
        models=tuple(found.models) if found else (),
        found=found,
        facts=facts or {},
        categories=tuple(categories),
        seeds=tuple(seeds),
        config_text="",
        config={"name": name},
        provenance={},
        iterations=(),
        metrics=(),
        matches=tuple(matches),
        votes=votes,
    )


def content_policy(css: str, *scripts: str, live: bool = False) -> str:
    """Return the page's content security policy: its own style and scripts by their hash, and nothing else."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    allowed = [
        "default-src 'none'",
        f"style-src {hashed(css)}",
        f"script-src {' '.join(map(hashed, scripts))}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join([*allowed, "connect-src 'self'"] if live else allowed)


def _page(name: str) -> str:
    return (resources.files("selfplay.report") / "page" / name).read_text(encoding="utf-8")


def context(run: RunData) -> dict[str, Any]:
    """Everything that the template shows."""
    return {
        "run": run,
        "path": str(run.path),
        "version": _version(),
        **_top(run),
        **_iterations(run),
        **_comparison(run),
        **_facts(run),
        **_work(run),
        **transcript_context(run),
    }


def _top(run: RunData) -> dict[str, Any]:
    """Return the verdict and the alarms."""
    assessment = assess_run(run)
    numbers = [iteration.number for iteration in run.iterations]
    best = assessment.best_iteration if run.summary else None
    return {
        "tags": [visible(tag) for tag in run.notes.get("tags", [])],
        "notes": [(visible(note["time"]), visible(note["text"])) for note in run.notes.get("notes", [])],
        "headline": headline(run, assessment),
        "lines": lead(run, assessment),
        "alarms": sorted(assessment.alarms, key=lambda alarm: (not alarm.severe, alarm.iteration)),
        "started": str(run.provenance.get("started") or "").replace("T", " ")[:16],
        "best_column": numbers.index(best) if best in numbers else None,
    }


def _iterations(run: RunData) -> dict[str, Any]:
    """Numbers and curves per iteration, and reward against win rate."""
    evaluate = run.config.get("evaluate") or {}
    return {
        "columns": [display_name(iteration.name) for iteration in run.iterations],
        "iteration_table": tables.iteration_table(run),
        "seeds_table": tables.seeds_table(run.seeds),
        "iteration_figures": panels.iteration_figures(run),
        "resamples": evaluate.get("resamples") or 2000,
        "overoptimisation": panels.overoptimisation_figures(run),
        "labelling": run.labelling_judge,
        "measuring": str(evaluate.get("judge") or run.labelling_judge),
    }


def _facts(run: RunData) -> dict[str, Any]:
    """Return what stands above every table: judge, prompts, n, temperature."""
    found: Mapping[str, Any] = run.facts
    if not found and run.summary is not None and run.iterations:
        evaluate, heldout = run.config.get("evaluate") or {}, (run.config.get("prompts") or {}).get("heldout") or {}
        found = {
            "judge": evaluate.get("judge") or run.labelling_judge,
            "prompts": " ".join(str(heldout[key]) for key in ("source", "split") if heldout.get(key)) or "held-out",
            "n": run.summary.prompts,
            "temperature": evaluate.get("temperature", 1.0),
        }
    return {"facts": visible(facts_text(found))}


def _comparison(run: RunData) -> dict[str, Any]:
    """Return every checkpoint against every other, and the labelling judge."""
    return {
        "comparison": tables.comparison_table(run),
        "comparison_figures": panels.comparison_figures(run),
        "cycles": tables.cycle_sentences(run.summary) if run.summary else [],
        "groups": tables.group_sentences(run.summary) if run.summary else [],
        "category_columns": [f"{one.value} ({one.prompts:,})" for one in run.categories],
        "category_table": tables.category_table(run),
        "writing_columns": [display_name(name) for name in run.profiles],
        "writing_table": tables.writing_table(run),
        "health": tables.health_table(run),
        "health_columns": [display_name(iteration.name) for iteration in run.iterations if iteration.health],
    }


def _work(run: RunData) -> dict[str, Any]:
    """Training curves, time, and where the run came from."""
    stages = panels.stages_of(run)
    rewards = [
        (f"{display_name(one.name)}: {key}", visible(value))
        for one in run.iterations
        for key, value in tables.flat_facts(one.reward or {})
    ]
    return {
        "steps": panels.step_figures(run, main=True),
        "other_steps": panels.step_figures(run, main=False),
        "time_figure": panels.time_figure(run),
        "time_table": tables.time_table(run, stages),
        "spent": tables.spent_table(run),
        "reward_facts": rewards,
        "time_columns": [display_name(iteration.name) for iteration in run.iterations if iteration.seconds],
        "provenance": [(key, visible(value)) for key, value in tables.flat_facts(run.provenance)],
        "config_text": visible(run.config_text),
    }


def transcript_context(run: RunData) -> dict[str, Any]:
    """Return the transcripts that fit, what they can be filtered by, and a sentence on how many there are."""
    found = transcripts(run)
    shown = thinned(found, MOST_BYTES)
    total = sum(one.outcome != "training" for one in found)
    note = f"All {total} held-out prompts are here."
    if len(shown) < len(found):
        kept = sum(one.outcome != "training" for one in shown)
        note = (
            f"{kept} of {total} held-out prompts, evenly chosen, are here; all are in the evaluate "
            "folders' matches.parquet."
        )
    ends = [run.summary.models[-1], run.summary.models[0]] if run.summary else []
    labels = {
        "win": " beats ".join(shortened(display_name(name), 30) for name in ends),
        "loss": "loses",
        "tie": "ties",
        "unscored": "unscored",
        "disagree": "the two orders disagree",
        "reward": "judge and reward disagree",
        "truncated": "cut off",
        "training": "training pairs",
    }
    counts = {key: sum(one.outcome == key or key in one.flags for one in shown) for key in labels}
    heldout = sum(one.outcome != "training" for one in shown)
    filters = [("all", "all held-out", heldout), *((key, labels[key], count) for key, count in counts.items() if count)]
    return {"transcripts": shown, "filters": filters, "shown_note": note}


def _version() -> str:
    """Of this package, or nothing where it is not installed."""
    try:
        return metadata.version("selfplay-loop")
    except metadata.PackageNotFoundError:
        return ""
