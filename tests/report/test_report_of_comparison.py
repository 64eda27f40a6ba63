"""The page of a comparison, its tables as files, and what a run's page says once: intervals, amounts, unjoined lines."""

import csv
import re

import pytest
from making_runs import Plan, make_run
from typer.testing import CliRunner

from judges.modes.scoring import Assessment, compare_in_words
from selfplay.cli import app
from selfplay.compare.head_to_head import compare
from selfplay.errors import ConfigError
from selfplay.report.charts import interval_chart, line_chart, matrix_chart
from selfplay.report.html import context, render_report, write_report
from selfplay.report.plots import step_figures
from selfplay.report.svg import Series
from selfplay.report.table_files import check_format, latex, table_rows
from selfplay.report.tables import comparison_table, health_table, iteration_table
from selfplay.report.transcripts import transcript
from selfplay.results.load import read_run
from selfplay.results.run import Match
from selfplay.stats.summary import summarise
from selfplay.stats.votes import Vote, tabulate
from selfplay.storage.files import read_json, read_rows, write_json


@pytest.fixture(scope="module")
def result(tiny_run, tmp_path_factory):
    """All iterations of a real run, compared by a column of their prompts."""
    return compare([str(tiny_run)], folder=tmp_path_factory.mktemp("compared"), by="animal")


def test_the_page_has_settings_categories_writing_and_transcripts(result):
    page = render_report(result.page(result.folder))
    assert "Measured with judge tiny (version 1), prompts stories/heldout, n 32, temperature 1.0, max tokens 64" in page
    assert page.index("Measured with") < page.index("<table"), "above every table"
    animals = {one.value for one in result.categories}
    assert all(f">{animal} (" in page for animal in animals) and sum(one.prompts for one in result.categories) == 32
    assert "How each one writes" in page and 'id="transcripts"' in page and 'id="iterations"' not in page
    assert re.findall(r"<section><h4>([^<]*) <small>", page)[:3] == ["start", "iteration 1", "iteration 2"]


def test_rewards_that_a_run_gave_are_known_to_its_comparison(result):
    """So the filter for prompts on which judge and reward disagree serves there too; between runs there is no reward."""
    rewarded = [match for match in result.matches if match.a_reward is not None]
    assert {(match.a, match.b) for match in rewarded} >= {
        ("iteration-001", "iteration-000"),
        ("iteration-002", "iteration-000"),
    }
    found = context(result.page(result.folder))
    wrong = {
        match.prompt_id
        for match in rewarded
        if match.preference not in (None, 0.5) and (match.a_reward > match.b_reward) != (match.preference > 0.5)
    }
    assert {key: count for key, _, count in found["filters"]}.get("reward", 0) == len(wrong) > 0


