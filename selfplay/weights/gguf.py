"""A model in a GGUF file (llama.cpp's format), as a plain float32 transformers model and its tokenizer.

transformers reads the file with the package gguf; which architectures it knows is its affair. The weights are dequantised: what
the quantisation lost stays lost. Left out: writing GGUF, and training on quantised weights.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from selfplay.errors import ConfigError

MAGIC = b"GGUF"


def is_gguf(name: str | Path | None) -> bool:
    """Return whether a model's name is that of a GGUF file."""
    return str(name).lower().endswith(".gguf")


def check_gguf(key: str, path: str | Path) -> None:
    """Raise ConfigError if a GGUF file is not there, is something else, or cannot be read for want of the package gguf."""
    if not Path(path).is_file():
        raise ConfigError(f"{key} is {str(path)!r}, and there is no such file")
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ConfigError(f"{key} is {str(path)!r}, which is not a GGUF file: name a file of llama.cpp's format")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{key} is {str(path)!r}, and reading GGUF needs the package gguf, which is not installed: "
            "pip install 'selfplay-loop[gguf]', or name a checkpoint written by save_pretrained"
        )


@contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    """Name the file in whatever transformers makes of one that is damaged or of an architecture that it does not know."""
    check_gguf("the model", path)
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"transformers cannot read the GGUF file {str(path)!r}: {reason[0].rstrip('.')}; name a checkpoint written by "
            "save_pretrained"
        ) from None


@cache
def config_of_gguf(path: str | Path) -> dict[str, Any]:
    """Return what the `config.json` of a GGUF file's model would hold; its weights are not read. ConfigError as `load_gguf`.

    A header takes seconds to read, its vocabulary most of them, and a dry run asks for each setting that it tries.
    """
    from transformers import AutoConfig

    with _refusing(path):
        config: dict[str, Any] = AutoConfig.from_pretrained(str(Path(path).parent), gguf_file=Path(path).name).to_dict()
    return config


def load_gguf(path: str | Path) -> tuple[Any, Any]:
    """Return the model of a GGUF file, float32, on the CPU, and its tokenizer, with the end token that the file names.

    Raises ConfigError for a file that transformers cannot read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}
    with _refusing(path):
        model = AutoModelForCausalLM.from_pretrained(**place, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(**place)
    end = model.config.eos_token_id  # transformers reads the tokenizer's from elsewhere, and of a chat model wrongly
    if isinstance(end, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    model.hf_quantizer = None  # the weights are plain by now, and save_pretrained asks
    vars(model.config).pop("quantization_config", None)  # which some versions have taken away already
    return model, tokenizer
