"""Text from a transformers model in this process: batched by length, prompts computed once, a cache that grows in place.

A completion depends on the weights and on (seed, prompt id, index) alone: each has random numbers of its own, one
per position, so neither its neighbours in a batch nor the point at which a run was resumed change it. Finished rows
leave the batch. Left out: admitting new rows into a running batch (vLLM does that), beam search.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prompts.special_tokens import special_texts
from selfplay.config import SamplingParams
from selfplay.engines.cache import SharedPrompts, can_share_prefix, keep_rows, next_logits, read_prompts
from selfplay.engines.masking import TargetMask, unlikely
from selfplay.errors import ConfigError
from selfplay.models import (
    decode,
    default_batch_tokens,
    encode_prompt,
    special_tokens,
    split_by_tokens,
    stop_token_ids,
)
from selfplay.records import Completion, Prompt

LEAST_ROWS_TO_DROP = 8


@dataclass
class Row:
    """One completion in the making."""

    prompt: Prompt
    index: int
    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


def uniforms(seed: int, prompt_id: str, index: int, count: int) -> numpy.ndarray:
    """`count` uniform numbers in [0, 1) that belong to one completion: a Philox stream keyed by a hash of its name."""
    name = f"{seed}\x00{prompt_id}\x00{index}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return numpy.random.Generator(numpy.random.Philox(key=key)).random(count, dtype=numpy.float64)


def filtered_logprobs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """(B, V) float32 log-probabilities after temperature, top-k and top-p; what is cut has -inf."""
    logprobs = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), dim=-1)
    if sampling.top_k:
        smallest = logprobs.topk(min(sampling.top_k, logprobs.shape[-1])).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < smallest, -torch.inf)
    if sampling.top_p < 1:
        logprobs = logprobs.masked_fill(unlikely(logprobs, sampling.top_p), -torch.inf)
    if sampling.top_k or sampling.top_p < 1:
        logprobs = torch.log_softmax(logprobs, dim=-1)
    return logprobs


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """(B,) tokens drawn by inverting the cumulative distribution at `uniform` (B,), summed in float64."""
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_(max=logprobs.shape[-1] - 1)


class TransformersEngine:
    """Generates with a `transformers` causal language model that is loaded already; shares its weights.

    `mask` holds sampling to what another policy finds likely.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "policy",
        batch_size: int = 256,
        mask: TargetMask | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name, self.batch_size, self.mask = model, tokenizer, name, batch_size, mask
        self.stop_ids = frozenset(stop_token_ids(model.generation_config, tokenizer))
        self.special_tokens = special_texts(tokenizer)
        self.products = "float32"
        """Precision of the blocks' products; "bfloat16" of a policy whose weights PPO has rounded to it."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts. Raises ConfigError for one too long."""
        rows = [row for prompt in prompts for row in self._rows(prompt, sampling)]
        training = self.model.training
        self.model.eval()
        by_length = sorted(rows, key=lambda row: len(row.prompt_ids))
        for start in range(0, len(by_length), self.batch_size):
            for _ in self._decode_batch(by_length[start : start + self.batch_size], sampling):
                pass
        self.model.train(training)
        finished = [self._completion(row, sampling) for row in rows]
        return [finished[start : start + sampling.n] for start in range(0, len(finished), sampling.n)]

    def stream_text(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """Yield a completion's text so far, whenever it has grown; the last is the text that `generate` gives.

        A character of which only the first bytes have been sampled is held back. Raises ConfigError for a prompt too long.
        """
        rows, shown = self._rows(prompt, sampling.model_copy(update={"n": 1})), ""
        for _ in self._decode_batch(rows, sampling):
            text = decode(self.tokenizer, rows[0].token_ids, sampling.stop)
            if text.startswith(shown) and text != shown and not text.endswith("\ufffd"):
                shown = text
                yield text
        whole = decode(self.tokenizer, rows[0].token_ids, sampling.stop)
        if whole != shown:
            yield whole

    def _rows(self, prompt: Prompt, sampling: SamplingParams) -> list[Row]:
        """Return the completions of a prompt that are to be made. Raises ConfigError if they may not fit the model's context."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        ids = encode_prompt(self.tokenizer, prompt)
        if limit is not None and len(ids) + sampling.max_tokens > limit:
            raise ConfigError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, and with sampling.max_tokens "
                f"{sampling.max_tokens} that is more than the model's context of {limit}: shorten one"
            )
        return [Row(prompt, index, ids) for index in range(sampling.n)]

    @torch.inference_mode()
    def _decode_batch(self, rows: list[Row], sampling: SamplingParams) -> Iterator[None]:
        """Fill the rows' tokens and log-probabilities, all of them one step at a time; yields behind each step."""
        stop_ids = self.stop_ids | special_tokens(self.tokenizer, sampling.stop)
        where, pad = self.model.device, self.tokenizer.pad_token_id
        random = torch.from_numpy(
            numpy.stack([uniforms(sampling.seed, row.prompt.id, row.index, sampling.max_tokens) for row in rows])
        ).to(where)
        models = [self.model, *([self.mask.model] if self.mask is not None else [])]
        prompts = self._shared([row.prompt_ids for row in rows], sampling.max_tokens)
        lengths = torch.tensor(prompts.lengths, device=where)
        begun = [read_prompts(model, prompts, pad, sampling.max_tokens, self.products) for model in models]
        outputs, caches, mask = [one[0] for one in begun], [one[1] for one in begun], begun[0][2]
        active = list(rows)
        for step in range(sampling.max_tokens):
            logits = outputs[0] if self.mask is None else self.mask.masked(*outputs)
            logprobs = filtered_logprobs(logits, sampling)
            tokens = draw(logprobs, random[:, step]) if sampling.temperature else logprobs.argmax(-1)
            chosen = logprobs.gather(1, tokens.unsqueeze(-1)).squeeze(-1)
            self._append(active, tokens.tolist(), chosen.tolist(), sampling, stop_ids)
            yield
            going = [place for place, row in enumerate(active) if not row.finished]
            if not going or step + 1 == sampling.max_tokens:
                return
            if len(active) - len(going) >= max(LEAST_ROWS_TO_DROP, len(active) // 8):
                kept = torch.tensor(going, device=where)
                for cache in caches:
                    keep_rows(cache, kept)
                active = [active[place] for place in going]
                tokens, lengths, mask, random = tokens[kept], lengths[kept], mask[kept], random[kept]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            outputs = [
                next_logits(
                    model,
                    self.products,
                    input_ids=tokens.unsqueeze(-1),
                    attention_mask=mask,
                    position_ids=(lengths + step).unsqueeze(-1),
                    past_key_values=cache,
                    use_cache=True,
                )
                for model, cache in zip(models, caches, strict=True)
            ]

    def _shared(self, prompts: Sequence[Sequence[int]], room: int) -> SharedPrompts:
        """Return what prompts share, as far as the model's attention allows it."""
        return SharedPrompts.of(prompts, can_share_prefix(self.model, max(map(len, prompts)) + room))

    def _append(
        self,
        active: list[Row],
        tokens: list[int],
        logprobs: list[float],
        sampling: SamplingParams,
        stop_ids: frozenset[int],
    ) -> None:
        """Add one token to each row that is not finished, and see whether it ends there."""
        for row, token, logprob in zip(active, tokens, logprobs, strict=True):
            if row.finished:
                continue
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.finished = token in stop_ids or self._ends_in_stop_string(row.token_ids, sampling.stop)

    def _ends_in_stop_string(self, token_ids: list[int], stop: Sequence[str]) -> bool:
        if not stop:
            return False
        longest = max(len(string.encode()) for string in stop)
        tail = self.tokenizer.decode(token_ids[-longest - 8 :], skip_special_tokens=True)
        return any(string in tail for string in stop)

    def _completion(self, row: Row, sampling: SamplingParams) -> Completion:
        return Completion(
            id=f"{row.prompt.id}/{row.index}",
            prompt_id=row.prompt.id,
            text=decode(self.tokenizer, row.token_ids, sampling.stop),
            token_ids=tuple(row.token_ids),
            finish_reason="stop" if row.finished else "length",
            policy=self.name,
            logprobs=tuple(row.logprobs),
        )

    @torch.inference_mode()
    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """For each prompt, the log-probability (nats, temperature 1) of each choice as the next token."""
        token_ids = single_tokens(self.tokenizer, choices)
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        results: list[list[float]] = [[] for _ in encoded]
        most = default_batch_tokens(self.model.device)
        for places in split_by_tokens(range(len(encoded)), [len(ids) for ids in encoded], most):
            shared = self._shared([encoded[place] for place in places], 0)
            logits, _, _ = read_prompts(self.model, shared, self.tokenizer.pad_token_id, 0, self.products)
            logprobs = torch.log_softmax(logits.float(), dim=-1)[:, token_ids]
            for place, row in zip(places, logprobs.tolist(), strict=True):
                results[place] = row
        return results

    def update_weights(self, model: PreTrainedModel) -> None:
        """Generate with `model` from now on (nothing is copied)."""
        self.model = model

    def close(self) -> None:
        """Nothing to give back: the model belongs to the caller."""


def single_tokens(tokenizer: PreTrainedTokenizerBase, choices: Sequence[str]) -> list[int]:
    """Return the token of each choice. Raises ConfigError for a choice of several tokens, or two with one token."""
    encoded = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
    for choice, ids in zip(choices, encoded, strict=True):
        if len(ids) != 1:
            raise ConfigError(
                f"the label {choice!r} is {len(ids)} tokens for this model, but its probability can be "
                "read off only for labels of one token: use other labels, or output kind regex"
            )
    if len({ids[0] for ids in encoded}) < len(choices):
        raise ConfigError(f"the labels {list(choices)} are not distinct tokens for this model: use other labels")
    return [ids[0] for ids in encoded]
