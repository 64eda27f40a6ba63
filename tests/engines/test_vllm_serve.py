"""The endpoint engine against a real `vllm serve` on loopback, with a real small model."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from judges import build
from judges.spec.load import parse_spec
from selfplay.config import Endpoint, SamplingParams
from selfplay.engines import GuidedSampling
from selfplay.engines.endpoint import EndpointEngine
from selfplay.engines.hf import TransformersEngine
from selfplay.models import encode_prompt, load_policy, load_tokenizer
from selfplay.records import Completion, Pair, Prompt

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
pytestmark = pytest.mark.skipif(not STORIES.exists(), reason="needs ../shared/models, which is not here")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server that has the small model of real stories."""
    with vllm_serve(STORIES, "stories") as address:
        yield address


@contextlib.contextmanager
def vllm_serve(model: Path, name: str, *options: str) -> Iterator[str]:
    """The address of a server, in a process group of its own that is ended with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    process = subprocess.Popen(  # what `vllm serve` runs; the command itself looks for a package named vllm
        [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
            "--served-model-name",
            name,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dtype",
            "float32",
            "--max-model-len",
            "256",
            "--max-num-seqs",
            "8",
            "--enforce-eager",
            "--structured-outputs-config",
            '{"backend": "xgrammar", "disable_any_whitespace": true}',
            *options,
        ],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_well(address, process)
        yield f"{address}/v1"
    finally:
        end(process)


def end(process: "subprocess.Popen[str]") -> None:
    """Ask the server to end, then end whatever of its group is left."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_until_well(address: str, process: "subprocess.Popen[str]") -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise AssertionError(f"vllm serve ended: {(process.stderr.read() if process.stderr else '')[-2000:]}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("vllm serve did not start within 10 minutes")


def test_a_served_model_says_what_it_says_here(server: str) -> None:
    here = TransformersEngine(load_policy(STORIES), load_tokenizer(STORIES))
    there = EndpointEngine(Endpoint(url=server, api="completions", input_price=1.0, output_price=1.0), "stories")
    prompts = [Prompt.plain("a", "Once upon a time, there was a little"), Prompt.plain("b", "Tim and Lily went to the")]
    greedy = SamplingParams(temperature=0.0, max_tokens=12)
    told = there.generate(prompts, greedy)
    assert [row[0].text.strip() for row in told] == [row[0].text.strip() for row in here.generate(prompts, greedy)]
    assert [row[0].finish_reason for row in told] == ["length", "length"]
    assert there.ledger.total >= 24e-6  # 12 tokens written twice, and the prompts, at a dollar per million
    many = there.generate(prompts, SamplingParams(max_tokens=5, n=3, seed=1))
    assert [len(row) for row in many] == [3, 3]

    choices = likeliest(here, prompts[0])
    assert there.choice_logprobs(prompts[:1], choices)[0] == pytest.approx(
        here.choice_logprobs(prompts[:1], choices)[0], abs=1e-3
    )
    guided = GuidedSampling(
        temperature=0.0,
        max_tokens=40,
        json_schema={
            "type": "object",
            "properties": {"v": {"enum": ["A", "B"]}},
            "required": ["v"],
            "additionalProperties": False,
        },
    )
    assert json.loads(there.generate(prompts[:1], guided)[0][0].text)["v"] in ("A", "B")
    there.close()


def likeliest(engine: TransformersEngine, prompt: Prompt) -> list[str]:
    """The two likeliest next tokens, as texts that are one token each."""
    ids = torch.tensor([encode_prompt(engine.tokenizer, prompt)])
    order = engine.model(input_ids=ids).logits[0, -1].argsort(descending=True).tolist()
    texts = [engine.tokenizer.convert_ids_to_tokens(token) for token in order[:8]]
    found = []
    for text in texts:
        plain = text.replace("▁", " ")
        if len(engine.tokenizer(plain, add_special_tokens=False)["input_ids"]) == 1:
            found.append(plain)
    return found[:2]


def test_a_judge_file_asks_the_served_model(server: str, tmp_path: Path) -> None:
    spec = parse_spec(
        {
            "name": "served",
            "mode": "pairwise",
            "model": "stories",
            "endpoint": {"url": server, "api": "completions"},
            "sampling": {"max_tokens": 40},
            "untrusted": {"fence": "none"},
            "messages": [
                {"role": "user", "content": "{{ prompt }} A: {{ responses[0] }} B: {{ responses[1] }}. The best is"}
            ],
            "output": {"kind": "json", "labels": {"A": 1.0, "B": 0.0}},
            "on_error": {"max_failure_rate": 1.0},
        }
    )
    made = [
        Completion(id=text, prompt_id="p", text=text, finish_reason="stop", policy="x")
        for text in ("The end.", "Tim ran.")
    ]
    pair = Pair(id="p", prompt=Prompt.plain("p", "Tell a story."), first=made[0], second=made[1])
    engine = EndpointEngine(spec.endpoint, spec.model)
    first = build(spec, engine, tmp_path / "cache.sqlite").judge([pair])
    assert [row.order for row in first] == ["forward", "reversed"] and all(row.raw for row in first)
    assert build(spec, engine, tmp_path / "cache.sqlite").judge([pair])[0].preference == first[0].preference
    engine.close()
