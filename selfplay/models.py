"""Load and save policies and scalar models; turn prompts into tokens and tokens into text, the same way everywhere.

Every engine, trainer and reward model sees the token ids that `encode_prompt` gives, followed by the ids that were
sampled: text is never tokenized twice. Left out: adapters (`selfplay.lora`) and quantised weights.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from selfplay.errors import ConfigError
from selfplay.records import Prompt
from selfplay.rundir import hash_of


def device() -> torch.device:
    """The GPU if there is one, else the CPU; under torchrun, the GPU of this process."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def default_batch_tokens(where: torch.device) -> int:
    """Tokens, padding included, that one forward pass takes best: on a CPU, few enough for its caches."""
    return 2048 if where.type == "cpu" else 32768


def split_by_tokens(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in batches of at most `budget` tokens, padding included, longest first (so that memory peaks early).

    `lengths[row]` is in tokens. A row longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer whose padding token differs from its end token.

    Raises ConfigError if `path` holds none, or if it has no token that could serve as padding: with pad == eos a
    reward model reads its score one token too early, and a response cannot be told from its padding.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer could be loaded from {str(path)!r}: {_first_line(error)}") from None
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the tokenizer of {str(path)!r} has no end-of-sequence token; set `eos_token` in its tokenizer_config.json"
        )
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        taken = {tokenizer.eos_token, tokenizer.bos_token}
        spare = [token for token in tokenizer.all_special_tokens if token not in taken]
        spare += [token for token in tokenizer.get_added_vocab() if token not in taken and token not in spare]
        if not spare:
            raise ConfigError(
                f"the tokenizer of {str(path)!r} pads with its end token and has no other special token; "
                "set `pad_token` in its tokenizer_config.json to a token that text never holds"
            )
        tokenizer.pad_token = spare[0]
    return tokenizer


def load_policy(path: str | Path, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """A causal language model in `dtype`, on `device()`, with dropout off. Raises ConfigError if there is none."""
    return _load(AutoModelForCausalLM, path, revision=revision, dtype=dtype)


def load_scalar_model(path: str | Path, revision: str | None = None) -> PreTrainedModel:
    """A model with one output per sequence (`AutoModelForSequenceClassification`, one label), in float32.

    A checkpoint without such a head gets a new one, normal with deviation 1 / sqrt(d + 1) for hidden size d ("The N+
    implementation details of RLHF with PPO", 2024), drawn from torch's global generator.
    """
    with _quiet_transformers():
        model = _load(AutoModelForSequenceClassification, path, revision=revision, dtype="float32", num_labels=1)
    architectures = getattr(AutoConfig.from_pretrained(path, revision=revision), "architectures", None) or [""]
    if "SequenceClassification" not in architectures[0]:
        torch.nn.init.normal_(model.score.weight, std=1 / (model.config.hidden_size + 1) ** 0.5)
    return model


def _load(kind: Any, path: str | Path, **options: Any) -> PreTrainedModel:
    try:
        model = kind.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no model could be loaded from {str(path)!r}: {_first_line(error)}; name a directory "
            "written by save_pretrained, or a model on the hub"
        ) from None
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.to(device()).eval()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


class _quiet_transformers:
    """No warning about a head that is new on purpose."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> None:
    """Write weights, config, generation config and tokenizer, as `from_pretrained` reads them."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def stop_token_ids(model_config: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's end token and all of the model's `eos_token_id`."""
    configured = getattr(model_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({token for token in [tokenizer.eos_token_id, *listed] if token is not None}))


def special_tokens(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> set[int]:
    """The tokens of those strings that name a special token, which decoded text never shows."""
    named = [
        string for string in strings if string in tokenizer.all_special_tokens or string in tokenizer.get_added_vocab()
    ]
    return set(tokenizer.convert_tokens_to_ids(named))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, ready for the response to follow.

    With a chat template, the conversation and the header of the answer; without one, the text of the only message
    behind whatever the tokenizer puts at the start. Raises ConfigError for a conversation and no template.
    """
    if tokenizer.chat_template:
        messages = [message.model_dump() for message in prompt.messages]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    if len(prompt.messages) > 1:
        raise ConfigError(
            f"prompt {prompt.id!r} is a conversation, but the model has no chat template; use "
            "single-message prompts, or a model with a template"
        )
    ids = list(tokenizer(prompt.text)["input_ids"])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: Sequence[str] = ()) -> str:
    """Text of a response: special tokens left out, cut before the first of the `stop` strings."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    cuts = [position for position in (text.find(string) for string in stop) if position >= 0]
    return text[: min(cuts)] if cuts else text


def right_pad(sequences: Sequence[Sequence[int]], pad: int, where: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences of token ids as (B, T) ids and a (B, T) mask that is 1 on tokens and 0 on the padding behind them."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[*sequence, *[pad] * (width - len(sequence))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
    return ids.to(where), mask.to(where)


def weights_digest(model: torch.nn.Module) -> str:
    """A hash that tells one set of weights from another: names, shapes and the first 64 values of each tensor.

    Adapters are left out: they are new in each process, and a checkpoint holds all of theirs.
    """
    tensors = [(name, tensor) for name, tensor in model.named_parameters() if "lora_" not in name]
    return hash_of([(name, tensor.shape, tensor.detach().flatten()[:64].tolist()) for name, tensor in tensors])
