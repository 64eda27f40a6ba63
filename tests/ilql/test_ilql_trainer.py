"""ILQL's trainer: gradients by brute force, the fold, exact resume, and values that are known in closed form."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from selfplay.config import ILQL, SamplingParams
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError, Diverged
from selfplay.ilql.heads import ILQLHeads, fold, put_in
from selfplay.ilql.rows import Row, encode_scored, fitting, load_scored, rows_of_preferences, standardised
from selfplay.ilql.trainer import ILQLTrainer
from selfplay.models import encode_prompt, load_policy, save
from selfplay.records import Prompt
from selfplay.rl.batching import collate
from selfplay.rl.networks import PolicyNetwork
from selfplay.storage.files import read_json_lines

sys.path.append(str(Path(__file__).parents[1] / "rl"))
from tiny_models import build_policy, build_tokenizer

ROWS = [
    Row((3, 4), (5, 6, 1), 1.0),
    Row((7,), (8, 1), -1.0),
    Row((3, 4), (9, 9, 9, 1), 0.5),
    Row((10, 11, 12), (1,), 0.0),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def trainer(tokenizer: Any, seed: int, directory: Path | None = None, **settings: Any) -> ILQLTrainer:
    policy = build_policy(seed, settings.pop("dtype", torch.float32))
    config = ILQL(
        kind="ilql", **{"steps": 6, "batch_size": 4, "checkpoint_every": 2, "learning_rate": 1e-2, **settings}
    )
    return ILQLTrainer(policy, tokenizer, ROWS, config, directory=directory, seed=seed)


def brute_force(model: LlamaForCausalLM, heads: ILQLHeads, rows: list[Row], config: ILQL) -> torch.Tensor:
    """The whole loss of a batch, response by response and token by token, as the paper and trlX write it."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        output = model(input_ids=torch.tensor([[*row.prompt, *row.response]]), output_hidden_states=True)
        hidden, logits = output.hidden_states[-1][0], output.logits[0]
        places = range(len(row.prompt) - 1, len(row.prompt) - 1 + len(row.response))
        values = [heads.value(hidden[place])[0] for place in places]
        for number, (place, token) in enumerate(zip(places, row.response, strict=True)):
            at_end = number == len(row.response) - 1
            goal = row.reward if at_end else config.discount * values[number + 1].detach()
            u = min(head(hidden[place])[token].detach() for head in heads.targets) - values[number]
            loss = (config.expectile if u >= 0 else 1 - config.expectile) * u**2
            for head in heads.q:
                scores = head(hidden[place])
                loss = loss + (scores[token] - goal) ** 2 - config.cql * torch.log_softmax(scores, -1)[token]
            weight = torch.exp(config.awac_beta * u.detach())
            loss = loss - config.awac * weight * torch.log_softmax(logits[place], -1)[token]
            total, count = total + loss, count + 1
    return total / count


@pytest.mark.parametrize(("heads", "micro"), [("linear", None), ("linear", 8), ("mlp", 8)])
def test_gradients_are_those_of_the_losses_written_out(
    tokenizer: Any, training_seed: int, heads: str, micro: int | None
) -> None:
    settings = {"awac_beta": 0.7, "cql": 0.3, "micro_batch_tokens": micro, "heads": heads}
    made = trainer(tokenizer, training_seed, dtype=torch.float64, **settings)
    parameters = {**dict(made.policy.named_parameters()), **dict(made.heads.named_parameters())}
    brute_force(made.policy, made.heads, ROWS, made.config).backward()
    expected = {name: one.grad.clone() for name, one in parameters.items() if one.grad is not None}
    for one in parameters.values():
        one.grad = None
    made.gradients(ROWS)
    assert {"first.weight", "second.weight", "value.weight"} < set(expected) and "first_target.weight" not in expected
    for name, gradient in expected.items():
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=0, atol=1e-6, msg=name)


