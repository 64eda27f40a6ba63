"""What the PPO tests and the scripts they start share: a tokenizer of whole words, tiny Llamas, prompts, a reward."""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfplay.config import SamplingParams
from selfplay.records import Prompt
from selfplay.rl import PPOTrainer
from selfplay.rl.experience import Experience, build_experience
from selfplay.rl.rollouts import Episodes, Estimates, build_episodes
from selfplay.rl.sampler import collect

PolicyMaker = Callable[..., LlamaForCausalLM]
Maker = Callable[..., PPOTrainer]
SAMPLING = SamplingParams(max_tokens=7, temperature=0.8)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words: <pad> 0, <eos> 1, <unk> 2, then the numbers 0 to 12 as tokens 3 to 15."""
    words = ["<pad>", "<eos>", "<unk>", *map(str, range(13))]
    fast = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def build_policy(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> LlamaForCausalLM:
    """A random Llama for that tokenizer; `changes` go to its config."""
    shape = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        **changes,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).eval()


def build_prompts(count: int = 12) -> list[Prompt]:
    """Prompts of one to four words."""
    return [
        Prompt.plain(f"prompt-{i}", " ".join(str((i * 5 + j) % 13) for j in range(1 + i % 4)), number=i)
        for i in range(count)
    ]


def count_of_fives(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """A reward with some spread: how often the number 5 comes, and a little by prompt."""
    return [
        response.split().count("5") + 0.1 * (row["number"] % 3) for response, row in zip(responses, meta, strict=True)
    ]


def by_length(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """A reward with more spread: the length of the text, and the fives in it."""
    return [len(response) / 5 + response.split().count("5") for response in responses]


def rollout(trainer: PPOTrainer, coefficient: float = 0.05) -> tuple[Episodes, Estimates, Experience]:
    """The first step's episodes and what is made of them, without learning."""
    learner = trainer.learner
    answers, _, _ = collect(trainer.sampler, 0, trainer.reward)
    episodes, _ = build_episodes(answers, trainer.prompts, trainer.encoded, trainer.reward, trainer.device, 0)
    estimates = learner.estimate(episodes)
    experience = build_experience(episodes, estimates, trainer.config, coefficient, trainer.moments, learner.max_tokens)
    return episodes, estimates, experience


def gradients(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """The gradients of policy and critic, taken away from them."""
    named = [("policy." + name, p) for name, p in trainer.policy.named_parameters()]
    if trainer.learner.critic is not None:
        named += [("critic." + name, p) for name, p in trainer.learner.critic.named_parameters()]
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    for _, p in named:
        p.grad = None
    return found


def same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-8) -> None:
    """Two sets of named tensors agree."""
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


def shift(model: torch.nn.Module, seed: int, size: float = 0.03) -> None:
    """Move all weights a little, so that ratios differ from 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
