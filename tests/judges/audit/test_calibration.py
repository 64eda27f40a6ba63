"""Calibration by hand, on judges whose mistakes are known, and on a real judge's ratings."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import Scripted, completion, pair, spec, verdict
from typer.testing import CliRunner

from judges import aggregate_verdicts, build, to_preferences
from judges.audit.calibration import FOLDS, calibrate, fit, fit_and_shrink, losses, measure, quality
from judges.audit.gold import GoldPair
from judges.llm.templates import drawn
from selfplay.cli import app
from selfplay.errors import ConfigError
from selfplay.records import Pair, Prompt

DATA = Path(__file__).parents[3].parent / "shared" / "data" / "judging" / "llmbar"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data, which is not here")
CHANCES = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ prompt }} {{ responses[0] }} {{ responses[1] }}"}]
output: {kind: logprob, labels: {A: 1, B: 0}}
"""
RATING = """
mode: pointwise
model: m
messages: [{role: user, content: "{{ prompt }} {{ response }}"}]
output: {kind: regex, pattern: '^\\s*(\\d+)\\s*$', range: [0, 10]}
on_error: {retries: 0}
"""


def known(count: int, right: int) -> list[GoldPair]:
    """Pairs of which a judge that reads the words is right on the first `right`; which is better takes turns."""
    rows = []
    for number in range(count):
        words = ("good", "bad") if (number % 2 == 0) == (number < right) else ("bad", "good")
        rows.append(GoldPair(pair(*words, f"Say {number}.", f"p{number}"), float(number % 2 == 0), "all"))
    return rows


def sure(text: str) -> dict[str, float]:
    """Gives 0.9 to the good word, in whichever place it stands."""
    return {"A": 0.9, "B": 0.1} if text.index("good") < text.index("bad") else {"A": 0.1, "B": 0.9}


def test_the_fitted_temperature_by_hand() -> None:
    """Always 0.9 and right on 165 of 220: smoothed, right 166 times in 222, so log 9 / T = log(166 / 56)."""
    odds = np.where(np.arange(220) % 2, -1.0, 1.0) * math.log(9)
    truth = np.where(np.arange(220) < 165, odds > 0, odds < 0).astype(float)
    temperature, low, high = fit(odds, truth)
    assert temperature == pytest.approx(math.log(9) / math.log(166 / 56), rel=1e-6)
    # information of the slope: 220 (log 9)^2 (166 / 222) (56 / 222)
    reach = 1.959963984540054 / math.sqrt(220 * math.log(9) ** 2 * 166 / 222 * 56 / 222)
    bounds = (1 / low, 1 / (high or math.nan))
    assert bounds == pytest.approx((1 / temperature + reach, 1 / temperature - reach), rel=1e-5)
    assert fit(-odds, truth)[0] == pytest.approx(100, rel=1e-3) and fit(-odds, truth)[2] is None  # worse than a coin


def shrunk(right: int, count: int) -> float:
    """The temperature of a judge that always says 0.9, by hand: two more pairs at 0.9, then towards 1 by its own error."""
    share = (right + 2 * 0.9) / (count + 2)
    slope = math.log(share / (1 - share)) / math.log(9)
    variance = 1 / (count * math.log(9) ** 2 * share * (1 - share))
    return 1 / (1 + (slope - 1) * max(0.0, 1 - variance / (slope - 1) ** 2))


def always(right: int, count: int) -> tuple[Any, Any]:
    """Log-odds of a judge that always says 0.9, and what is true, for `right` of `count` pairs."""
    odds = np.where(np.arange(count) % 2, -1.0, 1.0) * math.log(9)
    return odds, np.where(np.arange(count) < right, odds > 0, odds < 0).astype(float)


def test_a_judges_own_probabilities_are_what_the_fit_is_shrunk_to() -> None:
    temperature, low, high = fit_and_shrink(*always(165, 220))
    assert temperature == pytest.approx(shrunk(165, 220), rel=1e-6)
    assert temperature == pytest.approx(1 / 0.5134320, rel=1e-6)  # the fit itself: slope .503286, variance .00503964
    assert low < temperature < (high or math.inf)
    # As often right as it says: (198 + 1.8) / 222 = .9. Within one standard error of it: slope .9355, error .0967.
    assert fit_and_shrink(*always(198, 220))[0] == pytest.approx(1.0, abs=1e-6)
    assert fit_and_shrink(*always(195, 220))[0] == 1.0
    # Twenty pairs without a mistake tell little of a judge at .9: slope 2.1351, variance 1.1497, of 1.1351 a tenth is kept.
    assert fit_and_shrink(*always(20, 20))[0] == pytest.approx(1 / 1.12232, rel=1e-4)
    assert fit_and_shrink(np.zeros(30), np.ones(30))[0] == 1.0, "odds that say nothing fit nothing"


