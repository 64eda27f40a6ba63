"""Before a completion is generated: prompts that do not fit the context, and judges that are not fit, are known."""

import json
import shutil
from pathlib import Path

import pytest
from staging import open_run

from selfplay.errors import ConfigError, JudgeStopped
from selfplay.models import encode_prompt, load_tokenizer
from selfplay.stages.beforehand import check_judge_fitness, fit_prompts
from selfplay.storage.checksums import read_sealed

GOLD = [
    {"prompt": "Go on.", "chosen": f"The fox {word}.", "rejected": f"The fox {word}"} for word in ("ran", "sat", "ate")
] * 4
JUDGE = """\
mode: rules
criteria:
  - {{name: full stop, weight: 1, python: "./full_stop.py:value"}}
gold: gold.jsonl
thresholds: {{accuracy: 0.6, canary_wins: 1.0, length_bias: 1.0}}
tests:
  - {{responses: ["It ran.", "It ran"], expect: {expected}}}
"""
RULE = '''\
from pathlib import Path

def value(prompt, response):
    """1 for a full stop, or, turned round, for none; each call leaves a mark."""
    with Path(__file__).with_name("calls").open("a") as file:
        file.write(".")
    return float(response.endswith(".") == RIGHT)
'''


@pytest.fixture
def begun(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that has its start and nothing else."""
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    for folder in (tmp_path / "run").glob("iteration-00[12]"):
        shutil.rmtree(folder)
    (tmp_path / "run" / "judge_check.json").unlink(missing_ok=True)
    return tmp_path / "run"


def write_judge(folder: Path, right: bool = True, expected: str = "first") -> str:
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    (folder / "full_stop.py").write_text(f"RIGHT = {right}\n{RULE}")
    (folder / "full_stop.yaml").write_text(JUDGE.format(expected=expected))
    return str(folder / "full_stop.yaml")


def test_prompts_that_do_not_fit_are_named_or_left_out(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So many tokens are wanted that the longest prompts alone leave no room for them."""
    whole = open_run(begun)
    tokenizer = load_tokenizer(begun / "iteration-000" / "policy")
    context = json.loads((begun / "iteration-000/policy/config.json").read_text())["max_position_embeddings"]
    lengths = {prompt.id: len(encode_prompt(tokenizer, prompt)) for prompt in [*whole.train, *whole.heldout]}
    longest = max(lengths.values())
    wanted = {"sampling": {"max_tokens": context - longest + 1}, "generate": {"prompts": 2}}
    long = [prompt for prompt in whole.train if lengths[prompt.id] == longest]
    heldout = [prompt for prompt in whole.heldout if lengths[prompt.id] == longest]
    with pytest.raises(ConfigError, match=rf"with {longest} tokens.*leave no room for sampling.max_tokens") as error:
        fit_prompts(open_run(begun, **wanted))
    assert f"{len(long)} of {len(whole.train)} prompts.train" in str(error.value) or not long
    run = open_run(begun, **wanted, prompts={"too_long": "skip"}, algorithm={"episodes": 1})
    fit_prompts(run)
    assert [prompt.id for prompt in run.train] == [one.id for one in whole.train if one not in long]
    assert [prompt.id for prompt in run.heldout] == [one.id for one in whole.heldout if one not in heldout]
    assert "and are left out" in " ".join(capsys.readouterr().err.split())
    fit_prompts(whole)
    assert len(whole.train) + len(whole.heldout) == len([*open_run(begun).train, *open_run(begun).heldout])


def test_a_fit_judge_is_asked_once(begun: Path, tmp_path: Path) -> None:
    file = write_judge(tmp_path)
    check_judge_fitness(open_run(begun, judge={"file": file}))
    found = read_sealed(begun / "judge_check.json")
    assert found["gold"]["accuracy"] == 1.0 and found["tests"] == 1
    asked = (tmp_path / "calls").read_text()
    check_judge_fitness(open_run(begun, judge={"file": file}))
    assert (tmp_path / "calls").read_text() == asked, "what is known is not asked again"
    (tmp_path / "full_stop.py").write_text(f"RIGHT = False\n{RULE}")
    with pytest.raises(JudgeStopped):
        check_judge_fitness(open_run(begun, judge={"file": file}))


@pytest.mark.parametrize(
    ("right", "expected", "sentence"),
    [(True, "second", "fails its own tests"), (False, "second", "cannot be trusted: on the gold set it is backwards")],
)
def test_an_unfit_judge_stops_before_generation(
    right: bool, expected: str, sentence: str, begun: Path, tmp_path: Path
) -> None:
    file = write_judge(tmp_path, right, expected)
    with pytest.raises(JudgeStopped, match=sentence):
        check_judge_fitness(open_run(begun, judge={"file": file}))
    assert not (begun / "judge_check.json").exists()
    check_judge_fitness(open_run(begun, judge={"file": file, "precheck": False}))
