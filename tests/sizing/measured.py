"""The predicted memory of PPO on a CPU against what a process really takes: weights, optimizers, activations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay.config import load_recipe
from selfplay.sizing.cards import GB, Machine
from selfplay.sizing.stages import sizes_of, stages

ROOT = Path(__file__).parents[2]
WIDTHS = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
"""About 26M parameters: 16 bytes each for policy and critic are 0.8 GB."""
RECIPE = """\
policy: {{model: {model}}}
sampling: {{max_tokens: 96}}
engine: {{batch_size: 32}}
reward: {{kind: function, function: "{folder}/mine.py:length"}}
algorithm: {{steps: 1, episodes: 32, minibatches: 2, micro_batch_tokens: 1024}}
"""
TRAINS = """\
import json, sys
from selfplay.config import load_recipe
from selfplay.rewards.sources import FunctionReward
from selfplay.models import load_policy, load_tokenizer
from selfplay.records import Prompt
from selfplay.rl import PPOTrainer
import selfplay.stages.reward_model, selfplay.stages.evaluate

recipe = load_recipe(sys.argv[1])
folder = sys.argv[2]
prompts = [Prompt.plain(f"p{n}", " ".join(["7"] * 28)) for n in range(32)]
reward = FunctionReward(lambda prompts, responses, meta: [float(len(one)) for one in responses])
from selfplay.config import SamplingParams
trainer = PPOTrainer(load_policy(folder), load_tokenizer(folder), reward, prompts, recipe.algorithm,
                     SamplingParams.of(recipe.sampling), seed=int(sys.argv[3]))
trainer.train()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps(int(status["VmHWM"].split()[0]) * 1024))
"""


def test_one_process_of_ppo_takes_what_is_predicted(tmp_path: Path, training_seed: int) -> None:
    sys.path.append(str(ROOT / "tests" / "rl"))
    from tiny_models import build_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**WIDTHS)).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "mine.py").write_text(
        "def length(prompts, responses, meta):\n    return [float(len(one)) for one in responses]\n"
    )
    (tmp_path / "r.yaml").write_text(RECIPE.format(model=tmp_path / "model", folder=tmp_path))
    sizes = sizes_of(load_recipe(tmp_path / "r.yaml"), Machine(0, None, 16 * GB), prompt=28)
    assert sizes is not None and 24e6 < sizes.policy.total < 28e6
    predicted = max(row.total for row in stages(sizes) if row.stage.startswith("policy"))
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, str(tmp_path / "r.yaml"), str(tmp_path / "model"), str(training_seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.2), (
        f"predicted {predicted / GB:.2f} GB, measured {measured / GB:.2f}"
    )
