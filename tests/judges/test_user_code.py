"""Judges of the user's own that raise, return nonsense or call sys.exit: each is one sentence with who, where and what."""

from pathlib import Path

import pytest
from judging import completion, pair

from judges import build, load_spec
from selfplay.errors import ConfigError, JudgeStopped
from selfplay.records import Prompt

OWN = '''\
import itertools
import sys
from asyncio import CancelledError

from selfplay.records import Verdict


def verdict(pair, **values):
    return Verdict(pair_id=pair.id, judge="own", order="none", **{"preference": 1.0, **values})


def raw_verdict(pair, **values):
    known = {"pair_id": pair.id, "judge": "own", "order": "none", "preference": 1.0}
    return Verdict.model_construct(**{**known, **values})


def stop(error):
    raise error


class Own:
    """Does for each pair, or for each response, what the expression says."""

    def __init__(self, pairs="1", scores="1"):
        if pairs == "at once":
            sys.exit(0)
        self.pairs, self.scores = pairs, scores

    def judge(self, pairs):
        return eval(self.pairs)

    def score(self, prompts, completions):
        return eval(self.scores)
'''


def own(folder: Path, **options: str) -> str:
    (folder / "own.py").write_text(OWN)
    listed = "".join(f"  {name}: {value!r}\n" for name, value in options.items())
    (folder / "own.yaml").write_text(f"mode: python\npython: ./own.py:Own\noptions:\n{listed}")
    return str(folder / "own.yaml")


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ("1 / 0", "own.py:Own: judge(pairs) raised ZeroDivisionError: division by zero (<string>, line 1)"),
        ("sys.exit(0)", "judge(pairs) called sys.exit(0), which would end the run as if it were finished"),
        ("None", "judge(pairs) returned None; it must return a list of selfplay.records.Verdict"),
        ("[0.5 for _ in pairs]", "judge(pairs) returned 0.5 in its list; each must be a selfplay.records.Verdict"),
        ("[verdict(pairs[0])]", "it returned 1 for 2 pairs, and 1 do not match, such as 'q'"),
        (
            "[verdict(one, preference=7.0) for one in pairs]",
            "[type=less_than_equal, input_value=7.0, input_type=float]",
        ),
        (
            "[verdict(one, preference=float('nan')) for one in pairs]",
            "judge(pairs) raised ValidationError: 1 validation",
        ),
        (
            "[verdict(one).model_copy(update={'preference': 7.0}) for one in pairs]",
            "the preference 7.0 for pair 'p'; it",
        ),
        (
            "[verdict(one).model_copy(update={'preference': float('nan')}) for one in pairs]",
            "the preference nan for pair",
        ),
        (
            "[verdict(one, reason='half \\ud83d') for one in pairs]",
            "a reason for pair 'p' with half of a surrogate pair ('half \\ud83d'), which no file can hold",
        ),
        ("stop(CancelledError('x'))", "own.py:Own: judge(pairs) raised CancelledError: x (own.py, line "),
        ("stop(GeneratorExit())", "judge(pairs) raised GeneratorExit (own.py, line "),
        ("stop(BaseException('x'))", "judge(pairs) raised BaseException: x (own.py, line "),
        ("[raw_verdict(one, reason=None) for one in pairs]", "returned the reason None for pair 'p'; it must be text"),
        ("[raw_verdict(one, pair_id=3) for one in pairs]", "returned the pair_id 3 for pair 3; it must be text"),
        ("[raw_verdict(one, pair_id=[]) for one in pairs]", "returned the pair_id [] for pair []; it must be text"),
        ("[Verdict.model_construct() for one in pairs]", "returned the pair_id None for pair None; it must be text"),
        (
            "[raw_verdict(one, order='backward') for one in pairs]",
            "returned the order 'backward' for pair 'p'; it must be one of forward, reversed, none",
        ),
    ],
)
def test_verdicts_that_are_none(tmp_path: Path, pairs: str, sentence: str) -> None:
    judge = build(load_spec(own(tmp_path, pairs=pairs)))
    with pytest.raises(ConfigError) as found:
        judge.judge([pair("a", "b", id="p"), pair("c", "d", id="q")])
    assert sentence in str(found.value) and str(found.value).encode()


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ("1 / 0", "own.py:Own: score(prompts, completions) raised ZeroDivisionError"),
        ("sys.exit(0)", "score(prompts, completions) called sys.exit(0)"),
        ("None", "returned None; it must return a list with a number or None for each of 2 rows"),
        ("[0.5]", "returned 1 items for 2 rows ([0.5])"),
        ("[0.5, 7.0]", "returned 7.0 for prompt 'q', response 'two'; it must be a number in [0, 1], or None where"),
        ("[None, float('nan')]", "returned nan for prompt 'q', response 'two'"),
        ("['1', 0.5]", "returned '1' for prompt 'p', response 'one'"),
        ("{0.25, 0.5}", "it must return a list with a number or None for each of 2 rows"),
        ("frozenset([0.25, 0.5])", "it must return a list with a number or None for each of 2 rows"),
        ("{'p': 0.25, 'q': 0.5}.keys()", "it must return a list with a number or None for each of 2 rows"),
        ("bytearray(2)", "it must return a list with a number or None for each of 2 rows"),
        ("itertools.count()", "returned more than 2 items for 2 rows ([0, 1, 2])"),
        (
            "(stop(CancelledError()) for _ in prompts)",
            "score(prompts, completions) raised CancelledError (own.py, line",
        ),
    ],
)
def test_scores_that_are_none(tmp_path: Path, scores: str, sentence: str) -> None:
    judge = build(load_spec(own(tmp_path, scores=scores)))
    with pytest.raises(ConfigError) as found:
        judge.score([Prompt.plain("p", "?"), Prompt.plain("q", "?")], [completion("one"), completion("two")])
    assert sentence in str(found.value)


