"""The model card of a checkpoint: what it is, who judged it, how much better it is, and what is known to be wrong with it."""

import json

import judges
from selfplay.algorithms import algorithm_of
from selfplay.config import Recipe, validate
from selfplay.errors import ConfigError
from selfplay.formatting import DASH, display_name, hundredths, level_text, rate_text
from selfplay.guard.alarms import reward_accuracy
from selfplay.guard.selection import assess_run
from selfplay.report.card_metadata import front_matter
from selfplay.results.run import START, Iteration, RunData
from selfplay.storage import durable


def write_cards(run: RunData) -> None:
    """Write README.md into the checkpoint of every iteration that has been evaluated.

    No stage's manifest lists it: win rates are known only behind `evaluate`, and change where a later iteration tells
    more about the prompts.
    """
    for one in run.iterations:
        if one.evaluation is not None:
            durable.write(run.path / one.name / "policy" / "README.md", card(run, one.number))


def card(run: RunData, number: int, *, where: str = ".", license: str | None = None) -> str:
    """Return the card as Markdown, with the front matter that the hub reads; `where` is what loads the checkpoint."""
    found = [one for one in run.iterations if one.number == number]
    if not found:
        raise ConfigError(f"run {run.name!r} has no iteration {number}")
    recipe = validate(Recipe, run.config, "config.yaml")
    made = (
        f"iteration {number} of {recipe.iterations}{_way(recipe)}."
        if number
        else "the start of the run, before any self-play."
    )
    title = [
        f"# {run.name}, {display_name(found[0].name)}",
        "",
        f"{recipe.description or 'A language model improved by its own play.'} This checkpoint is {made}",
    ]
    sections = [
        [front_matter(run, recipe, found[0], license)],
        title,
        _results(run, found[0]),
        _training(recipe, number),
        _weaknesses(run, number),
        _use(run, where),
        _origin(run),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _way(recipe: Recipe) -> str:
    """Return what happens in an iteration; nothing for an algorithm of the user's own, which may not be here."""
    if recipe.algorithm.kind == "python":
        return ""
    needs = algorithm_of(recipe).needs(recipe)
    steps = ["completions are sampled", "a judge compares them"] if needs.pairs else []
    steps += ["a reward model learns its verdicts"] if needs.reward_model else []
    what = "follows the reward" if needs.reward else "learns from them" if needs.pairs else "learns from demonstrations"
    steps.append(f"{'and ' if steps else ''}{recipe.algorithm.summary.partition(':')[0]} {what}")
    return f": {', '.join(steps)}"


def _results(run: RunData, one: Iteration) -> list[str]:
    """Win rates with intervals, and what else was measured on held-out prompts."""
    if one.evaluation is None:
        return []
    pair = run.pair(one.name, START)
    rows = [
        ("win rate against the start", rate_text(run.win_rate(one, "win_rate_vs_start"))),
        ("the same at equal length", level_text(pair.length_controlled if pair else None)),
        ("win rate against the iteration before", rate_text(run.win_rate(one, "win_rate_vs_previous"))),
        ("reward model agrees with the judge on its responses", rate_text(reward_accuracy(run, one))),
        ("KL to the start, nats per response", _form(one.number_of("kl_to_start") if one.number else None, "{:.1f}")),
        ("mean length, tokens", _form(one.number_of("mean_length"), "{:.0f}")),
        ("cut off at the token limit", _share(one.number_of("truncated"), 1)),
        ("different responses", _share(one.number_of("unique"))),
    ]
    said = "On the held-out prompts."
    if pair is not None:
        judge = "a judge that gave no labels" if run.audited else "the judge that also gave the labels"
        said = (
            f"On {pair.comparison.n} held-out prompts, by {judge}; in brackets 95% intervals over prompts. A tie counts one "
            "half."
        )
    return [
        "## Results",
        "",
        said,
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {text} |" for label, text in rows if text != DASH),
    ]


def _share(value: float | None, places: int = 0) -> str:
    return DASH if value is None else f"{hundredths(value, places)}%"


def _form(value: float | None, form: str) -> str:
    return DASH if value is None else form.format(value)


def _training(recipe: Recipe, number: int) -> list[str]:
    """Return data and judges, each judge with the hash of its file; of the start only what made it."""
    if number == 0:
        return ["## Training", "", f"- {_start(recipe)}"]
    heldout = recipe.prompts.heldout
    asked = " and ".join(f"{source.source} ({source.split})" for source in recipe.prompts.train_sources)
    lines = [
        "## Training",
        "",
        f"- start: {_start(recipe)}",
        f"- prompts: {asked}; "
        + (
            f"measured on {heldout.source} ({heldout.split}), which share none with them" if heldout else "not measured"
        ),
        f"- labels: {_judge(recipe.judge.file, recipe.judge.model)}",
    ]
    if recipe.evaluate.judge not in (None, recipe.judge.file):
        lines.append(f"- audit: {_judge(str(recipe.evaluate.judge))}, never used for labels")
    return [
        *lines,
        f"- {recipe.algorithm.summary}",
    ]


def _start(recipe: Recipe) -> str:
    """Return the model at the start, or the text that it was made from."""
    made = recipe.policy.bootstrap
    taught = made.sft if made else recipe.policy.sft
    first = f"pretrained in this run on {made.corpus}" if made else str(recipe.policy.model)
    return first + (f", fine-tuned on {taught.source}" if taught else "")


def _judge(file: str, model: str | None = None) -> str:
    """Return a judge's name and hash; only the name where its file is gone."""
    try:
        spec = judges.load_spec(file, model)
    except ConfigError:
        return f"judge `{file}`"
    return f"judge `{spec.name}` version {spec.version}, sha256 {judges.digest(spec)[:16]}"


def _weaknesses(run: RunData, number: int) -> list[str]:
    """Return the alarms of this iteration, and what no alarm can tell."""
    alarms = [f"- {alarm.sentence}" for alarm in assess_run(run).alarms if alarm.iteration == number]
    if number and not run.audited:
        alarms.append(
            "- Labels and win rates come from one judge: whatever it overlooks was neither learned nor measured."
        )
    alarms.append("- Nothing but the prompts above was looked at: no safety, factuality or other skill was measured.")
    return ["## Known weaknesses", "", *alarms]


def _use(run: RunData, where: str) -> list[str]:
    """Code that runs as it stands, in the checkpoint's own folder where it has no other name."""
    asked = run.matches[0].prompt if run.matches else "Tell a story."
    return [
        "## Use",
        "",
        *(["In this folder:", ""] if where == "." else []),
        "```python",
        "from transformers import pipeline",
        "",
        f"generate = pipeline({json.dumps('text-generation')}, model={json.dumps(where)})",
        f"messages = {json.dumps([{'role': 'user', 'content': asked}])}",
        'print(generate(messages, return_full_text=False)[0]["generated_text"])',
        "```",
    ]


def _origin(run: RunData) -> list[str]:
    """Return where it comes from."""
    packages = run.provenance.get("packages") or {}
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    facts = [("started", run.provenance.get("started")), ("commit", run.provenance.get("commit")), ("packages", named)]
    lines = [f"- {label}: {value}" for label, value in facts if value]
    return ["## Provenance", "", *lines] if lines else []
