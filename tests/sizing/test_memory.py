"""The formulas of memory: by hand, against what autograd really saves, and against the table of two large layouts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes_to_size import BOOTSTRAPPED, recipe, sized
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from selfplay.engines import vllm_weights
from selfplay.models import training_batch_tokens
from selfplay.rl import logprobs, optimise
from selfplay.sizing import memory
from selfplay.sizing.cards import GB, KNOWN, Machine
from selfplay.sizing.memory import Precision
from selfplay.sizing.shapes import Shape, shape_of_config, shape_of_model

SMALL = Shape(layers=2, hidden=8, intermediate=10, query=8, key=4, vocabulary=300, tied=False)


def test_a_trained_weight_takes_sixteen_bytes() -> None:
    assert memory.training_state(1000) == {"weights": 4000, "gradients": 4000, "optimizer": 8000}
    assert sum(memory.training_state(1000, shards=8).values()) == 2000


def test_activations_by_hand() -> None:
    # Float32: norms 6 x 8, attention 2 x 8 + 2 x 4, MLP 4 x 10 numbers = 112, of 4 bytes.
    assert memory.block_activations(SMALL, Precision(False)) == 448
    # Bfloat16: norms 48 numbers of 4 bytes, and 2 x 8 + 24 + 40 = 80 of 2 bytes.
    assert memory.block_activations(SMALL, Precision(True)) == 352
    # Ten tokens, two blocks, and four float32 hidden states at the ends.
    assert memory.activations(SMALL, 10, Precision(False), checkpointing=False) == 10 * (2 * 448 + 4 * 4 * 8)
    # With checkpointing: the input of each block, and one block made anew.
    assert memory.activations(SMALL, 10, Precision(False), checkpointing=True) == 10 * (2 * 4 * 8 + 448 + 4 * 4 * 8)


def test_gathered_layers_by_hand() -> None:
    # A block has 2 x 64 + 2 x 32 of attention, 3 x 80 of the MLP, 16 of norms = 448; outside the blocks 2 x 2400 + 8.
    assert (SMALL.block, SMALL.total) == (448, 2 * 448 + 4808)
    assert memory.gathered(SMALL, 2, Precision(False)) == 4 * (2 * 4808 + 3 * 448)
    assert memory.gathered(SMALL, 1, Precision(False)) == 0
    assert memory.casts(SMALL, 1, Precision(True)) == 2 * 2 * 448 and memory.casts(SMALL, 2, Precision(True)) == 0


def test_frozen_models_by_hand() -> None:
    # Of a block's 448 numbers 432 are in linear layers; of the whole 5,704, or 3,304 without an output embedding.
    assert memory.frozen(SMALL, Precision(False)) == 4 * 5704
    assert memory.frozen(SMALL, Precision(True)) == 4 * 5704 - 2 * 2 * 432
    assert memory.frozen(SMALL, Precision(True), head=False) == 4 * 3304 - 2 * 2 * 432
    assert memory.frozen(SMALL, Precision(True), shards=2, spread_in_half=True) == 5704
    assert memory.frozen(SMALL, Precision(True), shards=2) == 2 * 5704


def test_logits_and_caches_by_hand() -> None:
    assert memory.logits_in_chunks(SMALL, "cpu", head_learns=True) == 3 * 2**22 + 4 * 2400
    assert memory.logits_in_chunks(SMALL, "cpu", head_learns=False) == 3 * 2**22
    # 128 tokens at least, however large the vocabulary.
    large = replace(SMALL, vocabulary=50_000)
    assert memory.logits_in_chunks(large, "cpu", head_learns=False) == 3 * 4 * 128 * 50_000
    assert memory.whole_logits(SMALL, 7) == 3 * 4 * 7 * 300
    # 5 rows of 6 tokens, 2 x 2 x 4 numbers of 4 bytes each; drawing: 5 x 300 x (12 + 16) bytes.
    assert memory.sampling_without_vllm(SMALL, 5, 6, 4) == 5 * 6 * 64 + 5 * 300 * 28


def test_what_is_held_at_once_is_what_the_code_that_holds_it_says() -> None:
    """Sizes are worked out without torch, which all three modules load: their constants are written down a second time."""
    assert {device: 4 * count for device, count in logprobs.CHUNK_ELEMENTS.items()} == memory.LOGITS_AT_ONCE
    assert memory.TOKENS_AT_ONCE == logprobs.CHUNK_TOKENS
    assert memory.OFFLOADED_AT_ONCE == 8 * optimise.BUCKET_ELEMENTS  # Adam's two moments, of 4 bytes each
    assert memory.WEIGHTS_BUFFER == vllm_weights.BUFFER_BYTES


@pytest.mark.parametrize("machine", [Machine(0, None, 16 * GB), Machine(1, KNOWN["H100"], 16 * GB)])
@pytest.mark.parametrize(("name", "on_cpu"), [("SmolLM2-135M-Instruct", 512), (None, 2048)])
def test_a_large_model_learns_from_fewer_tokens_at_once_on_a_cpu(
    tmp_path: Path, machine: Machine, name: str | None, on_cpu: int
) -> None:
    sizes = sized(
        recipe(tmp_path, BOOTSTRAPPED if name is None else f"policy: {{model: HuggingFaceTB/{name}}}"), machine
    )
    with torch.device("meta"):
        model = torch.nn.Linear(1, sizes.policy.total, bias=False)
    expected = on_cpu if machine.card is None else 32768
    assert sizes.training_tokens == expected == training_batch_tokens(model, torch.device(sizes.device))


WIDTHS = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def saved_by_autograd(kind: type, model: type, layers: int, bf16: bool) -> int:
    """Bytes of all tensors that the backward pass of a body keeps for 2 x 48 tokens, weights and their copies left out."""
    config = kind(num_hidden_layers=layers, **WIDTHS)
    torch.manual_seed(0)
    body = model(config).model.train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in body.parameters()}
    shapes = {tuple(parameter.shape) for parameter in body.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        copied = tensor.dim() == 2 and {tuple(tensor.shape), tuple(tensor.t().shape)} & shapes
        if storage not in weights and not copied:
            kept[storage] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        body(input_ids=torch.zeros(2, 48, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("kind", "model"), [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)], ids=["llama", "qwen2"]
)
def test_autograd_keeps_what_is_counted(kind: type, model: type, bf16: bool) -> None:
    three, two = (saved_by_autograd(kind, model, layers, bf16) for layers in (3, 2))
    shape = shape_of_config({"num_hidden_layers": 2, **WIDTHS})
    counted = 96 * memory.block_activations(shape, Precision(bf16))
    assert three - two == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize(
    ("model", "gpus", "parallel", "table"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 8, 1, (30, 7.6, 6, 15, 60)),
        ("meta-llama/Llama-3.1-70B-Instruct", 64, 8, (35, 8.8, 15, 17.5, 77)),
    ],
)
def test_two_large_layouts(model: str, gpus: int, parallel: int, table: tuple[float, ...]) -> None:
    """GB per GPU of policy and critic, float32 reference and reward model, gathered layers, vLLM's weights, and their sum.

    The table was reckoned with a critic and a reward model as large as the policy, output embedding included.
    """
    shape = shape_of_model(model)
    assert shape is not None
    trained = sum(memory.training_state(2 * shape.total, gpus).values())
    frozen = 2 * memory.FLOAT32 * shape.total // gpus
    gathered = memory.gathered(shape, gpus, Precision(True))
    served = memory.BFLOAT16 * shape.total // parallel
    found = [part / 1e9 for part in (trained, frozen, gathered, served, trained + frozen + gathered + served)]
    assert found == pytest.approx(table, rel=0.11)
    assert found[-1] == pytest.approx(table[-1], rel=0.03)
