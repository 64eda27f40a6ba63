"""Chat and demo: what is piped in is answered as the engine answers it, by each speaker with its own memory."""

import io
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from selfplay.cli import main
from selfplay.config import SamplingParams
from selfplay.engines.hf import TransformersEngine
from selfplay.models import load_policy, load_tokenizer
from selfplay.records import Message, Prompt
from selfplay.verbs.chat import Speaker

FIRST, SECOND = "Tell a story about a shy fox at the farm.", "Tell it again."


def say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str, *words: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of `selfplay chat ...` with lines piped in."""
    monkeypatch.setattr("sys.argv", ["selfplay", "chat", *map(str, words)])
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def engine_of(checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(load_policy(checkpoint), load_tokenizer(checkpoint))


def greedy(engine: TransformersEngine, *texts: str, tokens: int = 24) -> str:
    """The likeliest answer to a conversation, whose turns begin with the user's."""
    messages = [Message(role="assistant" if place % 2 else "user", content=text) for place, text in enumerate(texts)]
    [[found]] = engine.generate(
        [Prompt(id="x", messages=tuple(messages))], SamplingParams(temperature=0, max_tokens=tokens)
    )
    return found.text


def test_a_piped_conversation_is_what_the_engine_says(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"{FIRST}\n\n{SECOND}\n/new\n{SECOND}\n"
    asked = ("--beside", "start", "--temperature", 0, "--max-tokens", 24)
    code, out, err = say(monkeypatch, capsys, lines, f"{tiny_run}@2", *asked)
    expected = ""
    engines = {f"run@{name}": engine_of(tiny_run / f"iteration-00{n}/policy") for n, name in ((2, "2"), (0, "start"))}
    before = {name: greedy(engine, FIRST) for name, engine in engines.items()}
    for answers in (
        before,
        {name: greedy(engine, FIRST, before[name], SECOND) for name, engine in engines.items()},
        {name: greedy(engine, SECOND) for name, engine in engines.items()},
    ):
        expected += "".join(f"{name}: {text}\n" for name, text in answers.items())
    assert (code, out, err) == (0, expected, "")


def test_the_seed_and_the_recipe_decide(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without options, temperature 1 and at most 64 tokens, as the run's recipe samples."""
    said = [say(monkeypatch, capsys, FIRST, f"{tiny_run}@1", "--seed", seed)[1] for seed in (0, 0, 1)]
    assert said[0] == said[1] != said[2]
    engine = engine_of(tiny_run / "iteration-001/policy")
    [[found]] = engine.generate([Prompt.plain("turn-0", FIRST)], SamplingParams(max_tokens=64, seed=1))
    assert said[2] == found.text + "\n"


def test_without_a_chat_template_each_line_stands_alone(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = shutil.copytree(tiny_run / "iteration-002/policy", tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    (plain / "manifest.json").unlink()
    code, out, _ = say(monkeypatch, capsys, f"{FIRST}\n{FIRST}\n", plain, "--temperature", 0, "--max-tokens", 24)
    assert code == 0 and out == 2 * (greedy(engine_of(plain), FIRST) + "\n")


def test_the_oldest_turns_make_room(tiny_run: Path) -> None:
    """The context holds 192 tokens: of the turns before, only what leaves room for 64 more is heard."""
    engine = engine_of(tiny_run / "iteration-002/policy")
    speaker, sampling = Speaker("one", engine), SamplingParams(temperature=0, max_tokens=64)
    said = ["".join(speaker.answer(FIRST, sampling)) for _ in range(6)]
    assert len(said) == 6 and len(speaker.turns) < 12 and speaker.turns[-1].content == said[-1]
    heard = [turn.content for turn in speaker.turns[:-1]]
    assert heard[-1] == FIRST and said[-1] == greedy(engine, *heard, tokens=64)


def test_pieces_of_a_stream_add_up(tiny_run: Path) -> None:
    engine = engine_of(tiny_run / "iteration-001/policy")
    for seed in range(8):
        sampling = SamplingParams(max_tokens=48, seed=seed)
        texts = list(engine.stream_text(Prompt.plain("p", FIRST), sampling))
        [[whole]] = engine.generate([Prompt.plain("p", FIRST)], sampling)
        assert texts[-1] == whole.text and len(texts) > 3
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--beside", "9"), "has no policy of iteration 9"),
        (("--max-tokens", "190"), "more than the model's context of 192"),
    ],
)
def test_a_mistake_is_one_sentence(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    sentence: str,
) -> None:
    code, _, err = say(monkeypatch, capsys, FIRST, f"{tiny_run}@1", *words)
    assert code == 2 and err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_beside_an_iteration_needs_a_run(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = say(monkeypatch, capsys, FIRST, tiny_run / "iteration-001/policy", "--beside", "start")
    assert code == 2 and "--beside start names an iteration of a run" in err and "is not a run" in err


def test_the_demo_runs_to_its_end(
    training_seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real demo, away from the checkout; given again, it shows what is there."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["selfplay", "demo", "--seed", str(training_seed)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr().out.splitlines()
        assert not ended.value.code and [line.split()[0] for line in out[:4]] == ["iter", "start", "1", "2"]
        assert out[-2:] == ["report: runs/demo/report.html", "talk to it: selfplay chat runs/demo@best --beside start"]
        assert (tmp_path / "runs/demo/report.html").is_file()
