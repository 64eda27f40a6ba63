"""How fast this machine's processor is at a model's widths: a second's worth of its blocks, in a process of its own.

    python -m selfplay.sizing.calibrate '{"shape": {...}, "bf16": false, "rows": 64, "context": 100}'

prints seconds as JSON. One and two blocks are timed, and the rest is as many times what one more takes. What was measured is
kept in ~/.cache/selfplay/rates.json (or $XDG_CACHE_HOME): delete it where the machine was busy then.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from selfplay.errors import ConfigError
from selfplay.storage import durable
from selfplay.storage.files import hash_of, read_json, write_json

ROUNDS, TOKENS = 5, 512
VERSION = 2
"""Of what is timed: one more whenever the same task comes to take another time."""
FEW_ROWS = 8


def measured_seconds(task: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a task, from the file of what was measured before or from a process that measures it now."""
    kept = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selfplay" / "rates.json"
    known: dict[str, dict[str, float]] = read_json(kept) if kept.is_file() else {}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    key = hash_of([VERSION, task, cores, os.environ.get("OMP_NUM_THREADS")])
    if key not in known:
        done = subprocess.run(
            [sys.executable, "-m", "selfplay.sizing.calibrate", json.dumps(task)], capture_output=True, text=True
        )
        if done.returncode:
            said = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()][-1]  # a killed one says nothing
            raise ConfigError(f"how fast this processor is could not be measured: {said}")
        known[key] = json.loads(done.stdout.splitlines()[-1])
        durable.make_folder(kept.parent)
        write_json(kept, known)
    return known[key]


def measure(task: dict[str, Any]) -> dict[str, float]:
    """Return seconds: of a block and of the head per token, forward and in training; of a decoding step, fixed and per row.

    `task` has the shape of a model, `bf16`, whether its products in training are bfloat16, and the rows and the context that
    decoding is timed with; `threads`, if it is there, is how many torch takes.
    """
    import torch

    from selfplay.rl.logprobs import token_logprobs
    from selfplay.weights.precision import products_in

    if task.get("threads"):
        torch.set_num_threads(task["threads"])
    of, where = task["shape"], torch.device("cpu")
    one, two = (_model(of, layers) for layers in (1, 2))
    length = min(task["context"], TOKENS)
    ids = torch.randint(of["vocabulary"], (max(1, TOKENS // length), length))
    name = "bfloat16" if task["bf16"] else "float32"

    def forward(model: Any, head: bool) -> Any:
        with products_in(name, where):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        if not head:
            return hidden
        logprobs, entropies = token_logprobs(hidden, model.lm_head.weight, None, ids.flatten())
        return logprobs + entropies

    def estimate(model: Any, head: bool) -> Callable[[], None]:
        def work() -> None:
            with torch.no_grad():
                forward(model, head)

        return work

    def train(model: Any, head: bool) -> Callable[[], None]:
        def work() -> None:
            forward(model, head).sum().backward()
            model.zero_grad(set_to_none=True)

        return work

    found: dict[str, float] = {}
    for kind, make in (("forward", estimate), ("training", train)):
        first, second, whole = (_seconds(make(*which)) for which in ((one, False), (two, False), (two, True)))
        block = max(second - first, second / 4) / ids.numel()
        found |= {f"{kind} of a block": block, f"{kind} of the head": max(whole - second, 0.0) / ids.numel()}
    adam = torch.optim.AdamW(two.parameters(), fused=True)
    for parameter in two.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found["update of a weight"] = _seconds(adam.step) / sum(parameter.numel() for parameter in two.parameters())
    return found | _decoding(one, two, of["layers"], task["rows"], task["context"])


def _decoding(one: Any, two: Any, layers: int, rows: int, context: int) -> dict[str, float]:
    """Return the fixed seconds of a decoding step of all layers, and those of each row, with a cache of so many tokens."""
    import torch
    from transformers import Cache

    from selfplay.config import SamplingParams
    from selfplay.engines.cache import GrowingLayer
    from selfplay.engines.hf import draw, filtered_logprobs

    def step(model: Any, count: int) -> float:
        cache = Cache(layers=[GrowingLayer(context + ROUNDS + 2) for _ in range(model.config.num_hidden_layers)])
        ids, uniform = torch.zeros(count, context, dtype=torch.long), torch.full((count,), 0.5, dtype=torch.float64)

        def work() -> None:
            nonlocal ids
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            ids = draw(filtered_logprobs(logits, SamplingParams()), uniform)[:, None]

        with torch.inference_mode():
            work()
            return _seconds(work)

    few, many = min(FEW_ROWS, rows), rows
    times = []
    for count in (few, many):
        first, second = step(one, count), step(two, count)
        times.append(second + max(second - first, 0.0) * (layers - 2))
    slope = max(times[1] - times[0], 0.0) / (many - few) if many > few else 0.0
    return {"decoding step": max(times[0] - slope * few, 0.0), "decoding of a row": slope}


def _seconds(work: Callable[[], Any]) -> float:
    """Return the least of some rounds, after one that does not count: what other work on the machine takes only adds to it."""
    times = []
    for _ in range(ROUNDS + 1):
        begun = perf_counter()
        work()
        times.append(perf_counter() - begun)
    return min(times[1:])


def _model(of: dict[str, Any], layers: int) -> Any:
    """Return a Llama of a shape's widths with so many blocks, its weights drawn."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfplay.weights.precision import keep_attention_precise

    head = next(size for size in (128, 64, 32, 16, 8, 4, 2, 1) if of["query"] % size == 0 and of["key"] % size == 0)
    config = LlamaConfig(
        hidden_size=of["hidden"],
        intermediate_size=of["intermediate"],
        num_hidden_layers=layers,
        num_attention_heads=of["query"] // head,
        num_key_value_heads=of["key"] // head,
        head_dim=head,
        vocab_size=of["vocabulary"],
        tie_word_embeddings=of["tied"],
        max_position_embeddings=2**16,
    )
    return keep_attention_precise(LlamaForCausalLM(config))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
