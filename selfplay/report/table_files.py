"""The pairs of a comparison as a file: CSV and Parquet for computing with, LaTeX (booktabs) for papers."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfplay.errors import ConfigError
from selfplay.formatting import display_name, facts_text, hundredths
from selfplay.stats.summary import Summary
from selfplay.storage import durable
from selfplay.storage.files import write_rows

FORMATS = (".csv", ".parquet", ".tex")
SPECIAL = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)
"""What LaTeX would take for more than a letter."""


def check_format(path: Path) -> None:
    """Raise ConfigError for a file that a table cannot be written to."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"a table can be written as {', '.join(FORMATS)}, and not as {path.name!r}")


def write_table(path: Path, summary: Summary, facts: Mapping[str, Any]) -> Path:
    """Write one row per pair, in the format that the file's ending names; returns the path. Raises ConfigError.

    CSV and Parquet hold exact numbers in [0, 1] and repeat the settings in every row; LaTeX holds rounded percentages,
    and the settings in its caption.
    """
    check_format(path)
    durable.make_folder(path.parent)
    if path.suffix == ".tex":
        durable.write(path, latex(summary, facts))
        return path
    rows = [{**row, **{f"setting_{key}": str(value) for key, value in facts.items()}} for row in table_rows(summary)]
    if path.suffix == ".parquet":
        write_rows(path, rows)
        return path
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    durable.write(path, out.getvalue())
    return path


def table_rows(summary: Summary) -> list[dict[str, Any]]:
    """Return one mapping per pair: `a` against `b`, shares in [0, 1], `None` where a number is not known."""
    found = []
    for pair in summary.pairs:
        level = pair.length_controlled
        found.append(
            {
                **pair.comparison.model_dump(),
                "standard_error": pair.standard_error,
                "p_value": pair.p_value,
                "p_adjusted": pair.p_adjusted,
                "significant": pair.significant,
                "prompts_needed": pair.prompts_needed,
                "extra_length": pair.extra_length,
                "equal_length_win_rate": level.win_rate if level else None,
                "equal_length_low": level.low if level else None,
                "equal_length_high": level.high if level else None,
                "equal_length_approximate": level.approximate if level else None,
            }
        )
    return found


def latex(summary: Summary, facts: Mapping[str, Any]) -> str:
    """Return the pairs as a LaTeX table that needs the package booktabs."""
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\begin{tabular}{llrrrr}",
        r"\toprule",
        r"row & against & wins, \% & 95\% interval & equal length, \% & $n$ \\",
        r"\midrule",
    ]
    for pair in summary.pairs:
        one, level = pair.comparison, pair.length_controlled
        rate = "--" if one.win_rate is None else hundredths(one.win_rate, 1)
        bounds = (
            "--" if one.low is None or one.high is None else f"[{hundredths(one.low, 1)}, {hundredths(one.high, 1)}]"
        )
        about = r"$\approx$ " if level and level.approximate else ""
        even = "--" if level is None else about + hundredths(level.win_rate, 1)
        mark = r"\textsuperscript{*}" if pair.significant else ""
        first = re.sub(
            r"^(?=[\[*])", "{}", escaped(display_name(one.a))
        )  # which \\ of the row before would take for its own
        cells = (first, escaped(display_name(one.b)), rate + mark, bounds, even, str(one.n))
        lines.append(" & ".join(cells) + r" \\")
    caption = f"{facts_text(facts)}. Win rates of the row against the second column; * significant (Holm, 5%)."
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escaped(caption)}}}", r"\end{table}", ""]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Return a text in which LaTeX sees letters only."""
    return text.translate(SPECIAL)