def test_a_calibrated_judge_loses_nothing_on_average_and_less_than_by_the_plain_fit() -> None:
    """400 judges that are right as often as they say: the plain fit costs 1 / (2 n) nats, the shrunk one less than half."""
    generator = np.random.default_rng(0)
    costs = np.zeros(2)
    for _ in range(400):
        odds = generator.normal(0, 3, 150)
        chance = 1 / (1 + np.exp(-odds))
        truth = (generator.random(150) < chance).astype(float)
        for place, fitted in enumerate((fit, fit_and_shrink)):
            said = 1 / (1 + np.exp(-odds / fitted(odds, truth)[0]))
            # Kullback-Leibler divergence from the truth: the expected rise of the log loss on other pairs
            costs[place] += np.mean(chance * np.log(chance / said) + (1 - chance) * np.log((1 - chance) / (1 - said)))
    plain, shrink = costs / 400
    assert plain > 1 / 400 and shrink < plain / 2


def test_the_four_figures_by_hand() -> None:
    found = quality(np.array([0.9, 0.2, 0.5, 0.95]), np.array([1.0, 1.0, 1.0, 1.0]), np.full(4, 0.25))
    assert found.log_loss == pytest.approx(
        -(math.log(0.9) + math.log(0.2) + math.log(0.5) + math.log(0.95)) / 4, abs=1e-12
    )
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.25 + 0.0025) / 4, abs=1e-12)
    # bins of sureness: 0.5 right by half (0), 0.8 never right (0.8), 0.9 right (0.1), 0.95 right (0.05)
    assert found.calibration_error == pytest.approx((0 + 0.8 + 0.1 + 0.05) / 4, abs=1e-12)
    assert found.accuracy == (1 + 0 + 0.5 + 1) / 4
    assert losses(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(
        [-math.log(0.999), -math.log(0.001)], abs=1e-12
    )


def test_an_overconfident_judge_is_brought_down_to_how_often_it_is_right() -> None:
    found = calibrate(spec(CHANCES), known(200, 140), Scripted(chances=sure))
    assert found.before.accuracy == found.after.accuracy == pytest.approx(0.7) and found.pairs == 200
    assert found.unscored == 0
    assert found.temperature == pytest.approx(shrunk(140, 200), rel=1e-6)
    assert found.before.calibration_error == pytest.approx(0.2, abs=1e-12) and found.after.calibration_error < 0.1
    assert found.better and found.log_loss_change == pytest.approx(
        found.after.log_loss - found.before.log_loss, abs=1e-12
    )
    assert "write `verdict_temperature: " in found.lines()[-1]
    assert f"; its calibration error falls, from 0.2000 to {found.after.calibration_error:.4f}" in found.lines()[-1]
    worse = found.before.model_copy(update={"calibration_error": 0.31})
    risen = found.model_copy(update={"after": worse}).lines()[-1]
    assert risen.endswith("; its calibration error rises, from 0.2000 to 0.3100")


def test_a_calibrated_judge_is_left_as_it_is() -> None:
    found = calibrate(spec(CHANCES), known(200, 180), Scripted(chances=sure))
    assert (
        not found.better
        and found.calibrated
        and "calibrated already, as far as these pairs can tell: keep the file as it is" in found.lines()[-1]
        and found.temperature == pytest.approx(1.0, abs=1e-6)
    )


def test_what_is_called_after_was_fitted_on_other_prompts() -> None:
    """One fold holds all mistakes: fitted without it, nothing tells of them."""
    rows = known(200, 200)
    bad = [drawn(0, "fold", row.pair.prompt.text, FOLDS) == 0 for row in rows]
    truth = np.array([row.answer for row in rows])
    said = np.where(truth > 0.5, 0.9, 0.1)
    odds = np.log(said) - np.log1p(-said)
    wrong = [GoldPair(row.pair, 1 - row.answer, "all") if there else row for row, there in zip(rows, bad, strict=True)]
    found = measure("test", wrong, said, odds)
    here = np.array(bad)
    others = fit_and_shrink(odds[~here], truth[~here])[0]
    assert others < 0.6  # all right: surer than 0.9
    expected = losses(1 / (1 + np.exp(-odds[here] / others)), 1 - truth[here])
    assert found.after.log_loss > found.before.log_loss and not found.better
    assert expected.min() > 4  # and each of its pairs is what such a judge loses


def test_pairs_of_one_prompt_are_one_piece_of_evidence() -> None:
    rows = known(100, 70)
    once = calibrate(spec(CHANCES), rows, Scripted(chances=sure))
    many = [
        GoldPair(row.pair.model_copy(update={"id": f"{row.pair.id}/{copy}"}), row.answer, "all")
        for row in rows
        for copy in range(9)
    ]
    nine = calibrate(spec(CHANCES), many, Scripted(chances=sure))
    width = once.log_loss_change_high - once.log_loss_change_low
    assert nine.log_loss_change_high - nine.log_loss_change_low == pytest.approx(width, rel=0.1)  # not a third of it


def test_the_table_and_the_line_below_weigh_prompts_alike() -> None:
    """A prompt of 60 pairs weighs as much as each of 40 with one."""
    rows = known(100, 70)
    one = [
        GoldPair(row.pair.model_copy(update={"prompt": rows[0].pair.prompt}), row.answer, "all") for row in rows[:60]
    ]
    found = calibrate(spec(CHANCES), one + rows[60:], Scripted(chances=sure))
    # right: all of the first prompt, then 10 of 40
    assert found.before.accuracy == pytest.approx(11 / 41, abs=1e-12)
    assert found.before.calibration_error == pytest.approx(0.9 - 11 / 41, abs=1e-12)
    assert found.after.log_loss - found.before.log_loss == pytest.approx(found.log_loss_change, abs=1e-12)


def test_the_temperature_in_a_file_softens_its_verdicts_and_names_no_other_winner() -> None:
    engine = Scripted(chances=sure)
    hot, pairs = spec(CHANCES + "verdict_temperature: 2"), [row.pair for row in known(10, 5)]
    plain = aggregate_verdicts(build(spec(CHANCES), engine).judge(pairs), spec(CHANCES))
    soft = aggregate_verdicts(build(hot, engine).judge(pairs), hot)
    # 0.9 at temperature 2: odds 9 become 3, which is 0.75
    expected = {name: 0.75 if value == pytest.approx(0.9) else 0.25 for name, value in plain.items()}
    assert set(expected.values()) == {0.75, 0.25} and soft == pytest.approx(expected, abs=1e-12)
    preferences, _ = to_preferences(pairs, build(hot, engine).judge(pairs), hot)
    assert [one.confidence for one in preferences] == pytest.approx([0.75] * 10, abs=1e-12)
    assert aggregate_verdicts([verdict(0.5)], hot) == {"p": 0.5} and aggregate_verdicts([verdict(None)], hot) == {
        "p": None
    }
    assert aggregate_verdicts([verdict(1.0)], hot)["p"] == pytest.approx(1 / (1 + math.sqrt(1 / 999)), abs=1e-12)


def test_where_responses_have_scores_their_difference_is_the_odds() -> None:
    rating = Scripted(lambda text: "8" if "good" in text else "6")
    soft = spec(RATING + "verdict_temperature: 0.1")
    pairs = [pair("good", "bad", id="p0"), pair("bad", "good", id="p1"), pair("bad", "bad ", id="p2")]
    found = aggregate_verdicts(build(soft, rating).judge(pairs), soft)
    sure = 1 / (1 + math.exp(-0.2 / 0.1))
    assert found == pytest.approx({"p0": sure, "p1": 1 - sure, "p2": 0.5}, abs=1e-12)
    report = calibrate(soft, known(100, 80), rating)  # what the file has already is set aside
    assert report.before.accuracy == 0.8 and report.temperature == pytest.approx(0.2 / math.log(81 / 21), rel=1e-6)


def test_too_few_or_one_prompt_only_is_a_sentence() -> None:
    asked = Scripted(chances=sure)
    with pytest.raises(ConfigError, match="judge 'test': 10 pairs are too few, a temperature needs 20: give more"):
        calibrate(spec(CHANCES), known(10, 5), asked)
    one = [GoldPair(pair("good", "bad", id="same"), 1.0, "all")] * 30
    with pytest.raises(ConfigError, match="all pairs have one prompt"):
        calibrate(spec(CHANCES), one, asked)
    alike = [number for number in range(100) if drawn(0, "fold", f"Say {number}.", FOLDS) == 0][:2]
    two = [GoldPair(pair("good", "bad", f"Say {alike[one % 2]}.", f"p{one}"), 1.0, "all") for one in range(30)]
    with pytest.raises(ConfigError, match="the 2 prompts all fall into one of 5 folds"):
        calibrate(spec(CHANCES), two, asked)
    assert not asked.calls, "known before the judge is asked"
    with pytest.raises(ConfigError, match="gave a verdict on 0 of 30 pairs; a temperature needs 20"):
        calibrate(spec(RATING), known(30, 20), Scripted(lambda text: "none"))


def test_the_command_calibrates_rules_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def long(prompt, response):\n    return min(1.0, len(response) / 10)\n")
    (tmp_path / "rules.yaml").write_text("mode: rules\ncriteria: [{name: long, python: './own.py:long'}]\n")
    rows = [
        {
            "id": f"p{number}",
            "prompt": f"Say {number}.",
            "chosen": "abcdef",
            "rejected": "ab" if number % 4 else "abcdefgh",
        }
        for number in range(80)
    ]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["judge", "calibrate", str(tmp_path / "rules.yaml"), "--gold", str(tmp_path / "gold.jsonl")]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert found["before"]["accuracy"] == found["after"]["accuracy"] == 0.75 and found["better"] is True
    text = CliRunner().invoke(app, command).output
    assert (
        text.startswith("judge rules: 80 pairs with a verdict, 0 without\ntemperature ") and "calibration error" in text
    )
    refused = CliRunner().invoke(app, command[:3])
    assert isinstance(refused.exception, ConfigError) and "name a file with --gold" in str(refused.exception)


def test_the_command_calibrates_on_the_verdicts_of_another_judge(tmp_path: Path) -> None:
    """The teacher decides 80 of 120 pairs and ties the others; the judge agrees with it on three of four."""
    (tmp_path / "own.py").write_text(
        "def long(prompt, response):\n    return min(1.0, len(response) / 10)\n"
        "def vowels(prompt, response):\n    return sum(map(response.count, 'ae')) / 10\n"
    )
    for name in ("long", "vowels"):
        (tmp_path / f"{name}.yaml").write_text(f"mode: rules\ncriteria: [{{name: it, python: './own.py:{name}'}}]\n")
    agreed = [("aaaxx", "axx"), ("axx", "aaaxx"), ("aaxxx", "axx")]
    kinds = [*agreed, ("axxxx", "aa")]  # in the last one the longer has fewer vowels
    texts = [kinds[number % 4] for number in range(80)] + [("abx", "axbxx")] * 40
    rows = [{"id": f"{one}", "prompt": f"Say {one}.", "responses": both} for one, both in enumerate(texts)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["judge", "calibrate", str(tmp_path / "long.yaml"), "--teacher", str(tmp_path / "vowels.yaml")]
    done = CliRunner().invoke(app, [*command, "--pairs", str(tmp_path / "pairs.jsonl"), "--json"])
    found = json.loads(done.output)
    assert (found["pairs"], found["unscored"], found["before"]["accuracy"]) == (80, 0, 0.75)
    for wrong in (command, [*command[:3], "--pairs", "x"], [*command, "--pairs", "x", "--gold", "y"]):
        message = str(CliRunner().invoke(app, wrong).exception)
        assert message == "the right answers come from --gold FILE, or from --teacher JUDGE and --pairs FILE together"


@needs_data
@pytest.mark.parametrize("subset", ["Natural", "Neighbor"])
def test_a_real_judges_ratings_become_probabilities_that_are_better_on_other_pairs(subset: str) -> None:
    """ChatGPT's ratings of LLMBar's pairs: in five folds the log loss falls, beyond chance, and the accuracy stays."""
    rows = json.loads(DATA.joinpath(subset, "judges", "ChatGPT_Rating", "result.json").read_text(encoding="utf-8"))
    said = {}
    gold = []
    for number, row in enumerate(rows):
        texts = [f"{subset} {number} {one}" for one in (1, 2)]
        said |= {text: row["results"][0][f"score_{one}"][0] for one, text in zip((1, 2), texts, strict=True)}
        first, second = (completion(text, text, str(number)) for text in texts)
        asked = Pair(id=str(number), prompt=Prompt.plain(str(number), row["input"]), first=first, second=second)
        gold.append(GoldPair(asked, float(row["label"] == 1), "all"))

    def rate(text: str) -> str:
        [found] = [rating for response, rating in said.items() if f"\n{response}\n" in text]
        return str(found)

    engine: Any = Scripted(rate)
    found = calibrate(spec(RATING), gold, engine)
    assert found.pairs + found.unscored == len(rows)
    assert found.log_loss_change_high < 0 and found.after.accuracy == found.before.accuracy
    assert found.after.brier < found.before.brier
    # it is right on .685 of the natural pairs, and on .41 of those made to mislead
    assert (
        ("write `verdict_temperature" in found.lines()[-1])
        == (subset == "Natural")
        != ("no temperature fixes" in found.lines()[-1])
    )
