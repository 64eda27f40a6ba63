"""Low-rank adapters (Hu et al. 2021, 2106.09685) on a policy, with the package peft."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfplay.config import Lora
from selfplay.errors import ConfigError
from selfplay.models import load_policy, save
from selfplay.weights.adding import copy_adding, places_of
from selfplay.weights.saving import save_configs


def unwrap_peft(model: Any) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model (with its adapters in place), or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def adapter_config(lora: Lora) -> Any:
    """Return the adapters as peft describes them. Raises ConfigError without `peft`."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise ConfigError("policy.lora needs the package peft: pip install 'selfplay-loop[lora]'") from None
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def add_adapter(policy: PreTrainedModel, lora: Lora, seed: int = 0) -> Any:
    """Return a PEFT model: `policy` frozen, with trainable low-rank adapters drawn from `seed`.

    Raises ConfigError without `peft`, and for a target that is an embedding.
    """
    config = adapter_config(lora)
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = get_peft_model(policy, config)
    for name, layer in unwrap_peft(made).named_modules():
        if getattr(layer, "lora_embedding_A", None):
            raise ConfigError(f"policy.lora.targets: {name} is an embedding, no linear layer: leave it out")
    return made


def adapted_like(body: torch.nn.Module, policy: Any, seed: int) -> torch.nn.Module:
    """Return a network on the very weights of `body`, which it freezes, with new adapters of the shape of the policy's.

    It computes what `body` does until its adapters learn; `body` itself never gets any. `policy` is a PEFT model.
    """
    from peft import inject_adapter_in_model

    weights = {id(tensor): tensor for tensor in (*body.parameters(), *body.buffers())}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = inject_adapter_in_model(policy.peft_config[policy.active_adapter], deepcopy(body, weights))
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:  # as the weights that they stand beside
            parameter.data = parameter.data.float()
    return adapted


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a linear layer's weight: scaling x B A (Hu et al. 2021), transposed where the weight is."""

    scaling: float
    b: Tensor
    a: Tensor
    transposed: bool = False

    def delta(self) -> Tensor:
        """Return it as a matrix."""
        added = self.scaling * (self.b @ self.a)
        return added.t() if self.transposed else added


def adapters_of(policy: Any) -> dict[str, list[LowRank]]:
    """Return the active adapters of a PEFT model by the name of the layer that they stand beside, no copies."""
    layers = unwrap_peft(policy).named_modules()
    return {name: low_rank(layer) for name, layer in layers if hasattr(layer, "lora_A")}


def low_rank(layer: Any) -> list[LowRank]:
    """Return the active adapters beside a linear layer, no copies."""
    return [
        LowRank(
            layer.scaling[name],
            layer.lora_B[name].weight.detach(),
            layer.lora_A[name].weight.detach(),
            layer.fan_in_fan_out,
        )
        for name in layer.active_adapters
    ]


@torch.no_grad()
def fold(model: PreTrainedModel, adapters: dict[str, list[LowRank]]) -> PreTrainedModel:
    """Return a plain model with adapters added to its weights, in place, one layer after another."""
    for name, parts in adapters.items():
        weight: Any = model.get_submodule(name).weight
        for one in parts:
            weight += one.delta()
    return model


def save_folded(
    before: Path, adapters: dict[str, list[LowRank]], tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write the checkpoint `before` with adapters added to its weights, as `save` would the folded model. Raises NotWritten.

    One tensor at a time is in memory, unless `before` has its weights in other files than safetensors.
    """
    weights = {f"{name}.weight": parts for name, parts in adapters.items()}
    if weights.keys() <= places_of(before).keys():
        copy_adding(before, ((name, one.delta()) for name, parts in weights.items() for one in parts), directory)
        save_configs(before, tokenizer, directory)
    else:
        save(fold(load_policy(before), adapters), tokenizer, directory)


def merged(policy: Any) -> PreTrainedModel:
    """Return a plain model with the adapters folded into copied weights; a model without adapters is given back as it is."""
    if unwrap_peft(policy) is policy:
        return policy
    return deepcopy(policy).merge_and_unload()
