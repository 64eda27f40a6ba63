"""Text from a server that speaks OpenAI's protocol, such as `vllm serve` or a hosted model.

Calls run side by side, so many at once and so many a minute as the settings allow. One that fails on the way is made
again after a capped, growing wait; one that the server refuses is not. The key comes from the environment and goes
nowhere else. Nothing that the server sends is taken on trust. Left out: streaming of tokens, and batches by upload.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from selfplay.config import Endpoint, SamplingParams
from selfplay.engines import Answer
from selfplay.engines.endpoint_calls import request_body, worst_cost
from selfplay.engines.endpoint_client import Calls, Post
from selfplay.engines.endpoint_http import Connections
from selfplay.engines.endpoint_keys import Secrets
from selfplay.engines.ledger import Ledger
from selfplay.errors import ConfigError
from selfplay.records import Completion, Prompt

Row = tuple[int, Answer | None, str]


class EndpointEngine:
    """Generates through a server. `ledger` counts what its calls cost; engines that share one share `max_cost`."""

    def __init__(self, config: Endpoint, model: str, ledger: Ledger | None = None) -> None:
        """Raise ConfigError for a key that is missing or cannot be sent."""
        self.config, self.name, self.ledger = config, model, ledger or Ledger()
        self.secrets = Secrets.read(config)
        self._line: Line | None = None

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt; none for one whose call failed (`stream` says why)."""
        answers = {place: answer for place, answer, _ in self.stream(prompts, sampling) if answer is not None}
        return [self._completions(prompt, answers.get(place, Answer())) for place, prompt in enumerate(prompts)]

    def _completions(self, prompt: Prompt, answer: Answer) -> list[Completion]:
        return [
            Completion(
                id=f"{prompt.id}/{index}",
                prompt_id=prompt.id,
                text=text,
                policy=self.name,
                finish_reason="length" if reason == "length" else "stop",
            )
            for index, (text, reason) in enumerate(zip(answer.texts, answer.finish_reasons, strict=True))
        ]

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[list[float]]:
        """For each prompt, the log-probability (nats) of each choice as the next token, as far as the server names it:
        see `endpoint_calls.read_logprobs`. nan for a call that failed."""
        found: dict[int, dict[str, float]] = {}
        for place, answer, _ in self.stream(prompts, SamplingParams(), choices):
            if answer is not None and answer.logprobs is not None:
                found[place] = answer.logprobs
        return [[found.get(place, {}).get(choice, float("nan")) for choice in choices] for place in range(len(prompts))]

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, choices: Sequence[str] | None = None
    ) -> Iterator[Row]:
        """(place, answer or None, error) for each prompt, as they come.

        Raises ConfigError, once the calls under way are given out, if the server refuses the key or the model, answers
        nothing any more, or if the run has spent its money. Leaving the iteration ends the calls under way.
        """
        bodies = [request_body(self.config, self.name, prompt, sampling, choices) for prompt in prompts]
        if bodies:
            worst_cost(self.config, bodies[0])
        self._line = self._line or Line(Connections(self.config, self.secrets))
        count = 1 if choices is not None else sampling.n
        calls = Calls(self.config, self.secrets, self.ledger, self.name, count, choices)
        rows: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()
        under_way = asyncio.run_coroutine_threadsafe(_make(calls, self._line.post, bodies, rows.put), self._line.loop)
        row: Row | BaseException | None = None
        try:
            while (row := rows.get()) is not None:
                if isinstance(row, BaseException):
                    raise row
                yield row
        finally:
            under_way.cancel()
            while row is not None:
                row = rows.get()

    def update_weights(self, model: object) -> NoReturn:
        """Raise ConfigError: a server's weights are its own."""
        raise ConfigError(f"the model {self.name!r} at {self.config.url} cannot be trained: an endpoint can only judge")

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()
        self._line = None


class Line:
    """Connections to a server, on an event loop in a thread of its own."""

    def __init__(self, connections: Connections) -> None:
        self.connections, self.post = connections, connections.post
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="endpoint", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Close the connections and end the thread."""
        asyncio.run_coroutine_threadsafe(self.connections.close(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


async def _make(
    calls: Calls,
    post: Post,
    bodies: Sequence[dict[str, object]],
    give: Callable[[Row | BaseException | None], None],
) -> None:
    """Make all calls and give each outcome; then an error, if there is one; in the end None."""
    try:
        await calls.make_all(post, bodies, give)
    except Exception as error:  # handed to the thread that waits for the rows
        give(error)
    finally:
        give(None)
