"""What a reward model needs where it learns from preferences that exist already: their token ids, and the start's samples."""

from pathlib import Path
from typing import Any

from prompts.preferences import load_preferences
from selfplay.context import RunContext, draw_prompts, sample
from selfplay.models import encode_prompt
from selfplay.progress import log, meter
from selfplay.storage.journal import Journal

SAMPLES = 256
"""The start's own answers on which scores get mean 0 and deviation 1, as many as in Ziegler et al. 2019."""


def given_rows(source: str, tokenizer: Any, longest: int | None) -> list[dict[str, Any]]:
    """Return preferences as rows for a reward model; one with more than `longest` tokens is left out, and that is said.

    Both answers end with the end token. The verdicts are taken as certain.
    """
    pairs, dropped = load_preferences(source)
    rows = []
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        asked = encode_prompt(tokenizer, prompt)
        both = [
            [*asked, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for text in (chosen, rejected)
        ]
        if longest is None or max(map(len, both)) <= longest:
            row = {"pair_id": str(number), "prompt_id": prompt.id, "chosen_ids": both[0], "rejected_ids": both[1]}
            rows.append({**row, "margin": 1.0, "confidence": 1.0, "round": source})
    if len(rows) < len(pairs) + dropped:
        log(
            f"  {source}: {len(rows)} pairs; left out: {dropped} that are no two answers to one prompt, "
            f"{len(pairs) - len(rows)} longer than {longest} tokens"
        )
    return rows


def sample_start(run: RunContext, folder: Path, tokenizer: Any) -> list[list[int]]:
    """Return prompt and completion ids of answers that the start gives to some training prompts."""
    prompts = draw_prompts(run.train, min(SAMPLES, len(run.train)), 0, run.seed("prompts"))
    with meter("sample the start", len(prompts), "completions") as bar:
        groups = sample(run, 0, prompts, 1, "reward", Journal(folder / "journal-samples.jsonl"), bar)
    return [
        [*encode_prompt(tokenizer, prompt), *group[0].token_ids] for prompt, group in zip(prompts, groups, strict=True)
    ]
