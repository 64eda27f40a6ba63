"""Loading, saving, and the one way from prompts to tokens and back; scores of reward models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from judges import build, load_spec
from judges.audit.file_tests import Script
from judges.audit.gold import BUILT_IN, load_gold
from selfplay.errors import ConfigError
from selfplay.models import (
    decode,
    encode_prompt,
    load_policy,
    load_scalar_model,
    load_tokenizer,
    right_pad,
    stop_token_ids,
)
from selfplay.records import Completion, Message, Prompt
from selfplay.rewards.reward_model import RewardModel
from selfplay.stages.bootstrap import train_tokenizer

TEXTS = ["the fox ran home . the owl sang", "one day a fox met an owl"] * 20
CHAT = Prompt(
    id="c",
    messages=(
        Message(role="system", content="Be brief."),
        Message(role="user", content="the fox"),
        Message(role="assistant", content="ran"),
        Message(role="user", content="home"),
    ),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 300)


def without_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    plain = train_tokenizer(TEXTS, 300)
    plain.chat_template = None
    assert plain.get_vocab() == tokenizer.get_vocab()
    return plain


def test_a_prompt_ends_with_the_header_of_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.decode(encode_prompt(tokenizer, CHAT))
    assert text == (
        "<|system|>Be brief.<|end|><|user|>the fox<|end|><|assistant|>ran<|end|><|user|>home<|end|><|assistant|>"
    )


GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{{- '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}{{ message['content'] | trim }}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""The chat template of Gemma 1 and 2, with our tokens."""
DROPPING = (
    "{% for message in messages if message.role != 'system' %}"
    "<|user|>{{ message.content }}<|end|>{% endfor %}<|assistant|>"
)
SYSTEM = Prompt(id="s", messages=(CHAT.messages[0], Message(role="user", content="the fox")))


def with_template(template: str) -> PreTrainedTokenizerFast:
    made = train_tokenizer(TEXTS, 300)
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", [GEMMA, DROPPING])
def test_a_template_without_a_system_role_has_its_text_before_the_users(
    template: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfplay.models.KNOWN_TEMPLATES", {})
    tokenizer = with_template(template)
    found = [tokenizer.decode(encode_prompt(tokenizer, SYSTEM)) for _ in range(3)]
    assert [text.strip() for text in found] == ["<|user|>Be brief.\n\nthe fox<|end|><|assistant|>"] * 3
    assert capsys.readouterr().err.count("has no place for a system message") == 1
    alone = SYSTEM.model_copy(update={"messages": SYSTEM.messages[:1]})
    assert tokenizer.decode(encode_prompt(tokenizer, alone)).strip() == "<|user|>Be brief.<|end|><|assistant|>"


def test_messages_that_a_template_refuses_are_one_sentence() -> None:
    twice = Prompt(id="s", messages=(SYSTEM.messages[1], SYSTEM.messages[1]))
    sentence = (
        "prompt 's': the chat template of .* refuses messages of the roles user, user: Conversation roles must alt"
    )
    with pytest.raises(ConfigError, match=sentence):
        encode_prompt(with_template(GEMMA), twice)


@pytest.mark.parametrize("template", [GEMMA, DROPPING])
def test_the_shipped_judges_can_be_put_to_such_a_model(template: str) -> None:
    """`helpfulness` on Gemma was a jinja2 traceback."""
    tokenizer = with_template(template)
    pair = load_gold(BUILT_IN)[0].pair
    for name in ("helpfulness", "harmlessness", "summary"):
        judge: Any = build(load_spec(name, model="m"), Script([]))
        asked = judge.question(pair, "forward").messages
        assert asked[0].role == "system"
        text = tokenizer.decode(encode_prompt(tokenizer, Prompt(id="q", messages=asked)))
        assert all(line in text for line in asked[0].content.splitlines())


def test_without_a_template_a_prompt_is_its_text_and_a_conversation_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = without_template(tokenizer)
    assert plain.decode(encode_prompt(plain, Prompt.plain("p", "the fox"))) == "the fox"
    with pytest.raises(ConfigError, match="prompt 'c' is a conversation, but the model has no chat template"):
        encode_prompt(plain, CHAT)


def test_special_tokens_are_left_out_of_text_and_stop_strings_cut_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*tokenizer("the fox ran home . the owl")["input_ids"], tokenizer.eos_token_id]
    assert decode(tokenizer, ids) == "the fox ran home . the owl"
    assert decode(tokenizer, ids, ["owl", " home", "nowhere"]) == "the fox ran", (
        "the first in the text cuts, not in the list"
    )


