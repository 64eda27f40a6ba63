"""Sampling from SmolLM2-135M-Instruct behind a shared prefix: our engine against plain batched `generate` of transformers.

    PYTHONPATH=.:tests/bench .venv/bin/python tests/real/generate_135m.py

Both sample 64 tokens for each of 64 prompts that begin with the same 256 tokens, in float32 and one batch; nothing ends a row
early. They run in turn in one process, each with a copy of the weights; a round's ratio is of two that stand next to each
other. Ratios of processor time stand beside those of the clock, since other work on the machine moves the latter more.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from measuring import publish
from smollm2 import checkpoint
from transformers import AutoModelForCausalLM

from prompts.sources import load_prompts
from selfplay.config import SamplingParams
from selfplay.config.data import PromptSource
from selfplay.engines.cache import left_pad, shared_length
from selfplay.engines.hf import TransformersEngine
from selfplay.models import encode_prompt, load_policy, load_tokenizer
from selfplay.records import Message, Prompt

SIDES = ("generate", "selfplay")


def behind_a_prefix(tokenizer: Any, count: int, length: int) -> list[Prompt]:
    """Return built-in prompts behind a system message, with which they share at least `length` tokens."""
    plain = load_prompts(PromptSource(source="instructions", limit=count), 0)
    words = " ".join(prompt.text for prompt in load_prompts(PromptSource(source="instructions", limit=256), 0)).split()
    for taken in range(length // 2, len(words)):
        system = Message(role="system", content=" ".join(words[:taken]))
        found = [prompt.model_copy(update={"messages": (system, *prompt.messages)}) for prompt in plain]
        shared = shared_length([encode_prompt(tokenizer, prompt) for prompt in (found[0], *found[-3:])])
        if shared >= length:
            return found
    raise SystemExit(f"the built-in prompts have no {length} tokens: take a shorter --prefix")


def plain(model: Any, tokenizer: Any, prompts: list[Prompt], tokens: int) -> int:
    """Sample as a script of a dozen lines would. Return the number of tokens."""
    ids, mask, _ = left_pad([encode_prompt(tokenizer, one) for one in prompts], tokenizer.pad_token_id, model.device)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    return int(out[:, ids.shape[1] :].numel())


def ours(engine: TransformersEngine, prompts: list[Prompt], tokens: int) -> int:
    """Sample with the engine. Return the number of tokens."""
    found = engine.generate(prompts, SamplingParams(max_tokens=tokens))
    return sum(len(one.token_ids) for group in found for one in group)


def main() -> None:
    """Run all rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 5), ("prompts", 64), ("tokens", 64), ("prefix", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    place = checkpoint()
    tokenizer, simple = load_tokenizer(place), AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    engine = TransformersEngine(load_policy(place), tokenizer, batch_size=given.prompts)
    simple.to(engine.model.device)
    engine.stop_ids, simple.generation_config.eos_token_id = frozenset(), None
    prompts = behind_a_prefix(tokenizer, given.prompts, given.prefix)
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    sides = {
        "generate": lambda asked, tokens: plain(simple, tokenizer, asked, tokens),
        "selfplay": lambda asked, tokens: ours(engine, asked, tokens),
    }
    for side in SIDES:
        sides[side](prompts[:2], 2)  # kernels are made
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(given.rounds):
        for side in SIDES:
            clock, processor = time.perf_counter(), time.process_time()
            count = sides[side](prompts, given.tokens)
            assert count == given.prompts * given.tokens
            runs[side].append({"clock": time.perf_counter() - clock, "processor": time.process_time() - processor})
    rows = []
    for unit in ("clock", "processor"):
        times = {side: [run[unit] for run in runs[side]] for side in SIDES}
        ratios = [before / after for before, after in zip(times["generate"], times["selfplay"], strict=True)]
        per_second = {side: given.prompts * given.tokens / statistics.median(times[side]) for side in SIDES}
        rows.append(
            {
                "time": unit,
                **{f"{side} tokens/s": rate for side, rate in per_second.items()},
                "median ratio": statistics.median(ratios),
                "least ratio": min(ratios),
            }
        )
    publish("generate_135m", rows, runs=runs, settings={**vars(given), "prompt tokens": statistics.mean(lengths)})


if __name__ == "__main__":
    main()
