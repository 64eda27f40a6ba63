"""A judge taught on another judge's verdicts: any judge's, measured on prompts that taught nothing, and of use afterwards."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from judges import build, load_spec
from judges.audit.gold import prompt_of
from judges.distill import VerdictTeacher, decided_by
from judges.llm.cache import AnswerCache
from selfplay.cli import app
from selfplay.config import Architecture
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.models import load_policy, load_tokenizer
from selfplay.records import Completion, Pair, Prompt
from selfplay.stages.distill import Distillation, dealt, distill, measures
from selfplay.storage.files import read_json

STUDENT = """
mode: pairwise
sampling: {max_tokens: 1}
untrusted: {fence: none}
messages: [{role: user, content: "{{ prompt }} A: {{ responses[0] }} B: {{ responses[1] }} Which?"}]
output: {kind: logprob, labels: {A: 1, B: 0}}
"""
ASKING = """
mode: pairwise
model: strong
messages: [{role: user, content: "{{ responses[0] }} {{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B|C)\\]\\]', labels: {A: 1, B: 0, C: 0.5}}
on_error: {retries: 0}
"""
KIND, RUDE = ("kindly", "gently", "warmly"), ("rudely", "harshly", "coldly")


def pairs(count: int) -> list[Pair]:
    """Answers of which one is kind and the other is not, or, one in ten times, both are."""
    generator = random.Random(3)
    made = []
    for number in range(count):
        words = [generator.choice(KIND), generator.choice(KIND if number % 10 == 0 else RUDE)]
        generator.shuffle(words)
        prompt = Prompt.plain(f"p{number // 2}", f"Say {number // 2}.")  # two pairs of each prompt
        first, second = (
            Completion(
                id=f"{number}/{place}",
                prompt_id=prompt.id,
                text=f"He said it {word}.",
                finish_reason="stop",
                policy="t",
            )
            for place, word in enumerate(words)
        )
        made.append(Pair(id=f"pair {number}", prompt=prompt, first=first, second=second))
    return made


class Strong:
    """A model that prefers the kind answer, at a price."""

    def __init__(self) -> None:
        self.calls = 0

    def generate(self, prompts: Any, sampling: Any) -> Any:
        self.calls += len(prompts)
        return [
            [Completion(id=one.id, prompt_id=one.id, text=self.say(one.text), finish_reason="stop", policy="strong")]
            for one in prompts
        ]

    def say(self, text: str) -> str:
        kind = [any(word in line for word in KIND) for line in text.splitlines() if line.startswith("He")]
        return "[[C]]" if kind[0] == kind[1] else "[[A]]" if kind[0] else "[[B]]"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "student.yaml").write_text(STUDENT)
    (tmp_path / "strong.yaml").write_text(ASKING)
    return tmp_path


def settings(folder: Path, **changes: Any) -> Distillation:
    small = Architecture(layers=2, hidden_size=64, heads=4, intermediate_size=128, context=256)
    return Distillation(file=str(folder / "student.yaml"), architecture=small, vocabulary=512, epochs=6, **changes)


def test_a_judge_that_can_be_asked_teaches_one_that_judges_alike(files: Path, training_seed: int) -> None:
    teacher, engine, cache = load_spec(files / "strong.yaml"), Strong(), AnswerCache()
    asked = pairs(400)
    answers = {pair.id: float(any(word in pair.first.text for word in KIND)) for pair in asked if int(pair.id[5:]) % 10}
    found = distill(teacher, asked, files / "out", settings(files, seed=training_seed), engine, cache, answers)
    assert engine.calls <= 800  # both orders of each pair, once, though the held-out ones are compared afterwards
    assert found.agreement is not None and found.agreement.value > 0.9  # a coin would have .5
    assert found.first.judge == "strong" and found.first.accuracy is not None and found.first.accuracy.value == 1.0
    assert found.second.accuracy is not None and found.second.accuracy.value > 0.9
    kept = read_json(files / "out" / "judge.json")
    assert (
        kept["teacher"] == "strong"
        and kept["held_out"]["pairs"] == found.pairs
        and not (files / "out" / "work").exists()
    )
    assert kept["pairs_taught"] + found.pairs == 360  # ties teach nothing
    student = TransformersEngine(load_policy(files / "out"), load_tokenizer(files / "out"))
    again = build(load_spec(files / "student.yaml", str(files / "out")), student)
    assert len(decided_by(again, asked[:20])) > 15
    with pytest.raises(ConfigError, match="out' is there already; name a new directory"):
        distill(teacher, asked, files / "out", settings(files), engine)


def test_prompts_that_measure_teach_nothing(files: Path) -> None:
    rows = decided_by(build(load_spec(files / "strong.yaml"), Strong()), pairs(200))
    train, heldout = dealt(rows, 0)
    assert len(train) + len(heldout) == len(rows) == 180 and 15 <= len(heldout) <= 60
    assert not {prompt_of(row.pair) for row in train} & {prompt_of(row.pair) for row in heldout}
    assert [row.pair.id for row in dealt(rows, 1)[1]] != [row.pair.id for row in heldout]


def test_each_verdict_is_two_lessons(files: Path) -> None:
    file = load_spec(files / "student.yaml", "m")
    [row] = decided_by(build(load_spec(files / "strong.yaml"), Strong()), pairs(2)[1:])
    one, other = VerdictTeacher([file]).lessons([row])
    texts = [row.pair.first.text, row.pair.second.text]
    assert one.messages[0].content == f"Say 0. A: {texts[0]} B: {texts[1]} Which?"
    assert other.messages[0].content == f"Say 0. A: {texts[1]} B: {texts[0]} Which?"
    better = "A" if row.answer == 1 else "B"
    assert (one.answer, one.winner) == (better, better) and {one.answer, other.answer} == {"A", "B"}
    with pytest.raises(ConfigError, match="of mode rules cannot be taught: only pairwise judges can"):
        VerdictTeacher([load_spec("stories")])


def test_a_checkpoint_goes_on_learning_and_keeps_its_tokenizer(files: Path, tiny_run: Path) -> None:
    start = tiny_run / "iteration-000" / "policy"
    (files / "letters.yaml").write_text(STUDENT.replace("kind: logprob", "kind: regex, pattern: '^\\s*(A|B)\\s*$'"))
    chosen = settings(files, student=str(start), learning_rate=1e-3).model_copy(
        update={"file": str(files / "letters.yaml"), "epochs": 0.5}
    )
    found = distill(load_spec(files / "strong.yaml"), pairs(150), files / "out", chosen, Strong())
    before, after = load_policy(start), load_policy(files / "out")
    assert load_tokenizer(files / "out").get_vocab() == load_tokenizer(start).get_vocab()
    assert before.config.hidden_size == after.config.hidden_size
    assert not before.get_input_embeddings().weight.equal(after.get_input_embeddings().weight) and found.pairs >= 10


def test_what_cannot_teach_is_a_sentence(files: Path) -> None:
    teacher, asked = load_spec(files / "strong.yaml"), Strong()
    few = "0, of other prompts, can measure; 10 of each are the least, and some hundreds make a judge: give more pairs"
    alike = [pair for pair in pairs(200) if not measures(pair, 0)]
    with pytest.raises(ConfigError, match=f"^of {len(alike)} pairs {len(alike)} can teach and {few}"):
        distill(teacher, alike, files / "out", settings(files), asked)
    assert not asked.calls, "known before the teacher is asked"
    ties = [pair for pair in pairs(1000) if int(pair.id[5:]) % 10 == 0 or not measures(pair, 0)]  # every tenth is a tie
    decided = [pair for pair in ties if int(pair.id[5:]) % 10]
    with pytest.raises(
        ConfigError,
        match=rf"^judge 'strong' decides {len(decided)} of {len(ties)} pairs, of which {len(decided)} can teach and {few}",
    ):
        distill(teacher, ties, files / "out", settings(files), asked)
    assert asked.calls and not (files / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("--epochs", "0"), ("--epochs", "-1"), ("--learning-rate", "-0.1")])
def test_settings_that_teach_nothing_are_refused_before_the_teacher_is_asked(
    files: Path, option: str, value: str
) -> None:
    command = ["judge", "distill", str(files / "none.yaml"), str(files / "out")]
    found = CliRunner().invoke(app, [*command, option, value]).exception
    assert isinstance(found, ConfigError) and "judge distill" in str(found) and "greater than 0" in str(found)


def test_the_command_teaches_on_rules_and_keeps_the_answers(files: Path, training_seed: int) -> None:
    rules = "mode: rules\ncriteria: [{name: x, python: './own.py:kind'}]\n"
    (files / "own.py").write_text(
        "def kind(prompt, response):\n    return float('ly.' in response and 'kind' in response)\n"
    )
    (files / "rules.yaml").write_text(rules)
    rows = [
        {
            "prompt": f"Say {number}.",
            "responses": ["He said it kindly.", "He said it rudely."][:: 1 if number % 2 else -1],
        }
        for number in range(80)
    ]
    (files / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["judge", "distill", str(files / "rules.yaml"), str(files / "out"), "--pairs", str(files / "pairs.jsonl")]
    done = CliRunner().invoke(
        app, [*command, "--file", str(files / "student.yaml"), "--epochs", "0.2", "--seed", str(training_seed)]
    )
    assert done.exit_code == 0, done.output
    assert f"the student: selfplay judge check {files / 'student.yaml'} --model {files / 'out'}" in done.output
    assert (files / "out.answers.sqlite").is_file() and (files / "out" / "model.safetensors").is_file()
