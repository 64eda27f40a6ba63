"""Labels: verdicts that are asked once, and the preferences that follow from them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from staging import completion, open_run, prompts

from selfplay.errors import ConfigError
from selfplay.models import encode_prompt, load_tokenizer
from selfplay.records import Pair, Verdict
from selfplay.stages import label
from selfplay.stages.label import ask
from selfplay.stages.rows import pair_of
from selfplay.storage.files import read_json, read_rows


def rule(text: str) -> float:
    """The tiny run's judge: 3 parts for a full stop at the end, 1 part for being short."""
    return (3 * text.rstrip().endswith(".") + max(0.0, 1 - len(text) / 400)) / 4


@pytest.mark.parametrize("number", [1, 2])
def test_the_preferences_of_a_real_run_are_those_of_its_rules(tiny_run: Path, number: int) -> None:
    folder = tiny_run / f"iteration-00{number}"
    pairs = {row["id"]: pair_of(row) for row in read_rows(folder / "generate/pairs.parquet")}
    rows, health = read_rows(folder / "label/preferences.parquet"), read_json(folder / "label/judge_health.json")
    tokenizer = load_tokenizer(tiny_run / f"iteration-00{number - 1}/policy")
    even = sum(rule(pair.first.text) == pytest.approx(rule(pair.second.text), abs=1e-9) for pair in pairs.values())
    assert (health["pairs"], health["decided"], health["ties"]) == (len(pairs), len(rows), even)
    assert len(rows) + even == len(pairs) and health["unscored"] == 0
    for row in rows:
        pair = pairs[row["pair_id"]]
        better, worse = sorted((pair.first, pair.second), key=lambda one: -rule(one.text))
        assert [row["chosen"][0]["content"], row["rejected"][0]["content"]] == [better.text, worse.text]
        prompt = encode_prompt(tokenizer, pair.prompt)
        assert [row["chosen_tokens"], row["rejected_tokens"]] == [[*prompt, *one.token_ids] for one in (better, worse)]
        assert 0 < row["margin"] <= 1 and row["confidence"] == pytest.approx((1 + row["margin"]) / 2, abs=1e-12)


class Counting:
    """A judge that prefers the first, and dies at its `last` call."""

    def __init__(self, last: int) -> None:
        self.last, self.calls = last, [0]

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        if len(self.calls) > self.last:
            raise KeyboardInterrupt
        self.calls.append(len(pairs))
        return [Verdict(pair_id=pair.id, judge="c", order="none", preference=1.0) for pair in pairs]


def test_what_was_asked_before_a_kill_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "BATCH", 3)
    pairs = [Pair(id=prompt.id, prompt=prompt, first=completion("a"), second=completion("b")) for prompt in prompts(8)]
    killed, second, third = Counting(2), Counting(9), Counting(9)
    with pytest.raises(KeyboardInterrupt):
        ask(killed, pairs, tmp_path / "journal.jsonl", "label")  # type: ignore[arg-type]
    found = ask(second, pairs, tmp_path / "journal.jsonl", "label")  # type: ignore[arg-type]
    assert [verdict.pair_id for verdict in found] == [pair.id for pair in pairs]
    assert (killed.calls, second.calls) == ([0, 3, 3], [0, 2])
    assert ask(third, pairs, tmp_path / "journal.jsonl", "label") == found and third.calls == [0]  # type: ignore[arg-type]


def test_a_judge_that_decides_nothing_stops_the_run(copied: Path, tmp_path: Path) -> None:
    judge = tmp_path / "constant.yaml"
    judge.write_text('name: constant\nmode: rules\ncriteria:\n  - {name: one, python: "./one.py:one"}\n')
    (tmp_path / "one.py").write_text("def one(prompt, response):\n    return 1.0\n")
    shutil.rmtree(copied / "iteration-002/label")
    run = open_run(copied, judge={"file": str(judge)})
    count = len(read_rows(copied / "iteration-002/generate/pairs.parquet"))
    with pytest.raises(
        ConfigError, match=rf"judge 'constant' decided none of {count} pairs \({count} ties, 0 unscored\)"
    ):
        label.run(run, 2)
    assert not (copied / "iteration-002/label").exists()
