"""Judge files: every mistake gets one sentence that names the value and the way out."""

from pathlib import Path

import pytest
from judging import pair, spec

from judges import build, digest, load_spec, shipped
from selfplay.errors import ConfigError
from selfplay.objects import load_object

PAIRWISE = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ prompt }} {{ responses[0] }} {{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
"""


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("mode: pairwize", "mode = 'pairwize', but a judge file names one of the modes pairwise, pointwise, listwise"),
        ("name: x", "mode = None, but a judge file names one of the modes"),
        (PAIRWISE + "samplin: {n: 2}", "unknown setting 'samplin', did you mean 'sampling'?"),
        (PAIRWISE + "order: forward", "order = 'forward': input should be 'both', 'random' or 'fixed'"),
        (
            PAIRWISE.replace("prompt }}", "promt }}"),
            "the template uses 'promt', which does not exist; did you mean 'prompt'?",
        ),
        (PAIRWISE.replace("{{ prompt }}", "{{ prompt"), "the template is not valid, line 1"),
        (
            PAIRWISE.replace("labels: {A: 1, B: 0}", "range: [1, 5]"),
            "output.range is for scores; a pairwise judge needs output.labels",
        ),
        (PAIRWISE.replace("{A: 1, B: 0}", "{A: 1, B: 0.9}"), "one label must prefer the first response"),
        (
            PAIRWISE.replace("{A: 1, B: 0}", "{A: 1, B: 0, C: 0.5}") + "ties: false",
            "ties is false, but a label has the value 0.5",
        ),
        (
            PAIRWISE.replace("{A: 1, B: 0}", "{A: 1, B: 2}"),
            "output.labels.B = 2: input should be less than or equal to 1",
        ),
        (PAIRWISE.replace("\\[\\[(A|B)\\]\\]", "(A|B)"), "also matches in the sentence 'A good answer is short"),
        (PAIRWISE.replace("\\[\\[(A|B)\\]\\]", "\\[\\[A|B\\]\\]"), "has 0 groups, but needs exactly one"),
        (PAIRWISE.replace("\\[\\[(A|B)\\]\\]", "(A"), "is not a regular expression"),
        (PAIRWISE.replace("pattern: '\\[\\[(A|B)\\]\\]', ", ""), "kind regex needs `pattern`"),
        (PAIRWISE.replace("kind: regex", "kind: json"), "pattern belongs to kind regex, not to json: remove it"),
        (
            PAIRWISE.replace("kind: regex, pattern: '\\[\\[(A|B)\\]\\]'", "kind: logprob, tokens: {A: [A], C: [C]}"),
            "tokens names ['A', 'C'], but the labels are ['A', 'B']",
        ),
        (PAIRWISE + "sampling: {n: 5}", "sampling.n = 5 answers at temperature 0 are all the same"),
        (
            PAIRWISE.replace("role: user", "role: system"),
            "the last one has the role system, but the judge answers the user",
        ),
        (PAIRWISE.replace("model: m", "endpoint: {url: 'http://127.0.0.1:1/v1'}"), "endpoint is set but model is not"),
        (
            PAIRWISE.replace("model: m", "model: m\nendpoint: {url: '127.0.0.1'}"),
            "endpoint.url: an address begins with http",
        ),
        (
            "mode: rules\ncriteria: [{name: x, text: 'Is it good?'}]",
            "'x' is a question for a model; rules are in Python, so use mode rubric",
        ),
        (
            "mode: rules\ncriteria: [{name: x}]",
            "criterion 'x' needs either `text`, a question for the model, or `python`",
        ),
        ("mode: rules\ncriteria: [{name: x, python: 'm:f'}, {name: x, python: 'm:g'}]", "the name 'x' stands twice"),
        ("mode: rules\ncriteria: [{name: x, python: 'm:f', gate: true}]", "all are gates"),
        (
            "mode: rules\ncriteria: [{name: x, python: 'm:f', wieght: 2}]",
            "unknown setting 'criteria.0.wieght', did you mean 'criteria.0.weight'?",
        ),
        (
            "mode: rules\ncriteria: [{name: x, python: 'f'}]",
            "python: 'f' is not of the form package.module:name or ./file.py:name",
        ),
        ("mode: rules\ncriteria: [{name: x, python: './gone.py:f'}]", "there is no file"),
        ("mode: rules\ncriteria: politness", "there is no rubric 'politness'"),
        ("mode: jury\nmembers: [{judge: stories}]", "members"),
        (
            "mode: jury\nmembers: [{judge: stories}, {judge: storys}]",
            "there is no judge 'storys', did you mean 'stories'?",
        ),
        ("mode: jury\nmembers: [{judge: stories}, {judge: stories}]\nquorum: 3", "quorum 3 is more than the 2 members"),
        (
            "mode: listwise\nmodel: m\nmessages: [{role: user, content: x}]\noutput: {kind: json, labels: {A: 1, B: 0}}",
            "answers with a ranking",
        ),
        (
            "mode: pointwise\nmodel: m\nmessages: [{role: user, content: x}]\noutput: {kind: json}",
            "name what the judge may say",
        ),
        (
            "mode: pointwise\nmodel: m\nmessages: [{role: user, content: x}]\noutput: {kind: json, range: [5, 1]}",
            "from the smallest to the largest",
        ),
        ("mode: pointwise\nmodel: m\nmessages: []\noutput: {kind: json, range: [1, 5]}", "needs at least one message"),
    ],
)
def test_a_mistake_is_one_sentence(yaml: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec(yaml)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_names_paths_and_what_is_missing(tmp_path: Path) -> None:
    assert load_spec("stories").name == "stories"
    (tmp_path / "mine.yaml").write_text(PAIRWISE)
    assert load_spec(tmp_path / "mine.yaml").name == "mine"
    assert load_spec(tmp_path / "mine.yaml", model="other").model == "other"
    with pytest.raises(
        ConfigError,
        match=r"there is no judge 'storis', did you mean 'stories'\?; shipped are .*stories.*; or give "
        r"the path",
    ):
        load_spec("storis")
    with pytest.raises(ConfigError, match="there is no judge file './no.yaml'|there is no judge file 'no.yaml'"):
        load_spec("./no.yaml")
    with pytest.raises(ConfigError, match="asks no model of its own, so 'x' cannot be its model"):
        load_spec("stories", model="x")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="mode = None"):
        load_spec(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_spec(tmp_path / "broken.yaml")


def test_templates_rubrics_and_python_come_from_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "ask.j2").write_text("Look at {{ prompt }} and {{ response }}.")
    (tmp_path / "rubric.yaml").write_text(
        "criteria:\n  - {name: x, python: './own.py:is_short'}\n  - {name: y, text: 'Is it kind?'}\n"
    )
    (tmp_path / "own.py").write_text("def is_short(prompt, response):\n    return float(len(response) < 5)\n")
    (tmp_path / "judge.yaml").write_text(
        "mode: rubric\nmodel: m\ncriteria: ./rubric.yaml\nmessages: [{role: user, file: ask.j2}]\n"
    )
    found = load_spec(tmp_path / "judge.yaml")
    assert found.messages[0].content == "Look at {{ prompt }} and {{ response }}."
    assert [criterion.name for criterion in found.criteria] == ["x", "y"]
    assert load_object(found.criteria[0].python)(None, "abc") == 1.0
    (tmp_path / "ask.j2").unlink()
    with pytest.raises(ConfigError, match="there is no template file"):
        load_spec(tmp_path / "judge.yaml")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (
            "judges.criteria.stories:name_animal",
            "python: judges.criteria.stories has no 'name_animal', did you mean 'names_animal'?",
        ),
        ("judges.stori:f", "No module named 'judges.stori'; name an installed module, or a file as ./file.py:name"),
        ("criteria_for_tests:NUMBER", "python: criteria_for_tests:NUMBER is a int, not a function or class"),
    ],
)
def test_python_that_is_not_there_is_refused_when_the_judge_is_built(reference: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(spec(f"mode: rules\ncriteria: [{{name: x, python: '{reference}'}}]"))
    assert sentence in str(error.value)


def test_a_file_that_cannot_be_run_says_why_and_is_run_again_once_mended(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import nothing_like_this\n")
    rules = "mode: rules\ncriteria: [{name: x, python: './own.py:f'}]"
    with pytest.raises(
        ConfigError, match="own.py cannot be run: it raised ModuleNotFoundError: No module named 'nothing_like_this'"
    ):
        build(spec(rules, tmp_path))
    (tmp_path / "own.py").write_text("def f(prompt, response):\n    return float(response == 'a')\n")
    assert build(spec(rules, tmp_path)).judge([pair("a", "b")])[0].preference == 1.0


def test_the_digest_changes_with_the_file_and_with_the_python_it_names(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(prompt, response):\n    return 1.0\n")
    rules = "mode: rules\ncriteria: [{name: x, python: './own.py:f'}]"
    first = digest(spec(rules, tmp_path))
    assert first == digest(spec(rules, tmp_path))
    assert first != digest(spec(rules + "\nmargin: 0.1", tmp_path))
    (tmp_path / "own.py").write_text("def f(prompt, response):\n    return 0.0\n")
    assert first != digest(spec(rules, tmp_path))


def test_the_digest_stays_when_a_project_is_moved_or_renamed(tmp_path: Path) -> None:
    home = tmp_path / "here"
    home.mkdir()
    (home / "own.py").write_text("def f(prompt, response):\n    return 1.0\n")
    (home / "gold.jsonl").write_text("")
    (home / "rules.yaml").write_text("mode: rules\ngold: gold.jsonl\ncriteria: [{name: x, python: './own.py:f'}]\n")
    (home / "own.yaml").write_text("mode: python\npython: './own.py:f'\n")
    (home / "jury.yaml").write_text("mode: jury\nmembers: [{judge: ./rules.yaml}, {judge: ./own.yaml, weight: 2}]\n")
    before = {name: digest(load_spec(str(home / f"{name}.yaml"))) for name in ("rules", "own", "jury")}
    moved = home.rename(tmp_path / "a new name")
    assert before == {name: digest(load_spec(str(moved / f"{name}.yaml"))) for name in before}
    assert len(set(before.values())) == 3
    (moved / "own.py").write_text("def f(prompt, response):\n    return 0.0\n")
    assert all(digest(load_spec(str(moved / f"{name}.yaml"))) != known for name, known in before.items())


def test_every_shipped_judge_reads() -> None:
    assert {name: load_spec(name).name for name in shipped()} == {name: name for name in shipped()}
    assert all(load_spec(name).description for name in shipped())


def test_the_digest_stays_when_only_limits_and_prices_change(tmp_path: Path) -> None:
    """A stopped run says: raise the limit and give the same command; so that may not make its stages another judge's."""
    text = """\
        mode: pairwise
        model: some/model
        messages: [{{role: user, content: "{{{{ prompt }}}} {{{{ responses[0] }}}} {{{{ responses[1] }}}}"}}]
        output: {{kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {{A: 1, B: 0}}}}
        endpoint: {{url: "http://127.0.0.1:1/v1", {endpoint}}}
        limits: {{{limits}}}
        thresholds: {{ties: {ties}}}
        """
    first = {"endpoint": "max_cost: 1, output_price: 2, retries: 3", "limits": "calls: 10", "ties": 0.5}

    def named(**changes: object) -> str:
        return digest(spec(text.format(**{**first, **changes}), tmp_path))

    assert named() == named(
        endpoint="max_cost: 9, output_price: 4, cached_input_price: 1, retries: 1, timeout: 3, concurrency: 2, key_header: k"
    )
    assert named() == named(limits="calls: 99, tokens: 5") == named(ties=0.7)
    assert named() != named(limits="response_characters: 100"), "what is shown to the judge"
    assert named() != named(endpoint="guided: false")
