"""A small real run: one iteration of the whole loop on SmolLM2-135M-Instruct with LoRA, and its checkpoint read by others.

    make test-real

Some five minutes on two cores, most of them generation; so it has a target of its own, which CI runs after the suite.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from older import Older
from transformers import AutoModelForCausalLM

from prompts.sources import load_prompts
from selfplay.config import load_recipe
from selfplay.engines.vllm import VllmEngine
from selfplay.loop import run, run_stage
from selfplay.models import encode_prompt, load_tokenizer
from selfplay.rundir import RunDirectory
from selfplay.storage.files import read_json_lines, read_rows

RECIPE = """
iterations: 1
policy: {{model: {model}, lora: {{rank: 8, alpha: 16.0}}}}
prompts:
  train: {{source: instructions, limit: 64}}
  heldout: {{source: instructions, split: heldout, limit: 8}}
engine: {{batch_size: 64}}
sampling: {{max_tokens: 48}}
generate: {{prompts: 32, completions: 4}}
judge: {{file: instructions}}
reward: {{loss: ranking, learning_rate: 2e-5, epochs: 1, batch_size: 4, extra_rounds: 0, heldout_share: 0.2}}
algorithm: {{steps: 3, episodes: 8, epochs: 1, minibatches: 2, learning_rate: 1e-4, critic_learning_rate: 1e-4}}
"""
APART = 1e-2
"""Nats between the two likeliest tokens, within which another implementation may have them the other way round."""


@pytest.fixture(scope="module")
def real_run(smollm2: Path, training_seed: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's directory. A reward model of a hundred pairs may not pass the loop's brake; PPO follows it here all the same."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.yaml").write_text(RECIPE.format(model=smollm2))
    directory = run(load_recipe(folder / "real.yaml", [f"output={folder / 'run'}", f"seed={training_seed}"]))
    for stage in ("policy", "evaluate"):
        if not (directory / "iteration-001" / stage).is_dir():
            run_stage(directory, stage, 1)
    return directory


@pytest.fixture(scope="module")
def sequences(real_run: Path, training_seed: int) -> list[list[int]]:
    """Token ids of the held-out prompts with what the trained policy answered."""
    folder = real_run / "iteration-001"
    tokenizer, answers = load_tokenizer(folder / "policy"), read_rows(folder / "evaluate/completions.parquet")
    asked = {
        prompt.id: prompt for prompt in load_prompts(RunDirectory(real_run).recipe().prompts.heldout, training_seed)
    }
    found = [[*encode_prompt(tokenizer, asked[row["prompt_id"]]), *row["token_ids"]] for row in answers]
    assert len(found) == 8 and max(map(len, found)) > 60
    return found


@pytest.fixture(scope="module")
def top(real_run: Path, sequences: list[list[int]]) -> list[Any]:
    """Of each sequence and place, the two highest log-probs and the likeliest token, by transformers 5."""
    model = AutoModelForCausalLM.from_pretrained(real_run / "iteration-001/policy").eval()
    with torch.inference_mode():
        found = [torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1).topk(2) for ids in sequences]
    return [(one.values[:, 0] - one.values[:, 1], one.indices[:, 0]) for one in found]


def test_the_run_trained_adapters_on_real_answers(real_run: Path, smollm2: Path) -> None:
    rows = read_json_lines(real_run / "iteration-001/policy/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[0]["objective/kl"] == pytest.approx(0, abs=1e-3)
    assert abs(rows[-1]["objective/kl"]) > 1e-6 and all(row["policy/grad_norm_avg"] > 0 for row in rows)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (smollm2, real_run / "iteration-001/policy")
    )
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if "_proj" in name}  # merged into the weights that adapters stand beside


def test_transformers_4_and_5_agree_on_the_likeliest_tokens(
    real_run: Path, older: Older, sequences: list[list[int]], top: list[Any]
) -> None:
    (answer,) = older.ask([real_run / "iteration-001/policy"], sequences, [], [])
    assert answer["version"].startswith("4.57")
    compared = 0
    for (gaps, likeliest), places in zip(top, answer["top"], strict=True):
        clear = gaps > APART
        assert torch.equal(torch.tensor([place[2] for place in places])[clear], likeliest[clear])
        compared += int(clear.sum())
    assert compared > sum(map(len, sequences)) / 2


def test_vllm_agrees_on_the_likeliest_tokens(real_run: Path, sequences: list[list[int]], top: list[Any]) -> None:
    from vllm import SamplingParams

    engine = VllmEngine(real_run / "iteration-001/policy")
    try:
        parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        requests = [{"prompt_token_ids": ids} for ids in sequences]
        outputs = engine.llm.generate(requests, parameters, use_tqdm=False)
    finally:
        engine.close()
    compared = 0
    for (gaps, likeliest), output in zip(top, outputs, strict=True):
        for place, found in enumerate(output.prompt_logprobs[1:]):
            if gaps[place] > APART:
                assert next(token for token, one in found.items() if one.rank == 1) == int(likeliest[place])
                compared += 1
    assert compared > sum(map(len, sequences)) / 2
