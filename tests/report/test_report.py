"""The report as a file: what it says, that nothing in it can act, and that unfinished runs have one too."""

import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser

import pytest
from making_runs import HOSTILE, Plan, make_run

from selfplay.errors import ConfigError
from selfplay.report.html import context, write_report
from selfplay.report.server import make_server, version
from selfplay.report.transcripts import LONGEST, thinned, transcript, transcripts, visible
from selfplay.results.load import read_run
from selfplay.results.run import Match


class Page(HTMLParser):
    """Collects every tag, attribute and address of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def text(finished_run) -> str:
    return write_report(finished_run).read_text(encoding="utf-8")


def test_the_verdict_comes_first_and_is_that_of_the_evaluation(finished_run, text):
    rate = json.loads((finished_run / "iteration-002/evaluate/evaluation.json").read_text())["win_rate_vs_start"]
    numbers = [f"{100 * rate[key]:.0f}" for key in ("win_rate", "low", "high")]
    heading = re.search(r"<h1>(.*?)</h1>", text)[1]
    assert (
        re.sub("<.*?>", "", heading)
        == f"Iteration 2 beats the start {numbers[0]}% of the time [{numbers[1]}, {numbers[2]}]"
    )
    assert text.index("<h1>") < text.index("<table") and text.index("<h1>") < text.index('<svg class="figure"')


def test_every_section_is_there_and_in_order(text):
    found = re.findall(r'<section id="(\w+)"', text)
    assert found == [
        "iterations",
        "overoptimisation",
        "comparison",
        "judge",
        "training",
        "transcripts",
        "time",
        "provenance",
    ]
    for word in (
        "Bradley-Terry ratings",
        "Win rate on held-out prompts",
        "KL to the reference",
        "0123456789abcdef",
        "same verdict in both orders",
    ):
        assert word in text


def test_no_tag_or_attribute_of_the_page_can_load_or_run_anything_else(text):
    page = Page(text)
    assert [tag for tag, _ in page.tags if tag in ("script", "style")] == ["style", "script", "script"]
    assert not [
        tag
        for tag, _ in page.tags
        if tag in ("img", "iframe", "object", "embed", "link", "form", "base", "audio", "video", "use", "image")
    ]
    for tag, attributes in page.tags:
        assert not [
            name
            for name in attributes
            if name.startswith("on") or name in ("src", "srcset", "style", "xlink:href", "action")
        ], tag
        if "href" in attributes:
            assert attributes["href"].startswith("#")
    policy = next(
        attributes["content"]
        for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert (
        policy.startswith("default-src 'none'; style-src 'sha256-")
        and "unsafe" not in policy
        and "connect-src" not in policy
    )


def test_a_hostile_completion_is_text(text):
    assert "<script>document.title" not in text and "<img" not in text
    shown = "".join(Page(text).words)
    assert '<script>document.title = "owned"' in shown and "{{ 7*7 }} {% raw %} &amp;" in shown
    assert "\u27e8U+0000\u27e9\u27e8U+0007\u27e9\u27e8U+001B\u27e9[31mred" in shown and "\u27e8U+202E\u27e9" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    assert len(HOSTILE) > 100


def test_hostile_names_in_the_recipe_are_text_too(tmp_path):
    run = make_run(tmp_path / "r", Plan(prompts=8))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config.replace("name: r\n", "name: </title><script>alert(1)</script>\n").replace(
            "description: ", "description: <b>x</b> "
        )
    )
    page = Page(write_report(run).read_text())
    assert [tag for tag, _ in page.tags if tag in ("script", "b")].count("script") == 2
    assert any("alert(1)" in words for words in page.words)


def test_two_thousand_transcripts_stay_under_ten_megabytes(tmp_path):
    run = make_run(tmp_path / "big", Plan(prompts=2000, filler=25, iterations=2))
    path = write_report(run, tmp_path / "out.html")
    assert path == tmp_path / "out.html"
    assert path.stat().st_size < 10_000_000
    assert "All 2000 held-out prompts are here." in path.read_text()


def test_more_text_than_fits_is_thinned_evenly_and_said(finished_run, monkeypatch):
    found = transcripts(read_run(finished_run))
    total = sum(one.size for one in found)
    kept = thinned(found, total // 4)
    assert sum(one.size for one in kept) <= total // 4
    places = [found.index(one) for one in kept]
    assert places == sorted(places) and 70 <= len(kept) <= 84 and max(places) > 320
    monkeypatch.setattr("selfplay.report.html.MOST_BYTES", total // 4)
    heldout = sum(one.outcome != "training" for one in kept)
    assert f"{heldout} of 256 held-out prompts, evenly chosen" in context(read_run(finished_run))["shown_note"]


def test_visible_keeps_text_and_shows_what_cannot_be_seen():
    assert visible("a\tb\nc\r\nd") == "a\tb\nc\nd"
    assert visible("x\x00y\u200bz\ud800") == "x\u27e8U+0000\u27e9y\u27e8U+200B\u27e9z\u27e8U+D800\u27e9"
    assert visible("\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680") == (
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680"
    )
    assert visible("x" * (LONGEST + 5)).endswith("[5 more characters are left out here]")


def test_a_transcript_says_who_won_and_where_the_orders_disagree():
    common = {"prompt_id": "p", "prompt": "q", "b": "iteration-000", "b_text": "old", "judge": "j"}
    one = transcript(
        "p",
        [
            Match(a="iteration-001", a_text="new", preference=0.5, forward=1.0, reversed=0.0, reason="close", **common),
            Match(
                a="iteration-002",
                a_text="newer",
                preference=None,
                error="unreadable",
                a_tokens=3,
                a_truncated=True,
                **common,
            ),
        ],
    )
    assert [side.name for side in one.sides] == ["start", "iteration 1", "iteration 2"]
    assert one.outcome == "unscored" and one.flags == ("truncated", "disagree")
    assert [ruling.text for ruling in one.rulings] == [
        "iteration 2 and start: no verdict",
        "iteration 1 and start are even",
    ]
    assert one.rulings[0].reason == "unreadable"
    assert one.rulings[1].orders == "with iteration 1 shown first: iteration 1; with iteration 1 shown second: start"


@pytest.mark.parametrize(
    "missing",
    [
        ["iteration-002/evaluate"],
        ["iteration-001/evaluate", "iteration-002"],
        ["iteration-001/label", "iteration-002/label"],
        ["metrics.jsonl", "provenance.json"],
        ["iteration-001", "iteration-002", "iteration-000"],
    ],
)
def test_an_unfinished_run_has_a_report(tmp_path, missing):
    run = make_run(tmp_path / "r", Plan(prompts=12))
    for name in missing:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    page = write_report(run).read_text()
    heading = re.sub("<.*?>", "", re.search(r"<h1>(.*?)</h1>", page)[1])
    evaluated = [number for number in (1, 2) if (run / f"iteration-00{number}/evaluate").is_dir()]
    assert heading.startswith("Iteration") if evaluated else heading == "Nothing has been evaluated yet"


def test_a_run_whose_best_is_not_its_last_says_what_to_keep(tmp_path):
    run = make_run(tmp_path / "hacked", Plan(hacked=True, audited=True))
    page = write_report(run).read_text()
    assert "No iteration is better than the start" in page
    assert "Kept: the start, since no sound iteration is left; iteration 1 raised a severe alarm" in page
    assert "Length exploitation: iteration 2&#39;s answers are" in page
    assert "Over-optimisation: in iteration 2 the reward rose" in page


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is not a run directory: it has no config.yaml"):
        write_report(tmp_path)


def test_the_live_server_answers_this_machine_only_and_follows_the_run(tmp_path):
    run = make_run(tmp_path / "r", Plan(prompts=8, iterations=1))
    with make_server(run) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            with urllib.request.urlopen(f"{address}/") as answer:
                page = answer.read().decode()
                assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "connect-src &#39;self&#39;" in page and "Iteration 1 " in page
            before = urllib.request.urlopen(f"{address}/version").read().decode()
            assert before == version(run)
            evaluation = run / "iteration-001/evaluate/evaluation.json"
            evaluation.write_text(evaluation.read_text().replace('"mean_score"', '"mean_score_"'))
            assert urllib.request.urlopen(f"{address}/version").read().decode() != before
            for path, host, status in (("/etc/passwd", None, 404), ("/", "evil.example", 403)):
                request = urllib.request.Request(address + path, headers={"Host": f"{host}:80"} if host else {})
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(request)
                assert refused.value.code == status
        finally:
            server.shutdown()
