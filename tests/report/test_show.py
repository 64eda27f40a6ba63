"""A finished run in numbers and in words, from real files."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfplay.errors import ConfigError
from selfplay.report import show
from selfplay.storage.files import read_json, read_rows

RATE = {"value", "low", "high", "n", "ties", "unscored"}
ASKED_FOR = {
    "win_rate_vs_start",
    "win_rate_vs_previous",
    "reward_accuracy",
    "kl_to_start",
    "mean_length",
    "truncated",
    "judge",
    "seconds",
}
"""What issue 2 lists, per iteration."""


@pytest.fixture(scope="module")
def rows(tiny_run: Path) -> list[dict[str, Any]]:
    return show.iterations(tiny_run)


def printed(print_it: Any, found: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_it(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_every_iteration_has_exactly_the_keys_that_are_promised(rows: list[dict[str, Any]]) -> None:
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row.keys() == ASKED_FOR | {"iteration", "mean_score", "mean_reward", "distinct_2", "also"}
    for row in rows[1:]:
        assert row["win_rate_vs_start"].keys() == row["win_rate_vs_previous"].keys() == RATE
        assert row["judge"].keys() == {"swap_consistency", "first_share", "unscored"}
        assert row["reward_accuracy"].keys() == {"value", "low", "high", "n"}
        assert row["seconds"].keys() == {"generate", "label", "reward", "policy", "evaluate"}
        assert all(seconds > 0 for seconds in row["seconds"].values())


def test_the_start_has_nothing_to_be_compared_with(rows: list[dict[str, Any]]) -> None:
    start = rows[0]
    assert start["kl_to_start"] == 0.0 and start["mean_length"] > 0
    assert all(start[key] is None for key in ("win_rate_vs_start", "win_rate_vs_previous", "reward_accuracy", "judge"))
    assert start["seconds"].keys() == {"policy", "evaluate"}


def test_the_numbers_are_those_of_the_matches(tiny_run: Path, rows: list[dict[str, Any]]) -> None:
    for row in rows[1:]:
        found = read_rows(tiny_run / f"iteration-00{row['iteration']}" / "evaluate" / "matches.parquet")
        for key, opponent in (("win_rate_vs_start", 0), ("win_rate_vs_previous", row["iteration"] - 1)):
            values = [match["preference"] for match in found if match["b"] == f"iteration-00{opponent}"]
            assert len(values) == 32 == row[key]["n"]
            assert row[key]["value"] == pytest.approx(math.fsum(values) / 32, abs=1e-12)
            assert row[key]["ties"] == values.count(0.5)


def test_the_accuracy_is_that_of_the_last_round(tiny_run: Path, rows: list[dict[str, Any]]) -> None:
    for row in rows[1:]:
        files = sorted((tiny_run / f"iteration-00{row['iteration']}").glob("reward*/metrics.json"))
        assert row["reward_accuracy"] == read_json(files[-1])["accuracy"]


def test_the_table_has_a_line_per_iteration(rows: list[dict[str, Any]]) -> None:
    lines = printed(show.print_iterations, rows).splitlines()
    assert len(lines) == 4 and lines[1].split()[0] == "start" and [line.split()[0] for line in lines[2:]] == ["1", "2"]
    rate = rows[2]["win_rate_vs_start"]
    assert f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]" in lines[3]
    assert max(map(len, printed(show.print_iterations, rows, 100).splitlines())) <= 100


def test_a_rate_that_does_not_exist_is_a_dash() -> None:
    assert show.interval(None) == show.interval({"value": None}) == show.number(None, "{:.1f}") == "-"


def test_transcripts_hold_every_answer_and_every_verdict(tiny_run: Path) -> None:
    answers = [
        read_rows(tiny_run / f"iteration-00{number}" / "evaluate" / "completions.parquet")[3] for number in range(3)
    ]
    found = show.transcripts(tiny_run, answers[0]["prompt_id"])
    assert [answer["text"] for answer in found["answers"]] == [answer["text"] for answer in answers]
    assert [answer["tokens"] for answer in found["answers"]] == [len(answer["token_ids"]) for answer in answers]
    assert [(match["a"][-1], match["b"][-1]) for match in found["matches"]] == [("1", "0"), ("2", "0"), ("2", "1")]
    assert found["prompt"].startswith("Tell a story about")
    text = printed(show.print_transcripts, found)
    assert "iteration-002 against iteration-001" in text and "start" in text and found["prompt"] in text


def test_an_unscored_match_says_why() -> None:
    match = {"a": "iteration-001", "b": "iteration-000", "preference": None, "error": "[no] verdict", "reason": ""}
    found = {"prompt": "p", "answers": [{"iteration": 0, "text": "[red]text[/red]"}], "matches": [match]}
    text = printed(show.print_transcripts, found)
    assert "unscored: [no] verdict" in text and "[red]text[/red]" in text, "text of a model is never markup"


def test_an_unknown_prompt_and_a_directory_that_is_no_run(tiny_run: Path, tmp_path: Path) -> None:
    known = read_rows(tiny_run / "iteration-000" / "evaluate" / "completions.parquet")[0]["prompt_id"]
    with pytest.raises(ConfigError, match=f"no held-out prompt '{known}x'; it has, for example, .*{known}"):
        show.transcripts(tiny_run, f"{known}x")
    for ask in (show.iterations, lambda path: show.transcripts(path, "p")):
        with pytest.raises(ConfigError, match="is not a run directory: it has no config.yaml"):
            ask(tmp_path)
