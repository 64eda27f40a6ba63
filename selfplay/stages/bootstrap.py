"""The start of a run: a checkpoint as it is, a checkpoint fine-tuned first, or a small model made from text alone.

From text: train a byte-level BPE tokenizer, pretrain a Llama on the corpus, fine-tune it on demonstrations. How well the
pretrained model predicts text that it was not trained on is reported in bits per character, which does not depend on
the tokenizer. Left out: anything that a pretraining of more than an hour would want (streaming, many machines).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

from prompts.sources import load_demonstrations, load_documents
from selfplay.config import Architecture, Bootstrap, Demonstrations
from selfplay.context import RunContext
from selfplay.errors import ConfigError
from selfplay.models import complete_tokenizer, device, load_policy, load_tokenizer, right_pad, save
from selfplay.progress import is_first, log
from selfplay.storage.files import write_json, write_json_lines
from selfplay.training.supervised import demonstration_rows, document_rows, packed_rows, train_supervised
from selfplay.weights.gguf import is_gguf, load_gguf

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = [PAD, END, SYSTEM, USER, ASSISTANT]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def fingerprint(run: RunContext, iteration: int = 0) -> str:
    """Return what the start follows from: its settings, and the content of the files that it learns from."""
    policy = run.recipe.policy
    tuned = [policy.sft, None if policy.bootstrap is None else policy.bootstrap.sft]
    sources = [] if policy.bootstrap is None else [policy.bootstrap.corpus]
    sources += [one.source for one in tuned if one is not None]
    return run.fingerprint_with((0, "policy"), sources, policy.model_dump(exclude={"dtype", "lora"}))


def run(run: RunContext, iteration: int = 0) -> None:
    """Make `iteration-000/policy`."""
    policy = run.recipe.policy
    with run.writing(0, "policy", fingerprint(run)) as folder:
        seed = run.seed("bootstrap")
        if policy.bootstrap is not None:
            model, tokenizer, metrics = from_text(policy.bootstrap, folder / "work", seed)
        else:
            model, tokenizer = given(str(policy.model), policy.revision)
            metrics = {}
            if policy.sft is not None:
                fine_tune(model, tokenizer, policy.sft, folder / "work", seed)
        if is_first():
            save(model, tokenizer, folder)
            write_json(folder / "bootstrap.json", {"parameters": model.num_parameters(), **metrics})
            write_json_lines(folder / "metrics.jsonl", [metrics] if metrics else [])


def given(named: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model that a recipe names, and its tokenizer; of a GGUF file, the dequantised weights. ConfigError if none."""
    if not is_gguf(named):
        return load_policy(named, revision), load_tokenizer(named, revision)
    model, tokenizer = load_gguf(named)
    log(
        f"  {Path(named).name}: {model.num_parameters():,} weights, dequantised to float32; what quantising lost stays lost"
    )
    return model.to(device()).eval(), complete_tokenizer(tokenizer, model.config, named)


def from_text(
    config: Bootstrap, work: Path, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, float]]:
    """Tokenizer, pretraining, fine-tuning; gives the model, the tokenizer and the held-out bits per character."""
    documents = load_documents(config.corpus, config.documents, seed)
    kept_back = max(1, round(len(documents) * config.heldout_share))
    heldout, corpus = documents[:kept_back], documents[kept_back:]
    if not corpus:
        raise ConfigError(f"the corpus {config.corpus!r} has {len(documents)} documents: too few to pretrain on")
    tokenizer = train_tokenizer(corpus, config.vocabulary)
    set_seed(seed)
    model = LlamaForCausalLM(llama_config(config.architecture, tokenizer))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    encoded = [encode_document(tokenizer, text) for text in corpus]
    rows = document_rows(encoded, config.architecture.context)
    log(f"  {model.num_parameters():,} parameters, {sum(map(len, encoded)):,} tokens of text")
    train_supervised(model, tokenizer, rows, config.pretrain, work / "pretrain", seed, "pretrain")
    bits = bits_per_character(model, tokenizer, heldout)
    log(f"  held-out loss {bits:.3f} bits per character")
    if config.sft is not None:
        fine_tune(model, tokenizer, config.sft, work / "sft", seed)
    return model, tokenizer, {"heldout_bits_per_character": bits, "tokens": sum(map(len, encoded))}


def train_tokenizer(corpus: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a chat template; padding and end are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return finished_tokenizer(tokenizer)


def finished_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a trained tokenizer as transformers knows it, with our special tokens and chat template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, extra_special_tokens=[SYSTEM, USER, ASSISTANT]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def llama_config(shape: Architecture, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Return the Llama that an `architecture` section describes.

    Weights start with deviation 1 / sqrt(hidden size): the usual 0.02 suits widths in the thousands, and leaves a narrow
    model on a plateau for hundreds of steps before it learns to look anything up in its prompt.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tie_embeddings,
        initializer_range=shape.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode_document(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a document's token ids behind an end token, which stands for "a document begins here"."""
    return [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


@torch.inference_mode()
def bits_per_character(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> float:
    """Negative log-likelihood of documents in bits, over their length in characters.

    A document longer than the context is scored in pieces, each without the ones before it, which overstates the loss.
    """
    context = model.config.max_position_embeddings
    pieces = [
        ids[start : start + context]
        for text in documents
        for ids in [encode_document(tokenizer, text)]
        for start in range(0, len(ids) - 1, context - 1)
    ]
    nats = 0.0
    for start in range(0, len(pieces), 32):
        ids, mask = right_pad(pieces[start : start + 32], tokenizer.pad_token_id, model.device)
        logprobs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits[:, :-1].float(), dim=-1)
        chosen = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
        nats -= float((chosen * mask[:, 1:]).sum(dtype=torch.float64))
    return nats / math.log(2) / sum(len(text) for text in documents)


def fine_tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Demonstrations, work: Path, seed: int
) -> None:
    """Fine-tune in place on demonstrations. Raises ConfigError if none fits the context."""
    pairs = load_demonstrations(config.source, config.count, seed)
    context = getattr(model.config, "max_position_embeddings", 1 << 30)
    rows = demonstration_rows(tokenizer, pairs, context, config.completion_only)
    if not rows:
        raise ConfigError(f"no demonstration of {config.source!r} fits the model's context of {context} tokens")
    if len(rows) < len(pairs):
        log(f"  {len(pairs) - len(rows)} of {len(pairs)} demonstrations are longer than the context and were left out")
    if config.packing:
        rows = packed_rows(rows, context)
    train_supervised(model, tokenizer, rows, config.training, work, seed, "fine-tune")
