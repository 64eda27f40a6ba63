"""Bytes that training and sampling take, as formulas of a model's sizes. Pure arithmetic; imports no torch.

A weight that learns takes 16 bytes: 4 for itself, 4 for its gradient, 8 for Adam's two moments, all float32 (Rajbhandari et al.
2020, ZeRO, count the same 16 for mixed precision). Over `shards` processes each holds its part (FSDP2), and while one block
computes, that block and the next are gathered, with the embeddings, which stay gathered until the backward pass is over.
Activations are counted tensor by tensor, as Korthikanti et al. 2022 do for GPT, for the blocks of a Llama as
transformers computes them; with checkpointing only each block's input is kept, and one block's at a time is made anew.
`tests/sizing/` counts what autograd really saves, and measures whole runs.
"""

from dataclasses import dataclass

from selfplay.sizing.shapes import Shape

FLOAT32, BFLOAT16 = 4, 2
GRADIENT, MOMENTS = 4, 8
LOGITS_AT_ONCE = {"cuda": 2**29, "cpu": 2**22}
"""Bytes of one chunk of logits (`selfplay.rl.logprobs.CHUNK_ELEMENTS`)."""
TOKENS_AT_ONCE = 128
"""Fewest tokens of such a chunk (`selfplay.rl.logprobs.CHUNK_TOKENS`)."""
CUDA_CONTEXT = 2 * 10**9
"""What CUDA, cuBLAS and NCCL keep on a card, and what the allocator cannot use."""
LIBRARIES = 800 * 10**6
"""Resident memory of a process on a CPU that has imported torch, transformers, TRL and pyarrow."""
OFFLOADED_AT_ONCE = 2**26 * MOMENTS
"""Bytes of offloaded moments that are on the GPU during a step (`selfplay.rl.optimise.BUCKET_ELEMENTS`), or one tensor's."""
WEIGHTS_BUFFER = 2**28
"""Bytes into which weights are packed on their way to vLLM, if no tensor is larger (`selfplay.engines.vllm_weights`)."""
VLLM_OVERHEAD = 2 * 10**9
"""Activations and graphs of a vLLM engine, beside its weights and cache."""


@dataclass(frozen=True)
class Precision:
    """`bf16` says whether matrix products are bfloat16; weights that learn are float32 either way."""

    bf16: bool

    @property
    def compute(self) -> int:
        """Return the bytes of a number in a matrix product."""
        return BFLOAT16 if self.bf16 else FLOAT32


def training_state(trained: int, shards: int = 1) -> dict[str, int]:
    """Return weights, gradients and optimizer of so many trained parameters, over `shards` processes, in bytes."""
    return {
        "weights": FLOAT32 * trained // shards,
        "gradients": GRADIENT * trained // shards,
        "optimizer": MOMENTS * trained // shards,
    }


def frozen(shape: Shape, precision: Precision, shards: int = 1, head: bool = True, spread_in_half: bool = False) -> int:
    """Return the bytes of a model that learns no more: the linear layers of its blocks in bfloat16 where its products are.

    With `head` a causal language model, else one without an output embedding. Over several processes all of it is kept in
    bfloat16 if `spread_in_half`, else in float32.
    """
    total = shape.total if head else shape.body
    if shards > 1:
        return (BFLOAT16 if precision.bf16 and spread_in_half else FLOAT32) * total // shards
    linear = shape.layers * (shape.block - 2 * shape.hidden - shape.extra) if precision.bf16 else 0
    return FLOAT32 * total - (FLOAT32 - BFLOAT16) * linear


def gathered(shape: Shape, shards: int, precision: Precision) -> int:
    """Return what exists beside the shards while a sharded network trains: embeddings, two blocks, and their gradients.

    FSDP2's root unit (input and output embedding, last norm) stays gathered from the forward to the end of the backward
    pass; of blocks there are the current and the next one, and the gradient of one before it is reduced.
    """
    if shards == 1:
        return 0
    root = shape.total - shape.layers * shape.block
    return precision.compute * (2 * root + 3 * shape.block)


def casts(shape: Shape, shards: int, precision: Precision) -> int:
    """Return autocast's bfloat16 copies of all blocks' weights, for the backward pass; FSDP2 casts as it gathers."""
    return BFLOAT16 * shape.layers * shape.block if precision.bf16 and shards == 1 else 0


def block_activations(shape: Shape, precision: Precision) -> int:
    """Return the bytes per token that one block's backward pass needs.

    Float32, in numbers of the tensors' widths: each of two norms keeps its input, the normalised input and its output (3 hidden);
    attention keeps queries, keys, values and its output (2 query + 2 key); the MLP keeps gate, its activation, up and their
    product (4 intermediate). Under autocast the residual stream and the norms stay float32, and what enters a product is kept
    in bfloat16 (another copy of the norm's output, and of the rest).
    """
    norms, attention, mlp = 6 * shape.hidden, 2 * shape.query + 2 * shape.key, 4 * shape.intermediate
    if not precision.bf16:
        return FLOAT32 * (norms + attention + mlp)
    return FLOAT32 * norms + BFLOAT16 * (2 * shape.hidden + attention + mlp)


def activations(shape: Shape, tokens: int, precision: Precision, checkpointing: bool) -> int:
    """Return what the backward pass of a micro-batch of so many tokens needs, without its logits."""
    block = block_activations(shape, precision)
    ends = 4 * FLOAT32 * shape.hidden
    if checkpointing:
        return tokens * (shape.layers * FLOAT32 * shape.hidden + block + ends)
    return tokens * (shape.layers * block + ends)


def logits_in_chunks(shape: Shape, device: str, head_learns: bool) -> int:
    """Return three chunks of logits, and the float32 gradient of the output embedding that is added up over them."""
    chunk = max(LOGITS_AT_ONCE[device], FLOAT32 * TOKENS_AT_ONCE * shape.vocabulary)
    return 3 * chunk + (FLOAT32 * shape.embedding if head_learns else 0)


def whole_logits(shape: Shape, tokens: int) -> int:
    """Return TRL's supervised loss: all logits of a batch in float32, their log-probabilities and the gradient."""
    return 3 * FLOAT32 * tokens * shape.vocabulary


def sampling_without_vllm(shape: Shape, rows: int, context: int, bytes_each: int) -> int:
    """Return the transformers engine's cache for so many rows, and what drawing a token takes over the vocabulary."""
    drawing = rows * shape.vocabulary * (3 * FLOAT32 + 2 * 8)
    return rows * context * shape.cache_per_token(bytes_each) + drawing
