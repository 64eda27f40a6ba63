"""The vLLM engine on a CPU against transformers: the same numbers, before and after its weights change.

Two vLLMs are started for the whole file (15 to 35 s each), one with tied and one with untied embeddings, and one is
killed while it starts. Each test that changes weights sets those it needs, so that the tests may run in any order.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from selfplay.config import SamplingParams
from selfplay.engines import GuidedSampling
from selfplay.engines.hf import TransformersEngine
from selfplay.engines.vllm import CPU_HEAD_SIZES, VllmEngine, check_head_size, head_size
from selfplay.errors import ConfigError
from selfplay.models import decode, encode_prompt, load_tokenizer, save
from selfplay.records import Completion, Prompt

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
TEXT = (
    "once upon a time a fox lived near the lake and the fox had a kite . one day a bell rang and the fox ran home "
    'to see who it was . { } [ ] : , " \\ name age true false 0 1 2 3 4 5 6 7 8 9 '
)
PROMPTS = [Prompt.plain("short", "the fox"), Prompt.plain("long", "once upon a time a fox had a kite " * 30)]
"""The long one, 300 tokens, fills whole blocks of vLLM's cache (128 each), which a later request would find there."""


def llama(tied: bool, seed: int, deviation: float = 0.15) -> PreTrainedModel:
    """A random Llama of the shape of stories260k; its weights are large, so that its distributions are sharp."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        initializer_range=deviation,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def write_checkpoint(directory: Path, model: PreTrainedModel) -> Path:
    """The model with a byte-level tokenizer of 512 entries."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT] * 20, vocab_size=512, special_tokens=["<pad>", "<s>", "</s>"])
    save(
        model,
        PreTrainedTokenizerFast(
            tokenizer_object=trained._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        ),
        directory,
    )
    return directory


def open_engine(directory: Path, model: PreTrainedModel) -> Iterator[VllmEngine]:
    engine = VllmEngine(write_checkpoint(directory, model))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    yield from open_engine(tmp_path_factory.mktemp("tied"), llama(True, 0))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    yield from open_engine(tmp_path_factory.mktemp("untied"), llama(False, 0))


def gap(engine: VllmEngine, model: PreTrainedModel, temperature: float = 0.7, autocast: bool = False) -> float:
    """Mean over sampled tokens of |log-prob that vLLM reports - log-prob of `model` at that temperature|, in nats.

    With `autocast` the model multiplies in bfloat16, as PPO does with `precision: bfloat16`.
    """
    sampling = SamplingParams(temperature=temperature, max_tokens=40, n=4, seed=5)
    differences: list[torch.Tensor] = []
    for prompt, completions in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        ids = encode_prompt(engine.tokenizer, prompt)
        for completion in completions:
            tokens = torch.tensor(completion.token_ids)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(input_ids=torch.tensor([[*ids, *completion.token_ids]])).logits[0, len(ids) - 1 : -1]
            expected = torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, tokens[:, None])[:, 0]
            differences.append((expected - torch.tensor(completion.logprobs)).abs())
    return float(torch.cat(differences).mean())


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_logprobs_are_the_models_at_the_sampling_temperature(tied: VllmEngine, temperature: float) -> None:
    model = llama(True, 1)
    tied.update_weights(model)
    assert gap(tied, model, temperature) < 1e-4


def test_new_weights_reach_an_untied_head(untied: VllmEngine) -> None:
    for seed in (1, 2):
        model = llama(False, seed)
        untied.update_weights(model)
        assert gap(untied, model) < 1e-4


def test_new_weights_reach_a_tied_head_only_with_the_cure(tied: VllmEngine, tmp_path: Path) -> None:
    """Fails if the cure does not work, and also if vLLM comes to need none: then delete it."""
    tied.update_weights(llama(True, 3))
    model = llama(True, 4)
    model.save_pretrained(tmp_path)
    tied.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path)})
    tied.llm.reset_prefix_cache()
    assert gap(tied, model) > 0.1
    tied.update_weights(model)
    assert gap(tied, model) < 1e-4


def test_new_weights_reach_a_bfloat16_engine(tmp_path: Path) -> None:
    engine = VllmEngine(write_checkpoint(tmp_path, llama(True, 0)), dtype="bfloat16")
    try:
        model = llama(True, 10, deviation=0.05)
        engine.update_weights(model)
        assert gap(engine, model, autocast=True) < 2e-2
        assert gap(engine, llama(True, 0), autocast=True) > 0.1, "the weights before are not those it samples from"
    finally:
        engine.close()


def test_weights_of_a_real_model(tied: VllmEngine) -> None:
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not here: the real model stays untested")
    model = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    tied.update_weights(model)
    assert gap(tied, model) < 1e-4


def test_what_was_cached_of_a_prompt_is_forgotten_with_the_weights(untied: VllmEngine) -> None:
    first, second = llama(False, 5), llama(False, 6)
    assert len(encode_prompt(untied.tokenizer, PROMPTS[1])) > 256
    untied.update_weights(first)
    assert gap(untied, first) < 1e-4
    untied.update_weights(second)
    assert gap(untied, second) < 1e-4


def greedy_peer(engine: VllmEngine, model: PreTrainedModel) -> TransformersEngine:
    """The transformers engine with the same weights and the same tokenizer."""
    engine.update_weights(model)
    return TransformersEngine(model, engine.tokenizer)


def test_greedy_completions_are_those_of_the_transformers_engine(untied: VllmEngine) -> None:
    peer = greedy_peer(untied, llama(False, 7))
    sampling = SamplingParams(temperature=0, max_tokens=30)
    ours, theirs = untied.generate(PROMPTS, sampling), peer.generate(PROMPTS, sampling)
    assert [row.model_dump(exclude={"logprobs"}) for rows in ours for row in rows] == [
        row.model_dump(exclude={"logprobs"}) for rows in theirs for row in rows
    ]


