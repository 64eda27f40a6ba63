"""Adapters added to a checkpoint on disk, one tensor at a time: the same files as those of the whole model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfplay.lora import LowRank, fold, save_folded
from selfplay.models import load_policy, load_tokenizer, save
from selfplay.stages.bootstrap import train_tokenizer

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def checkpoint(folder: Path, dtype: torch.dtype, tied: bool = True) -> PreTrainedTokenizerFast:
    """Write a tiny Llama in a precision."""
    tokenizer = train_tokenizer(["the fox ran home . the owl sang"] * 20, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
    )
    save(LlamaForCausalLM(config).to(dtype), tokenizer, folder)
    return load_tokenizer(folder)


def adapters(policy: LlamaForCausalLM) -> dict[str, list[LowRank]]:
    """Return random adapters of rank 2 for two layers, of which one has two."""
    torch.manual_seed(1)
    found: dict[str, list[LowRank]] = {}
    for count, name in enumerate(LAYERS, 1):
        out, into = policy.get_submodule(name).weight.shape
        found[name] = [LowRank(0.5, torch.randn(out, 2), torch.randn(2, into)) for _ in range(count)]
    return found


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all files of a checkpoint."""
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_what_the_folded_model_would_be_saved_as(tmp_path: Path, tied: bool) -> None:
    tokenizer = checkpoint(tmp_path / "before", torch.float32, tied)
    added = adapters(load_policy(tmp_path / "before"))
    save(fold(load_policy(tmp_path / "before"), added), tokenizer, tmp_path / "whole")
    save_folded(tmp_path / "before", added, tokenizer, tmp_path / "made")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "made").iterdir())
    for name in files:
        if name.endswith(".json"):
            here, there = (json.loads((tmp_path / folder / name).read_text()) for folder in ("whole", "made"))
            assert here == there, name
    before, whole, made = (weights_in(tmp_path / folder) for folder in ("before", "whole", "made"))
    assert whole.keys() == made.keys() and all(torch.equal(whole[name], made[name]) for name in whole)
    changed = {name for name in made if not torch.equal(made[name], before[name])}
    assert changed == {f"{name}.weight" for name in LAYERS}
    assert all(torch.equal(value, made[name]) for name, value in load_policy(tmp_path / "made").named_parameters())


def test_in_bfloat16_a_sum_becomes_one_of_its_two_neighbours_and_its_mean_stays(tmp_path: Path) -> None:
    tokenizer = checkpoint(tmp_path / "before", torch.bfloat16)
    policy = load_policy(tmp_path / "before")
    added = {LAYERS[0]: [LowRank(1e-4, torch.ones(16, 1), torch.ones(1, 16))]}  # far less than a step of most weights
    save_folded(tmp_path / "before", added, tokenizer, tmp_path / "made")
    before, made = weights_in(tmp_path / "before"), weights_in(tmp_path / "made")
    assert {one.dtype for one in made.values()} == {torch.bfloat16}
    name = f"{LAYERS[0]}.weight"
    assert {other for other in made if not torch.equal(made[other], before[other])} == {name}
    exact = policy.get_submodule(LAYERS[0]).weight.double() + 1e-4
    steps = (made[name].double() - exact).abs() / exact.abs().clamp(min=1e-8)
    assert (steps <= 2**-7).all()  # the last of 8 binary digits
    # To the nearest nearly all would stay as they were. 256 weights of about .02 have steps of .0001 at most, so that the mean
    # of what is rounded up or down is off by less than four times .0001 / 2 / 16.
    assert (made[name].double() - exact).mean().abs() < 4 * 5e-5 / 16


def test_shards_are_changed_where_they_are(tmp_path: Path) -> None:
    tokenizer = checkpoint(tmp_path / "before", torch.float32)
    policy = load_policy(tmp_path / "before")
    (tmp_path / "before/model.safetensors").unlink()
    policy.save_pretrained(tmp_path / "before", max_shard_size="8KB")
    assert len(list((tmp_path / "before").glob("*.safetensors"))) > 1
    added = adapters(policy)
    save_folded(tmp_path / "before", added, tokenizer, tmp_path / "made")
    expected = fold(policy, added).state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in load_policy(tmp_path / "made").state_dict().items()
    )


def test_a_checkpoint_in_torchs_own_format_is_folded_whole(tmp_path: Path) -> None:
    tokenizer = checkpoint(tmp_path / "before", torch.float32)
    policy = load_policy(tmp_path / "before")
    (tmp_path / "before/model.safetensors").unlink()
    torch.save(policy.state_dict(), tmp_path / "before/pytorch_model.bin")
    added = adapters(policy)
    save_folded(tmp_path / "before", added, tokenizer, tmp_path / "made")
    expected = fold(policy, added).state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in load_policy(tmp_path / "made").state_dict().items()
    )
