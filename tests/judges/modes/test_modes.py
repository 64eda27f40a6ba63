"""Pointwise, rubric, listwise, jury, log-prob and Python judges, with expectations derived by hand."""

import json
import math
from pathlib import Path

import pytest
from judging import Scripted, completion, fenced, numbered, pair, spec

from judges import JudgeStopped, aggregate_verdicts, build, health, load_spec
from judges.llm.parse import read_ranking
from judges.modes.jury import disagreement, least_decided, majority, median
from selfplay.errors import ConfigError
from selfplay.records import Prompt

SCORE = """
mode: pointwise
model: m
messages: [{role: user, content: "{{ prompt }}\\n{{ response }}"}]
output: {kind: regex, pattern: '\\[\\[(\\d+(?:\\.\\d+)?)\\]\\]', range: [1, 5]}
on_error: {max_failure_rate: 1, retries: 0}
"""


def words(text: str) -> str:
    return f"[[{len(fenced(text)[1].split())}]]"


def test_pointwise_scores_are_mapped_to_the_unit_interval_and_compared() -> None:
    judge = build(spec(SCORE), Scripted(words))
    # 1 -> 0, 3 -> 1/2, 5 -> 1; 6 is off the menu.
    texts = ["a", "a b c", "a b c d e", "a b c d e f"]
    assert judge.score([Prompt.plain("p", "?")] * 4, [completion(text) for text in texts]) == [0.0, 0.5, 1.0, None]
    rows = judge.judge([pair("a", "a b"), pair("a b", "c d", id="q"), pair("a b c d e f", "a", id="r")])
    assert [(row.order, row.preference) for row in rows] == [("none", 0.0), ("none", 0.5), ("none", None)]
    assert rows[2].error == "first: '6' is not between 1 and 5"
    assert build(spec(SCORE + "margin: 0.25"), Scripted(words)).judge([pair("a", "a b")])[0].preference == 0.5


def test_a_score_from_log_probabilities_is_the_expectation() -> None:
    by_logprob = spec(
        SCORE.replace(
            "kind: regex, pattern: '\\[\\[(\\d+(?:\\.\\d+)?)\\]\\]', range: [1, 5]",
            "kind: logprob, labels: {'1': 0, '2': 0.5, '3': 1}",
        )
    )
    judge = build(by_logprob, Scripted(chances=lambda text: {"1": 0.1, "2": 0.1, "3": 0.3}))
    # Of the mass .5 on labels: (0 * .1 + .5 * .1 + 1 * .3) / .5 = .7.
    assert judge.score([Prompt.plain("p", "?")], [completion("x")]) == pytest.approx([0.7], abs=1e-12)


def test_pairwise_log_probabilities_sum_the_tokens_of_a_label() -> None:
    logprob = spec("""
mode: pairwise
model: m
messages: [{role: user, content: "{{ prompt }} {{ responses[0] }} {{ responses[1] }}"}]
output: {kind: logprob, labels: {A: 1, B: 0}, tokens: {A: [A, " A"], B: [B, " B"]}, least_mass: 0.2}
order: fixed
on_error: {max_failure_rate: 1}
""")
    [row] = build(logprob, Scripted(chances=lambda text: {"A": 0.2, " A": 0.1, "B": 0.1, " B": 0.0})).judge(
        [pair("a", "b")]
    )
    assert row.preference == pytest.approx(0.75, abs=1e-12)
    assert row.reason == "P(A) = 0.750"
    assert json.loads(row.raw) == {
        "A": pytest.approx(math.log(0.2), abs=1e-6),
        " A": pytest.approx(math.log(0.1), abs=1e-6),
        "B": pytest.approx(math.log(0.1), abs=1e-6),
        " B": -math.inf,
    }
    [row] = build(logprob, Scripted(chances=lambda text: {"A": 0.1, " A": 0.05, "B": 0.04, " B": 0.0})).judge(
        [pair("a", "b")]
    )
    assert (row.preference, row.error) == (None, "the labels together have probability 0.19, below 0.2")


RUBRIC = """
mode: rubric
model: m
criteria:
  - {name: polite, text: "Is it polite?", weight: 2}
  - {name: tone, text: "Which tone has it?", choices: {warm: 1, flat: 0.5, cold: 0}}
  - {name: greets, python: "criteria_for_tests:has_hello"}
on_error: {max_failure_rate: 1, retries: 0}
"""


