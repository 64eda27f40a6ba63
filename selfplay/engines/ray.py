"""An engine that is many: the recipe's own kind of engine in each worker of a pool, one behind the protocol of one.

Prompts are shared out; who answers which does not show, since a completion depends on (seed, prompt id, index) alone, with the
transformers engine to the last bit for equal batches. Each worker loads the checkpoint by its path, so several machines need a
shared disk. Left out: weights in memory (`update_weights`), which belong to a trainer, who has an engine of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.config import Engine as EngineConfig
from selfplay.config import SamplingParams
from selfplay.distributed.pool import Opening, Pool
from selfplay.engines import Engine
from selfplay.engines.ledger import Ledger
from selfplay.engines.open import open_engine, open_judge_engine
from selfplay.records import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_PROMPTS = 16
"""A worker is asked for fewer at once only where there are no more: a batch of a few takes as long as one of many."""


def open_in_worker(config: EngineConfig, checkpoint: str, name: str, dtype: str, revision: str | None) -> Any:
    """Open a recipe's engine in a worker of Ray, as a process of its own would have it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return open_engine(config, checkpoint, name, dtype=dtype, revision=revision)


def open_judge_on(
    pool: Callable[[], Pool] | None, part: Any, config: EngineConfig, dtype: str, ledger: Ledger | None
) -> Engine:
    """Return the engine that answers for a judge's file: on the workers of `pool`, or here where there are none.

    An endpoint's calls are made here, so that all of them share one limit of rate and one ledger. Raises ConfigError if the file
    names no model.
    """
    model = getattr(part, "model", None)
    if pool is None or model is None or getattr(part, "endpoint", None) is not None:
        return open_judge_engine(part, config, dtype, ledger)
    revision = getattr(part, "revision", None)
    return PooledEngine(pool(), f"judge {model} {revision}", config, model, model, dtype=dtype, revision=revision)


class PooledEngine:
    """An engine per worker over one checkpoint. `slot` names it: another checkpoint in the same slot takes its place."""

    def __init__(
        self,
        pool: Pool,
        slot: str,
        config: EngineConfig,
        checkpoint: str | Path,
        name: str,
        *,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        self.pool = pool
        self.opening = Opening(slot, open_in_worker, (config, str(checkpoint), name, dtype, revision))

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Return the texts that the model reads as a special token; none for an engine that does not know."""
        return dict(self.pool.map(self.opening, [()], "special_tokens"))[0] or frozenset()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts."""
        return self._shared_out(prompts, sampling, "generate")

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """For each prompt, the log-probability (nats, temperature 1) of each choice as the next token."""
        return self._shared_out(prompts, choices, "choice_logprobs")

    def generate_batches(
        self, batches: Sequence[Sequence[Prompt]], sampling: SamplingParams
    ) -> Iterator[tuple[int, list[list[Completion]]]]:
        """Yield (place of a batch, its completions) as batches are done, each made by one worker."""
        yield from self.pool.map(self.opening, [(batch, sampling) for batch in batches], "generate")

    def update_weights(self, model: "PreTrainedModel") -> None:
        """Raise RuntimeError: the workers load checkpoints, by their paths."""
        raise RuntimeError("engines on workers of Ray load checkpoints: open an engine for the checkpoint instead")

    def close(self) -> None:
        """Leave the workers as they are: the pool's end closes what they hold, and another checkpoint takes its place."""

    def _shared_out(self, prompts: Sequence[Prompt], argument: Any, method: str) -> list[Any]:
        each = max(LEAST_PROMPTS, -(-len(prompts) // self.pool.size))
        calls = [(prompts[start : start + each], argument) for start in range(0, len(prompts), each)]
        results = dict(self.pool.map(self.opening, calls, method))
        return [row for place in range(len(calls)) for row in results[place]]
