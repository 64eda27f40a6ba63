"""Reading votes from CSV and JSONL, and gathering them by prompt and pair."""

import json
import math

import numpy as np
import pytest

from selfplay.errors import ConfigError
from selfplay.stats.votes import Vote, read_votes, tabulate


def test_votes_are_gathered_per_prompt_and_turned_to_one_direction():
    table = tabulate(
        [
            Vote("p", "old", "new", 0.25, 10, 14),  # new over old: 0.75, new is 4 longer
            Vote("p", "new", "old", 1.0, 20, 14),  # 1.0, 6 longer
            Vote("q", "new", "old", math.nan, 5, 4),
            Vote("q", "old", "third", 0.0),
        ]
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
    table = read_votes(path)
    # x comes first, so the pair is y over x: 1 - 1, 1 - 0, 0.5, 0.75, unscored.
    np.testing.assert_allclose(table.mean()[:, 0], [0, 1, 0.5, 0.75, math.nan], atol=1e-12)
    np.testing.assert_allclose(table.length[:, 0], [2, math.nan, 1, 1, 1], atol=1e-12)
    assert table.prompts[2] == "p,3"
    assert read_votes(path, judge="k").prompts == ("p,3",)


def test_jsonl_and_csv_say_the_same(tmp_path):
    rows = [
        {"prompt": "1", "model_a": "x", "model_b": "y", "winner": "model_a"},
        {"prompt": "2", "model_a": "y", "model_b": "x", "winner": "tie (bothbad)"},
        {"prompt": "3", "model_a": "y", "model_b": "x", "winner": None},
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    np.testing.assert_allclose(read_votes(path).mean()[:, 0], [0, 0.5, math.nan], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v.csv", "prompt,model_a,model_b,preference\np,x,y,maybe\n", "v.csv:2: preference is 'maybe'"),
        ("v.csv", "prompt,model_a,model_b,preference\np,x,y,1.5\n", "1.5 on prompt 'p' is outside"),
        ("v.csv", "prompt,model_a,model_b,preference\np,x,x,1\n", "compares 'x' with itself"),
        ("v.csv", "prompt,model_a,model_b,preference\np,,y,1\n", "v.csv:2 has no model_a"),
        ("v.csv", "prompt,model_a,model_b\np,x,y\n", "v.csv:2 has no preference"),
        ("v.csv", "prompt,model_a,model_b,preference\n", "holds no votes"),
        ("v.csv", "prompt,model_a,model_b,preference,length_a\np,x,y,1,inf\n", "length_a is 'inf'"),
        ("v.jsonl", "prompt,model_a\n", "v.jsonl:1 is not JSON"),
        ("v.jsonl", "[1]\n", "v.jsonl:1 is no JSON object"),
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
