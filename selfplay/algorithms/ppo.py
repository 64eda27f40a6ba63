"""PPO with the recipe's engine for rollouts, against the recipe's reward. The trainer itself is `selfplay.rl`.

Writes the new policy as a plain `save_pretrained` directory, `metrics.jsonl` (a row per step) and `samples.jsonl`.
"""

from pathlib import Path
from typing import Any

from prompts.sources import load_documents
from selfplay.algorithms.protocol import Inputs, Needs
from selfplay.config import PPO, Recipe
from selfplay.context import RunContext
from selfplay.progress import is_first, meter
from selfplay.rundir import iteration_name
from selfplay.storage import durable
from selfplay.storage.files import read_json_lines


class PPOAlgorithm:
    """Proximal policy optimisation (Schulman et al. 2017); see docs/algorithms.md."""

    def __init__(self, config: PPO) -> None:
        self.config = config
        self.spreads = config.nlpo is None

    def needs(self, recipe: Recipe) -> Needs:
        """Return a reward; a critic unless the advantage has none; a reward model where the reward is one, and its pairs."""
        trained = recipe.reward.kind == "model"
        critic = self.config.has_critic
        return Needs(pairs=recipe.reward.needs_pairs, reward_model=trained, reward=True, critic=critic)

    def settings(self) -> Any:
        """Return all settings but the name, and but one that the first runs did not have and that changes no number."""
        return self.config.model_dump(exclude={"kind", "offload_optimizer"})

    def train(self, inputs: Inputs) -> None:
        """Train on rollouts. A critic begins as a copy of the reward model; without one, as the policy with a new head."""
        from selfplay.distributed.collectives import world_size
        from selfplay.distributed.sharding import save_whole
        from selfplay.lora import adapters_of, save_folded
        from selfplay.models import load_tokenizer
        from selfplay.weights.release import release_memory

        inputs.run.make_room()  # the answers that a comparing judge is shown were sampled as the reward was built
        before = inputs.run.files.policy(inputs.iteration - 1)
        tokenizer = load_tokenizer(before)
        trained, mask = self._trained(inputs, before, tokenizer)
        if inputs.run.recipe.policy.lora and world_size() == 1:
            # Frozen weights, which may have been rounded, are those of the checkpoint before.
            adapters = adapters_of(trained)
            del trained
            release_memory()
            save_folded(before, adapters, tokenizer, inputs.folder)
        else:
            save_whole(trained, tokenizer, inputs.folder)
        if mask is not None:
            mask.save(inputs.folder, tokenizer)
        for name in ("metrics.jsonl", "samples.jsonl") if is_first() else ():
            durable.write(inputs.folder / name, (inputs.work / name).read_bytes())

    def _trained(self, inputs: Inputs, before: Path, tokenizer: Any) -> tuple[Any, Any]:
        """Return the policy that was trained from a checkpoint, and its mask; all else of the trainer makes room."""
        from selfplay.distributed.collectives import world_size
        from selfplay.distributed.sharding import load_on_first
        from selfplay.engines.hf import TransformersEngine
        from selfplay.lora import add_adapter
        from selfplay.models import load_policy
        from selfplay.rl.trainer import PPOTrainer

        run, iteration, policy = inputs.run, inputs.iteration, inputs.run.recipe.policy
        config = goes_on(self.config, run, iteration)
        assert inputs.reward is not None
        reference = run.files.policy(0) if config.reference == "start" else before
        model = load_on_first(load_policy, before)
        if run.recipe.engine.kind == "transformers" and world_size() == 1:  # with the very weights that learn
            engine: Any = TransformersEngine(model, tokenizer, batch_size=run.recipe.engine.batch_size)
        else:
            engine = run.engine(before, iteration_name(iteration), to_train=True)
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
                inputs.reward,
                run.train,
                config,
                run.sampling(),
                engine=engine,
                critic=critic_of(inputs, adapted, config.precision) if config.has_critic else None,
                reference=None
                if policy.lora and config.reference == "previous"
                else load_on_first(load_policy, reference),
                corpus=corpus,
                directory=inputs.work,
                seed=run.seed("ppo", iteration),
                on_step=show,
                half_base=halves_base(config, run.recipe, world_size()),
            )
            trainer.train()
        return trainer.policy, trainer.learner.mask


def halves_base(config: PPO, recipe: Recipe, processes: int) -> bool:
    """Return whether weights that adapters keep frozen may lie in bfloat16: in one process, and where no merged copy samples."""
    copied = config.async_rollouts or recipe.engine.kind == "python"
    return recipe.policy.lora is not None and processes == 1 and not copied


def goes_on(config: PPO, run: RunContext, iteration: int) -> PPO:
    """Return the settings with the beta that the iteration before ended with, if it is steered by the KL to the start.

    Steps of earlier versions left only the beta that they used.
    """
    if config.adaptive_kl is None or config.reference == "previous" or iteration == 1:
        return config
    last = read_json_lines(run.files.stage(iteration - 1, "policy") / "metrics.jsonl")[-1]
    beta = last.get("objective/kl_coefficient_next", last["objective/kl_coefficient"])
    return config.model_copy(update={"kl_coefficient": beta})


def critic_of(inputs: Inputs, policy: Any, precision: str) -> Any:
    """Return the model that the critic begins as: the reward model, or None.

    With adapters the critic's body stays as it is, so that it can be the one that scores, if the critic, which computes in
    the precision of `policy`, does so as the reward does.
    """
    from selfplay.distributed.collectives import world_size
    from selfplay.distributed.sharding import load_on_first
    from selfplay.models import load_scalar_model
    from selfplay.rewards.reward_model import RewardModel
    from selfplay.weights.precision import preferred

    if inputs.reward_model is None:
        return None
    adapted, reward = inputs.run.recipe.policy.lora is not None, inputs.reward
    whole = precision == "auto" and world_size() == 1
    if whole and adapted and isinstance(reward, RewardModel) and reward.precision == preferred(policy):
        return reward.model
    return load_on_first(load_scalar_model, inputs.reward_model)
