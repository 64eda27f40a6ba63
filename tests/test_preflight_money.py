"""What `--dry-run` says that endpoint judges may cost, counted by hand, and never less than they do cost."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_preflight import bootstrapped, judge_file
from typer.testing import CliRunner

import judges
from judges.audit.cautions import cautions
from judges.audit.gold import canaries, load_gold
from prompts.sources import load_prompts
from selfplay import preflight
from selfplay.cli import app
from selfplay.config import Endpoint
from selfplay.preflight import PromptSets, judges_of
from selfplay.sizing.work import work

JUDGE = """\
mode: pairwise
model: m
endpoint: {{url: "http://127.0.0.1:9/v1", {endpoint}}}
sampling: {{max_tokens: 5}}
gold: gold.jsonl
{more}
messages: [{{role: user, content: "{{{{ prompt }}}} A: {{{{ responses[0] }}}} B: {{{{ responses[1] }}}}"}}]
output: {{kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {{A: 1, B: 0}}}}
"""
WRITTEN = "output_price: 1.0e+6"
"""A dollar for each token written, and what is read is free."""


def dollars(folder: Path, endpoint: str, *overrides: str, more: str = "") -> tuple[float | None, float | None]:
    (folder / "gold.jsonl").write_text('{"prompt": "?", "chosen": "yes", "rejected": "no"}\n')
    file = judge_file(folder, JUDGE.format(endpoint=endpoint, more=more))
    found = work(bootstrapped(folder, f"judge.file={file}", "evaluate.judge=stories", *overrides))
    return found["judge_dollars"], found["judge_dollars_at_most"]


def watched(folder: Path) -> int:
    """Pairs of the gold set and canaries."""
    spec = judges.load_spec(str(folder / "j.yaml"))
    rows = load_gold(folder / "gold.jsonl")
    return len(rows) + len(canaries(rows, spec))


def test_what_is_written_by_hand(tmp_path: Path) -> None:
    once, most = dollars(tmp_path, WRITTEN)
    extra = watched(tmp_path)
    assert extra > 1
    # Two iterations of 4 pairs, and the gold set and canaries, in 2 orders, 5 tokens each.
    assert once == (8 + extra) * 2 * 5
    # In 2 extra rounds of 8 pairs too, asked twice, each call made 6 times.
    assert most == (3 * 8 + extra) * 2 * 5 * 2 * 6
    assert dollars(tmp_path, WRITTEN + ", max_cost: 77") == (once, 77)
    assert dollars(tmp_path, WRITTEN + ", retries: 0", more="on_error: {retries: 0}")[1] == (3 * 8 + extra) * 2 * 5
    assert dollars(tmp_path, WRITTEN, more="order: fixed")[0] == (8 + extra) * 5
    assert dollars(tmp_path, WRITTEN, more="reasoning: {budget: 3}")[0] == (8 + extra) * 2 * 8


def test_what_is_read_is_the_longest_call_there_is(tmp_path: Path) -> None:
    """A dollar for each byte read: the body with the longest prompt and two answers of 7 tokens of 8 bytes each."""
    file = judge_file(tmp_path, JUDGE.format(endpoint="input_price: 1.0e+6", more="").replace("gold: gold.jsonl", ""))
    once = work(bootstrapped(tmp_path, f"evaluate.judge={file}", "sampling.max_tokens=7"))["judge_dollars"]
    longest = "\U0001f98a" * 14
    texts = [f"{longest}0", f"{longest}1"]
    fence = "```\n{}\n```"
    content = f"{fence.format('a')} A: {fence.format(texts[0])} B: {fence.format(texts[1])}"
    fields: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": content}]}
    body = {**fields, "max_tokens": 5, "temperature": 0.0, "seed": 0, "n": 1}
    size = len(json.dumps(body, ensure_ascii=False).encode()) + 256
    assert 0 <= once - 9 * 2 * size <= 9 * 2 * 8  # nine matches in two orders; fences may take a line more


def test_a_price_that_is_not_known_is_said_and_rules_cost_nothing(tmp_path: Path) -> None:
    assert dollars(tmp_path, "retries: 1") == (None, None)
    found = work(bootstrapped(tmp_path))
    assert (found["judge_dollars"], found["judge_dollars_at_most"]) == (0.0, 0.0)
    assert not Endpoint(url="http://127.0.0.1:9/v1").costs


def test_every_member_of_a_jury_and_the_judge_that_measures_are_in_the_bill(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text('{"prompt": "?", "chosen": "yes", "rejected": "no"}\n')
    member = judge_file(tmp_path, JUDGE.format(endpoint=WRITTEN, more=""), "member.yaml")
    text = "mode: jury\ngold: gold.jsonl\nmembers: [{judge: ./member.yaml}, {judge: ./member.yaml}]\n"
    jury = judge_file(tmp_path, text, "jury.yaml")
    rows = load_gold(tmp_path / "gold.jsonl")
    extra = len(rows) + len(canaries(rows, judges.load_spec(str(jury))))
    found = work(bootstrapped(tmp_path, f"judge.file={jury}", f"evaluate.judge={member}"))
    # Two jurors on 8 pairs and what the jury is watched on; the judge that measures on 9 matches.
    assert found["judge_dollars"] == 2 * (8 + extra) * 2 * 5 + 9 * 2 * 5


def test_the_judges_of_further_sets_are_in_the_bill_with_prompts_of_their_own(tmp_path: Path) -> None:
    """They were left out: $0, no call, no caution."""
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "?"},
    ]
    rows = [{"prompt": "two and two", "reference": "4"}, {"messages": talk, "reference": "none"}]
    (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = (
        JUDGE.format(endpoint=WRITTEN, more="")
        .replace("pairwise", "pointwise")
        .replace("labels: {A: 1, B: 0}", "range: [0, 1]")
    )
    text = text.replace("gold: gold.jsonl", "").replace("(A|B)", "([01])")
    text = text.replace("A: {{ responses[0] }} B: {{ responses[1] }}", "{{ reference }} {{ response }}")
    file = judge_file(tmp_path, text, "sums.yaml")
    before = work(bootstrapped(tmp_path))
    also = f"[{{name: sums, prompts: {{source: {tmp_path}/sums.jsonl}}, judge: {file}}}]"
    recipe = bootstrapped(tmp_path, f"evaluate.also={also}")
    found = work(recipe)
    # The start and two iterations, two prompts each, five tokens of a dollar; no call is repeated but by its 6 tries.
    assert found["judge_dollars"] == 3 * 2 * 5 and found["judge_dollars_at_most"] == 3 * 2 * 5 * 2 * 6
    assert found["judge_calls"] - before["judge_calls"] == found["completions"] - before["completions"] == 6
    specs = {spec.name: asked for spec, asked in judges_of(recipe, PromptSets(recipe))}
    assert [len(prompt.messages) for prompt in specs["sums"]] == [1, 3]
    assert any(
        "shows only the last turn" in one
        for spec, asked in judges_of(recipe, PromptSets(recipe))
        for one in cautions(spec, asked)
    )
    assert work(bootstrapped(tmp_path, f"evaluate.also={also}", "prompts.heldout=null"))["judge_dollars"] == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_the_dry_run_prints_it(tmp_path: Path, as_json: bool) -> None:
    (tmp_path / "gold.jsonl").write_text('{"prompt": "?", "chosen": "yes", "rejected": "no"}\n')
    file = judge_file(tmp_path, JUDGE.format(endpoint=WRITTEN + ", max_cost: 77", more=""))
    bootstrapped(tmp_path)
    options = ["run", str(tmp_path / "r.yaml"), f"judge.file={file}", "--dry-run", *(["--json"] if as_json else [])]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    if as_json:
        assert json.loads(done.output)["work"]["judge_dollars_at_most"] == 77
    else:
        assert "judge dollars at most: 77" in done.output


def test_each_set_of_prompts_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more.txt").write_text("one\ntwo\n")
    also = f"[{{name: more, prompts: {{source: {tmp_path}/more.txt}}, judge: stories}}]"
    recipe = bootstrapped(tmp_path, f"evaluate.also={also}")
    read: list[str] = []

    def load(source: Any, seed: int) -> Any:
        read.append(source.source)
        return load_prompts(source, seed)

    monkeypatch.setattr(preflight, "load_prompts", load)
    sets = PromptSets(recipe)
    preflight.check(recipe, sets)
    found = work(recipe, sets)
    assert len(read) == 3 and read[2] == f"{tmp_path}/more.txt"
    assert found == work(recipe)
