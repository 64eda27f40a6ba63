"""The precision of products: decided by times, kept in a run, not for small models; attention stays float32; frozen halves."""

import ctypes
import json
import os
from pathlib import Path

import pytest
import torch
from tiny_llama import tiny, tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from selfplay.models import load_policy
from selfplay.storage.checksums import Damaged, read_sealed
from selfplay.weights import precision
from selfplay.weights.precision import decide, freeze, kept_in, preferred, products_in
from selfplay.weights.release import release_memory

LARGE = nn.Linear(5000, 4001, bias=False, device="meta")  # 20,005,000 parameters, and no memory
CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    words = tokenizer()
    tiny(words).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    return tmp_path


def answering(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which this precision is the faster."""
    monkeypatch.setattr(precision, "measured", lambda: {"products": products})


def test_bfloat16_has_to_be_a_fifth_faster() -> None:
    assert decide(12.1, 10.0)["products"] == "bfloat16" and decide(11.9, 10.0)["products"] == "float32"
    assert decide(1.0, 7.0) == {"products": "float32", "float32_ms": 1.0, "bfloat16_ms": 7.0}


def test_this_machine_is_measured_and_any_choice_is_one_of_two() -> None:
    found = precision.measured()
    assert found["products"] in ("float32", "bfloat16") and precision.measured() is found  # once in a process
    assert (
        torch.cuda.is_available() or found["products"] == decide(found["float32_ms"], found["bfloat16_ms"])["products"]
    )


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_a_run_keeps_its_choice_on_another_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    other = {"float32": "bfloat16", "bfloat16": "float32"}[first]
    answering(first, monkeypatch)
    with kept_in(tmp_path / "precision.json"):
        assert preferred(LARGE) == first
    answering(other, monkeypatch)
    with kept_in(tmp_path / "precision.json"):
        assert preferred(LARGE) == first
    assert preferred(LARGE) == other  # outside the run
    path = tmp_path / "precision.json"
    assert read_sealed(path)["products"] == first
    kept = path.read_bytes()
    for content, problem in (
        (kept.replace(first.encode(), other.encode()), "its content does not have the checksum"),
        (b'{"products": "float16"}', "its `products` is 'float16', not 'float32' or 'bfloat16'"),
        (b"{}", "its `products` is None"),
        (kept[:9], "it is not JSON"),
    ):
        path.write_bytes(content)
        with kept_in(path), pytest.raises(Damaged, match=f"{problem}.*; put it back from a copy, or delete it"):
            preferred(LARGE)
    path.write_text(json.dumps({"products": first}))  # as it was before it was sealed
    with kept_in(path):
        assert preferred(LARGE) == first


def test_small_models_stay_in_float32_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering("bfloat16", monkeypatch)
    with kept_in(tmp_path / "precision.json"):
        assert preferred(nn.Linear(5000, 3999, bias=False, device="meta")) == "float32"
    assert not list(tmp_path.iterdir())


def test_attention_stays_float32_where_products_are_in_bfloat16(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[torch.dtype]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append({query.dtype, key.dtype, value.dtype})
        out = plain(query, key, value, **options)  # type: ignore[arg-type]
        seen.append({out.dtype})
        return out

    model, ids = load_policy(saved), torch.arange(12)[None]
    before = AutoModelForCausalLM.from_pretrained(saved).eval()
    if model.device.type == "cpu":
        assert torch.equal(model(input_ids=ids).logits, before(input_ids=ids).logits)  # without autocast, the very same
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        with products_in("bfloat16", CPU):
            logits = model(input_ids=ids).logits
        assert logits.dtype == torch.bfloat16 and seen == [{torch.float32}] * 4  # two layers, before and after
    model.save_pretrained(saved / "again")
    assert "sdpa_float32" not in (saved / "again/config.json").read_text()


def test_what_is_frozen_takes_half_and_gives_the_same_bits(saved: Path) -> None:
    ids = torch.arange(12)[None]
    whole, halved = load_policy(saved).to(CPU), load_policy(saved).to(CPU)
    freeze(halved, "bfloat16")
    with torch.no_grad(), products_in("bfloat16", CPU):
        states = [model.base_model(input_ids=ids).last_hidden_state for model in (whole, halved)]
    assert torch.equal(*states)
    assert not any(parameter.requires_grad for parameter in halved.parameters())
    dtypes = {name: parameter.dtype for name, parameter in halved.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "proj" in name} == {torch.bfloat16}
    assert dtypes["lm_head.weight"] == dtypes["model.embed_tokens.weight"] == torch.float32
    assert {parameter.dtype for parameter in freeze(whole, "float32").parameters()} == {torch.float32}
    assert isinstance(halved, LlamaForCausalLM)


def test_freed_weights_between_kept_ones_go_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    torch.ones(5_000_000).sum()  # freed at once: from now on glibc takes what is smaller from its heap
    blocks = [torch.ones(250_000) for _ in range(200)]
    kept = blocks[::50]
    del blocks
    before = resident()
    release_memory()
    freed = before - resident()
    assert float(sum(one.sum() for one in kept)) == 4 * 250_000
    assert freed > 100e6 or getattr(ctypes.CDLL(None), "malloc_trim", None) is None
