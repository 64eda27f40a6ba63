"""Head to head: real checkpoints sampled on the same prompts, every pair judged, and nothing asked twice."""

import errno
import json
import shutil
from io import StringIO
from itertools import permutations
from pathlib import Path

import pytest
from rich.console import Console

from selfplay.compare.head_to_head import compare
from selfplay.compare.score import score
from selfplay.compare.settings import Given, judging, settings_of
from selfplay.compare.targets import contestants, resolve
from selfplay.config import PromptSource, Recipe, SamplingParams
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.report.html import as_run, write_comparison
from selfplay.report.terminal import print_summary
from selfplay.stats.summary import summarise
from selfplay.stats.votes import Vote, tabulate
from selfplay.storage import durable
from selfplay.storage.files import read_rows

MODEL_JUDGE = """\
name: letters
mode: pairwise
model: {model}
order: both
messages: [{{role: user, content: "{{{{ prompt }}}} {{{{ responses[0] }}}} {{{{ responses[1] }}}}"}}]
output: {{kind: logprob, labels: {{A: 1.0, B: 0.0}}, least_mass: 0.0}}
"""


@pytest.fixture
def tiny(tiny_run) -> Path:
    """A real run of two iterations, as small as they come."""
    return tiny_run


def test_a_run_alone_is_all_its_iterations_and_agrees_with_its_own_evaluation(tiny, tmp_path):
    result = compare([str(tiny)], folder=tmp_path)
    assert result.names == ("iteration-000", "iteration-001", "iteration-002")
    assert len(result.matches) == 3 * 32 and result.asked == 0
    for number in (1, 2):
        found = json.loads((tiny / f"iteration-00{number}/evaluate/evaluation.json").read_text())["win_rate_vs_start"]
        pair = next(
            pair.comparison
            for pair in result.summary.pairs
            if (pair.comparison.a, pair.comparison.b) == (f"iteration-00{number}", "iteration-000")
        )
        assert pair.win_rate == pytest.approx(found["win_rate"], abs=1e-12)
        assert (pair.n, pair.ties, pair.unscored) == (found["n"], found["ties"], found["unscored"])
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["models"] == list(result.names) and len(read_rows(tmp_path / "matches.parquet")) == 96


def test_the_same_checkpoint_twice_ties_everywhere_and_a_second_time_samples_nothing(tiny, tmp_path, monkeypatch):
    start = str(tiny / "iteration-000" / "policy")
    given = Given(PromptSource(split="heldout", limit=12), "stories", sampling=SamplingParams(max_tokens=24))
    first = compare([start, start, f"{tiny}@2"], given, folder=tmp_path)
    twins = next(pair.comparison for pair in first.summary.pairs if pair.comparison.a == "policy (2)")
    assert (twins.win_rate, twins.ties, twins.n) == (0.5, 12, 12)
    monkeypatch.setattr("selfplay.engines.open.open_engine", lambda *_, **__: pytest.fail("sampled again"))
    again = compare([start, start, f"{tiny}@2"], given, folder=tmp_path)
    assert again.matches == first.matches


def test_a_second_comparison_asks_a_judge_that_is_a_model_nothing(tiny, tmp_path, monkeypatch):
    """The judge is a real model, which says how likely the letters A and B are; its engine's questions are counted.

    Iteration 2 takes part twice, so that many matches hold the same two texts, which are judged once.
    """
    asked = []
    original = TransformersEngine.choice_logprobs

    def counting(engine, prompts, choices):
        asked.extend(prompts)
        return original(engine, prompts, choices)

    monkeypatch.setattr(TransformersEngine, "choice_logprobs", counting)
    copy = tmp_path / "run"
    shutil.copytree(tiny, copy, symlinks=True)
    judge = tmp_path / "letters.yaml"
    judge.write_text(MODEL_JUDGE.format(model=tiny / "iteration-000/policy"))
    targets = [f"{copy}@all", f"{copy}@2"]
    first = compare(targets, Given(judge=str(judge)))
    assert len(first.matches) == 6 * 32, "4 checkpoints meet in 6 pairs, on 32 prompts"
    different = [match for match in first.matches if match.a_text != match.b_text]
    questions = {(match.prompt, *texts) for match in different for texts in permutations((match.a_text, match.b_text))}
    assert first.asked == len(asked) == len(questions), "each prompt and two different texts, in both orders"
    assert 0 < len(questions) < 2 * len(different), "the twins share their questions"
    assert {match.preference for match in first.matches} - {0.5, None}
    again = compare(targets, Given(judge=str(judge)), folder=tmp_path / "elsewhere")
    assert len(asked) == first.asked and again.asked == 0
    assert again.matches == first.matches


