"""A judge that really thinks: a tiny model taught to, in process and behind `vllm serve` with a reasoning parser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_vllm_serve import vllm_serve
from thinker import ANSWER, PAIRS, THOUGHT, judge_tree, make_thinker

from judges import build
from judges.spec.load import parse_spec
from selfplay.engines import Engine
from selfplay.engines.endpoint import EndpointEngine
from selfplay.engines.hf import TransformersEngine
from selfplay.models import load_policy, load_tokenizer
from selfplay.records import Verdict

BUDGET = "reasoning: {budget: 64}"
OFF = "reasoning: {chat_template_kwargs: {enable_thinking: false}}"
SHORT = "reasoning: {budget: 1}"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory, training_seed: int) -> Path:
    return make_thinker(tmp_path_factory.mktemp("thinker"), training_seed)


@pytest.fixture(scope="module")
def address(thinker: Path) -> Iterator[str]:
    with vllm_serve(thinker, "thinker", "--reasoning-parser", "qwen3") as found:
        yield found


def verdicts(engine: Engine, more: str, model: str = "thinker", tokens: int = 24) -> list[Verdict]:
    tree = judge_tree(model, more)
    return build(parse_spec({**tree, "sampling": {"max_tokens": tokens}}), engine).judge(PAIRS)


def check(engine: Engine, raw: str, more: str = "") -> None:
    """The draft in the thinking counts for nothing, a budget too small says so, and thinking can be turned off."""
    rows = verdicts(engine, BUDGET + more)
    assert [row.preference for row in rows] == [1.0, 0.0] * 2  # always the first one shown
    assert {row.raw for row in rows} == {raw} and {row.reason for row in rows} == {"The kinder one is A."}
    for row in verdicts(engine, SHORT + more, tokens=4):
        assert row.preference is None and row.error.startswith(
            "the thinking took all tokens: raise reasoning.budget, now 1"
        )
    rows = verdicts(engine, OFF + more)
    assert [row.preference for row in rows] == [1.0, 0.0] * 2 and {row.raw for row in rows} == {ANSWER}


def test_in_process(thinker: Path) -> None:
    check(TransformersEngine(load_policy(thinker), load_tokenizer(thinker)), f"<think>{THOUGHT}</think>{ANSWER}")


def test_behind_an_endpoint_with_a_reasoning_parser(address: str) -> None:
    """vLLM sends what was thought in a field of its own."""
    endpoint = f'\nendpoint: {{url: "{address}"}}'
    spec = parse_spec(judge_tree("thinker", BUDGET + endpoint))
    engine = EndpointEngine(spec.endpoint, "thinker")
    check(engine, f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", endpoint)
    engine.close()
