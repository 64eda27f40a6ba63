"""A tokenizer and a Llama of two layers, for tests of how checkpoints are saved and computed with."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfplay.stages.bootstrap import train_tokenizer

TEXT = "the fox ran home . 'it is n't far' , the owl sang"


def tokenizer() -> PreTrainedTokenizerFast:
    """290 tokens or so, with our special ones."""
    return train_tokenizer([TEXT] * 20, 300)


def tiny(words: PreTrainedTokenizerFast, rope: dict[str, Any] | None = None) -> LlamaForCausalLM:
    """Random weights, with a rotary embedding of this kind."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.3, **shape)
    config.rope_parameters = rope or {"rope_theta": 100.0, "rope_type": "default"}
    config.eos_token_id, config.pad_token_id = words.eos_token_id, words.pad_token_id
    return LlamaForCausalLM(config).eval()
