"""Real judges' raw answers, replayed through judge files with those judges' own patterns: the published figures,
exactly."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judging import Scripted, completion, spec

from judges import aggregate_verdicts, build, health
from judges.verdicts import winner
from selfplay.records import Pair, Prompt, Verdict
from selfplay.stats.agreement import cohen_kappa, wilson

DATA = Path(__file__).parents[4] / "shared" / "data" / "judging"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data, which is not here")

COMPARING = """
mode: pairwise
model: replayed
messages: [{{role: user, content: "{{{{ prompt }}}}\\n{{{{ responses[0] }}}}\\n{{{{ responses[1] }}}}"}}]
output: {{kind: regex, pattern: '{pattern}', match: unique, labels: {{a: 1, b: 0}}}}
on_error: {{retries: 0, max_failure_rate: 1}}
"""
RATING = """
mode: pointwise
model: replayed
messages: [{role: user, content: "{{ prompt }}\\n{{ response }}"}]
output: {kind: regex, pattern: '^\\s*(\\d+)\\s*$', range: [0, 10]}
on_error: {retries: 0, max_failure_rate: 1}
"""
PATTERNS = {"GPT-4_Vanilla": r"(?:^|\n) ?Output \((a|b)\)", "LLaMA2_CoT": r"Output \((a|b)\) is better."}


def load(*parts: str) -> Any:
    return json.loads(DATA.joinpath(*parts).read_text(encoding="utf-8"))


def pair_of(number: int, row: dict[str, Any]) -> Pair:
    identity = f"row {number}"
    return Pair(
        id=identity,
        prompt=Prompt.plain(identity, row["input"]),
        first=completion(row["output_1"], f"{identity}/1", identity),
        second=completion(row["output_2"], f"{identity}/2", identity),
    )


def replay_comparisons(subset: str, judge: str) -> tuple[list[dict[str, Any]], list[Pair], list[Verdict], Any]:
    """The verdicts on a subset, both orders, from what the judge said in each."""
    rows = load("llmbar", subset, "judges", judge, "result.json")
    pairs = [pair_of(number, row) for number, row in enumerate(rows)]
    said = iter([row["results"][0][f"swap = {swapped}"]["completion"][0] for row in rows for swapped in (False, True)])
    file = spec(COMPARING.format(pattern=PATTERNS[judge].replace("'", "''")))
    return rows, pairs, build(file, Scripted(lambda text: next(said))).judge(pairs), file


def replay_ratings(subset: str, judge: str) -> tuple[list[dict[str, Any]], list[Pair], list[Verdict], Any]:
    """The verdicts on a subset from one rating per response."""
    rows = load("llmbar", subset, "judges", judge, "result.json")
    pairs = [pair_of(number, row) for number, row in enumerate(rows)]
    said = iter([row["results"][0][f"score_{one}"][0] for row in rows for one in (1, 2)])
    file = spec(RATING)
    return rows, pairs, build(file, Scripted(lambda text: next(said))).judge(pairs), file


def share(right: int, count: int) -> str:
    """A share as their files write it."""
    return f"{right} / {count} = {right / count * 100}%"


def winners(verdicts: list[Verdict], order: str, second_shown_wins_ties: bool = False) -> list[str | None]:
    """Each pair's winner, "1" or "2", as seen in one order."""
    tied = {"forward": "2", "reversed": "1"}[order] if second_shown_wins_ties else None
    return [
        {"first": "1", "second": "2", "tie": tied}.get(winner(row.preference) or "")
        for row in verdicts
        if row.order in (order, "none")
    ]


