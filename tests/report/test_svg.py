"""Charts put every value where its scale says, stay well-formed whatever the names hold, and save as SVG and PNG."""

import json
import re
from xml.etree import ElementTree

import pytest
from making_runs import Plan, make_run

from selfplay.errors import ConfigError
from selfplay.report import export_figures as saving
from selfplay.report import svg as figures
from selfplay.report.charts import bar_chart, interval_chart, line_chart, matrix_chart
from selfplay.report.plots import iteration_figures, overoptimisation_figures
from selfplay.report.svg import Series, fitted, text_width
from selfplay.results.load import read_run

HOSTILE = "</svg><script>alert(1)</script> & \"'"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.42, 0.91, [0.4, 0.6, 0.8, 1.0]),
        (0, 73, [0, 20, 40, 60, 80]),
        (-0.019, -0.001, [-0.02, -0.015, -0.01, -0.005, 0]),
        (0.08, 0.08, [0.04, 0.06, 0.08, 0.1, 0.12]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    assert figures.ticks(low, high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.123456, "0.123"), (-2.5, "\u22122.5"), (12345.6, "12,346"), (1.5e-7, "1.5e-7"), (2e6, "2.0e6")],
)
def test_numbers_are_short(value, text):
    assert figures.plain(value) == text


def test_points_stand_where_the_scale_puts_them():
    chart = line_chart(
        "n", "t", [Series("s", [0, 1, 2], [0.0, 0.5, 1.0], [None, 0.4, 0.9], [None, 0.6, 1.0])], include=[0, 1]
    )
    points = re.search(r'polyline points="([^"]+)"', chart.body)[1]
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    # Plot from y = 216 - 36 = 180 (0) up to y = 10 (1): 0.5 stands half way, at 95.
    assert [y for _, y in places] == pytest.approx([180, 95, 10], abs=0.01)
    gaps = [places[1][0] - places[0][0], places[2][0] - places[1][0]]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.02)
    assert "V78.0M" in chart.body and "M" in chart.body  # upper end of [0.4, 0.6]: 180 - 0.6 * 170 = 78
    assert "s: 0.5 [0.4, 0.6]" in chart.body


def test_a_matrix_shows_every_rate_and_leaves_unplayed_cells_empty():
    chart = matrix_chart("m", "t", ["a", "b"], [[None, 0.2], [0.8, None]])
    assert re.findall(r">(\d+%)<", chart.body) == ["20%", "80%"]
    assert 'class="c1"' in chart.body and 'class="c0"' in chart.body


@pytest.mark.parametrize(
    "chart",
    [
        line_chart(
            "n",
            HOSTILE,
            [Series(HOSTILE, [0, 1], [0, 1]), Series("b", [0, 1], [1, 0])],
            x_label=HOSTILE,
            breaks=[(0.5, HOSTILE)],
            reference=(0.5, HOSTILE),
        ),
        matrix_chart("n", HOSTILE, [HOSTILE, "b"], [[None, 0.5], [0.5, None]]),
        interval_chart("n", HOSTILE, [(HOSTILE, 1, 0, 2)], HOSTILE),
        bar_chart("n", HOSTILE, [(HOSTILE, [1, 2])], [HOSTILE, "b"]),
    ],
    ids=["line", "matrix", "interval", "bar"],
)
def test_names_cannot_break_out_of_a_drawing(chart):
    for text in (chart.standalone(), chart.inline()):
        names = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
        assert names <= {"svg", "style", "g", "rect", "text", "line", "polyline", "path", "circle", "title"}


def test_figures_are_saved_as_svg_and_png(finished_run, tmp_path):
    paths = saving.save_figures(finished_run, tmp_path / "figures")
    names = {path.name for path in paths}
    assert {
        "win_rate.svg",
        "win_rate.png",
        "matrix.svg",
        "ratings.png",
        "time.svg",
        "step-policy-objective-kl.svg",
    } <= names
    for path in paths:
        if path.suffix == ".svg":
            ElementTree.fromstring(path.read_text())
        else:
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    width = int.from_bytes((tmp_path / "figures" / "win_rate.png").read_bytes()[16:20], "big")
    assert width == 360 * saving.ZOOM


def test_an_unknown_format_is_refused(finished_run, tmp_path):
    with pytest.raises(ConfigError, match="not as 'pdf'"):
        saving.save_figures(finished_run, tmp_path, formats=["pdf"])


def test_a_run_that_has_only_begun_has_few_figures(tmp_path):
    run = make_run(tmp_path / "one", Plan(prompts=8, iterations=1, rewards=False))
    (run / "metrics.jsonl").unlink()
    assert {path.stem for path in saving.save_figures(run, tmp_path / "f", formats=["svg"])} >= {
        "win_rate",
        "length",
        "time",
    }


def test_labels_that_would_overlap_are_joined_and_the_start_has_one(tmp_path):
    """Places are sqrt(9) = 3, sqrt(9.61) = 3.1 and sqrt(0.04) = 0.2: two of them too near, one too near the start."""
    run = make_run(tmp_path / "r", Plan(prompts=8, iterations=3))
    for number, kl in ((0, 0.0), (1, 9.0), (2, 9.61), (3, 0.04)):
        file = run / f"iteration-00{number}/evaluate/evaluation.json"
        file.parent.mkdir(exist_ok=True)
        told = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**told, "kl_to_start": kl}))
    for figure in overoptimisation_figures(read_run(run)):
        assert re.findall(r">(\d[\d.]* \([^<]*\))<", figure.body) == ["0 (start, 3)", "3.0 (1, 2)"]


def test_what_comes_first_has_one_win_rate(tmp_path):
    """Before iteration 1 stands the start, so both rates would be one point on another."""
    for iterations, lines in ((1, 1), (2, 2)):
        run = read_run(make_run(tmp_path / str(iterations), Plan(prompts=8, iterations=iterations)))
        figure = next(one for one in iteration_figures(run) if one.name == "win_rate")
        assert figure.body.count("<polyline") == lines
        assert ("against the one before" in figure.body) == (iterations == 2)


# Advance widths of DejaVu Sans, in 1/2048 of the size of the font.
ADVANCES = {"W": 2025, "M": 1767, "@": 2048, "G": 1587, "O": 1612, "m": 1995, "w": 1675, "b": 1300, "0": 1303, "f": 721}


@pytest.mark.parametrize(("letter", "advance"), ADVANCES.items())
def test_no_letter_is_wider_than_it_is_taken_to_be(letter, advance):
    assert text_width(letter * 10) >= 10 * 12 * advance / 2048


def test_names_in_wide_letters_stay_within_their_figures():
    names = ["GEMMA@MMW", "WWW@MAMMOTH", "W" * 60]
    matrix = matrix_chart("m", "t", names, [[None, 0.2, 0.1], [0.8, None, 0.1], [0.9, 0.9, None]])
    ratings = interval_chart("r", "t", [(name, 1, -5, 5) for name in names], "points; 400 are odds of 10 : 1")
    for chart in (matrix, ratings):
        for x, anchor, text in re.findall(r'<text[^>]* x="([^"]+)" y="[^"]+" text-anchor="(\w+)">([^<]+)<', chart.body):
            wide = sum(12 * ADVANCES.get(letter, 0) / 2048 for letter in text)
            left = float(x) - wide * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            assert left >= 0 and left + wide <= chart.width, text
    assert "GEMMA@MMW" in ratings.body and "WWW@MAMMOTH" in ratings.body and fitted("W" * 60, 160) in ratings.body
    assert text_width(fitted("W" * 60, 160)) <= 160
