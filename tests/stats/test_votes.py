"""Reading votes from CSV and JSONL, and gathering them by prompt and pair."""

import gzip
import json
import math

import numpy as np
import pytest

from selfplay.compare.vote_files import read_votes
from selfplay.errors import ConfigError
from selfplay.stats.votes import Vote, tabulate
from selfplay.storage.files import write_rows


def test_votes_are_gathered_per_prompt_and_turned_to_one_direction():
    table = tabulate(
        models=["old", "new"],
        votes=[
            Vote("p", "old", "new", 0.25, 10, 14),  # new over old: 0.75, new is 4 longer
            Vote("p", "new", "old", 1.0, 20, 14),  # 1.0, 6 longer
            Vote("q", "new", "old", math.nan, 5, 4),
            Vote("q", "old", "third", 0.0),
        ],
    )
    assert table.models == ("old", "new", "third")
    assert [tuple(pair) for pair in table.pairs] == [(1, 0), (2, 0)]
    np.testing.assert_allclose(table.score, [[1.75, 0], [0, 1]], atol=1e-12)
    np.testing.assert_array_equal(table.count, [[2, 0], [0, 1]])
    np.testing.assert_array_equal(table.unscored, [[0, 0], [1, 0]])
    np.testing.assert_allclose(table.length, [[5, math.nan], [1, math.nan]], atol=1e-12)
    np.testing.assert_allclose(table.mean(), [[0.875, math.nan], [math.nan, 1]], atol=1e-12)
    np.testing.assert_allclose(table.towards(0, 1), [0.125, math.nan], atol=1e-12)
    assert table.towards(1, 2) is None


def test_the_order_of_models_can_be_given():
    assert tabulate([Vote("p", "x", "y", 1.0)], models=["y", "x"]).models == ("y", "x")