@needs_data
@pytest.mark.parametrize("subset", ["Natural", "Neighbor"])
@pytest.mark.parametrize("judge", ["GPT-4_Vanilla", "LLaMA2_CoT", "ChatGPT_Rating"])
def test_llmbars_statistics_are_reproduced_exactly(subset: str, judge: str) -> None:
    """All figures of theirs that are standard statistics. (Their other kappas are of their own making.)"""
    rating = judge == "ChatGPT_Rating"  # they give a tie between ratings to the response shown second
    rows, pairs, verdicts, file = replay_ratings(subset, judge) if rating else replay_comparisons(subset, judge)
    published = load("llmbar", subset, "judges", judge, "statistics.json")
    truth = [str(row["label"]) for row in rows]
    forward, backward = (winners(verdicts, order, rating) for order in ("forward", "reversed"))
    recorded = [[row["results"][0][f"swap = {swapped}"]["winner"] for row in rows] for swapped in (False, True)]
    assert [forward, backward] == recorded
    right = [[one == other for one, other in zip(said, truth, strict=True)] for said in (forward, backward)]
    same = sum(one == other for one, other in zip(forward, backward, strict=True))
    assert published["correct_False"] == share(sum(right[0]), len(rows))
    assert published["correct_True"] == share(sum(right[1]), len(rows))
    assert published["correct_both"] == share(sum(map(all, zip(*right, strict=True))), len(rows))
    assert published["equal"] == share(same, len(rows))
    assert float(published["correct_average"].rstrip("%")) == pytest.approx(
        100 * (sum(right[0]) + sum(right[1])) / 2 / len(rows), abs=1e-12
    )
    # Their kappa, unlike their count of equal winners, takes an answer that could not be read for a vote for 2.
    votes = [[one or "2" for one in said] for said in (forward, backward)]
    assert published["kappa_agreement"] == pytest.approx(cohen_kappa(*votes), abs=1e-12)
    if rating:  # with a tie as one half, one rating per response gives their average over both orders
        settled = aggregate_verdicts(verdicts, file)
        points = [{"first": "1", "second": "2"}.get(winner(settled[pair.id]) or "") for pair in pairs]
        mean = sum(0.5 if said is None else float(said == one) for said, one in zip(points, truth, strict=True)) / len(
            rows
        )
        assert published["correct_average"] == f"{mean * 100}%"


@needs_data
def test_health_of_llmbars_judges() -> None:
    """LLaMA2 on Neighbor: one answer was cut off before its verdict, and 90 of the other 133 pairs get one winner."""
    _, pairs, verdicts, file = replay_comparisons("Neighbor", "LLaMA2_CoT")
    found = health(pairs, verdicts, file)
    assert (found["unscored"], found["unscored_answers"], found["swap_consistency"]) == (1, 1 / 268, 90 / 133)
    [failed] = [row for row in verdicts if row.preference is None]
    assert failed.error == "no verdict found" and failed.raw.endswith("whereas Output (")
    gpt = replay_comparisons("Natural", "GPT-4_Vanilla")
    assert health(gpt[1], gpt[2], gpt[3])["swap_consistency"] == 0.95


@needs_data
def test_a_rating_that_is_not_there_is_no_score() -> None:
    """160 answers of a judge in the wild: 37 have a rating, and nothing else, such as the index of a list, counts as
    one."""
    rows = [
        json.loads(line)
        for line in (DATA / "failed_parses" / "gpt-4_single.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    file = spec(
        RATING.replace(
            "'^\\s*(\\d+)\\s*$', range: [0, 10]", "'\\[\\[(\\d+\\.?\\d*)\\]\\]', match: first, range: [1, 10]"
        )
    )
    said = iter([row["judgment"] for row in rows])
    judge: Any = build(file, Scripted(lambda text: next(said)))
    scores = judge.score(
        [Prompt.plain(str(number), "?") for number in range(160)],
        [completion(f"response {number}") for number in range(160)],
    )
    rated = {number: score for number, score in enumerate(scores) if score is not None}
    assert len(rated) == 37 and all("[[" in rows[number]["judgment"] for number in rated)
    assert {number: 1 + 9 * score for number, score in rated.items()} == pytest.approx(
        {number: rows[number]["score"] for number in rated}, abs=1e-12
    )
    # Their 120 failures are among ours; three more "ratings" of theirs were [0] and [5] in code.
    assert Counter(rows[number]["score"] for number in range(160) if number not in rated) == {-1: 120, 0: 2, 5: 1}


@needs_data
def test_agreement_by_hand() -> None:
    # 3 of 4 agree; chance: a 2/4 * 3/4 + b 2/4 * 1/4 = 1/2; (3/4 - 1/2) / (1/2) = 1/2.
    assert cohen_kappa("aabb", "aaab") == pytest.approx(0.5, abs=1e-12)
    assert cohen_kappa("aaaa", "aaaa") is None and cohen_kappa("ab", "ba") == pytest.approx(-1.0, abs=1e-12)
    # Wilson for 1/2 of 4 at z = 1.959964: centre 1/2, spread z sqrt(1/16 + z^2/64) / (1 + z^2/4) = .349883...
    low, high = wilson(0.5, 4)
    z = 1.959963984540054
    assert (high - low) / 2 == pytest.approx(z * (1 / 16 + z * z / 64) ** 0.5 / (1 + z * z / 4), abs=1e-12)
    assert low + high == pytest.approx(1.0, abs=1e-12) and wilson(0.0, 0) == (0.0, 1.0)