def test_folded_logits_are_log_p_plus_beta_q(tokenizer: Any, training_seed: int, tmp_path: Path) -> None:
    model, heads = build_policy(training_seed, torch.float32), ILQLHeads(16, 16, False, training_seed)
    ids = torch.tensor([[3, 5, 7, 1]])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        q = sum(output.hidden_states[-1] @ head.weight.t() for head in heads.targets) / 2
        expected = torch.log_softmax(torch.log_softmax(output.logits, -1) + 3.0 * q, -1)
        fold(model, heads, 3.0)
        save(model, tokenizer, tmp_path)
        again = load_policy(tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(torch.log_softmax(again, -1), expected, rtol=0, atol=1e-5)
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


def test_heads_of_two_layers_stay_beside_the_checkpoint(tokenizer: Any, training_seed: int, tmp_path: Path) -> None:
    model, heads = build_policy(training_seed, torch.float32), ILQLHeads(16, 16, True, training_seed)
    prompt = Prompt.plain("p", "0 2")
    ids = torch.tensor([[*encode_prompt(tokenizer, prompt), 7, 1]])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        q = sum(torch.relu(head.first(output.hidden_states[-1])) @ head.weight.t() for head in heads.targets) / 2
        expected = torch.log_softmax(torch.log_softmax(output.logits, -1) + 3.0 * q, -1)
        put_in(model, heads, 3.0)
        save(model, tokenizer, tmp_path)
        again = load_policy(tmp_path)
        torch.testing.assert_close(torch.log_softmax(again(input_ids=ids).logits, -1), expected, rtol=0, atol=1e-5)
        plain = LlamaForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits
        torch.testing.assert_close(plain, output.logits, rtol=0, atol=1e-6)
        batch = collate(ids, torch.tensor([2]), torch.tensor([2]), [0])
        logprobs, entropies = PolicyNetwork(again, 1.0)(batch)
    # the log-probabilities of tokens 7 and 1, of the states behind the prompt's last token and behind 7
    torch.testing.assert_close(logprobs, expected[0, [1, 2], [7, 1]], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropies, -(expected.exp() * expected).sum(-1)[0, [1, 2]], rtol=0, atol=1e-5)
    said = TransformersEngine(again, tokenizer).generate(
        [prompt], SamplingParams(max_tokens=1, n=64, seed=training_seed)
    )
    for one in said[0]:
        assert one.logprobs == pytest.approx([float(expected[0, 1, one.token_ids[0]])], abs=1e-5)
    with pytest.raises(ConfigError, match="samples with heads of two layers .* and cannot be trained further"):
        ILQLTrainer(again, tokenizer, ROWS, ILQL(kind="ilql"))


def test_targets_follow_by_polyak() -> None:
    heads = ILQLHeads(2, 3).double()
    before = heads.first_target.weight.clone()
    with torch.no_grad():
        heads.first.weight.fill_(1.0)
    heads.move_targets(0.1)
    torch.testing.assert_close(heads.first_target.weight, 0.9 * before + 0.1, rtol=0, atol=1e-12)
    assert not torch.equal(heads.first.weight, heads.second.weight), "two heads that are alike are one"


@pytest.mark.parametrize(("where", "heads"), [("_step", "linear"), ("gradients", "mlp")])
def test_killed_and_resumed_is_bitwise_the_same(
    tokenizer: Any, training_seed: int, tmp_path: Path, where: str, heads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(tokenizer, training_seed, tmp_path / "whole", heads=heads)
    whole.train()
    cut = trainer(tokenizer, training_seed, tmp_path / "cut", heads=heads)
    kept, calls = getattr(cut, where), []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # steps 1 and 2 are in the checkpoint, step 3 is logged
            raise KeyboardInterrupt
        return kept(*arguments)

    monkeypatch.setattr(cut, where, killed)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    (tmp_path / "cut" / "metrics.jsonl").open("a").write('{"step": 4, "lo')
    resumed = trainer(tokenizer, training_seed, tmp_path / "cut", heads=heads)
    resumed.train()
    for one, other in ((whole.policy, resumed.policy), (whole.heads, resumed.heads)):
        for name, weights in one.state_dict().items():
            assert torch.equal(weights, other.state_dict()[name]), name
    rows = [read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    timeless = [[{key: row[key] for key in row if "time" not in key} for row in part] for part in rows]
    assert timeless[0] == timeless[1] and [row["step"] for row in rows[0]] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigError, match=r"was written with learning_rate = 0.01, and now it is 0.02"):
        trainer(tokenizer, training_seed, tmp_path / "cut", heads=heads, learning_rate=2e-2).train()


def test_values_of_a_bandit(tokenizer: Any, training_seed: int) -> None:
    """One prompt, two answers of one token, worth 1 and 0: each Q goes to its reward, the value to their expectile."""
    rows = [Row((3,), (5,), 1.0), Row((3,), (6,), 0.0)]
    config = ILQL(kind="ilql", steps=150, batch_size=2, cql=0.0, polyak=1.0, target_every=1, learning_rate=2e-2)
    made = ILQLTrainer(build_policy(training_seed, torch.float32), tokenizer, rows, config, seed=training_seed)
    made.train()
    with torch.no_grad():
        hidden = made.policy.base_model(input_ids=torch.tensor([[3]])).last_hidden_state[0]
        q = made.heads.first_target(hidden)[0]
        # Five seeds came within .006 of the Q, .013 of the value, and .001 of the imitated half.
        assert float(q[5]) == pytest.approx(1.0, abs=0.05) and float(q[6]) == pytest.approx(0.0, abs=0.05)
        assert float(made.heads.value(hidden)) == pytest.approx(0.8, abs=0.05)  # .2 V = .8 (1 - V)
        imitated = torch.softmax(made.policy(input_ids=torch.tensor([[3]])).logits[0, -1], -1)
        assert float(imitated[5]) == pytest.approx(0.5, abs=0.1)


def test_rows(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"prompt": "3 4", "completion": "5 6", "reward": 2}\n{"prompt": "7", "completion": "8", "reward": -1.5}\n'
    )
    scored = load_scored(str(file))
    assert [(one.prompt.text, one.completion, one.reward) for one in scored] == [("3 4", "5 6", 2.0), ("7", "8", -1.5)]
    rows = encode_scored(scored, tokenizer)  # a number n is token n + 3, the end is 1
    assert rows == [Row((6, 7), (8, 9, 1), 2.0), Row((10,), (11, 1), -1.5)]
    assert [row.reward for row in standardised(rows)] == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-12)
    assert fitting(rows, 3) == rows[1:]
    with pytest.raises(ConfigError, match="none of 2 completions with a reward fits the model's context of 2 tokens"):
        fitting(rows, 2)
    with pytest.raises(ConfigError, match="all 2 completions have the reward 2: there is nothing to learn"):
        standardised([rows[0], rows[0]])
    for line, said in (
        ('{"prompt": "3", "reward": 1}', "row 1: `completion` is None"),
        (
            '{"prompt": "3", "completion": "4", "reward": "much"}',
            "row 1: `reward` is 'much'; it must be a finite number",
        ),
        ('{"prompt": "3", "completion": "4", "reward": NaN}', "row 1: `reward` is nan"),
        (
            '{"prompt": "3", "completion": "4", "reward": 1e200}',
            "`reward` is 1e.200; it must be a finite number, of 1e.18 at",
        ),
    ):
        file.write_text(line + "\n")
        with pytest.raises(ConfigError, match=said):
            load_scored(str(file))


def test_the_share_of_pairs_won_is_the_reward(tokenizer: Any) -> None:
    prompt = [{"role": "user", "content": "0"}]  # token 3
    pairs = [([3, 5, 1], [3, 6, 1], 1.0), ([3, 5, 1], [3, 7, 1], 0.75), ([3, 7, 1], [3, 6, 1], 1.0)]
    rows = rows_of_preferences(
        [
            {"prompt_id": "p", "prompt": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "confidence": sure}
            for chosen, rejected, sure in pairs
        ],
        tokenizer,
    )
    # 5 won with 1 and .75; 6 lost with 0 and 0; 7 lost with .25 and won with 1
    assert {row.response: row.reward for row in rows} == {(5, 1): 0.875, (6, 1): 0.0, (7, 1): 0.625}
    assert all(row.prompt == (3,) for row in rows)


def test_a_last_step_that_throws_the_weights_away_leaves_no_checkpoint(
    tokenizer: Any, tmp_path: Path, training_seed: int
) -> None:
    with pytest.raises(Diverged, match="a weight is"):
        trainer(tokenizer, training_seed, tmp_path, steps=1, learning_rate=1e30).train()
    assert not list(tmp_path.glob("checkpoint-*"))