def test_a_csv_with_words_numbers_and_holes(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text(
        "prompt,model_a,model_b,preference,length_a,length_b,judge\n"
        'p1,x,y,a,10,12,j\np2,x,y,B,,,j\n"p,3",x,y,tie,1,2,k\np4,x,y,0.25,1,2,j\np5,x,y,,1,2,j\n'
    )
    table, judges, _ = read_votes(path)
    assert [table.models[index] for index in table.pairs[0]] == ["x", "y"], "the direction of the file's first row"
    np.testing.assert_allclose(table.mean()[:, 0], [1, 0, 0.5, 0.25, math.nan], atol=1e-12)
    np.testing.assert_allclose(table.length[:, 0], [-2, math.nan, -1, -1, -1], atol=1e-12)
    assert table.prompts[2] == "p,3" and judges == {"j": 4, "k": 1}
    assert read_votes(path, judge="k").table.prompts == ("p,3",)


def test_jsonl_and_csv_say_the_same(tmp_path):
    rows = [
        {"prompt": "1", "model_a": "x", "model_b": "y", "winner": "model_a"},
        {"prompt": "2", "model_a": "y", "model_b": "x", "winner": "tie (bothbad)"},
        {"prompt": "3", "model_a": "y", "model_b": "x", "winner": None},
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    np.testing.assert_allclose(read_votes(path).table.mean()[:, 0], [1, 0.5, math.nan], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v.csv", "prompt,model_a,model_b,preference\np,x,y,maybe\n", "v.csv:2: preference is 'maybe'"),
        ("v.csv", "prompt,model_a,model_b,preference\np,x,y,1.5\n", "1.5 on prompt 'p' is outside"),
        ("v.csv", "prompt,model_a,model_b,preference\np,x,x,1\n", "compares 'x' with itself"),
        ("v.csv", "prompt,model_a,model_b,preference\np,,y,1\n", "v.csv:2 has no model_a"),
        (
            "v.csv",
            "prompt,model_a,model_b\np,x,y\n",
            "v.csv:1 has no column preference; there are: prompt, model_a, model_b.",
        ),
        ("v.csv", "prompt,model_a,model_b,preference\n", "holds no votes"),
        ("v.csv", "prompt,model_a,model_b,preference,length_a\np,x,y,1,inf\n", "length_a is 'inf'"),
        ("v.csv", "prompt,model_a,model_b,winner,length_a\np,x,y,a,-5\n", "v.csv:2: length_a is '-5', and no text is"),
        # A comma in a prompt without quotes would shift every cell: "Hello" would be the prompt and "you" a model.
        ("v.csv", "prompt,model_a,model_b,winner\nHello, you,x,y,a\n", "v.csv:2 has 5 cells for 4 columns: put a text"),
        ("v.csv", "prompt,model_a,model_b,winner,Winner\np,x,y,a,b\n", "v.csv:1 has two columns 'winner'"),
        ("v.csv", f'prompt,model_a,model_b,winner\n"{"p" * 200_000},x,y,a\n', "is a double quote left open before it?"),
        ("v.json", '["a"]', "v.json:1 is no JSON object"),
        ("v.parquet", "PAR1 and no more", "v.parquet is not a whole Parquet file"),
        ("v.jsonl", '{"prompt": 1}{', "v.jsonl:1 is not JSON"),
        ("v.jsonl", '{"prompt": "p\\ud83d"}', "v.jsonl:1 is not JSON that can be used (column 'prompt' holds half of"),
        ("v.json", "[" * 100_000, "v.json is not JSON that can be used (it is nested more than 100 deep"),
        ("v.jsonl", '{"prompt": ' + "1" * 5000 + "}", "v.jsonl:1 is not JSON that can be used"),
        ("v.jsonl", "[1]\n", "v.jsonl:1 is no JSON object"),
        ("v.jsonl", '{"prompt": "p", "A": "x"}\n', "has no column model_b and preference; there are: prompt, A. Votes"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read_votes(tmp_path / name)
    assert message in str(error.value)


def test_a_missing_file_and_a_missing_judge_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no file of votes"):
        read_votes(tmp_path / "none.csv")
    (tmp_path / "v.csv").write_text("prompt,model_a,model_b,preference,judge\np,x,y,1,j\n")
    with pytest.raises(ConfigError, match="of the judge 'k'"):
        read_votes(tmp_path / "v.csv", judge="k")


ARENA = "prompt,model_a,model_b,winner\np1,x,y,a\np2,x,y,b\np3,x,y,tie\n"


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("UTF-8 with a mark", "\ufeff".encode() + ARENA.encode()),
        ("UTF-16", ARENA.encode("utf-16")),
        ("UTF-16 without a mark", ARENA.encode("utf-16-le")),
        ("UTF-16, big end first", "\ufeff".encode("utf-16-be") + ARENA.encode("utf-16-be")),
        ("gzip", gzip.compress(ARENA.encode(), mtime=0)),
        ("gzip of UTF-16", gzip.compress(ARENA.encode("utf-16"), mtime=0)),
        ("semicolons", ARENA.replace(",", ";").encode()),
        ("tabs", ARENA.replace(",", "\t").encode()),
        ("Windows line ends", ARENA.replace("\n", "\r\n").encode()),
        ("other capitals", ARENA.replace("prompt,model_a,model_b,winner", "Prompt,Model A,MODEL-B,Winner").encode()),
        ("spaces around names", ARENA.replace("x,y", " x , y ").encode()),
        ("FastChat's columns", ARENA.replace("prompt,", "question_id,").encode()),
        (
            "a JSON array",
            json.dumps(
                [
                    {"prompt": f"p{k}", "model_a": "x", "model_b": "y ", "winner": word}
                    for k, word in enumerate(("model_a", "model_b", "Tie (inconsistent)"), 1)
                ]
            ).encode(),
        ),
    ],
)
def test_files_are_read_as_they_come(tmp_path, what, data):
    (tmp_path / "votes.csv").write_bytes(data)
    table = read_votes(tmp_path / "votes.csv").table
    assert table.models == ("y", "x") and table.prompts == ("p1", "p2", "p3"), what
    np.testing.assert_array_equal(table.mean()[:, 0], [1, 0, 0.5])


def test_a_gzip_file_that_was_cut_off_is_a_sentence(tmp_path):
    """EOFError would end the command with "Aborted!" and nothing else."""
    whole = gzip.compress(ARENA.encode())
    for data in (whole[:-6], whole[:12], whole[:14] + b"x" + whole[15:]):
        (tmp_path / "v.csv.gz").write_bytes(data)
        with pytest.raises(ConfigError, match=r"v.csv.gz is not a whole gzip file \(.*\): write or copy it again"):
            read_votes(tmp_path / "v.csv.gz")


def test_the_winner_can_be_named(tmp_path):
    # Of models called b and a, `a` may mean either: the first of the row, or the one of that name.
    (tmp_path / "v.csv").write_text(
        "prompt,model_a,model_b,winner\np,gpt,Llama,gpt\nq,gpt,Llama, Llama\nr,gpt,Llama,Tie\n"
    )
    np.testing.assert_array_equal(read_votes(tmp_path / "v.csv").table.mean()[:, 0], [1, 0, 0.5])
    (tmp_path / "v.csv").write_text("prompt,model_a,model_b,winner\np,A,B,a\nq,A,B,B\n")
    np.testing.assert_array_equal(read_votes(tmp_path / "v.csv").table.mean()[:, 0], [1, 0])
    for row in ("p,B,A,a", "p,b,a,b", "p,Tie,x,tie", "p,x,none,none"):
        (tmp_path / "v.csv").write_text(f"prompt,model_a,model_b,winner\n{row}\n")
        with pytest.raises(
            ConfigError, match=r"v.csv:2: preference '\w+' is a word of its own and the name of a model too"
        ):
            read_votes(tmp_path / "v.csv")


@pytest.mark.parametrize("empty", ["", " ", " NaN", "null "])
def test_a_length_that_is_not_known_may_have_spaces_around_it(tmp_path, empty):
    (tmp_path / "v.csv").write_text(f"prompt,model_a,model_b,winner,length_a,length_b\np,x,y,a,{empty},5\n")
    assert np.isnan(read_votes(tmp_path / "v.csv").table.length[0, 0])


def test_empty_cells_behind_the_columns_are_no_mistake(tmp_path):
    (tmp_path / "v.csv").write_text("prompt,model_a,model_b,winner\np,x,y,a,\nq,x,y,b,,\n")
    np.testing.assert_array_equal(read_votes(tmp_path / "v.csv").table.mean()[:, 0], [1, 0])


def test_latin_1_is_read(tmp_path):
    (tmp_path / "votes.csv").write_bytes("prompt,model_a,model_b,winner\nCaf\xe9 \x80?,x,y,a\n".encode("latin-1"))
    assert read_votes(tmp_path / "votes.csv").table.prompts == ("Caf\xe9 \u20ac?",)


@pytest.mark.parametrize(
    ("word", "preference"),
    [
        ("tie (inconsistent)", 0.5),
        ("both_bad", 0.5),
        ("Tie (bothbad)", 0.5),
        ("NaN", math.nan),
        ("error", math.nan),
        ("MODEL_A", 1.0),
        (" b ", 0.0),
        ("0.25", 0.25),
    ],
)
def test_words_of_other_tools_are_known(tmp_path, word, preference):
    (tmp_path / "votes.csv").write_text(f"prompt,model_a,model_b,winner\np,x,y,{word}\n")
    np.testing.assert_array_equal(read_votes(tmp_path / "votes.csv").table.mean()[0, 0], preference)


def test_an_unknown_word_is_refused_with_those_that_are_known(tmp_path):
    (tmp_path / "v.csv").write_text("prompt,model_a,model_b,winner\np,x,y,left\n")
    wrong = r"v.csv:2: preference is 'left', no number, neither model's name, and none of 'a', 'model_a'"
    with pytest.raises(ConfigError, match=wrong):
        read_votes(tmp_path / "v.csv")


def test_a_decimal_comma_between_semicolons_is_a_number(tmp_path):
    (tmp_path / "v.csv").write_text("prompt;model_a;model_b;preference;length_a;length_b\np;x;y;0,25;1,5;1\n")
    table = read_votes(tmp_path / "v.csv").table
    assert (table.mean()[0, 0], table.length[0, 0]) == (0.25, 0.5)


def test_our_own_matches_are_votes(tmp_path):
    rows = [{"prompt_id": "p", "a": "new", "b": "old", "preference": 1.0, "a_tokens": 9, "b_tokens": 4, "judge": "j"}]
    write_rows(tmp_path / "matches.parquet", rows)
    table, judges, _ = read_votes(tmp_path / "matches.parquet")
    assert table.models == ("old", "new") and table.length[0, 0] == 5 and judges == {"j": 1}


def test_a_judge_without_votes_is_refused_with_those_that_gave_some(tmp_path):
    (tmp_path / "v.csv").write_text("prompt,model_a,model_b,winner,judge\np,x,y,a,strict\n")
    with pytest.raises(ConfigError, match=r"holds no votes of the judge 'k'; there are votes of 'strict'"):
        read_votes(tmp_path / "v.csv", judge="k")


def test_the_baseline_is_what_the_others_are_held_against():
    votes = [Vote("p", "x", "y", 1.0, 3, 1), Vote("p", "z", "x", 0.25, 2, 3), Vote("q", "x", "y", math.nan)]
    table = tabulate(votes).against("x")
    assert table.models == ("x", "y", "z") and table.pairs.tolist() == [[1, 0], [2, 0]]
    np.testing.assert_array_equal(table.score, [[0, 0.25], [0, 0]])
    np.testing.assert_array_equal(table.length, [[-2, -1], [math.nan, math.nan]])
    np.testing.assert_array_equal(table.unscored, [[0, 0], [1, 0]])
