"""A start from a GGUF file: a tiny one written here, and the real model that the tests share."""

import json
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from smollm2 import gguf_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfplay import preflight
from selfplay.config import Policy, Recipe, SamplingParams
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.loop import run
from selfplay.models import load_policy, load_tokenizer
from selfplay.records import Prompt
from selfplay.sizing.shapes import shape_of_model
from selfplay.stages.bootstrap import CHAT_TEMPLATE, train_tokenizer
from selfplay.weights.gguf import check_gguf, load_gguf

HEADS = 2


def write_tiny(path: Path) -> LlamaForCausalLM:
    """A llama of one layer as llama.cpp has it: float32, but for one matrix in Q8_0, with rows of q and k interleaved."""
    tokenizer = train_tokenizer(["the fox ran home . the owl sang"] * 20, 300)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 128}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **heads))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([gguf.TokenType.CONTROL if token.startswith("<|") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges(tokenizer)])
    writer.add_bos_token_id(tokenizer.pad_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in model.state_dict().items():
        stem, _, end = name.rpartition(".")
        rows = interleaved(tensor).numpy() if "q_proj" in name or "k_proj" in name else tensor.numpy()
        if "down_proj" in name:
            packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{names.get_name(stem)}.{end}", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{end}", numpy.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def merges(tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    """The pairs of a BPE tokenizer, best first."""
    return list(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])


def interleaved(rows: torch.Tensor) -> torch.Tensor:
    """Of each head, the two halves of its rows by turns, as llama.cpp's rotary embedding wants them."""
    size, width = rows.shape
    return rows.reshape(HEADS, 2, size // HEADS // 2, width).swapaxes(1, 2).reshape(size, width).contiguous()


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, LlamaForCausalLM]:
    path = tmp_path / "tiny.gguf"
    return path, write_tiny(path)


def test_the_start_holds_the_weights_of_the_file_and_says_that_they_were_dequantised(
    tiny: tuple[Path, LlamaForCausalLM], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, written = tiny
    recipe = Recipe(name="gguf", output=str(tmp_path / "run"), policy=Policy(model=str(path)))
    folder = run(recipe, only_start=True) / "iteration-000/policy"
    assert "dequantised to float32" in capsys.readouterr().err
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    assert shape_of_model(str(path)) == shape_of_model(str(folder)) is not None
    for name, tensor in model.state_dict().items():
        # Q8_0 keeps 8 bits of each value, relative to the largest of 32: half a step is 1/254 of that.
        bound = tensor.abs().max() / 254 * 1.02 if "down_proj" in name else 0.0
        assert (tensor - written.state_dict()[name]).abs().max() <= bound, name
    assert not torch.equal(model.model.layers[0].mlp.down_proj.weight, written.model.layers[0].mlp.down_proj.weight)
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token not in (None, "<|end|>")
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize(("content", "said"), [(None, "no such file"), (b"PK\x03\x04", "is not a GGUF file")])
def test_what_is_no_gguf_file_is_refused_before_the_run(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    recipe = Recipe(name="gguf", policy=Policy(model=str(path)))
    with pytest.raises(ConfigError, match=said):
        preflight.check(recipe)


def test_without_the_package_a_gguf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr("selfplay.weights.gguf.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package gguf.*selfplay-loop\[gguf\]"):
        check_gguf("policy.model", path)


def test_a_damaged_file_ends_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    for read in (load_gguf, shape_of_model):
        with pytest.raises(ConfigError, match="transformers cannot read the GGUF file"):
            read(str(path))


def test_the_shared_model_holds_the_dequantised_weights_and_answers(smollm2: Path) -> None:
    """One matrix against the package gguf itself: Q4_1 is d q + m with 4 bits q for each block of 32."""
    reader = gguf.GGUFReader(gguf_file())
    packed = next(tensor for tensor in reader.tensors if tensor.name == "blk.3.ffn_down.weight")
    expected = gguf.quants.dequantize(packed.data, packed.tensor_type)
    model, tokenizer = load_policy(smollm2), load_tokenizer(smollm2)
    assert numpy.array_equal(model.model.layers[3].mlp.down_proj.weight.detach().numpy(), expected)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    question = Prompt.plain("q", "What is the capital of France?")
    ((answer,),) = TransformersEngine(model, tokenizer).generate(
        [question], SamplingParams(temperature=0, max_tokens=16)
    )
    assert "Paris" in answer.text and answer.finish_reason == "stop"
