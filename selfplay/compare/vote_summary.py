"""All statistics of a file of votes: what `selfplay compare --votes` says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfplay.compare.difficulty import known_difficulty
from selfplay.compare.vote_files import read_votes
from selfplay.report.html import as_run
from selfplay.results.run import RunData
from selfplay.stats.summary import Category, Summary, breakdown, summarise
from selfplay.stats.votes import VoteTable
from selfplay.storage import durable
from selfplay.storage.files import write_json


@dataclass(frozen=True)
class VoteSummary:
    """The votes of a file and what follows from them; `facts` is what stands above every table."""

    table: VoteTable
    facts: dict[str, Any]
    summary: Summary
    categories: tuple[Category, ...]

    def json(self) -> dict[str, Any]:
        """Everything but the votes, ready for JSON."""
        return {
            "settings": self.facts,
            **self.summary.model_dump(mode="json"),
            "matrix": self.summary.matrix(),
            "categories": [one.model_dump(mode="json") for one in self.categories],
        }

    def page(self, source: Path) -> RunData:
        """Return what the report shows of it; `source` is the file of votes."""
        return as_run(
            source.name,
            source,
            votes=self.table,
            found=self.summary,
            facts=self.facts,
            categories=self.categories,
        )

    def write(self, folder: Path) -> None:
        """Write `comparison.json`."""
        durable.make_folder(folder)
        write_json(folder / "comparison.json", self.json())


def summarise_votes(
    file: Path,
    *,
    judge: str | None = None,
    baseline: str | None = None,
    difficulty: Path | None = None,
    by: str | None = None,
    resamples: int = 2000,
) -> VoteSummary:
    """Read and summarise votes; the arguments are those of `compare`. Raises ConfigError for what cannot be used."""
    table, judges, values = read_votes(file, judge, by)
    if baseline is not None:
        table = table.against(baseline)
    hard = None if difficulty is None else known_difficulty(difficulty, table)
    said = ", ".join(f"{name} ({count:,} votes)" for name, count in judges.items())
    return VoteSummary(
        table=table,
        facts={"votes": str(file), **({"judge": said} if said else {}), "n": len(table.prompts)},
        summary=summarise(table, difficulty=hard, resamples=resamples),
        categories=tuple(breakdown(table, values, resamples=resamples)) if values else (),
    )
