"""Two processes under torchrun learn what one does: the same gradients, and the same weights after training."""

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from tiny_models import build_policy, build_prompts, build_tokenizer, count_of_fives, rollout
from selfplay.config import PPO, Pretraining, SamplingParams
from selfplay.rl import PPOTrainer
from selfplay.distributed.collectives import rank, all_reduce, world_size
from selfplay.rewards.sources import FunctionReward
torch.set_num_threads(1)
rows = []
policy = build_policy(seed={seed} + int(os.environ.get("RANK", "0")))  # all are given the first process's
trainer = PPOTrainer(policy, build_tokenizer(), FunctionReward(count_of_fives), build_prompts(),
                     PPO(steps=3, episodes=18, minibatches=3, learning_rate=1e-2, pretraining=Pretraining(batch_size=3),
                         target_kl=0.5),
                     SamplingParams(max_tokens=7), corpus=["1 2 3 4", "5 6", "7 8 9"], on_step=rows.append)
assert world_size() == {processes}
episodes, _, experience = rollout(trainer)
sums = trainer.learner.gradients(episodes, experience, list(range(7)))
networks = (trainer.policy, trainer.learner.critic)
gradients = [p.grad for network in networks for p in network.parameters()]
all_reduce(gradients)
gradients = [gradient.clone() for gradient in gradients]
for network in networks:
    network.zero_grad()
trainer.train()
result = dict(sums=sums, gradients=gradients, advantages=experience.advantages, rows=rows,
              weights=[p.detach() for network in networks for p in network.parameters()])
torch.save(result, sys.argv[1] + str(rank()))
"""


def run(processes: int, result: Path, seed: int) -> list[dict[str, object]]:
    """What each process found."""
    script = result.with_suffix(".py")
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), processes=processes, seed=seed))
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(result)],
        timeout=180,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{result}{rank}") for rank in range(processes)]


def test_one_or_two_processes_are_the_same(tmp_path: Path, training_seed: int) -> None:
    (one,) = run(1, tmp_path / "one", training_seed)
    two = run(2, tmp_path / "two", training_seed)
    for other in two:
        for name in ("gradients", "advantages", "weights"):
            torch.testing.assert_close(other[name], one[name], rtol=1e-6, atol=1e-8, msg=name)
        torch.testing.assert_close(other["sums"], one["sums"], rtol=1e-6, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(two[0]["weights"], two[1]["weights"], strict=True))
    assert len(two[0]["rows"]) == 3 and two[1]["rows"] == []
    for mine, theirs in zip(two[0]["rows"], one["rows"], strict=True):
        for name, value in theirs.items():
            if "time" not in name and "second" not in name:
                torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-6, msg=name)
