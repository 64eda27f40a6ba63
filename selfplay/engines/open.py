"""Open the engine that a recipe names, and give an open one other weights."""

from pathlib import Path
from typing import Any

import torch

from selfplay.config import Engine as EngineConfig
from selfplay.distributed.cluster import check_shared, started_by_launcher
from selfplay.distributed.collectives import rank
from selfplay.engines import Engine
from selfplay.engines.ledger import Ledger
from selfplay.engines.masking import load_mask, needs_mask
from selfplay.errors import ConfigError
from selfplay.models import load_policy, load_tokenizer
from selfplay.objects import call, load_object


def open_engine(
    config: EngineConfig, checkpoint: str | Path, name: str, *, dtype: str = "float32", revision: str | None = None
) -> Engine:
    """Return an engine over a checkpoint; its completions carry `name` as their policy. Raises ConfigError if it cannot be."""
    if config.kind != "transformers" and needs_mask(checkpoint):
        raise _unmasked(checkpoint, config.kind)
    return ENGINES[config.kind](config, str(checkpoint), name, dtype, revision)


def _transformers(config: EngineConfig, checkpoint: str, name: str, dtype: str, revision: str | None) -> Engine:
    from selfplay.engines.hf import TransformersEngine

    model, mask = load_policy(checkpoint, revision, dtype), load_mask(checkpoint)
    return TransformersEngine(model, load_tokenizer(checkpoint, revision), name, config.batch_size, mask)


def _vllm(config: EngineConfig, checkpoint: str, name: str, dtype: str, revision: str | None) -> Engine:
    from selfplay.engines.vllm import VllmEngine

    return VllmEngine(checkpoint, config=config, name=name, dtype=dtype, revision=revision)


def _python(config: EngineConfig, checkpoint: str, name: str, dtype: str, revision: str | None) -> Engine:
    made: Engine = call(
        f"the engine {config.python}",
        load_object(str(config.python)),
        checkpoint=checkpoint,
        name=name,
        dtype=dtype,
        **config.options,
    )
    return made


ENGINES = {"transformers": _transformers, "vllm": _vllm, "python": _python}
"""`engine.kind` -> how an engine is opened over a checkpoint. A new one is a class behind `Engine` and an entry here."""


def _unmasked(checkpoint: str | Path, engine: str) -> ConfigError:
    return ConfigError(
        f"{str(checkpoint)!r} samples as it was trained only with the mask beside it (NLPO), and the engine {engine} cannot "
        "mask: set engine.kind to transformers"
    )


def follower(config: EngineConfig, dtype: str) -> Engine | None:
    """Return what stands for the engine on a worker that shares that of another (`engine.tensor_parallel`); None elsewhere.

    Raises ConfigError if the workers do not divide into such groups.
    """
    if config.kind != "vllm" or config.tensor_parallel == 1 or not started_by_launcher():
        return None
    check_shared(config.tensor_parallel)
    from selfplay.engines.vllm_weights import Follower

    return Follower(config.tensor_parallel, getattr(torch, dtype)) if rank() % config.tensor_parallel else None


def reload_engine(engine: Any, checkpoint: str | Path, name: str, dtype: str = "float32") -> None:
    """Give an open engine the weights of another checkpoint of the same architecture and tokenizer."""
    mask = load_mask(checkpoint)
    if mask is not None and not hasattr(engine, "mask"):
        raise _unmasked(checkpoint, type(engine).__name__)
    engine.update_weights(load_policy(checkpoint, dtype=dtype))
    engine.name = name
    if hasattr(engine, "mask"):
        engine.mask = mask


def open_judge_engine(
    spec: Any, config: EngineConfig, dtype: str = "float32", ledger: Ledger | None = None, option: str | None = None
) -> Engine:
    """Return the engine that answers for a judge's file: its endpoint, or the given kind of engine over its model.

    `ledger` counts what an endpoint costs; `option` is the command line's for a model. Raises ConfigError if the file
    names no model (a recipe's is checked before, by `selfplay.preflight`), or for an endpoint's key that is missing.
    """
    endpoint, model = getattr(spec, "endpoint", None), getattr(spec, "model", None)
    if model is None:
        give = f"give one with {option} (a checkpoint or a hub id), or " if option else ""
        raise ConfigError(
            f"judge {spec.name!r} asks a language model, but names none: {give}set `model` in a judge's file of your own"
        )
    if endpoint is not None:
        from selfplay.engines.endpoint import EndpointEngine

        return EndpointEngine(endpoint, model, ledger)
    return open_engine(config, model, model, dtype=dtype, revision=getattr(spec, "revision", None))
