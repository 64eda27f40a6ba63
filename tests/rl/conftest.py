"""A tokenizer of whole words, made here, and Llamas small enough to train in seconds."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfplay.records import Prompt

PolicyMaker = Callable[..., LlamaForCausalLM]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words: <pad> 0, <eos> 1, <unk> 2, then the numbers 0 to 12 as tokens 3 to 15."""
    words = ["<pad>", "<eos>", "<unk>", *map(str, range(13))]
    fast = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def make_policy() -> PolicyMaker:
    """A new, random policy: `make_policy(seed=0, dtype=torch.float64, **config)`."""
    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> LlamaForCausalLM:
        shape = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
                 "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
                 "initializer_range": 0.3, **changes}
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Twelve prompts of one to four words."""
    return [Prompt.plain(f"prompt-{i}", " ".join(str((i * 5 + j) % 13) for j in range(1 + i % 4)), number=i)
            for i in range(12)]
