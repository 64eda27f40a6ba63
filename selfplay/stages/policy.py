"""PPO on the policy, with the recipe's engine for rollouts, against the recipe's reward (`stages.rewards`).

Writes the new policy as a plain `save_pretrained` directory, `metrics.jsonl` (a row per step) and `samples.jsonl`.
"""

from contextlib import ExitStack
from typing import Any

from prompts.sources import load_documents
from selfplay.engines import Engine
from selfplay.engines.hf import TransformersEngine
from selfplay.lora import add_adapter, merged
from selfplay.models import load_policy, load_scalar_model, load_tokenizer, save
from selfplay.progress import meter
from selfplay.rl.trainer import PPOTrainer
from selfplay.rundir import WORK
from selfplay.stages import RunContext
from selfplay.stages.ppo_rewards import build_reward, folder_of_model
from selfplay.stages.ppo_rewards import settings as reward_settings
from selfplay.storage import durable


def fingerprint(run: RunContext, iteration: int) -> str:
    """Return what the new policy follows from."""
    lora = run.recipe.policy.lora
    settings = [
        run.recipe.algorithm.model_dump(),
        run.recipe.sampling.model_dump(),
        run.prompts_asked["train"],
        run.recipe.engine.kind,
        lora.model_dump() if lora else None,
        reward_settings(run),
    ]
    reward = folder_of_model(run, iteration)
    trained = [] if reward is None else [(iteration, reward.name)]
    return run.fingerprint(settings, (iteration - 1, "policy"), (0, "policy"), *trained)


def run(run: RunContext, iteration: int) -> None:
    """Make `iteration-NNN/policy` from the policy before and what the recipe rewards.

    The critic begins as a copy of the reward model; without one, as the policy's body with a new head.
    """
    config, policy = run.recipe.algorithm, run.recipe.policy
    writing = run.files.writing(iteration, "policy", fingerprint(run, iteration))
    with writing as folder, ExitStack() as engines:
        before = run.files.policy(iteration - 1)
        reference = run.files.policy(0) if config.reference == "start" else before
        model, tokenizer = load_policy(before), load_tokenizer(before)
        reward, reward_model = build_reward(run, iteration, folder, engines), folder_of_model(run, iteration)
        if run.recipe.engine.kind == "transformers":  # with the very weights that learn
            engine: Engine = TransformersEngine(model, tokenizer, batch_size=run.recipe.engine.batch_size)
        else:
            engine = run.engine(before, f"iteration-{iteration:03d}", to_train=True)
        corpus = None
        if config.pretraining is not None:
            corpus = load_documents(config.pretraining.source, 20_000, run.seed("pretraining"))
        adapted = add_adapter(model, policy.lora, run.seed("adapter", iteration)) if policy.lora else model
        with meter("ppo", config.steps * config.episodes, "episodes") as bar:

            def show(row: dict[str, Any]) -> None:
                note = f"score {row['objective/scores']:.2f}, kl {row['objective/kl']:.2f}"
                bar.advance(int(row["episode"]) - bar.done, note)
                run.tracker.log_step(row, before=(iteration - 1) * config.steps)

            trainer = PPOTrainer(
                adapted,
                tokenizer,
                reward,
                run.train,
                config,
                run.recipe.sampling,
                engine=engine,
                critic=None if reward_model is None else load_scalar_model(reward_model),
                reference=None if policy.lora and config.reference == "previous" else load_policy(reference),
                corpus=corpus,
                directory=folder / WORK,
                seed=run.seed("ppo", iteration),
                on_step=show,
            )
            trainer.train()
        save(merged(trainer.policy) if policy.lora else trainer.policy, tokenizer, folder)
        for name in ("metrics.jsonl", "samples.jsonl"):
            durable.write(folder / name, (folder / WORK / name).read_bytes())