def rubric_answers(text: str) -> str:
    response = fenced(text)[1]
    if "polite" in text:
        return "[[yes]]" if "please" in response else "[[no]]"
    return f"[[{response.split()[0]}]]"


def test_a_rubric_asks_one_question_per_criterion_and_mixes_in_python() -> None:
    engine = Scripted(rubric_answers)
    judge = build(spec(RUBRIC), engine)
    # warm hello please: (2 * 1 + 1 * 1 + 1 * 1) / 4 = 1. flat please: (2 + .5 + 0) / 4 = .625. hot: no such tone.
    texts = ["warm hello please", "flat please", "hot please"]
    assert judge.score([Prompt.plain("p", "?")] * 3, [completion(text) for text in texts]) == [1.0, 0.625, None]
    assert engine.calls == 6
    assert "Is it polite? End, on its own line, with [[yes]] or [[no]]." in engine.prompts[0].text
    assert "Which tone has it? End, on its own line, with [[warm]] or [[flat]] or [[cold]]." in engine.prompts[1].text
    [row] = judge.judge([pair("warm hello please", "flat please")])
    assert (row.preference, row.reason) == (1.0, "score 1.00 > 0.62: tone 1.00 > 0.50, greets 1.00 > 0.00")
    [row] = judge.judge([pair("hot please", "flat please")])
    assert row.error == "first: criterion 'tone': 'hot' is not one of warm, flat, cold"


def test_a_rubric_in_python_alone_needs_no_model() -> None:
    plain = spec("mode: rubric\ncriteria: [{name: greets, python: 'criteria_for_tests:has_hello'}]")
    assert not plain.needs_model and plain.scores
    assert build(plain).judge([pair("hello", "no")])[0].preference == 1.0
    assert spec(RUBRIC).needs_model


LISTWISE = """
mode: listwise
model: m
messages:
  - role: user
    content: |
      {{ prompt }}
      {% for response in responses %}
      {{ names[loop.index0] }}:
      {{ response }}
      {% endfor %}
on_error: {max_failure_rate: 1, retries: 0}
"""


def by_length(text: str) -> str:
    shown = fenced(text)[1:]
    groups: dict[int, list[str]] = {}
    for place, response in enumerate(shown):
        groups.setdefault(-len(response), []).append("ABCDEFG"[place])
    return "[[" + " > ".join(" = ".join(groups[length]) for length in sorted(groups)) + "]]"


def test_a_ranking_gives_every_pair_its_verdict_in_both_orders() -> None:
    engine = Scripted(by_length)
    texts = {"long": "aaaa", "middle": "bb", "other": "cc", "short": "d"}
    pairs = [
        pair(texts[first], texts[second], id=f"{first}-{second}").model_copy(update={"prompt": Prompt.plain("p", "?")})
        for first, second in [("long", "short"), ("short", "middle"), ("middle", "other"), ("other", "long")]
    ]
    rows = build(spec(LISTWISE), engine).judge(pairs)
    assert engine.calls == 2  # one list, two orders
    assert aggregate_verdicts(rows) == {"long-short": 1.0, "short-middle": 0.0, "middle-other": 0.5, "other-long": 0.0}
    assert [row.order for row in rows] == ["forward", "reversed"] * 4
    with pytest.raises(ConfigError, match="ranks at most 3 responses, but prompt 'p' has 4"):
        build(spec(LISTWISE + "largest: 3"), engine).judge(pairs)


@pytest.mark.parametrize("label", ["A > B", "A > B > C > D", "A > A > B", "A > B > B = C", "A >  > B", "A, B, C", ""])
def test_a_ranking_that_does_not_name_each_response_once_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="does not rank each of A, B, C once"):
        read_ranking(label, 3)


def test_ranks_by_hand() -> None:
    assert read_ranking("C > A = B", 3) == [1, 1, 0]
    assert read_ranking("B>A>C", 3) == [1, 0, 2]


def write_member(folder: Path, name: str, criterion: str) -> None:
    (folder / f"{name}.yaml").write_text(
        f"mode: rules\ncriteria: [{{name: x, python: 'criteria_for_tests:{criterion}'}}]\n"
    )