def test_choice_logprobs_are_those_of_the_transformers_engine(untied: VllmEngine) -> None:
    peer = greedy_peer(untied, llama(False, 8))
    ours, theirs = (engine.choice_logprobs(PROMPTS, ["0", "a", "}"]) for engine in (untied, peer))
    assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="is 3 tokens for this model|tokens for this model"):
        untied.choice_logprobs(PROMPTS, ["XYZ", "a"])


def flat(rows: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [completion for row in rows for completion in row]


def test_same_seed_same_completions_whatever_the_order_of_the_prompts(untied: VllmEngine) -> None:
    prompts = [Prompt.plain(f"p{number}", f"fox {number}") for number in range(6)]
    sampling = SamplingParams(max_tokens=12, n=3, seed=1)
    once = {completion.id: completion for completion in flat(untied.generate(prompts, sampling))}
    again = {completion.id: completion for completion in flat(untied.generate(prompts[::-1], sampling))}
    assert {name: row.token_ids for name, row in once.items()} == {name: row.token_ids for name, row in again.items()}
    assert list(once) == [f"p{number}/{index}" for number in range(6) for index in range(3)]
    assert len({completion.token_ids for completion in once.values()}) == 18
    other = flat(untied.generate(prompts, sampling.model_copy(update={"seed": 2})))
    assert not {completion.token_ids for completion in other} & {completion.token_ids for completion in once.values()}


def test_stop_tokens_and_stop_strings_end_a_completion(untied: VllmEngine) -> None:
    """All 512 tokens are nearly equally likely: of 64 x 64, about 4096 / 512 = 8 end a text, and more hold ` a`."""
    untied.update_weights(llama(False, 9, deviation=0.01))
    prompts = [Prompt.plain(f"p{number}", "the fox") for number in range(64)]
    rows = flat(untied.generate(prompts, SamplingParams(max_tokens=64, stop=("<s>",))))
    ended = [row for row in rows if row.token_ids[-1] == untied.tokenizer.bos_token_id]  # a token that text never shows
    assert len(ended) >= 2 and all(row.finish_reason == "stop" for row in ended)
    assert not any(untied.tokenizer.bos_token_id in row.token_ids[:-1] for row in rows)
    rows = flat(untied.generate(prompts, SamplingParams(max_tokens=64, stop=(" a",))))
    by_string = [row for row in rows if " a" in decode(untied.tokenizer, row.token_ids)]
    by_token = [row for row in rows if row.token_ids[-1] == untied.tokenizer.eos_token_id]
    assert len(by_string) >= 5 and len(by_token) >= 2
    for row in rows:
        ended = row in by_string or row in by_token
        assert row.finish_reason == ("stop" if ended else "length") and (ended or len(row.token_ids) == 64)
        assert row.text == decode(untied.tokenizer, row.token_ids, [" a"]) and " a" not in row.text
        assert len(row.logprobs or ()) == len(row.token_ids)
        assert " a" not in decode(untied.tokenizer, row.token_ids[:-1])
        assert untied.tokenizer.eos_token_id not in row.token_ids[:-1]


def test_a_json_schema_guides_the_decoding(untied: VllmEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"enum": [1, 2]}},
        "required": ["age"],
        "additionalProperties": False,
    }
    rows = flat(untied.generate(PROMPTS, GuidedSampling(max_tokens=40, n=4, json_schema=schema)))
    assert all(json.loads(row.text) in ({"age": 1}, {"age": 2}) and row.finish_reason == "stop" for row in rows)


def test_a_prompt_without_room_is_refused(untied: VllmEngine) -> None:
    with pytest.raises(ConfigError, match="'long' has .* tokens.* more than the 512"):
        untied.generate(PROMPTS, SamplingParams(max_tokens=450))


def test_a_temperature_that_vllm_refuses_is_a_users_mistake(untied: VllmEngine) -> None:
    with pytest.raises(ConfigError, match="temperature is 2.5, but vLLM takes at most 2"):
        untied.generate(PROMPTS, SamplingParams(temperature=2.5))


def test_this_process_is_left_as_it_was(untied: VllmEngine) -> None:
    """vLLM sets these for its children; in our own process they would change how we train."""
    assert not torch.distributed.is_initialized()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert "LD_PRELOAD" not in os.environ and "LOCAL_WORLD_SIZE" not in os.environ


def test_a_killed_owner_leaves_no_vllm_behind(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, llama(False, 0))
    script = f"from selfplay.engines.vllm import VllmEngine\nif __name__ == '__main__': VllmEngine({str(checkpoint)!r})"
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    children: list[psutil.Process] = []
    while not any("Worker" in " ".join(child.cmdline()) for child in children):
        assert owner.poll() is None and time.monotonic() < deadline, "vLLM's worker never came up"
        time.sleep(0.5)
        children = psutil.Process(owner.pid).children(recursive=True)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left


def test_head_sizes_are_those_of_the_cpu_kernels() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def test_a_head_size_without_kernel_is_refused_before_vllm_starts(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=64, hidden_size=64, num_attention_heads=4, intermediate_size=8, num_hidden_layers=1)
    assert head_size(config) == 16
    write_checkpoint(tmp_path, AutoModelForCausalLM.from_config(config))
    with pytest.raises(ConfigError, match="heads of size 16, but vLLM on a CPU knows 32, 64"):
        VllmEngine(tmp_path)
    check_head_size(64, "a model")


def test_the_tokenizer_is_the_checkpoints(tied: VllmEngine, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_checkpoint(tmp_path, llama(True, 0)))
    assert tied.stop_ids == [tokenizer.eos_token_id] == [2]
