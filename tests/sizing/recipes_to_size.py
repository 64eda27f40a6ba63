"""Recipes whose sizes tests of sizing work out, and the machines that they are for."""

from pathlib import Path

from selfplay.config import Recipe, load_recipe
from selfplay.sizing.cards import GB, KNOWN, Machine
from selfplay.sizing.sizes import Sizes, sizes_of

BOOTSTRAPPED = """\
policy: {bootstrap: {vocabulary: 300, architecture: {layers: 2, hidden_size: 8, heads: 2, intermediate_size: 10}, sft: null}}
sampling: {max_tokens: 6}
"""
SEVEN_BILLION = """\
policy: {model: Qwen/Qwen2.5-7B-Instruct, dtype: bfloat16}
engine: {kind: vllm, gpu_memory: 0.45}
sampling: {max_tokens: 256}
algorithm: {precision: bfloat16}
"""
DPO_OF_SEVEN = "policy: {model: Qwen/Qwen2.5-7B-Instruct}\nsampling: {max_tokens: 256}\nalgorithm: {kind: dpo}\n"
OFFLOADED = "algorithm.offload_optimizer=true"
TOTAL, BODY = 2 * 512 + 2400 + 8, 2 * 512 + 2400 + 8
"""Parameters of BOOTSTRAPPED, tied, as in test_shapes."""


def recipe(folder: Path, text: str, *overrides: str) -> Recipe:
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml", [f"output={folder / 'run'}", *overrides])


def sized(found: Recipe, machine: Machine, prompt: int = 100) -> Sizes:
    sizes = sizes_of(found, machine, prompt)
    assert sizes is not None
    return sizes


def h100(count: int) -> Machine:
    return Machine(count, KNOWN["H100"], 500 * GB)