@pytest.fixture
def jury(tmp_path: Path) -> Path:
    for name, criterion in (("hello", "has_hello"), ("vowels", "vowels"), ("asked", "asked_for")):
        write_member(tmp_path, name, criterion)
    path = tmp_path / "jury.yaml"
    path.write_text(
        "mode: jury\nmembers: [{judge: ./hello.yaml}, {judge: ./vowels.yaml, weight: 2}, {judge: ./asked.yaml}]\n"
    )
    return path


def test_a_jury_weighs_its_members_and_reports_how_each_voted(jury: Path) -> None:
    judge = build(load_spec(jury))
    [row] = judge.judge([pair("hello kite", "aaaa", word="kite")])
    # hello: 1, vowels: 0 with weight 2, asked: 1; (1 + 0 + 1) / 4 = .5.
    assert (row.preference, row.order) == (0.5, "none")
    assert json.loads(row.raw) == {"1. hello": 1.0, "2. vowels": 0.0, "3. asked": 1.0}
    assert row.reason == "1. hello: first (1.00), 2. vowels: second (0.00), 3. asked: first (1.00)"
    # Of the three pairs of members two name different winners.
    assert disagreement([row]) == pytest.approx(2 / 3, abs=1e-12)
    # Scores: hello 1, vowels 4/10 (e, o, i, e) with weight 2, asked 1: (1 + .8 + 1) / 4 = .7.
    assert judge.score([Prompt.plain("p", "?", word="kite")], [completion("hello kite")]) == pytest.approx(
        [0.7], abs=1e-12
    )


def test_a_jury_without_its_quorum_gives_no_verdict(jury: Path) -> None:
    text = jury.read_text()
    no_word = [pair("hello kite", "aaaa")]  # the member that reads meta.word fails
    assert build(load_spec(jury)).judge(no_word)[0].preference == pytest.approx(1 / 3, abs=1e-12)
    jury.write_text(text + "quorum: 3\n")
    with pytest.raises(JudgeStopped, match="only 2 of 3 members gave a verdict; the quorum is 3"):
        build(load_spec(jury)).judge(no_word)


def test_median_majority_and_minimum_by_hand() -> None:
    assert median([(0.2, 1), (0.9, 1), (0.4, 1)]) == 0.4
    assert median([(0.2, 1), (0.9, 1)]) == pytest.approx(0.55, abs=1e-12)
    assert median([(0.2, 3), (0.9, 1), (0.4, 1)]) == 0.2
    assert median([(0.7, 1)]) == 0.7
    assert majority([(0.9, 1), (0.6, 1), (0.1, 1)]) == 1.0
    assert majority([(0.9, 1), (0.1, 1)]) == 0.5
    assert majority([(0.9, 1), (0.1, 1.5)]) == 0.0
    assert majority([(0.9, 1), (0.5, 1)]) == 0.5
    assert least_decided([0.9, 0.6, 1.0]) == 0.6
    assert least_decided([0.2, 0.4]) == 0.4
    assert least_decided([0.9, 0.4]) == 0.5


