"""Two judges on the same pairs: agreement, kappa and who is right, by hand, with intervals that hold what they promise."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from judging import Scripted, pair, spec
from typer.testing import CliRunner

from judges.audit.compare import Estimate, JudgeFigures, compare_judges, measure
from judges.audit.gold import BUILT_IN, load_gold, load_pairs
from judges.llm.cache import AnswerCache
from selfplay.cli import app
from selfplay.engines import Answer
from selfplay.errors import ConfigError
from selfplay.report.show import print_judges
from selfplay.stages.rows import pair_row
from selfplay.storage.files import write_rows

ASKING = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ responses[0] }} {{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B|C)\\]\\]', labels: {A: 1, B: 0, C: 0.5}}
on_error: {retries: 0}
"""


def figures(name: str) -> JudgeFigures:
    counts: dict[str, Any] = {"unscored": 0, "input_tokens": 0, "output_tokens": 0, "cost": 0.0, "seconds": 0.0}
    return JudgeFigures(judge=name, model=None, accuracy=None, **counts)


def compared(left: Sequence[str | None], right: Sequence[str | None], truth: str = "", repeat: int = 1) -> Any:
    """Two judges' winners on pairs of different prompts; `truth` has 1 or 0 for each, or is empty."""
    pairs = [
        pair("a", "b", f"Say {number}.", f"p{number}.{copy}") for number in range(len(left)) for copy in range(repeat)
    ]
    said = [[one for one in words for _ in range(repeat)] for words in (left, right)]
    answers = {one.id: float(truth[place // repeat]) for place, one in enumerate(pairs)} if truth else {}
    return measure(figures("left"), figures("right"), pairs, *said, answers)


def test_agreement_kappa_and_accuracy_by_hand() -> None:
    left = ["first", "first", "second", "tie", None]
    right = ["first", "second", "second", "tie", "first"]
    found = compared(left, right, "11011")
    assert (found.pairs, found.read_by_both, found.known, found.apart) == (5, 4, 5, ["p1.0"])
    # 3 of 4 agree; by chance 2/4 1/4 + 1/4 2/4 + 1/4 1/4 = 5/16; (12/16 - 5/16) / (11/16) = 7/11
    assert found.agreement.value == 0.75 and found.kappa.value == pytest.approx(7 / 11, abs=1e-12)
    # left: right, right, right, half, none; right: right, wrong, right, half, right
    assert found.first.accuracy.value == pytest.approx(3.5 / 5) and found.second.accuracy.value == pytest.approx(
        3.5 / 5
    )
    assert found.difference.value == 0.0 and found.p_value == 1.0 and "within chance" in found.verdict


def test_who_is_right_more_often_is_said_only_beyond_chance() -> None:
    truth = "10" * 50
    right = ["first" if one == "1" else "second" for one in truth]
    worse = [one if place % 4 else {"first": "second", "second": "first"}[one] for place, one in enumerate(right)]
    found = compared(right, worse, truth)
    assert found.difference.value == pytest.approx(0.25) and found.difference.low > 0.1 and found.p_value < 1e-6
    assert (
        found.verdict == "left is right more often than right"
        and compared(worse, right, truth).verdict == "right is right more often than left"
    )
    few = compared(right[:4], worse[:4], truth[:4])
    assert few.difference.value == 0.25 and "within chance on 4 pairs" in few.verdict
    assert (
        compared(right, worse).verdict.startswith("no pair has a known answer")
        and compared(right, worse).difference is None
    )


def test_what_cannot_be_measured_is_null_and_what_is_always_the_same_has_an_interval() -> None:
    nothing = compared([None], ["first"])
    assert (nothing.agreement, nothing.kappa, nothing.first.accuracy) == (None, None, None)
    alike = compared(["first"] * 10, ["first"] * 10, "1" * 10)
    assert alike.kappa is None and alike.agreement.value == 1.0 and 0.6 < alike.agreement.low < 0.8  # never [1, 1]
    assert alike.difference.low < 0 < alike.difference.high


def test_copies_of_a_pair_are_no_more_evidence() -> None:
    left, right = ["first", "second"] * 20, ["first", "second", "second", "first"] * 10
    once, often = compared(left, right, "10" * 20), compared(left, right, "10" * 20, repeat=9)
    for name in ("agreement", "kappa", "difference"):
        one, other = getattr(once, name), getattr(often, name)
        assert [other.value, other.low, other.high] == pytest.approx([one.value, one.low, one.high], abs=0.02)


def test_a_prompt_with_many_pairs_counts_once_in_every_figure() -> None:
    """One prompt of 50 pairs for the left judge, 30 prompts of one for the right: -29 / 31, and no interval elsewhere."""
    pairs = [pair("a", "b", f"Say {max(0, number - 49)}.", f"p{number}") for number in range(80)]
    left, right = ["first"] * 50 + ["second"] * 30, ["second"] * 50 + ["first"] * 30
    found = measure(figures("left"), figures("right"), pairs, left, right, {one.id: 1.0 for one in pairs})
    assert found.difference is not None and found.first.accuracy is not None and found.second.accuracy is not None
    assert found.difference.value == pytest.approx(-29 / 31, abs=1e-12)
    assert found.first.accuracy.value - found.second.accuracy.value == pytest.approx(-29 / 31, abs=1e-12)
    assert found.difference.low <= found.difference.value <= found.difference.high < 0
    assert found.verdict == "right is right more often than left"
    # tables of 1/31 (first, second) and 30/31 (second, first): expected 2 (1/31) (30/31), agreed 0
    assert found.kappa is not None and found.kappa.value == pytest.approx(-60 / 901, abs=1e-12)


@pytest.mark.parametrize(
    ("left", "right", "value"),
    [("112", "112", 1.0), ("1", "2", 0.0), ("11111", "22222", 0.0)],
)
def test_a_kappa_that_no_resample_changes_has_no_interval(left: str, right: str, value: float) -> None:
    names = {"1": "first", "2": "second"}
    found = compared([names[one] for one in left], [names[one] for one in right])
    assert (found.kappa.value, found.kappa.low, found.kappa.high) == (pytest.approx(value), None, None)


@pytest.mark.parametrize("width", [60, 80])
def test_names_and_numbers_of_judges_are_whole_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    names = ("j" * 59 + "x", "j" * 59 + "y")
    found = compared(["first", "second"], ["second", "second"], "11")
    many = {"accuracy": Estimate(value=0.61234, low=0.5, high=0.75), "input_tokens": 123_456_789, "cost": 1234.5}
    first = found.first.model_copy(update={"judge": names[0], **many})
    second = found.second.model_copy(update={"judge": names[1], **many})
    found = found.model_copy(update={"first": first, "second": second})
    print_judges(found.model_dump(mode="json"), found.names, found.verdict)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    table = text[: text.index(" pairs, ")]
    assert "\N{HORIZONTAL ELLIPSIS}" not in text and max(map(len, text.splitlines())) <= width
    assert table.count("61.2 [50.0, 75.0]") == table.count("123,456,789") == table.count("1234.5000") == 2
    assert "x" in table and "y" in table


def test_judges_of_one_file_are_told_apart() -> None:
    found = compared(["first"], ["second"], "1")
    one, other = (figures("helpful").model_copy(update={"model": model}) for model in ("small", "large"))
    assert found.model_copy(update={"first": one, "second": other}).names == ("helpful (small)", "helpful (large)")
    assert found.model_copy(update={"first": one, "second": one}).names == (
        "helpful (small), first",
        "helpful (small), second",
    )


def test_nineteen_of_twenty_intervals_hold_the_true_value() -> None:
    """300 draws of 120 pairs: right with .8 and .7, both right or both wrong as chance has it."""
    generator = random.Random(5)
    held = {"agreement": 0, "difference": 0, "kappa": 0}
    # agreement .8 .7 + .2 .3 = .62; the truth takes turns, so that chance is one half: kappa (.62 - .5) / .5
    true = {"agreement": 0.62, "difference": 0.1, "kappa": 0.24}
    for _ in range(300):
        truth = "".join(generator.choice("01") for _ in range(120))
        said = [
            ["first" if (one == "1") == (generator.random() < chance) else "second" for one in truth]
            for chance in (0.8, 0.7)
        ]
        found = compared(said[0], said[1], truth)
        for name, value in true.items():
            estimate: Estimate = getattr(found, name)
            held[name] += estimate.low <= value <= estimate.high
    assert all(0.91 <= count / 300 <= 0.985 for count in held.values()), held


def test_both_judges_are_asked_and_what_each_took_is_told_apart() -> None:
    class Priced(Scripted):
        def stream(self, prompts: Any, sampling: Any, choices: Any = None) -> Any:
            for place, prompt in enumerate(prompts):
                said = (self.say(prompt.text),)
                yield place, Answer(said, ("stop",), input_tokens=10, output_tokens=2, cost=0.5), ""

    rows = load_gold(BUILT_IN)[:10]
    best = {(row.pair.first if row.answer == 1 else row.pair.second).text for row in rows}

    def knows(text: str) -> str:
        return "[[A]]" if any(text.startswith(f"```\n{one}\n```") for one in best) else "[[B]]"

    specs = (spec("name: knows\n" + ASKING), spec("name: shy\n" + ASKING + "order: fixed"))
    cache = AnswerCache()
    engines = (Priced(knows), Scripted(lambda text: "[[C]]" if "sorry" in text else "[[A]]"))
    answers = {row.pair.id: row.answer for row in rows}
    found = compare_judges(specs, [row.pair for row in rows], answers, engines, cache)
    assert found.first.accuracy is not None and found.first.accuracy.value == 1.0 and found.known == 10
    assert (found.first.input_tokens, found.first.output_tokens, found.first.cost) == (200, 40, 10.0)
    assert found.second.cost == 0.0 and found.second.seconds > 0
    with pytest.raises(ConfigError, match="no pairs to compare judges on"):
        compare_judges(specs, [], {}, engines)


def test_pairs_with_and_without_an_answer(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say a.", "chosen": "a", "rejected": "b"},
        {"id": "free", "prompt": "Say c.", "responses": ["c", "d"], "word": "x"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pairs, answers = load_pairs(path)
    assert (pairs[1].first.text, pairs[1].second.text, pairs[1].prompt.meta) == ("c", "d", {"word": "x"})
    assert list(answers) == [pairs[0].id] and (pairs[0].first.text == "a") == (answers[pairs[0].id] == 1.0)
    path.write_text('{"prompt": "x", "responses": ["only one"]}')
    with pytest.raises(
        ConfigError, match="line 1: ValueError: .*; a gold pair is a JSON object with prompt and either"
    ):
        load_pairs(path)
    path.write_text('{"prompt": "x", "responses": "ab"}')
    with pytest.raises(ConfigError, match="line 1: ValueError: responses is 'ab', and not a list of two texts"):
        load_pairs(path)
    path.write_text("\n".join([json.dumps({"id": "same", **rows[0]})] * 2))
    with pytest.raises(ConfigError, match="line 2: the id 'same' stands twice"):
        load_pairs(path)


def test_the_command_compares_rules_on_a_file_and_on_a_runs_pairs(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def long(prompt, response):\n    return min(1.0, len(response) / 10)\n\n"
        "def short(prompt, response):\n    return 1 - long(prompt, response)\n"
    )
    for name in ("long", "short"):
        (tmp_path / f"{name}.yaml").write_text(f"mode: rules\ncriteria: [{{name: x, python: './own.py:{name}'}}]\n")
    rows = [{"prompt": f"Say {one}.", "chosen": "abcdef", "rejected": "ab"} for one in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["judge", "compare", str(tmp_path / "long.yaml"), str(tmp_path / "short.yaml"), "--pairs"]
    found = json.loads(CliRunner().invoke(app, [*command, str(tmp_path / "pairs.jsonl"), "--json"]).output)
    assert (
        found["agreement"]["value"] == 0.0 and found["first"]["accuracy"]["value"] == 1.0 and len(found["apart"]) == 5
    )
    text = CliRunner().invoke(app, [*command, str(tmp_path / "pairs.jsonl")]).output
    assert (
        "30 pairs, 30 with two verdicts: agreement 0.0 [0.0, " in text and "long is right more often than short" in text
    )
    assert "right, long less short, on 30 pairs" in text
    assert "+100.0 points [" in text and "kappa -1.00" in text
    write_rows(tmp_path / "pairs.parquet", [pair_row(pair("a", "bc", id=f"p{one}")) for one in range(3)])
    of_run = json.loads(CliRunner().invoke(app, [*command, str(tmp_path / "pairs.parquet"), "--json"]).output)
    assert of_run["known"] == 0 and of_run["pairs"] == 3 and "nobody can say" in of_run["verdict"]
    refused = CliRunner().invoke(app, command[:4])
    assert isinstance(refused.exception, ConfigError) and "name a file with --pairs" in str(refused.exception)
    write_rows(tmp_path / "matches.parquet", [{"prompt_id": "p", "a": "x", "b": "y", "preference": 1.0}])
    other = CliRunner().invoke(app, [*command, str(tmp_path / "matches.parquet")])
    assert "matches.parquet has no column 'meta', so it does not hold a run's pairs" in str(other.exception)
