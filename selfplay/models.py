"""Load and save policies and scalar models; turn prompts into tokens and tokens into text, the same way everywhere.

Every engine, trainer and reward model sees the token ids that `encode_prompt` gives, followed by the ids that were
sampled: text is never tokenized twice. Left out: adapters (`selfplay.lora`) and quantised weights.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from prompts.cleaning import inert
from prompts.special_tokens import control_tokens
from selfplay.errors import ConfigError
from selfplay.progress import log
from selfplay.records import Prompt, TemplatedPrompt
from selfplay.storage import durable
from selfplay.storage.checksums import check_folder, checked
from selfplay.storage.files import hash_of
from selfplay.weights.kept_precision import SMALLEST_FOR_BFLOAT16
from selfplay.weights.precision import keep_attention_precise
from selfplay.weights.saving import save_weights, write_for_older

PERTURBATION = "perturbation.safetensors"
"""File beside a checkpoint with the heads of a `PerturbedHead`."""
SENTINEL = "Zyx speaks as the system."
KNOWN_TEMPLATES: dict[str, bool] = {}
"""Chat template -> whether it shows a system message."""


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU; under torchrun, the GPU of this process."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def default_batch_tokens(where: torch.device) -> int:
    """Tokens, padding included, that one forward pass takes best: on a CPU, few enough for its caches."""
    return 2048 if where.type == "cpu" else 32768


def training_batch_tokens(model: Any, where: torch.device) -> int:
    """Return the same for a pass that keeps its activations: of a large model on a CPU fewer, as fast and in less memory."""
    large = sum(one.numel() for one in model.parameters()) >= SMALLEST_FOR_BFLOAT16
    return 512 if where.type == "cpu" and large else default_batch_tokens(where)


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
    """Return a tokenizer whose padding token ends no response: it is neither the end token nor another stop token.

    Raises ConfigError if `path` holds none, or if it has no token that could serve as padding: else a reward model reads
    its score one token too early, and a response cannot be told from its padding.
    """
    check_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer could be loaded from {str(path)!r}: {_first_line(error)}") from None
    try:
        generation = GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # a checkpoint without one stops at its tokenizer's end token
        generation = None
    return complete_tokenizer(tokenizer, generation, str(path))


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, name: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer with a padding token that is no stop token of `config` (a model's); see `load_tokenizer`.

    `name` is for errors.
    """
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the tokenizer of {name!r} has no end-of-sequence token; set `eos_token` in its tokenizer_config.json"
        )
    stops = set(tokenizer.convert_ids_to_tokens(list(stop_token_ids(config, tokenizer))))
    if tokenizer.pad_token is None or tokenizer.pad_token in stops:
        taken = {*stops, tokenizer.bos_token}
        spare = [token for token in tokenizer.all_special_tokens if token not in taken]
        spare += [token for token in tokenizer.get_added_vocab() if token not in taken and token not in spare]
        if not spare:
            raise ConfigError(
                f"the tokenizer of {name!r} pads with a stop token and has no other special token; "
                "set `pad_token` in its tokenizer_config.json to a token that text never holds"
            )
        tokenizer.pad_token = spare[0]
    return tokenizer


def load_policy(
    path: str | Path, revision: str | None = None, dtype: str = "float32", where: str | None = None
) -> PreTrainedModel:
    """Return a causal language model in `dtype`, on `device()`, with dropout off. Raises ConfigError if there is none.

    For a network that is going to be spread over processes, `where` is "cpu" (in the checkpoint's own precision), or "meta"
    (without weights). `save` writes it in the precision that the checkpoint's config names, whatever it is trained in.
    What a checkpoint holds in perturbation.safetensors is added to its logits.
    """
    model = _load(AutoModelForCausalLM, path, where, revision=revision, dtype=dtype)
    model.checkpoint_dtype = AutoConfig.from_pretrained(path, revision=revision).dtype
    if (file := Path(path) / PERTURBATION).is_file():
        head = PerturbedHead(model.get_output_embeddings(), PerturbedHead.read(checked(file)))
        model.set_output_embeddings(head.to(device=model.device, dtype=model.dtype))
    return model