def refuse_within(folder, monkeypatch):
    """Let no file be created or changed in a folder, as for a user who may only read it."""

    def refuse(call, path):
        if call != "remove" and path.is_relative_to(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(durable, "hook", refuse)


@pytest.mark.parametrize("measure", [compare, score])
def test_a_run_that_may_not_be_written_into_is_refused_before_any_work(tiny, tmp_path, monkeypatch, measure):
    copy = shutil.copytree(tiny, tmp_path / "run", symlinks=True)
    (copy / measure.__name__).mkdir()
    before = sorted(copy.rglob("*"))
    refuse_within(copy, monkeypatch)
    monkeypatch.setattr(f"{measure.__module__}.sample_all", lambda *_: pytest.fail("it went to work"))
    with pytest.raises(
        ConfigError, match=f"run/{measure.__name__}' could not be written: .*another folder with --output"
    ):
        measure([str(copy)])
    assert sorted(copy.rglob("*")) == before


def test_a_run_that_may_only_be_read_is_compared_into_another_folder(tiny, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(tiny, tmp_path / "run", symlinks=True)
    judge = tmp_path / "letters.yaml"
    judge.write_text(MODEL_JUDGE.format(model=tiny / "iteration-000/policy"))
    before = sorted(copy.rglob("*"))
    refuse_within(copy, monkeypatch)
    given = Given(PromptSource(split="heldout", limit=4), str(judge), sampling=SamplingParams(max_tokens=4))
    result = compare([f"{copy}@1", f"{copy}@2"], given, folder=tmp_path / "else")
    assert result.asked > 0 and (tmp_path / "else/judge_cache.sqlite").is_file() and sorted(copy.rglob("*")) == before
    assert f"{copy} could not be written: Permission denied" in "".join(capsys.readouterr())


def test_a_judge_that_is_shown_the_last_turn_only_is_warned_of(tiny, tmp_path, capsys):
    judge, prompts = tmp_path / "letters.yaml", tmp_path / "talks.jsonl"
    judge.write_text(MODEL_JUDGE.format(model=tiny / "iteration-000/policy"))
    turns = [("user", "a cat"), ("assistant", "yes"), ("user", "and a dog")]
    talk = {"id": "talk", "messages": [{"role": role, "content": content} for role, content in turns]}
    prompts.write_text(json.dumps(talk) + "\n")
    given = Given(PromptSource(source=str(prompts)), str(judge), sampling=SamplingParams(max_tokens=8))
    copy = tmp_path / "run"  # the judge's answers are kept in the run, which other tests read too
    shutil.copytree(tiny, copy, symlinks=True)
    compare([f"{copy}@0", f"{copy}@2"], given, folder=tmp_path / "compare")
    said = capsys.readouterr().err
    assert (
        "caution: judge 'letters': its template shows only the last turn of a conversation, but prompt 'talk'" in said
    )


def test_a_model_card_makes_no_other_checkpoint(tiny, tmp_path):
    shutil.copytree(tiny / "iteration-001/policy", tmp_path / "model")
    before = resolve(str(tmp_path / "model")).identity
    (tmp_path / "model/README.md").write_text("other words")
    assert resolve(str(tmp_path / "model")).identity == before
    (tmp_path / "model/generation_config.json").write_text("{}")
    assert resolve(str(tmp_path / "model")).identity != before


def test_targets_name_what_they_say(tiny):
    found = contestants([f"{tiny}@start", f"{tiny}@1", str(tiny / "iteration-002/policy"), "org/model@v2"])
    assert [one.name for one in found] == ["run@start", "run@1", "policy", "org/model@v2"]
    assert (found[3].checkpoint, found[3].revision, found[3].run) == ("org/model", "v2", None)
    assert [one.name for one in contestants([f"{tiny}@all", f"{tiny}@2"])] == [
        "run@start",
        "run@1",
        "run@2",
        "run@2 (2)",
    ]
    assert resolve(f"{tiny}@1").checkpoint == str(tiny / "iteration-001/policy")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["{run}@7"], "has no policy of iteration 7"),
        (["{run}@last"], "is not an iteration"),
        (["{run}@1"], "nothing to compare"),
        (["./nowhere", "{run}"], "there is no run or checkpoint './nowhere'"),
        ([], "nothing to compare"),
    ],
)
def test_wrong_targets_are_named(tiny, targets, message):
    with pytest.raises(ConfigError, match=message):
        contestants([target.format(run=tiny) for target in targets])


