"""Every setting of a run: strict, frozen, read from one YAML file plus dotted overrides. Imports no torch.

A setting is defined here once, documented beneath its field. Whatever can be known to be wrong without loading a model
is refused here, in one sentence that names the value and the way out. What needs files or tokenizers to be checked is
checked by `selfplay.preflight`.
"""

from selfplay.config.base import FREE_SETTINGS, SAFE_TO_CHANGE, Count, NonNegative, Positive, Section, Texts, Unit
from selfplay.config.data import Generate, Prompts, PromptSource, Sampling, SamplingParams
from selfplay.config.dpo import DPO, DemonstratedPairs
from selfplay.config.ilql import ILQL
from selfplay.config.judging import Endpoint, Judge, JudgeBootstrap
from selfplay.config.launch import Launch
from selfplay.config.load import (
    NESTED,
    Unusable,
    apply_override,
    check_json,
    load_recipe,
    parse_json,
    parse_yaml,
    read_text,
    suspicious,
    validate,
)
from selfplay.config.models import Architecture, Bootstrap, Demonstrations, Engine, Lora, Optimisation, Passes, Policy
from selfplay.config.ppo import NLPO, PPO, AdaptiveKL, Pretraining
from selfplay.config.recipe import Evaluate, Guard, HeldoutSet, Recipe
from selfplay.config.rejection import Rejection
from selfplay.config.rewards import AddedReward, Reward
from selfplay.errors import ConfigError

__all__ = [
    "DPO",
    "FREE_SETTINGS",
    "ILQL",
    "NESTED",
    "NLPO",
    "PPO",
    "SAFE_TO_CHANGE",
    "AdaptiveKL",
    "AddedReward",
    "Architecture",
    "Bootstrap",
    "ConfigError",
    "Count",
    "DemonstratedPairs",
    "Demonstrations",
    "Endpoint",
    "Engine",
    "Evaluate",
    "Generate",
    "Guard",
    "HeldoutSet",
    "Judge",
    "JudgeBootstrap",
    "Launch",
    "Lora",
    "NonNegative",
    "Optimisation",
    "Passes",
    "Policy",
    "Positive",
    "Pretraining",
    "PromptSource",
    "Prompts",
    "Recipe",
    "Rejection",
    "Reward",
    "Sampling",
    "SamplingParams",
    "Section",
    "Texts",
    "Unit",
    "Unusable",
    "apply_override",
    "check_json",
    "load_recipe",
    "parse_json",
    "parse_yaml",
    "read_text",
    "suspicious",
    "validate",
]
