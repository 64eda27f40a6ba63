"""`selfplay compare --votes`: its options are used or refused, difficulty is fitted once, categories add up."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from selfplay.cli import app
from selfplay.compare.difficulty import known_difficulty
from selfplay.compare.vote_summary import summarise_votes
from selfplay.errors import ConfigError
from selfplay.stats.votes import Vote, tabulate


@pytest.fixture
def arena(tmp_path):
    """Four models against a baseline on 60 prompts of two topics, two judges, lengths."""
    generator = np.random.default_rng(0)
    rows = ["prompt,model_a,model_b,winner,length_a,length_b,judge,topic"]
    for x in range(60):
        for k in range(4):
            won = generator.random() < 0.4 + 0.1 * k + 0.2 * (x % 2)
            judge, topic = "strict" if x < 50 else "mild", "code" if x % 2 else "prose"
            rows.append(f"p{x},m{k},base,{'a' if won else 'b'},{100 + int(generator.integers(50))},120,{judge},{topic}")
    (tmp_path / "arena.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "arena.csv"


def said(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.mark.parametrize(
    "option", [["--prompts", "stories"], ["--temperature", "0.5"], ["--max-tokens", "9"], ["--like", "r"]]
)
def test_options_that_ask_models_are_refused(arena, option):
    error = said("--votes", arena, *option).exception
    assert isinstance(error, ConfigError) and f"{option[0]} say how to ask models" in str(error)


def test_judge_output_and_baseline_are_used(arena, tmp_path):
    done = said("--votes", arena, "--judge", "strict", "--baseline", "m3", "--output", tmp_path / "out", "--json")
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["settings"] == {"votes": str(arena), "judge": "strict (200 votes)", "n": 50}
    assert found["baseline"] == "m3" and found["models"] == ["m3", "base", "m0", "m1", "m2"]
    first = found["pairs"][0]["comparison"]
    assert (first["a"], first["b"]) == ("base", "m3")


def test_the_settings_stand_above_the_table(arena):
    first = said("--votes", arena).stdout.splitlines()[0]
    assert first == f"votes {arena}, judge strict (200 votes), mild (40 votes), n 60"


def test_categories_add_up_to_the_whole(arena):
    found = summarise_votes(arena, by="topic")
    assert {one.value: one.prompts for one in found.categories} == {"code": 30, "prose": 30}
    for k, pair in enumerate(found.summary.pairs):
        parts = [one.pairs[k] for one in found.categories]
        assert sum(part.win_rate * part.n for part in parts) / 60 == pytest.approx(pair.comparison.win_rate, abs=1e-12)
    with pytest.raises(ConfigError, match=r"has no column 'subject'; there are: prompt, model_a, .*, topic"):
        summarise_votes(arena, by="subject")
    arena.write_text(arena.read_text() + "p0,m1,base,a,100,120,strict,code\n")
    with pytest.raises(
        ConfigError, match=r"arena.csv:242: the prompt 'p0' has 'code' in the column 'topic', and 'prose'"
    ):
        summarise_votes(arena, by="topic")


def test_difficulty_is_fitted_once_kept_and_makes_rates_exact(arena, tmp_path):
    file = tmp_path / "hard.csv"
    first = summarise_votes(arena, difficulty=file).summary
    assert file.read_text().startswith("prompt,difficulty,baseline\np0,")
    again = summarise_votes(arena, difficulty=file).summary
    assert first == again and not any(pair.length_controlled.approximate for pair in first.pairs)
    assert all(pair.length_controlled.approximate for pair in summarise_votes(arena).summary.pairs)


def test_difficulty_for_others_is_refused(arena, tmp_path):
    file = tmp_path / "hard.csv"
    summarise_votes(arena, difficulty=file)
    with pytest.raises(ConfigError, match="was fitted with the baseline 'base', and this comparison has 'm1'"):
        summarise_votes(arena, difficulty=file, baseline="m1")
    with pytest.raises(ConfigError, match="no difficulty for 1 of the 1 prompts, such as 'new'"):
        known_difficulty(file, tabulate([Vote("new", "m1", "base", 1.0)]))
    file.write_text("prompt,difficulty\np0,hard\n")
    with pytest.raises(ConfigError, match="hard.csv:2: the difficulty is 'hard'"):
        known_difficulty(file, tabulate([Vote("p0", "m1", "base", 1.0)]))
    file.write_text("prompt,easiness\np0,1\n")
    with pytest.raises(ConfigError, match="needs the columns prompt and difficulty, and has prompt, easiness"):
        known_difficulty(file, tabulate([Vote("p0", "m1", "base", 1.0)]))


def test_alpacaevals_own_file_is_read(tmp_path):
    (tmp_path / "instruction_difficulty.csv").write_text("index,instruction_difficulty\n0,-1.5\n1,0.25\n")
    table = tabulate([Vote("1", "m", "base", 1.0), Vote("0", "m", "base", 0.0)])
    np.testing.assert_array_equal(known_difficulty(tmp_path / "instruction_difficulty.csv", table), [0.25, -1.5])


def test_a_file_is_no_folder_for_output(arena):
    for output in (arena, arena / "below"):
        found = said("--votes", arena, "--output", output).exception
        assert isinstance(found, ConfigError) and f"{str(arena)!r} is a file: name a folder" in str(found)
