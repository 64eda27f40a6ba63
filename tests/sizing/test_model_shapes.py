"""Sizes of models from `config.json`: against the counts that their makers publish, and against transformers itself."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfplay.config import Architecture, Bootstrap
from selfplay.sizing.shapes import CONFIGS, find_config, shape_of_bootstrap, shape_of_config, shape_of_model

PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Meta-Llama-3.1-70B-Instruct": 70_553_706_496,
}
"""Parameters that the hub states for the weights of each."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_parameters_of_known_models(model: str) -> None:
    shape = shape_of_model(model)
    assert shape is not None and shape.total == PUBLISHED[model]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_transformers_makes_models_of_these_sizes(file: Path) -> None:
    config = AutoConfig.from_pretrained(file)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of_config(config.to_dict())
    assert shape.total == sum(parameter.numel() for parameter in model.parameters())
    assert shape.block == sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert shape.body == sum(parameter.numel() for parameter in model.base_model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3", "head_dim": 32},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "num_key_value_heads": 4},
    ],
    ids=lambda config: config["model_type"],
)
def test_biases_and_norms_of_heads(config: dict) -> None:
    small = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    }
    made = AutoConfig.for_model(**{**small, **config})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    assert shape_of_config(made.to_dict()).total == sum(parameter.numel() for parameter in model.parameters())


def test_a_bootstrapped_model_by_hand() -> None:
    made = Bootstrap(vocabulary=300, architecture=Architecture(layers=2, hidden_size=8, heads=2, intermediate_size=10))
    shape = shape_of_bootstrap(made)
    # A block: 4 x 8 x 8 of attention, 3 x 8 x 10 of the MLP, 2 x 8 of norms = 512; 300 x 8 embeddings, tied; 8 of the last norm.
    assert (shape.block, shape.embedding, shape.total) == (512, 2400, 2 * 512 + 2400 + 8)
    # Keys and values of 2 blocks, 8 wide, 4 bytes each.
    assert shape.cache_per_token(4) == 2 * 2 * 8 * 4


def test_adapters_by_hand() -> None:
    shape = shape_of_model("Qwen/Qwen2.5-7B-Instruct")
    assert shape is not None
    # q and o: 3584 + 3584 each; k and v: 3584 + 512 each; gate, up and down: 3584 + 18944 each; 28 blocks.
    everything = 2 * 7168 + 2 * 4096 + 3 * 22528
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert shape.adapter(16, targets) == 28 * 16 * everything
    assert shape.adapter(4, ("v_proj",)) == 28 * 4 * 4096


def test_models_that_are_not_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_config("nobody/has-this") is None and find_config("./none") is None and shape_of_model("a/b/c") is None
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 3}')
    assert shape_of_model(str(tmp_path)) is None, "no widths of a decoder"
    widths = json.loads((CONFIGS / "Qwen2.5-7B-Instruct.json").read_text())
    for odd in (None, [8192, 16384]):
        (tmp_path / "config.json").write_text(json.dumps({**widths, "intermediate_size": odd}))
        assert shape_of_model(str(tmp_path)) is None, "a width for each block"