def test_prompts_that_a_run_was_trained_on_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="was trained on 8 of the 8 prompts"):
        compare([str(tiny)], Given(PromptSource(limit=8)), folder=tmp_path)


def test_without_a_run_prompts_and_judge_must_be_given():
    with pytest.raises(ConfigError, match="--prompts FILE --judge FILE"):
        settings_of([])


def test_a_comparison_asks_in_both_orders_and_not_the_policy_itself(tmp_path):
    file = tmp_path / "judge.yaml"
    text = (
        "name: j\nmode: pairwise\nmodel: {model}\norder: fixed\noutput: {{kind: regex, pattern: '\\[\\[(A|B)\\]\\]', "
        "labels: {{A: 1, B: 0}}}}\nmessages:\n  - {{role: user, content: '{{{{ responses }}}}'}}\n"
    )
    file.write_text(text.format(model="some/model"))
    assert judging(settings_of([], Given(PromptSource(), str(file)))).order == "both"
    file.write_text(text.format(model="policy"))
    with pytest.raises(ConfigError, match="is the policy itself"):
        judging(settings_of([], Given(PromptSource(), str(file))))


def test_only_the_labelling_judge_gets_the_recipes_model(tmp_path):
    """An audit by a judge with a model of its own must not become the labeller judging itself."""
    text = MODEL_JUDGE.replace("model: {model}\n", "{model}").format
    for name, model in (("auditor", "model: big/auditor\n"), ("labeller", "model: file/model\n"), ("bare", "")):
        (tmp_path / f"{name}.yaml").write_text(text(model=model).replace("letters", name))
    auditor, labeller, bare = (str(tmp_path / f"{name}.yaml") for name in ("auditor", "labeller", "bare"))

    def asked(judge=None, audit=None):
        recipe = Recipe(
            name="r",
            policy={"bootstrap": {}},
            judge={"file": labeller, "model": "small/labeller"},
            evaluate={"judge": audit},
        )
        return judging(settings_of([recipe], Given(judge=judge))).model

    assert asked() == asked(judge=labeller) == "small/labeller"
    assert asked(judge=auditor) == asked(audit=auditor) == "big/auditor"
    assert asked(judge=bare) == "small/labeller", "one that names no model is asked of the recipe's"


def test_the_table_and_the_report_of_votes_from_elsewhere(tmp_path):
    beats = {("b", "a"): 0.8, ("c", "b"): 0.7, ("a", "c"): 0.6}
    votes = tabulate(
        (Vote(str(x), one, two, float(x % 10 < 10 * rate)) for (one, two), rate in beats.items() for x in range(100)),
        models=["a", "b", "c"],
    )
    summary, out = summarise(votes), StringIO()
    print_summary(summary, Console(file=out, width=80))
    assert "no order fits" in out.getvalue() and "80% [" in out.getvalue() and "b against a" in out.getvalue()
    assert out.getvalue().startswith("c beats b 70% of the time")  # b rates higher, and lost to c all the same
    page = write_comparison(as_run("<votes>", "votes.csv", votes=votes), tmp_path / "report.html").read_text()
    assert "Bradley-Terry ratings" in page and "No order fits" in page and "&lt;votes&gt;" in page
    assert 'id="iterations"' not in page and 'id="transcripts"' not in page


def test_markup_in_names_is_text_on_the_terminal():
    out = StringIO()
    print_summary(
        summarise(tabulate([Vote(str(x), "[red]x[/]", "y", float(x % 2)) for x in range(8)])),
        Console(file=out, width=200),
    )
    assert "[red]x[/]" in out.getvalue()