def test_a_comparison_in_one_command_writes_page_and_tables(tmp_path):
    file = tmp_path / "votes.csv"
    file.write_text(
        "prompt,model_a,model_b,winner\n" + "".join(f"p{x},new,old,{'a' if x % 4 else 'b'}\n" for x in range(80))
    )
    targets = [str(tmp_path / name) for name in ("page.html", "t.csv", "t.parquet", "t.tex")]
    done = CliRunner().invoke(
        app, ["compare", "--votes", str(file), "--report", targets[0], *(f"--table={name}" for name in targets[1:])]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[-4:] == [*targets[1:], targets[0]]
    assert "new beats old 75% of the time" in (tmp_path / "page.html").read_text()
    (row,) = csv.DictReader((tmp_path / "t.csv").open())
    (same,) = read_rows(tmp_path / "t.parquet")
    assert (row["a"], row["b"], float(row["win_rate"]), int(row["n"])) == ("new", "old", 0.75, 80)
    assert same["win_rate"] == 0.75 and same["setting_votes"] == row["setting_votes"] == str(file)
    assert r"new & old & 75.0\textsuperscript{*} & [" in (tmp_path / "t.tex").read_text()


def test_a_table_in_another_format_is_refused_before_work(tmp_path):
    with pytest.raises(ConfigError, match=r"as .csv, .parquet, .tex, and not as 't.docx'"):
        check_format(tmp_path / "t.docx")


def test_latex_escapes_what_is_not_a_letter():
    table = summarise(tabulate([Vote(str(x), "a_b&50%", "c{d}\\", float(x % 2)) for x in range(10)]))
    text = latex(table, {"judge": "x#1", "n": 10})
    assert r"a\_b\&50\% & c\{d\}\textbackslash{} & 50.0 & [" in text and r"\caption{judge x\#1, n 10. Win rates" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


@pytest.mark.parametrize("name", ["[new] model", "*new"])
def test_a_row_of_latex_does_not_begin_with_what_ends_the_row_before(name):
    """After `\\\\` and any space, LaTeX takes `[...]` for a length and `*` for a variant."""
    text = latex(summarise(tabulate([Vote(str(x), name, "old", float(x % 2)) for x in range(10)])), {})
    assert f"\n{{}}{name} & old & 50.0" in text


def test_rows_of_a_table_hold_every_number():
    (row,) = table_rows(summarise(tabulate([Vote(str(x), "x", "y", float(x % 3 > 0), x, 5) for x in range(30)])))
    assert row["win_rate"] == pytest.approx(2 / 3) and row["extra_length"] == pytest.approx(9.5)
    assert row["equal_length_approximate"] is True and 0 < row["p_value"] < 1


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", Plan(prompts=60))


def test_one_comparison_has_one_interval_on_a_page(run):
    """evaluation.json's: a second bootstrap gave the pair table another."""
    file = run / "iteration-002/evaluate/evaluation.json"
    evaluation = read_json(file)
    evaluation["win_rate_vs_start"] |= {"low": 0.6123, "high": 0.9321}
    write_json(file, evaluation)
    found = read_run(run)
    said = f"{100 * evaluation['win_rate_vs_start']['win_rate']:.0f}% [61, 93]"
    assert dict(iteration_table(found))["win rate against the start"][2] == said
    assert dict(comparison_table(found))["iteration 2 against start"][0] == said
    heading = re.search(r"<h1>(.*?)</h1>", write_report(run).read_text())[1]
    assert re.sub("<.*?>", "", heading).endswith("of the time [61, 93]")


def test_seconds_of_the_judge_are_no_share(run):
    for file in run.glob("iteration-*/label/judge_health.json"):
        write_json(file, {**read_json(file), "seconds": 0.6, "cost": 0.25})
    table = dict(health_table(read_run(run)))
    assert table["seconds"] == ["0.6 s", "0.6 s"] and table["cost"] == ["0.25", "0.25"]
    assert table["choice of the longer"] == ["56.0%", "56.0%"]


def test_a_line_is_not_joined_where_the_reference_changes(run):
    kl = next(one for one in step_figures(read_run(run), main=True) if "KL" in one.title)
    assert kl.body.count("<polyline") == 2, "one piece per iteration"


def test_values_are_not_averaged_across_iterations(monkeypatch, run):
    monkeypatch.setattr("selfplay.report.plots.BINS", 3)  # 80 steps: groups of 27 would straddle step 40
    kl = next(one for one in step_figures(read_run(run), main=True) if "KL" in one.title)
    assert [len(points.split()) for points in re.findall(r'points="([^"]*)"', kl.body)] == [2, 2]


def boxes(body: str) -> list[tuple[float, float, float]]:
    """Row, left and right of each text, at 6.2 units a letter."""
    found = []
    for x, y, anchor, text in re.findall(r'<text[^>]*x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)">([^<]*)<', body):
        width, x = 6.2 * len(text), float(x)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        found.append((float(y), left, left + width))
    return found


@pytest.mark.parametrize(
    "figure",
    [
        line_chart("x", "X", [Series("s", [0, 1], [0, 1])], x_ticks=[(k / 12, f"iteration {k}") for k in range(13)]),
        line_chart(
            "x",
            "X",
            [Series("s", list(range(100)), [0.5] * 100, markers=False)],
            breaks=[(10 * k + 0.5, f"iteration {k}") for k in range(10)],
        ),
        matrix_chart("m", "M", [f"organisation/a-long-name-of-a-model-{k}" for k in range(5)], [[0.5] * 5] * 5),
        interval_chart("i", "I", [(f"organisation/a-long-name-{k}", 0, -800, 900) for k in range(3)], "points"),
    ],
    ids=["ticks", "breaks", "matrix", "ratings"],
)
def test_labels_do_not_overlap(figure):
    texts = boxes(figure.body)
    for index, (row, left, right) in enumerate(texts):
        assert left >= 0 and right <= figure.width + 60
        for other, begin, end in texts[:index]:
            assert abs(row - other) > 6 or right <= begin or end <= left


def test_scores_that_differ_read_so():
    """`0.94 < 0.94` was reported."""
    first, second = Assessment(0.9441, parts=(("a", 0.9441),)), Assessment(0.9449, parts=(("a", 0.9449),))
    assert compare_in_words(first, second) == "score 0.944 < 0.945: a 0.944 < 0.945"


def test_filters_name_where_judge_reward_and_orders_disagree(run):
    found = context(read_run(run))
    counts = {key: (label, count) for key, label, count in found["filters"]}
    matches = read_run(run).matches
    wrong = {
        one.prompt_id
        for one in matches
        if one.preference not in (None, 0.5) and (one.a_reward > one.b_reward) != (one.preference > 0.5)
    }
    assert counts["reward"] == ("judge and reward disagree", len(wrong)) and wrong
    assert counts["disagree"][0] == "the two orders disagree" and counts["disagree"][1] > 0


def test_a_reward_is_shown_whichever_match_knows_it():
    """Matches between two runs have none: the first of them hid what the run's own match knows."""
    text = {"prompt_id": "p", "prompt": "Say a.", "a_text": "a", "b_text": "b", "preference": 1.0}
    matches = [Match(a="dpo", b="ppo", **text), Match(a="start", b="ppo", a_reward=-1.5, b_reward=0.25, **text)]
    sides = transcript("p", matches, ("ppo", "dpo", "start")).sides
    assert [(side.name, side.reward) for side in sides] == [("ppo", "0.25"), ("dpo", ""), ("start", "-1.50")]


def test_a_filter_says_who_beats_whom(run):
    (label,) = [label for key, label, _ in context(read_run(run))["filters"] if key == "win"]
    assert label == "iteration 2 beats start"


def test_training_pairs_stand_beside_held_out_ones(run):
    found = context(read_run(run))
    training = [one for one in found["transcripts"] if one.outcome == "training"]
    assert len(training) == 80, "40 of the 50 pairs of each of two iterations"
    assert [side.name for side in training[0].sides] == ["rejected", "chosen"]
    assert (
        training[0].rulings[0].text == "chosen, by a margin of 0.75"
        and training[0].rulings[0].reason == "more wishes met"
    )
    filters = {key: count for key, _, count in found["filters"]}
    assert (filters["all"], filters["training"]) == (60, 80)
    assert found["shown_note"] == "All 60 held-out prompts are here."


def test_a_runs_page_says_how_it_was_measured(run):
    page = write_report(run).read_text()
    assert "Measured with judge stories, prompts held-out, n 60, temperature 1.0" in page
