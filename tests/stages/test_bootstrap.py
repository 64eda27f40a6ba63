"""A start from text: the tokenizer, what is trained on, bits per character, and the checkpoint that comes of it."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl import SFTConfig

from prompts.stories import documents
from selfplay.config import Architecture, Bootstrap
from selfplay.errors import ConfigError
from selfplay.models import encode_prompt, load_policy, load_tokenizer
from selfplay.records import Prompt
from selfplay.stages.bootstrap import (
    ASSISTANT,
    END,
    PAD,
    SYSTEM,
    USER,
    bits_per_character,
    encode_document,
    from_text,
    llama_config,
    train_tokenizer,
)
from selfplay.training.supervised import demonstration_rows, document_rows, one_device

SHAPE = Architecture(layers=1, hidden_size=32, heads=2, intermediate_size=48, context=24)
TEXTS = documents(60)


def test_the_tokenizer_reads_and_writes_any_text() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    assert len(tokenizer) == 300
    for text in ("A fox.", " two  spaces\n\tand tabs", "Grüße, 世界 🦊", "\x00\x1f\u2028"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len({tokenizer.convert_tokens_to_ids(token) for token in (PAD, END, SYSTEM, USER, ASSISTANT)}) == 5
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, END)
    long, short = (
        len(tokenizer(" ".join(TEXTS))["input_ids"]) for tokenizer in (tokenizer, train_tokenizer(TEXTS, 400))
    )
    assert short < long, "more vocabulary, fewer tokens"


def test_documents_are_cut_at_the_context_and_never_joined() -> None:
    assert document_rows([[1, 2, 3, 4, 5], [6, 7], [8]], 3) == [
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3]},
        {"input_ids": [4, 5], "labels": [4, 5]},
        {"input_ids": [6, 7], "labels": [6, 7]},
    ]


def test_demonstrations_train_the_response_and_its_end_only() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    prompt, answer = Prompt.plain("p", "Tell a story."), "A fox ran."
    [row] = demonstration_rows(tokenizer, [(prompt, answer)], 200)
    ids, response = encode_prompt(tokenizer, prompt), tokenizer(answer)["input_ids"]
    assert row["input_ids"] == [*ids, *response, tokenizer.eos_token_id]
    assert row["labels"] == [-100] * len(ids) + [*response, tokenizer.eos_token_id]
    exact = len(row["input_ids"])
    assert demonstration_rows(tokenizer, [(prompt, answer)], exact) == [row]
    assert demonstration_rows(tokenizer, [(prompt, answer)], exact - 1) == []


def test_bits_per_character_token_by_token() -> None:
    """Documents longer than the context are scored in pieces that share one token; each token counts once."""
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(SHAPE, tokenizer)).double().eval()
    texts = [TEXTS[0], "A fox.", TEXTS[1][:60]]
    nats = counted = 0.0
    for text in texts:
        ids = encode_document(tokenizer, text)
        assert ids[0] == tokenizer.eos_token_id
        for place in range(1, len(ids)):
            first = (place - 1) // (SHAPE.context - 1) * (SHAPE.context - 1)
            with torch.inference_mode():
                logits = model(torch.tensor([ids[first:place]])).logits[0, -1]
            nats -= float(torch.log_softmax(logits, -1)[ids[place]])
            counted += 1
    assert counted == sum(len(encode_document(tokenizer, text)) - 1 for text in texts) > SHAPE.context
    expected = nats / math.log(2) / sum(map(len, texts))
    assert bits_per_character(model, tokenizer, texts) == pytest.approx(expected, abs=1e-6)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    model = LlamaForCausalLM(llama_config(SHAPE, tokenizer)).eval()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    tokens = sum(len(encode_document(tokenizer, text)) - 1 for text in TEXTS[:5])
    expected = tokens * math.log2(300) / sum(len(text) for text in TEXTS[:5])
    assert bits_per_character(model, tokenizer, TEXTS[:5]) == pytest.approx(expected, abs=1e-5)


def test_weights_start_with_a_deviation_that_suits_the_width() -> None:
    config = llama_config(SHAPE, train_tokenizer(TEXTS, 300))
    assert config.initializer_range == pytest.approx(32**-0.5) and config.bos_token_id is None
    torch.manual_seed(0)
    weight = LlamaForCausalLM(config).model.layers[0].mlp.gate_proj.weight
    # 32 x 48 = 1,536 draws: the deviation 0.1768 is known to 0.1768 / sqrt(2 x 1536) = 0.0032.
    assert float(weight.detach().std()) == pytest.approx(32**-0.5, abs=4 * 0.0032)


def test_the_start_of_a_real_run_has_learned_something(tiny_run: Path) -> None:
    """Knowing nothing costs log2(400) bits per token, 8.64; the corpus has about 2 characters per token."""
    found = json.loads((tiny_run / "iteration-000" / "policy" / "bootstrap.json").read_text())
    assert found["parameters"] == 107_840, "400 x 64 + 2 x (4 x 64^2 + 3 x 64 x 128 + 2 x 64) + 64 = 107,840"
    assert 0.5 < found["heldout_bits_per_character"] < 2.5
    assert not (tiny_run / "iteration-000" / "policy" / "work").exists()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_checkpoint_generates_with_its_own_template_and_generation_config(tiny_run: Path, number: int) -> None:
    """Nothing of ours: plain transformers, which stops at the checkpoint's own end token."""
    path = tiny_run / f"iteration-00{number}" / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    config, end, padding = model.generation_config, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert config.eos_token_id in (end, [end]) and config.pad_token_id == padding != end
    messages = [{"role": "user", "content": "Tell a story about a shy fox at the lake. Use the words kite and bell."}]
    inputs = tokenizer.apply_chat_template(
        [messages] * 40, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    rows = model.generate(**inputs, do_sample=True, max_new_tokens=64)[:, inputs["input_ids"].shape[1] :]
    ended = [row.tolist() for row in rows if tokenizer.eos_token_id in row]
    assert len(ended) >= 5
    for row in ended:
        end = row.index(tokenizer.eos_token_id)
        assert set(row[end + 1 :]) <= {tokenizer.pad_token_id}, "nothing but padding behind the end"


def test_a_corpus_that_is_too_small(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("one document")
    with pytest.raises(ConfigError, match="has 1 documents: too few to pretrain on"):
        from_text(Bootstrap(corpus=str(tmp_path / "c.txt")), tmp_path, 0)


def test_loading_gives_what_was_saved(tiny_run: Path) -> None:
    path = tiny_run / "iteration-001" / "policy"
    one, other = load_policy(path), AutoModelForCausalLM.from_pretrained(path)
    assert all(torch.equal(first, second) for first, second in zip(one.parameters(), other.parameters(), strict=True))
    assert load_tokenizer(path).get_vocab() == load_tokenizer(tiny_run / "iteration-000" / "policy").get_vocab()


def test_a_batch_is_not_multiplied_by_the_number_of_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=32, bf16=False)
    assert one_device(arguments).train_batch_size == 32
    arguments._n_gpu = 4  # what a machine with four GPUs has found
    assert arguments.train_batch_size == 128
    assert one_device(arguments).train_batch_size == 32
