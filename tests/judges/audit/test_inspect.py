"""Looking at a judge: one pair tried, with all that was asked and said; the overview of judges; the schema for editors."""

import json
from typing import Any

import pytest
from judging import GOLD, PAIRWISE, Scripted, honest, spec

from judges import load_spec
from judges.audit.inspect import overview, schema, try_pair
from selfplay.engines import Answer
from selfplay.report.show import print_trial


def test_trying_one_pair_shows_everything() -> None:
    trial = try_pair(spec(PAIRWISE), Scripted(honest))
    assert [exchange.said for exchange in trial.exchanges] in ([["[[A]]"], ["[[B]]"]], [["[[B]]"], ["[[A]]"]])
    assert trial.exchanges[0].messages[0].content.startswith("```\nName three fruits")
    assert trial.preference == GOLD[0].answer and [row.order for row in trial.verdicts] == ["forward", "reversed"]
    shown = try_pair(load_spec("helpfulness-logprob"))
    assert len(shown.exchanges) == 2 and shown.exchanges[0].said is None and shown.preference is None
    rated = try_pair(load_spec("helpfulness-logprob", model="m"), Scripted(chances=lambda text: {"A": 0.75, "B": 0.25}))
    assert rated.preference == 0.5 and isinstance(rated.exchanges[0].said, dict)


def test_the_overview_and_the_schema_for_editors() -> None:
    rows = {row["name"]: row for row in overview()}
    assert rows["stories"]["needs_model"] is False and rows["helpfulness"]["mode"] == "pairwise" and len(rows) >= 10
    found = schema()
    definitions = found["$defs"]
    assert found["discriminator"]["propertyName"] == "mode"
    assert definitions["PairwiseSpec"]["properties"]["disagreement"]["description"].startswith("What two orders")
    assert definitions["PairwiseSpec"]["additionalProperties"] is False
    assert json.loads(json.dumps(found)) == found


def test_trying_shows_the_sentence_with_which_a_server_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing(Scripted):
        def stream(self, prompts: Any, sampling: Any, choices: Any = None) -> Any:
            yield from ((place, None, "the server answered 400: no such model") for place in range(len(prompts)))

    trial = try_pair(spec(PAIRWISE), Refusing())
    assert [(one.said, one.error) for one in trial.exchanges] == [(None, "the server answered 400: no such model")] * 2
    print_trial(trial.model_dump(mode="json"))
    shown = capsys.readouterr().out
    assert "[said] nothing: the server answered 400: no such model" in shown and "there is no model" not in shown


def test_trying_shows_the_thoughts_in_which_a_verdict_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    class Thinking(Scripted):
        def stream(self, prompts: Any, sampling: Any, choices: Any = None) -> Any:
            for place in range(len(prompts)):
                yield place, Answer(texts=("",), finish_reasons=("stop",), thoughts=("It is the first.",)), ""

    trial = try_pair(spec(PAIRWISE), Thinking())
    print_trial(trial.model_dump(mode="json"))
    assert capsys.readouterr().out.count("[thought] It is the first.\n[said] ['']\n") == 2


@pytest.mark.parametrize("name", ["helpfulness", "helpfulness-logprob"])
def test_without_a_model_each_prompt_is_shown_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trial = try_pair(load_spec(name))
    contents = [exchange.messages[-1].content for exchange in trial.exchanges]
    assert len(set(contents)) == len(contents) == 2, "one for each order"
    assert [verdict.error for verdict in trial.verdicts] == ["there is no model"] * 2 and trial.preference is None
    print_trial(trial.model_dump(mode="json"))
    shown = capsys.readouterr().out
    assert shown.count("[user]\n") == 2 and shown.count("[said] nothing: there is no model\n") == 2
    assert "verdict (forward): unscored: there is no model" in shown
