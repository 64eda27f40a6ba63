"""Sampling held to what another policy finds likely: NLPO's mask (Ramamurthy et al. 2022, RL4LMs).

A token is allowed where it is among the target policy's likeliest, which together reach `top_p`, or is a special token of
the tokenizer, such as the end. A checkpoint that was trained so holds its target in `mask/`: without it, it is another policy.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfplay.models import load_policy, load_tokenizer, save
from selfplay.storage.files import read_json, write_json

FOLDER, FILE = "mask", "mask.json"


def unlikely(logprobs: Tensor, top_p: float) -> Tensor:
    """(B, V), true on the tokens behind the likeliest ones that together reach `top_p`, by log-probabilities (B, V)."""
    ordered, places = logprobs.sort(descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    return torch.zeros_like(places, dtype=torch.bool).scatter(1, places, before >= top_p)


@dataclass
class TargetMask:
    """A target policy, the share of its probability that is kept, and the tokens that are always allowed."""

    model: PreTrainedModel
    top_p: float
    kept: tuple[int, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top_p: float) -> "TargetMask":
        """Return the mask of a frozen target; special tokens are kept."""
        return cls(model.requires_grad_(False).eval(), top_p, tuple(sorted(set(tokenizer.all_special_ids))))

    def masked(self, logits: Tensor, target_logits: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return logits (B, V) with -inf where the target forbids a token; `tokens` (B,) were sampled, so they are allowed."""
        cut = unlikely(torch.log_softmax(target_logits.float(), -1), self.top_p)
        cut[:, list(self.kept)] = False
        if tokens is not None:  # another batch rounds otherwise, and may place a borderline token behind the border
            cut.scatter_(1, tokens.unsqueeze(-1), False)
        return logits.masked_fill(cut, -torch.inf)

    def save(self, checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the target beside a checkpoint that needs it."""
        save(self.model, tokenizer, checkpoint / FOLDER)
        write_json(checkpoint / FILE, {"top_p": self.top_p, "target": FOLDER})


def needs_mask(checkpoint: str | Path) -> bool:
    """Return whether a checkpoint samples as it was trained only with its mask."""
    return (Path(checkpoint) / FILE).is_file()


def load_mask(checkpoint: str | Path) -> TargetMask | None:
    """Return a checkpoint's mask, if it needs one."""
    if not needs_mask(checkpoint):
        return None
    folder = Path(checkpoint) / FOLDER
    return TargetMask.of(load_policy(folder), load_tokenizer(folder), read_json(Path(checkpoint) / FILE)["top_p"])