def test_padding_is_never_the_end_token(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token is not None and loaded.pad_token_id != loaded.eos_token_id


def test_stop_tokens_are_the_tokenizers_and_the_models(tokenizer: PreTrainedTokenizerFast) -> None:
    class Config:
        eos_token_id: object = None

    config, end = Config(), tokenizer.eos_token_id
    assert stop_token_ids(config, tokenizer) == (end,)
    config.eos_token_id = [9, end]
    assert stop_token_ids(config, tokenizer) == tuple(sorted({9, end}))
    config.eos_token_id = 9
    assert stop_token_ids(config, tokenizer) == tuple(sorted({9, end}))


def test_what_is_no_checkpoint_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no model could be loaded from .*; name a directory written by save_pretrained"
    ):
        load_policy(tmp_path)
    with pytest.raises(ConfigError, match="no tokenizer could be loaded from"):
        load_tokenizer(tmp_path)


def test_right_padding() -> None:
    ids, mask = right_pad([[5], [6, 7, 8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]] and mask.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_a_new_head_has_the_deviation_of_the_n_details_and_an_old_one_is_kept(tiny_run: Path) -> None:
    torch.manual_seed(0)
    heads = torch.cat(
        [load_scalar_model(tiny_run / "iteration-000" / "policy").score.weight.flatten() for _ in range(15)]
    )
    # 15 x 64 = 960 draws of deviation 1 / sqrt(64 + 1) = 0.1240, itself known to 0.124 / sqrt(2 x 960) = 0.0028.
    assert float(heads.detach().std()) == pytest.approx(65**-0.5, abs=4 * 0.0028)
    trained = [load_scalar_model(tiny_run / "iteration-001" / "reward").score.weight for _ in range(2)]
    assert torch.equal(*trained)


def test_raw_scores_are_the_heads_output_at_the_last_token_whatever_the_batch(tiny_run: Path) -> None:
    reward = RewardModel.load(tiny_run / "iteration-001" / "reward")
    rows = [[5 + (7 * row + place) % 300 for place in range(3 + 11 * row % 23)] for row in range(17)]
    together = reward.raw(rows)
    reward.batch_tokens = 1
    assert together == pytest.approx(reward.raw(rows), abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_run / "iteration-001" / "reward").eval()
    with torch.inference_mode():
        alone = [float(plain(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)


def test_shift_and_scale_by_hand_travel_with_the_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "iteration-001" / "reward", tmp_path / "reward")
    reward = RewardModel.load(tmp_path / "reward")
    reward.normalise([1.0, 2.0, 6.0])
    # Mean 3; squared gaps 4, 1, 9 sum to 14, over n - 1 = 2: the deviation is sqrt(7).
    assert (reward.mean, reward.deviation) == (3.0, pytest.approx(7**0.5, abs=1e-12))
    reward.save(tmp_path / "again")
    again, prompt = RewardModel.load(tmp_path / "again"), Prompt.plain("p", "Tell a story.")
    assert (again.mean, again.deviation) == (reward.mean, reward.deviation)
    answer = Completion(id="c", prompt_id="p", text="", token_ids=(40, 50, 60), finish_reason="length", policy="x")
    [raw] = again.raw([[*encode_prompt(again.tokenizer, prompt), 40, 50, 60]])
    assert again.score([prompt], [answer]) == [pytest.approx((raw - 3.0) / 7**0.5, abs=1e-6)]
    reward.normalise([2.0, 2.0])
    assert reward.deviation == 1e-6, "equal scores divide by nothing smaller"
