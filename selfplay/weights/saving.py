"""What a checkpoint needs so that others can read it: the precision it came in, and the names that transformers 4 knows.

transformers 5 moved the base of the rotary embedding into `rope_parameters`, where transformers 4 does not look (it takes 10000,
without a word), and names a class of tokenizers that 4 does not have. Written are both forms. Left out: models whose layers have
rotary embeddings of several kinds, which transformers 4 configures by names of their own.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from selfplay.storage import durable
from selfplay.storage.files import read_json, write_json

ROUNDING_SEED = 20_040_229


def save_weights(model: PreTrainedModel, directory: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model's weights (or those given) and configs, in the precision of the checkpoint that it was loaded from.

    That is its attribute `checkpoint_dtype`; without one, its own.

    To bfloat16 weights are rounded up or down at random, in proportion to how near each is. To the nearest, whatever a
    training changed by less than half a step of bfloat16 (a part in 500) would be gone. What bfloat16 holds stays as it is.
    """
    kept = getattr(model, "checkpoint_dtype", None)
    if kept is None or kept == model.dtype:
        model.save_pretrained(directory, state_dict=weights)
        return
    generator = torch.Generator().manual_seed(ROUNDING_SEED)
    done: dict[int, Tensor] = {}  # tied weights are rounded once, and stay tied
    rows = dict(weights or model.state_dict())
    for name, tensor in rows.items():
        if tensor.data_ptr() not in done:
            done[tensor.data_ptr()] = rounded(tensor, kept, generator)
        rows[name] = done[tensor.data_ptr()]
    model.save_pretrained(directory, state_dict=rows)
    config = read_json(Path(directory) / "config.json")
    write_json(Path(directory) / "config.json", {**config, "dtype": str(kept).removeprefix("torch.")})


def rounded(tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return a tensor in another precision: bfloat16 by stochastic rounding (Gupta et al. 2015), others to the nearest."""
    if not tensor.is_floating_point():
        return tensor
    if dtype != torch.bfloat16 or tensor.dtype != torch.float32:
        return tensor.to(dtype)
    bits = tensor.detach().cpu().contiguous().view(torch.int32)  # bfloat16 is the upper half of float32
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32)
    finite = torch.isfinite(tensor).cpu()
    return torch.where(finite, (bits + noise) & -65536, bits).view(torch.float32).to(dtype)


def save_configs(before: Path, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write all that `selfplay.models.save` writes beside weights, for a model with the configs of the checkpoint `before`.

    Raises NotWritten.
    """
    config = AutoConfig.from_pretrained(before)
    try:
        generation = GenerationConfig.from_pretrained(before)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    with durable.naming(directory):
        for one in (config, generation):
            one.pad_token_id = tokenizer.pad_token_id
            one.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        write_for_older(directory)


def write_for_older(directory: Path) -> None:
    """Add to a saved checkpoint's config and tokenizer what transformers 4 reads; transformers 5 reads both forms alike."""
    config = read_json(directory / "config.json")
    write_json(directory / "config.json", config | older_rope(config.get("rope_parameters")))
    tokenizer = read_json(directory / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        # By default 4 returns token types, which no causal model takes, and drops blanks when decoding; 5 does neither.
        tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
        tokenizer["clean_up_tokenization_spaces"] = False
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    write_json(directory / "tokenizer_config.json", tokenizer)


def older_rope(parameters: Any) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` as transformers 4 reads them beside a model's size, from `rope_parameters`."""
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        return {}
    scaling = {key: value for key, value in parameters.items() if key not in ("rope_theta", "partial_rotary_factor")}
    older = {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
    return older | ({} if scaling.get("rope_type", "default") == "default" else {"rope_scaling": scaling})
