"""docs/concepts.md: the numbers of its table follow from each other by the formulas of the trainer."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfplay.config import Recipe
from selfplay.config.load import parse_yaml, validate
from selfplay.rl.advantages import advantages_and_returns
from selfplay.rl.kl import kl_estimate, token_rewards
from selfplay.rl.losses import policy_loss

PAGE = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text(encoding="utf-8")
SCORE, BETA, MEAN, DEVIATION = 0.8318, 0.05, 0.3238, 0.3409
ROUNDED = 3e-4
"""Four decimals on the page; an advantage adds up eight of them, a whitened one divides by a third."""


@pytest.fixture(scope="module")
def columns() -> dict[str, Tensor]:
    """The table's columns, each (1, 8)."""
    lines = [line for line in PAGE.splitlines() if re.match(r"\| (token|` ?[\w.]+`|end) \|", line)]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(rows) == 8
    return {
        name: torch.tensor([[float(row[place]) for row in rows]], dtype=torch.float64)
        for place, name in enumerate(header)
        if name != "token"
    }


def test_the_kl_and_the_token_rewards(columns: dict[str, Tensor]) -> None:
    kl = kl_estimate(columns["log p"], columns["log p ref"], "k1")
    assert torch.allclose(kl, columns["KL"], atol=ROUNDED)
    rewards = token_rewards(torch.tensor([SCORE], dtype=torch.float64), columns["KL"], BETA, torch.ones(1, 8))
    assert torch.allclose(rewards, columns["reward"], atol=ROUNDED)


def test_the_advantages(columns: dict[str, Tensor]) -> None:
    advantages, _ = advantages_and_returns(columns["reward"], columns["value"], torch.ones(1, 8), 1.0, 0.95)
    assert torch.allclose(advantages, columns["advantage"], atol=ROUNDED)
    assert torch.allclose((columns["advantage"] - MEAN) / DEVIATION, columns["whitened"], atol=3 * ROUNDED)


def test_the_losses(columns: dict[str, Tensor]) -> None:
    loss = policy_loss(columns["ratio"].log(), columns["whitened"], 0.2).loss
    assert torch.allclose(loss, columns["loss"], atol=ROUNDED)


def test_the_text_says_the_numbers_of_the_table(columns: dict[str, Tensor]) -> None:
    for number in (SCORE, MEAN, DEVIATION, *(float(columns[name][0, -1]) for name in ("reward", "value", "advantage"))):
        assert f"{number:.4f}" in PAGE
    assert f"kl_coefficient: {BETA}" in PAGE


def test_the_recipe_is_one() -> None:
    block = re.search(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert block is not None
    recipe = validate(Recipe, {"name": "concepts", **parse_yaml(block[1], "concepts.md")}, "concepts.md")
    assert recipe.algorithm.steps == 8