def test_ctrl_c_in_code_of_the_user_is_theirs(tmp_path: Path) -> None:
    judge = build(load_spec(own(tmp_path, pairs="stop(KeyboardInterrupt())")))
    with pytest.raises(KeyboardInterrupt):
        judge.judge([pair("a", "b", id="p")])


def test_a_score_that_is_missing_is_counted_until_there_are_too_many(tmp_path: Path) -> None:
    prompts = [Prompt.plain(f"p{number}", "?") for number in range(10)]
    responses = [completion(str(number)) for number in range(10)]
    few = build(load_spec(own(tmp_path, scores="[None, *(0.25 for _ in prompts[1:])]")))
    assert few.score(prompts, responses) == [None, *[0.25] * 9]
    many = build(load_spec(own(tmp_path, scores="[None, None, *(0.25 for _ in prompts[2:])]")))
    with pytest.raises(JudgeStopped, match=r"no verdict on 2 of 10 .* score is None \(response to p1\)"):
        many.score(prompts, responses)


def test_one_that_ends_the_program_when_it_is_made_or_imported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own.py:Own called sys.exit\(0\)"):
        build(load_spec(own(tmp_path, pairs="at once")))
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    rules = tmp_path / "rules.yaml"
    rules.write_text("mode: rules\ncriteria: [{name: x, python: './leaves.py:f'}]\n")
    with pytest.raises(ConfigError, match=r"leaves.py cannot be run: it called sys.exit\(0\)"):
        build(load_spec(rules))


RULES = {
    "leaves": "raise SystemExit(0)",
    "half": "raise ValueError(chr(0xD83D))",
    "huge": "return 10**400",
    "half_text": "return chr(0xD83D)",
}


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("leaves", r"criterion 'x' called sys.exit\(0\), which would end the run as if it were finished"),
        ("half", r"criterion 'x' raised ValueError: \\ud83d"),
        ("huge", r"criterion 'x' returned 1000.*, not a number in \[0, 1\]"),
        ("half_text", r"criterion 'x' returned '\\ud83d', not a number in \[0, 1\]"),
    ],
)
def test_a_criterion_that_ends_the_program_or_holds_text_that_no_file_can(
    tmp_path: Path, function: str, problem: str
) -> None:
    (tmp_path / "own.py").write_text(
        "".join(f"def {name}(prompt, response):\n    {do}\n" for name, do in RULES.items())
    )
    (tmp_path / "own.yaml").write_text(f"mode: rules\ncriteria: [{{name: x, python: './own.py:{function}'}}]\n")
    judge = build(load_spec(tmp_path / "own.yaml"))
    with pytest.raises(JudgeStopped, match=rf"no verdict on 1 of 1 .*first: {problem}.* \(pair 7\)") as found:
        judge.judge([pair("a", "b", id="pair 7")])
    assert str(found.value).encode()
    with pytest.raises(JudgeStopped, match=rf"{problem} \(response to p\)"):
        judge.score([Prompt.plain("p", "?")], [completion("one")])
