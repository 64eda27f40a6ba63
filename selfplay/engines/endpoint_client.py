"""Makes calls to one server side by side: concurrency, pace, time limits, waits between tries, and the money spent."""

import asyncio
import json
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from selfplay.config import Endpoint
from selfplay.engines import Answer
from selfplay.engines.endpoint_calls import BadAnswer, read_answer, spent_on, worst_cost
from selfplay.errors import ConfigError

Outcome = tuple[int, Answer | None, str]
Create = Callable[..., Any]
PASSING = (408, 409, 425, 429)
"""Refusals that may pass; 5xx may too."""
GIVE_UP = 24
"""Calls that failed for good in a row, with no answer between them, after which the server counts as down."""


class Retry(Exception):
    """A try that failed in a way that may pass; `wait` is the server's own wish, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Refused(Exception):
    """A call that the server will not answer, however often it is made."""


def key_of(config: Endpoint) -> str:
    """The key, from the environment; empty if there is none."""
    return os.environ.get(config.key_variable, "")


class Calls:
    """Calls that ask for `count` texts each, or for the log-probabilities of `choices`."""

    def __init__(self, config: Endpoint, spent: float, count: int, choices: Sequence[str] | None) -> None:
        self.config, self.spent, self.count, self.choices = config, spent, count, choices
        self.key = key_of(config)
        self.fatal = ""
        self.reserved, self.calls_under_way = 0.0, 0
        self.purse = asyncio.Condition()
        self.failed_in_a_row = 0
        self.begun: deque[float] = deque()
        self.not_before = 0.0

    async def make_all(self, create: Create, bodies: Sequence[dict[str, Any]], give: Callable[[Outcome], None]) -> None:
        """Make the calls and `give` each outcome as it comes. Raises ConfigError if there is no use in going on."""
        waiting = iter(enumerate(bodies))
        await asyncio.gather(*(self._work(create, waiting, give) for _ in range(self.config.concurrency)))
        if self.fatal:
            raise ConfigError(self.fatal)

    def given_up(self) -> bool:
        """Whether there is no use in going on."""
        return bool(self.fatal)

    async def _work(
        self, create: Create, waiting: Iterator[tuple[int, dict[str, Any]]], give: Callable[[Outcome], None]
    ) -> None:
        """One of the lanes: takes the next body until there is none or no use in going on."""
        for place, body in waiting:
            if self.fatal:
                return
            answer, error = await self._call(create, body)
            if answer is None and self.given_up():  # another lane may have given up meanwhile
                return
            self.failed_in_a_row = 0 if answer is not None else self.failed_in_a_row + 1
            give((place, answer, error))
            if self.failed_in_a_row >= GIVE_UP and not self.fatal:
                self.fatal = (
                    f"{self.config.url} failed on {GIVE_UP} calls in a row, last with: {error}; the answers "
                    "so far are saved: "
                    "give the same command again when the server is well"
                )

    async def _call(self, create: Create, body: dict[str, Any]) -> tuple[Answer | None, str]:
        """One call with its tries: the answer, or why there is none."""
        worst, error = worst_cost(self.config, body), ""
        for attempt in range(self.config.retries + 1):
            await self._reserve(worst)
            try:
                await self._pace()
                if self.fatal:
                    return None, self.fatal
                return await self._try(create, body), ""
            except Retry as problem:
                error = str(problem)
                if attempt < self.config.retries:
                    await self._wait(attempt, problem.wait)
            except Refused as problem:
                return None, str(problem)
            finally:
                await self._release(worst)
        return None, f"{error} ({self.config.retries + 1} tries)"

    async def _reserve(self, worst: float) -> None:
        """Set aside what a call can cost at most, waiting for calls under way to give back what they did not need.

        Where even that is too little, the run stops.
        """
        limit = self.config.max_cost
        async with self.purse:
            if limit is not None:
                await self.purse.wait_for(lambda: self.reserved == 0 or self.spent + self.reserved + worst <= limit)
                if self.spent + self.reserved + worst > limit and not self.fatal:
                    self.fatal = (
                        f"the run has spent ${self.spent:.4f} at {self.config.url}, and the next call could "
                        "pass "
                        f"its limit endpoint.max_cost of ${limit:g}; the answers so far are saved: raise the "
                        "limit "
                        "and give the same command to go on"
                    )
            self.reserved += worst
            self.calls_under_way += 1

    async def _release(self, worst: float) -> None:
        """Give back what was set aside for a call."""
        async with self.purse:
            self.calls_under_way -= 1
            self.reserved = self.reserved - worst if self.calls_under_way else 0.0
            self.purse.notify_all()

    async def _try(self, create: Create, body: dict[str, Any]) -> Answer:
        """One try. Raises Retry or Refused."""
        from openai import APIConnectionError, APIStatusError, OpenAIError

        named = {name: body[name] for name in ("model", "messages", "prompt") if name in body}
        rest = {name: value for name, value in body.items() if name not in named}
        try:
            async with asyncio.timeout(self.config.timeout):
                response = await create(**named, extra_body=rest)
            return self._read(response.http_response.text)
        except TimeoutError:
            raise Retry(f"no answer within {self.config.timeout:g} s") from None
        except APIStatusError as error:
            raise self._refusal(error.status_code, str(error), error.response.headers.get("retry-after", "")) from None
        except APIConnectionError as error:
            raise Retry(f"the connection failed: {self._redact(str(error.__cause__ or error))}") from None
        except (BadAnswer, OpenAIError) as error:
            raise Retry(self._redact(str(error))) from None

    def _read(self, text: str) -> Answer:
        """The body of a response as an answer; what it cost counts even if it is none."""
        try:
            payload = json.loads(text)
        except (ValueError, RecursionError):
            raise BadAnswer(f"the answer is not JSON: {text[:100]!r}") from None
        self.spent += spent_on(self.config, payload)[2]
        return read_answer(self.config, payload, self.count, self.choices)

    def _refusal(self, status: int, message: str, retry_after: str) -> Exception:
        """What a status other than 200 means."""
        said = f"the server answered {status}: {self._redact(message)[:200]}"
        if status in PASSING or status >= 500:
            return Retry(said, seconds_of(retry_after))
        if status in (401, 403):
            self.fatal = (
                f"{self.config.url} refuses the key ({status}): set the environment variable "
                f"{self.config.key_variable} to a valid one"
            )
        elif status == 404:
            self.fatal = f"{self.config.url} does not know what was asked for: {said}; check endpoint.url and model"
        return Refused(said)

    async def _wait(self, attempt: int, wish: float) -> None:
        """Wait between two tries: 1, 2, 4, ... s with jitter, or longer if the server wishes so, but within the cap."""
        cap = self.config.longest_wait
        if wish > 0:
            self.not_before = max(self.not_before, time.monotonic() + min(wish, cap))
        await asyncio.sleep(min(cap, 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0))

    async def _pace(self) -> None:
        """Wait until a further call may begin: no server asked for patience, and the minute has room."""
        while True:
            now, limit = time.monotonic(), self.config.requests_per_minute
            while self.begun and self.begun[0] <= now - 60:
                self.begun.popleft()
            pause = self.not_before - now
            if limit is not None and len(self.begun) >= limit:
                pause = max(pause, self.begun[0] + 60 - now)
            if pause <= 0 or self.fatal:
                self.begun.append(now)
                return
            await asyncio.sleep(pause)

    def _redact(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self.key, "***") if self.key else text


def seconds_of(retry_after: str) -> float:
    """Seconds of a Retry-After header, given as a number or a date; 0 for none or nonsense."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
