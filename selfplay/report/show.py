"""A run in numbers and in words: one row per iteration, and the transcripts of one prompt. Imports no torch."""

import difflib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from selfplay.errors import ConfigError
from selfplay.formatting import hundredths
from selfplay.report.terminal import print_table
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json, read_rows


def print_verification(found: dict[str, Any]) -> None:
    """Print what `selfplay verify` found."""
    console = Console(highlight=False, soft_wrap=True)
    for name, why in found["left_out"].items():
        console.print(f"left out: {name} ({why})", markup=False)
    for name in found["unchecked"]:
        console.print(f"unchecked: {name} was written by an earlier version, without checksums", markup=False)
    for one in found["damage"]:
        console.print(f"damaged: {one['path']}: {one['problem']}", markup=False)
    console.print(
        f"compared {found['files']:,} files ({found['bytes']:,} bytes), among them {found['journal_lines']:,} lines of "
        f"journals and {found['answers']:,} answers of the judge: "
        + (f"{len(found['damage'])} damaged; --repair removes them" if found["damage"] else "all are what was written"),
        markup=False,
    )


def iterations(directory: Path) -> list[dict[str, Any]]:
    """Return one mapping per iteration with an evaluation, the start first; null where a number does not exist.

    Keys: iteration, win_rate_vs_start and win_rate_vs_previous ({value, low, high, n, ties, unscored}), mean_score,
    mean_reward, reward_accuracy ({value, low, high, n}), kl_to_start (nats per response), mean_length (tokens),
    truncated (share), also (mean score by further held-out set), judge ({swap_consistency, first_share, unscored}),
    seconds per stage.
    """
    files = RunDirectory(directory)
    files.recipe()
    rows = []
    for number in files.iterations():
        if not files.finished(number, "evaluate"):
            continue
        found = read_json(files.stage(number, "evaluate") / "evaluation.json")
        rounds = files.rounds(number, "reward")
        health_file = files.stage(number, "label") / "judge_health.json"
        health = read_json(health_file) if health_file.is_file() else None
        rows.append(
            {
                "iteration": number,
                "win_rate_vs_start": _rate(found["win_rate_vs_start"]),
                "win_rate_vs_previous": _rate(found["win_rate_vs_previous"]),
                "mean_score": found["mean_score"],
                "mean_reward": found["mean_reward"],
                "reward_accuracy": read_json(rounds[-1] / "metrics.json")["accuracy"] if rounds else None,
                "kl_to_start": found["kl_to_start"],
                "mean_length": found["mean_length"],
                "truncated": found["truncated"],
                "distinct_2": found["distinct_2"],
                "judge": health and {key: health[key] for key in ("swap_consistency", "first_share", "unscored")},
                "also": {name: one["mean"] for name, one in found.get("also", {}).items()},
                "seconds": files.seconds(number),
            }
        )
    return rows


