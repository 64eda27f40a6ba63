"""A vLLM whose process dies takes its worker of Ray along, a worker that dies its vLLM, and another with another vLLM goes on."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch
from killing import in_use, shared_memory

sys.path.append(str(Path(__file__).parents[1] / "rl"))
from tiny_models import build_policy, build_tokenizer

from selfplay.config import Engine, Launch, SamplingParams
from selfplay.distributed.cluster import connected
from selfplay.distributed.pool import Pool
from selfplay.engines.ray import PooledEngine
from selfplay.records import Prompt


def processes(name: str) -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if name in " ".join([one.name(), *one.cmdline()])]


def test_a_dead_vllm_is_replaced_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither leaves a file or a segment of shared memory."""
    compiled, shared = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}", shared_memory()
    temporary = Path(tempfile.mkdtemp(prefix="t"))  # short, for Ray's sockets
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))  # which is kept
    monkeypatch.setattr(tempfile, "tempdir", None)
    build_policy(0, dtype=torch.float32, hidden_size=64, max_position_embeddings=128).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    launch = Launch(workers=1)
    prompts = [Prompt.plain(f"p{number}", f"{number} 1 2") for number in range(4)]
    with connected(launch):
        pool = Pool(launch)
        engine = PooledEngine(pool, "policy", Engine(kind="vllm"), tmp_path, "start")
        found = engine.generate(prompts, SamplingParams(max_tokens=8, seed=1))
        (before,), cores = processes("ray::Holder"), processes("EngineCore")
        assert cores and len(found) == 4
        cores[0].kill()
        again = engine.generate(prompts, SamplingParams(max_tokens=8, seed=1))
        assert [one.text for (one,) in again] == [one.text for (one,) in found]
        assert processes("ray::Holder") != [before] and not before.is_running(), "another worker"
        assert shared_memory() - shared <= in_use(), "the dead vLLM's went with it"
        (holder,) = processes("ray::Holder")
        ended = [holder, *holder.children(recursive=True)]
        holder.kill()
        again = engine.generate(prompts, SamplingParams(max_tokens=8, seed=1))
        assert [one.text for (one,) in again] == [one.text for (one,) in found]
        assert not psutil.wait_procs(ended, timeout=60)[1], "what it had started ends too"
        assert shared_memory() - shared <= in_use(), "the next vLLM's start removed what it left"
        left = processes("EngineCore")
        pool.close()
    gone, alive = psutil.wait_procs(left, timeout=60)
    assert gone and not alive, "vLLM ends with its worker"
    assert shared_memory() - shared <= in_use(), "no segment is left"
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("ray")] == []
    shutil.rmtree(temporary)
