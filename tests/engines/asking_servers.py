"""An endpoint engine, and a judge behind one, that ask the servers of `misbehaving`."""

from pathlib import Path
from typing import Any

from misbehaving import url

from judges.build import build
from judges.spec.load import parse_spec
from selfplay.config import Endpoint, parse_yaml
from selfplay.engines.endpoint import EndpointEngine
from selfplay.engines.ledger import Ledger
from selfplay.records import Completion, Pair, Prompt

QUICK: dict[str, Any] = {"timeout": 30.0, "longest_wait": 0.02, "concurrency": 8}


def engine(server: Any, ledger: Ledger | None = None, **settings: Any) -> EndpointEngine:
    return EndpointEngine(Endpoint(url=url(server), **{**QUICK, **settings}), "judge-model", ledger)


def prompts(count: int) -> list[Prompt]:
    return [Prompt.plain(f"p{number}", f"question {number}") for number in range(count)]


JUDGE = """
mode: pairwise
model: judge-model
messages: [{role: user, content: "{{ prompt }}\\n{{ responses[0] }}\\n{{ responses[1] }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
on_error: {max_failure_rate: 0.5, retries: 0}
"""


def judge_and_pairs(
    server: Any, cache: Path, count: int, ledger: Ledger | None = None, **settings: Any
) -> tuple[Any, list[Any]]:
    """A pairwise judge at the server, and as many pairs, each asked about in both orders."""
    spec = parse_spec({**parse_yaml(JUDGE), "name": "remote", "endpoint": {"url": url(server), **QUICK, **settings}})
    made = [
        [
            Completion(id=f"c{n}{side}", prompt_id=f"p{n}", text=f"{side} {n}", finish_reason="stop", policy="x")
            for side in "ab"
        ]
        for n in range(count)
    ]
    pairs = [
        Pair(id=f"p{n}", prompt=Prompt.plain(f"p{n}", f"question {n}"), first=a, second=b)
        for n, (a, b) in enumerate(made)
    ]
    return build(spec, EndpointEngine(spec.endpoint, spec.model, ledger), cache), pairs
