"""The predicted memory of PPO on a CPU against what processes really take: weights, optimizers, engines, activations.

    PYTHONPATH=. .venv/bin/python tests/sizing/measured.py

prints the table of docs/scaling.md; as a test each row is to be within 20%. A row is the work of the stage `policy`, in one
process or in two that talk over gloo; the larger of the two counts.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from selfplay.config import Recipe, load_recipe
from selfplay.sizing.cards import GB, found
from selfplay.sizing.sizes import sizes_of
from selfplay.sizing.stages import stages

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
algorithm: {{steps: 1, episodes: 32, epochs: 1, minibatches: 2, micro_batch_tokens: 1024}}
"""
PROMPT = 28
LAYOUTS: dict[str, list[str]] = {
    "1 worker": [],
    "1 worker, float32": ["algorithm.precision=float32"],
    "1 worker, adapters": ["policy.lora={rank: 8}"],
    "1 worker, RLOO": ["algorithm.advantage=rloo"],
    "2 workers": ["launch={workers: 2}"],
    "2 workers, float32": ["launch={workers: 2}", "algorithm.precision=float32"],
}


def make(folder: Path) -> None:
    """Write the model, the reward and the recipe."""
    sys.path.append(str(ROOT / "tests" / "rl"))
    from tiny_models import build_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**WIDTHS)).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    (folder / "mine.py").write_text(
        "def length(prompts, responses, meta):\n    return [float(len(one)) for one in responses]\n"
    )
    (folder / "r.yaml").write_text(RECIPE.format(model=folder / "model", folder=folder))


def train(folder: Path, seed: int, changes: list[str]) -> None:
    """Be one of the processes: learn as the stage does, and print this process's peak."""
    from selfplay.algorithms import Inputs, algorithm_of
    from selfplay.context import RunContext
    from selfplay.records import Prompt
    from selfplay.rewards.sources import FunctionReward
    from selfplay.rundir import RunDirectory

    recipe = load_recipe(folder / "r.yaml", [f"output={folder / 'run'}", f"seed={seed}", *changes])
    prompts = [Prompt.plain(f"p{number}", " ".join(["7"] * PROMPT)) for number in range(32)]
    reward = FunctionReward(lambda prompts, responses, meta: [float(len(one)) for one in responses])
    run = RunContext(recipe, RunDirectory(recipe.directory), prompts, prompts[:1])
    made = folder / "made"
    algorithm_of(recipe).train(Inputs(run, 1, made, made / "work", reward, None, ()))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sys.stdout.write(json.dumps(int(status["VmHWM"].split()[0]) * 1024) + "\n")


def measure(folder: Path, seed: int, changes: list[str], workers: int) -> int:
    """Return the peak of the process that takes most, in bytes."""
    for name in ("run", "made"):
        subprocess.run(["rm", "-rf", str(folder / name)], check=True)
    (folder / "made").mkdir()
    start = folder / "run" / "iteration-000"
    start.mkdir(parents=True)
    (start / "policy").symlink_to(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "train", str(folder), str(seed), *changes],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=env
            | ({} if workers == 1 else address | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(workers)}),
        )
        for rank in range(workers)
    ]
    said = [one.communicate() for one in processes]
    assert all(one.returncode == 0 for one in processes), said[0][1] or said[-1][1]
    return max(int(json.loads(out.splitlines()[-1])) for out, _ in said)


def predict(recipe: Recipe) -> Any:
    """Return the fullest row that a dry run shows of the stage `policy`."""
    sizes = sizes_of(recipe, found(16 * GB), PROMPT)
    assert sizes is not None and 24e6 < sizes.policy.total < 28e6
    return max((row for row in stages(sizes) if row.stage.startswith("policy")), key=lambda row: row.total)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("measured")
    make(place)
    return place


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ppo_takes_what_is_predicted(folder: Path, training_seed: int, layout: str) -> None:
    changes = LAYOUTS[layout]
    recipe = load_recipe(folder / "r.yaml", changes)
    predicted = predict(recipe)
    measured = measure(folder, training_seed, changes, recipe.launch.size if recipe.launch else 1)
    words = ", ".join(f"{name} {size / GB:.2f}" for name, size in predicted.parts.items())
    assert predicted.total == pytest.approx(measured, rel=0.2), (
        f"{layout}: predicted {predicted.total / GB:.2f} GB ({words}), measured {measured / GB:.2f}"
    )


def main(layouts: list[str]) -> None:
    """Print the table, of all layouts or of those named."""
    with tempfile.TemporaryDirectory() as place:
        make(Path(place))
        print(f"{'':24}{'predicted':>10}{'measured':>10}   GB per process")  # noqa: T201
        for layout in layouts or LAYOUTS:
            changes = LAYOUTS[layout]
            recipe = load_recipe(Path(place) / "r.yaml", changes)
            predicted = predict(recipe)
            measured = measure(Path(place), 0, changes, recipe.launch.size if recipe.launch else 1)
            print(f"{layout:24}{predicted.total / GB:10.2f}{measured / GB:10.2f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        main(sys.argv[1:])