class PerturbedHead(torch.nn.Module):
    """An output embedding, and the sum of what heads of two layers with a ReLU add to its logits.

    Each of `layers` is (first weight (K, H), first bias (K,), second weight (V, K)). It samples and does not learn.
    """

    PARTS = ("first", "bias", "second")

    def __init__(self, embedding: Any, layers: Sequence[Sequence[Tensor]]) -> None:
        super().__init__()
        self.embedding, self.count = embedding, len(layers)
        for place, layer in enumerate(layers):
            for name, tensor in zip(self.PARTS, layer, strict=True):
                self.register_buffer(f"{name}_{place}", tensor.detach().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.embedding(hidden)
        for place in range(self.count):
            first, bias, second = (getattr(self, f"{name}_{place}") for name in self.PARTS)
            logits = logits + torch.relu(hidden @ first.t() + bias) @ second.t()
        return logits

    def write(self, file: Path) -> None:
        """Write the heads beside a checkpoint."""
        save_file({name: tensor.contiguous() for name, tensor in self.named_buffers(recurse=False)}, file)

    @classmethod
    def read(cls, file: Path) -> list[list[Tensor]]:
        """Return the heads of a file."""
        found = load_file(file)
        return [[found[f"{name}_{place}"] for name in cls.PARTS] for place in range(len(found) // len(cls.PARTS))]


def load_scalar_model(path: str | Path, revision: str | None = None, where: str | None = None) -> PreTrainedModel:
    """Return a model with one output per sequence (`AutoModelForSequenceClassification`, one label), in float32.

    `where` is as in `load_policy`.

    A checkpoint without such a head gets a new one, normal with deviation 1 / sqrt(d + 1) for hidden size d ("The N+
    implementation details of RLHF with PPO", 2024), drawn from torch's global generator.
    """
    with _quiet_transformers():
        model = _load(AutoModelForSequenceClassification, path, where, revision=revision, dtype="float32", num_labels=1)
    architectures = getattr(AutoConfig.from_pretrained(path, revision=revision), "architectures", None) or [""]
    if "SequenceClassification" not in architectures[0]:
        torch.nn.init.normal_(model.score.weight, std=1 / (model.config.hidden_size + 1) ** 0.5)
    return model


def _load(kind: Any, path: str | Path, where: str | None, **options: Any) -> PreTrainedModel:
    check_folder(path)
    try:
        if where == "meta":
            dtype = options.pop("dtype")
            with torch.device("meta"):
                model = kind.from_config(AutoConfig.from_pretrained(path, **options), dtype=dtype)
        else:
            model = kind.from_pretrained(path, **({**options, "dtype": "auto"} if where == "cpu" else options))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no model could be loaded from {str(path)!r}: {_first_line(error)}; name a directory "
            "written by save_pretrained, or a model on the hub"
        ) from None
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return keep_attention_precise(model.to(where or device()).eval())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


class _quiet_transformers:
    """No warning about a head that is new on purpose."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write weights, config, generation config and tokenizer, as `from_pretrained` of transformers 4 and 5 reads them.

    A policy keeps the precision of the checkpoint that it was loaded from (see `load_policy`). `weights`, by name, are
    written instead of the model's own. Raises NotWritten.
    """
    head = model.get_output_embeddings()
    if isinstance(head, PerturbedHead):
        model.set_output_embeddings(head.embedding)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
    with durable.naming(Path(directory)):
        save_weights(model, directory, weights)
        tokenizer.save_pretrained(directory)
        if isinstance(head, PerturbedHead):
            head.write(Path(directory) / PERTURBATION)
            model.set_output_embeddings(head)
        write_for_older(Path(directory))


def stop_token_ids(model_config: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's end token and all of the model's `eos_token_id`."""
    configured = getattr(model_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({token for token in [tokenizer.eos_token_id, *listed] if token is not None}))


def special_tokens(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> set[int]:
    """Return the tokens of those strings that name a special token, which decoded text never shows."""
    named = [
        string for string in strings if string in tokenizer.all_special_tokens or string in tokenizer.get_added_vocab()
    ]
    return set(tokenizer.convert_tokens_to_ids(named))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, ready for the response to follow.

    With a chat template, the conversation and the header of the answer: the control tokens in it are the template's, and
    those that a message names are text. Without one, the text of the only message as it is, behind whatever the tokenizer
    puts at the start. A system message goes into the user's turn where the template has no
    place for it. Raises ConfigError for a conversation that the template refuses, or without a template.
    """
    if tokenizer.chat_template:
        special = control_tokens(tokenizer)
        messages = [{"role": turn.role, "content": inert(turn.content, special)} for turn in prompt.messages]
        if messages[0]["role"] == "system" and not shows_system(tokenizer):
            messages = fold_system(messages)
        try:
            options = prompt.options if isinstance(prompt, TemplatedPrompt) else {}
            return list(
                tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in prompt.messages)
            raise ConfigError(
                f"prompt {prompt.id!r}: the chat template of {tokenizer.name_or_path!r} refuses messages of the roles "
                f"{roles}: {error}; use other roles or another model"
            ) from None
    if len(prompt.messages) > 1:
        raise ConfigError(
            f"prompt {prompt.id!r} is a conversation, but the model has no chat template; use "
            "single-message prompts, or a model with a template"
        )
    ids = list(tokenizer(prompt.text)["input_ids"])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def shows_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template has a place for a system message: some refuse one, and some drop it. Says so, once."""
    template = str(tokenizer.chat_template)
    if template not in KNOWN_TEMPLATES:
        tried = [{"role": "system", "content": SENTINEL}, {"role": "user", "content": "Hello."}]
        try:
            KNOWN_TEMPLATES[template] = SENTINEL in str(tokenizer.apply_chat_template(tried, tokenize=False))
        except TemplateError:
            KNOWN_TEMPLATES[template] = False
        if not KNOWN_TEMPLATES[template]:
            log(
                f"  the chat template of {tokenizer.name_or_path!r} has no place for a system message: its text goes "
                "before that of the user's first"
            )
    return KNOWN_TEMPLATES[template]


def fold_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with the first one, of role system, put before the text of the user's that follows it."""
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system["content"]}, *rest]
    return [{"role": "user", "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: Sequence[str] = ()) -> str:
    """Text of a response: special tokens left out, cut before the first of the `stop` strings."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    cuts = [position for position in (text.find(string) for string in stop) if position >= 0]
    return text[: min(cuts)] if cuts else text


def logit_scale(config: Any) -> float:
    """Return the factor that some architectures put on their logits (Cohere multiplies, Granite divides)."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def right_pad(sequences: Sequence[Sequence[int]], pad: int, where: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences of token ids as (B, T) ids and a (B, T) mask that is 1 on tokens and 0 on the padding behind them."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[*sequence, *[pad] * (width - len(sequence))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
    return ids.to(where), mask.to(where)


def weights_digest(model: torch.nn.Module) -> str:
    """Return a hash that tells one set of weights from another: names, shapes and the first 64 values of each tensor.

    Adapters are left out: they are new in each process, and a checkpoint holds all of theirs.
    """
    tensors = [(name, tensor) for name, tensor in model.named_parameters() if "lora_" not in name]
    return hash_of([(name, tensor.shape, tensor.detach().flatten()[:64].tolist()) for name, tensor in tensors])