def _rate(comparison: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a comparison as show prints it."""
    return comparison and {
        "value": comparison["win_rate"],
        **{key: comparison[key] for key in ("low", "high", "n", "ties", "unscored")},
    }


def print_iterations(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the rows as a table."""
    sets = list(rows[0].get("also", ())) if rows else []
    titles = ("iter", "beats start, %", "beats previous, %", "score", "RM acc", "KL", "len", "cut", *sets, "s")
    cells = [
        (
            str(row["iteration"]) if row["iteration"] else "start",
            interval(row["win_rate_vs_start"]),
            interval(row["win_rate_vs_previous"]),
            number(row["mean_score"], "{:.3f}"),
            number((row["reward_accuracy"] or {}).get("value"), "{:.2f}"),
            number(row["kl_to_start"], "{:.1f}"),
            number(row["mean_length"], "{:.0f}"),
            "-" if row["truncated"] is None else f"{hundredths(row['truncated'])}%",
            *(number(row["also"].get(name), "{:.3f}") for name in sets),
            number(sum(row["seconds"].values()), "{:.0f}"),
        )
        for row in rows
    ]
    print_table(console, titles, cells)


def interval(rate: dict[str, Any] | None) -> str:
    """Return a share with its 95% interval, in percent."""
    if rate is None or rate["value"] is None:
        return "-"
    value, low, high = (hundredths(rate[key], 1) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def number(value: float | None, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None else form.format(value)


def transcripts(directory: Path, prompt_id: str) -> dict[str, Any]:
    """Return what each iteration answered to one held-out prompt, and what the judge said. Raises ConfigError for an
    unknown id.
    """
    files = RunDirectory(directory)
    files.recipe()
    answers: list[dict[str, Any]] = []
    matches: list[dict[str, Any]] = []
    known: list[str] = []
    for iteration in files.iterations():
        folder = files.stage(iteration, "evaluate")
        if not (folder / "completions.parquet").is_file():
            continue
        rows = read_rows(folder / "completions.parquet")
        known = [row["prompt_id"] for row in rows]
        answers += [
            {
                "iteration": iteration,
                "text": row["text"],
                "finish_reason": row["finish_reason"],
                "tokens": len(row["token_ids"]),
            }
            for row in rows
            if row["prompt_id"] == prompt_id
        ]
        if (folder / "matches.parquet").is_file():
            matches += [row for row in read_rows(folder / "matches.parquet") if row["prompt_id"] == prompt_id]
    if not answers:
        near = difflib.get_close_matches(prompt_id, known, n=3, cutoff=0.3) or known[:3]
        raise ConfigError(f"the run has no held-out prompt {prompt_id!r}; it has, for example, {', '.join(near)}")
    return {
        "prompt_id": prompt_id,
        "prompt": matches[0]["prompt"] if matches else None,
        "answers": answers,
        "matches": matches,
    }


def print_transcripts(found: dict[str, Any], console: Console) -> None:
    """Print the responses side by side, the verdicts beneath."""
    from rich.text import Text

    if found["prompt"]:
        console.print(Text(found["prompt"], style="bold"))
    table = Table(show_lines=True)
    for answer in found["answers"]:
        table.add_column(f"iteration {answer['iteration']}" if answer["iteration"] else "start", ratio=1)
    table.add_row(*[Text(answer["text"]) for answer in found["answers"]])
    console.print(table)
    for match in found["matches"]:
        verdict = (
            "unscored: " + match["error"]
            if match["preference"] is None
            else (
                f"{match['a'] if match['preference'] > 0.5 else match['b'] if match['preference'] < 0.5 else 'tie'}"
                f" ({match['preference']:.2f} for {match['a']})"
            )
        )
        console.print(Text(f"{match['a']} against {match['b']}: {verdict}  {match['reason']}"))


def print_check(found: dict[str, Any]) -> None:
    """Print what `judge check` found, a line each, but for what it announces before its calls."""
    console = Console(highlight=False, markup=False)
    console.print(f"judge {found['judge']} (version {found['version']}, model {found['model'] or 'none'})")
    for name, value in (found["gold"] or {}).items():
        if value is not None:
            console.print(f"{name.replace('_', ' ')}: {_figure(value)}")
    for title, values in (
        ("accuracy by category", found["gold_by_category"]),
        ("accuracy by trap", found["gold_by_trap"]),
        ("canaries that win", found["canary_wins"]),
    ):
        if values:
            console.print(f"{title}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    console.print(
        f"tokens: {found['input_tokens']:,} in, {found['output_tokens']:,} out; {found['seconds']:.1f} s; "
        f"${found['cost']:.4f}"
    )
    for problem in found["problems"]:
        console.print(f"problem ({problem['kind']}): {problem['sentence']}")
    if not found["problems"]:
        console.print("within its thresholds")


def _pairs(count: int) -> str:
    """Return a number of pairs in words."""
    return "1 pair" if count == 1 else f"{count} pairs"


def _figure(value: Any) -> str:
    """Return a number, or an interval."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_figure(part) for part in value) + "]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_trial(found: dict[str, Any]) -> None:
    """Print every call of `judge try`, what was said, and how it was read."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for exchange in found["exchanges"]:
        for message in exchange["messages"]:
            console.print(f"[{message['role']}]")
            console.print(message["content"])
        for thought in exchange["thoughts"]:
            console.print(f"[thought] {thought}")
        nothing = f"nothing: {exchange['error'] or 'there is no model'}"
        console.print(f"[said] {nothing if exchange['said'] is None else exchange['said']}")
    for verdict in found["verdicts"]:
        said = (
            "unscored: " + verdict["error"]
            if verdict["preference"] is None
            else f"{verdict['preference']:.3f} for the first"
        )
        console.print(f"verdict ({verdict['order']}): {said}  {verdict['reason']}")
    preference = found["preference"]
    console.print("together: " + ("unscored" if preference is None else f"{preference:.3f} for the first response"))


def print_judges(found: dict[str, Any], names: tuple[str, str], verdict: str) -> None:
    """Print what `judge compare` found: a line for each judge, and how they go together."""
    console = Console(highlight=False, markup=False)
    rows = [
        (
            name,
            interval(one["accuracy"]),
            str(one["unscored"]),
            f"{one['input_tokens']:,}",
            f"{one['output_tokens']:,}",
            f"{one['cost']:.4f}",
            f"{one['seconds']:.1f}",
        )
        for name, one in zip(names, (found["first"], found["second"]), strict=True)
    ]
    print_table(console, ("judge", "right, %", "unscored", "tokens in", "tokens out", "$", "s"), rows)
    kappa, difference = found["kappa"], found["difference"]
    bounds = "-" if kappa is None or kappa["low"] is None else f"[{kappa['low']:.2f}, {kappa['high']:.2f}]"
    beyond = "" if kappa is None else f", kappa {kappa['value']:.2f} {bounds}"
    console.print(
        f"{_pairs(found['pairs'])}, {found['read_by_both']} with two verdicts: agreement {interval(found['agreement'])}%{beyond}"
    )
    if difference is not None:
        console.print(
            f"right, {names[0]} less {names[1]}, on {_pairs(found['known'])} with a known answer: "
            f"{100 * difference['value']:+z.1f} points "
            f"[{100 * difference['low']:+z.1f}, {100 * difference['high']:+z.1f}], sign test p = {found['p_value']:.2g}"
        )
    console.print(verdict)
    if found["apart"]:
        console.print(f"they part on {', '.join(found['apart'])}")