def test_members_with_different_models_need_an_engine_each(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(SCORE.replace("model: m", f"model: {name}"))
    (tmp_path / "jury.yaml").write_text("mode: jury\nmembers: [{judge: ./one.yaml}, {judge: ./two.yaml}]\n")
    both = load_spec(tmp_path / "jury.yaml")
    engines = {"one": Scripted(words), "two": Scripted(lambda text: "[[3]]")}
    [row] = build(both, lambda part: engines[part.model]).judge([pair("a b c d e", "a")])
    assert (row.preference, engines["one"].calls, engines["two"].calls) == (0.75, 2, 2)  # one: 1; two: a tie
    with pytest.raises(ConfigError, match=r"asks 2 models \(one, two\) but got one engine"):
        build(both, engines["one"])


def test_a_model_for_a_jury_is_that_of_the_members_that_name_none(tmp_path: Path) -> None:
    unnamed = SCORE.replace("model: m\n", "")
    for name, text in (("one", unnamed), ("two", SCORE)):
        (tmp_path / f"{name}.yaml").write_text(text)
    write_member(tmp_path, "rules", "has_hello")
    (tmp_path / "jury.yaml").write_text(
        "mode: jury\nmembers: [{judge: ./one.yaml}, {judge: ./two.yaml}, {judge: ./rules.yaml}]\n"
    )
    parts = load_spec(tmp_path / "jury.yaml", model="given").parts[1:]
    assert [getattr(part, "model", None) for part in parts] == ["given", "m", None]


OWN = """
from selfplay.records import Verdict

class Shorter:
    def __init__(self, bonus=0.0):
        self.bonus = bonus
    def judge(self, pairs):
        return [Verdict(pair_id=pair.id, judge="shorter", order="none",
                        preference=float(len(pair.first.text) < len(pair.second.text))) for pair in pairs]
    def score(self, prompts, completions):
        return [1 / (1 + len(completion.text)) + self.bonus for completion in completions]

class Forgetful:
    def judge(self, pairs):
        return []

class Silent:
    pass
"""


def test_a_class_of_ones_own_outside_the_repository(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "shorter.yaml").write_text("mode: python\npython: ./own.py:Shorter\noptions: {bonus: 0.25}\n")
    judge = build(load_spec(tmp_path / "shorter.yaml"))
    assert [row.preference for row in judge.judge(numbered([("a", "bb"), ("ccc", "d")]))] == [1.0, 0.0]
    assert judge.score([Prompt.plain("p", "?")], [completion("abc")]) == [0.5]
    direct = build(load_spec(f"python: {tmp_path}/own.py:Shorter"))
    assert direct.judge([pair("a", "bb")])[0].preference == 1.0


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        (
            "Forgetful",
            "",
            "must return a verdict for each pair and no other; it returned 0 for 1 pairs, and 1 do not match",
        ),
        ("Silent", "", "has no method judge"),
        ("Shorter", "options: {bonu: 1}", "cannot be made with the options"),
        ("Shorte", "", "did you mean 'Shorter'?"),
    ],
)
def test_a_class_that_is_no_judge_is_refused(tmp_path: Path, name: str, options: str, problem: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(f"mode: python\npython: ./own.py:{name}\n{options}\n")
    with pytest.raises(ConfigError, match=problem):
        build(load_spec(tmp_path / "own.yaml")).judge([pair("a", "b")])


def test_one_letter_by_json_regex_and_logprob_gives_the_same_verdicts() -> None:
    """A judge whose prompt asks for one letter says the same in all three outputs."""
    letters = {
        "json": "kind: json, labels: {A: 1, B: 0}",
        "regex": "kind: regex, pattern: '^\\s*(A|B)\\s*$', labels: {A: 1, B: 0}",
        "logprob": "kind: logprob, labels: {A: 1, B: 0}",
    }
    pairs = numbered([("long answer", "short"), ("x", "yes indeed"), ("abc", "ab")])

    def letter(text: str) -> str:
        return "A" if len(fenced(text)[1]) > len(fenced(text)[2]) else "B"

    found = {}
    for kind, output in letters.items():
        judge = spec(
            'mode: pairwise\nmodel: m\nmessages: [{role: user, content: "{{ prompt }}\\n{{ responses[0] }}\\n'
            f'{{{{ responses[1] }}}}\\nAnswer A or B."}}]\noutput: {{{output}}}'
        )
        say = (lambda text: json.dumps({"reason": "", "verdict": letter(text)})) if kind == "json" else letter
        chances = lambda text: {"A": 1.0, "B": 0.0} if letter(text) == "A" else {"A": 0.0, "B": 1.0}  # noqa: E731
        found[kind] = [row.preference for row in build(judge, Scripted(say, chances)).judge(pairs)]
    assert found["json"] == found["regex"] == found["logprob"] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


def test_a_principle_is_drawn_per_pair_and_the_same_in_both_orders() -> None:
    constitution = spec("""
mode: pairwise
model: m
principles: [be kind, be brief, be honest]
messages: [{role: user, content: "By '{{ principle }}': {{ prompt }} {{ responses[0] }} {{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
""")
    engine = Scripted(lambda text: "[[A]]")
    rows = build(constitution, engine).judge(numbered([(f"a{n}", f"b{n}") for n in range(60)]))
    drawn = [prompt.text.split("'")[1] for prompt in engine.prompts]
    assert drawn[0::2] == drawn[1::2] and len(drawn) == 120
    assert all(10 <= drawn[0::2].count(one) <= 32 for one in constitution.principles)
    assert health(numbered([(f"a{n}", f"b{n}") for n in range(60)]), rows)["first_share"] == 1.0
