"""Makes calls to one server side by side: concurrency, pace, waits between tries, and the money they may spend."""

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from httpx import HTTPError, InvalidURL

from selfplay.config import Endpoint
from selfplay.engines import Answer
from selfplay.engines.endpoint_calls import (
    BadAnswer,
    Usage,
    cost_of,
    cure_of,
    read_answer,
    read_usage,
    says_something,
    sentence_of,
    worst_cost,
)
from selfplay.engines.endpoint_http import UNSENT, Response
from selfplay.engines.endpoint_keys import Secrets
from selfplay.engines.ledger import Ledger
from selfplay.errors import ConfigError

Outcome = tuple[int, Answer | None, str]
Post = Callable[[Mapping[str, Any]], Awaitable[Response]]
"""`endpoint_http.Connections.post`."""
PASSING = (408, 409, 425, 429)
"""Refusals that may pass; 5xx may too."""
BILLED = (408, 504, 524)
"""Refusals by a gateway that did not wait for the answer: the call is charged as if it had been given."""
GIVE_UP = 24
"""Calls that failed for good in a row, with no answer between them, after which the server counts as down."""
SECONDS_BETWEEN_LOOKS = 0.02


class Retry(Exception):
    """A try that failed in a way that may pass; `wait` is the server's own wish, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Refused(Exception):
    """A call that the server will not answer, however often it is made."""


class Charge:
    """What one try costs: nothing until it is sent, then the most it can, until the server says how much."""

    def __init__(self, call: str, worst: float) -> None:
        self.call, self.worst, self.cost = call, worst, 0.0
        self.tokens: dict[str, int] = {}


class Calls:
    """Calls that ask for `count` texts each, or for the log-probabilities of `choices`; `ledger` counts what they cost."""

    def __init__(
        self, config: Endpoint, secrets: Secrets, ledger: Ledger, model: str, count: int, choices: Sequence[str] | None
    ) -> None:
        self.config, self.secrets, self.ledger, self.model = config, secrets, ledger, model
        self.count, self.choices = count, choices
        self.fatal = ""
        self.failed_in_a_row = self.refused_in_a_row = 0
        self.begun: deque[float] = deque()
        self.not_before = 0.0

    async def make_all(self, post: Post, bodies: Sequence[dict[str, Any]], give: Callable[[Outcome], None]) -> None:
        """Make the calls and `give` each outcome as it comes. Raises ConfigError if there is no use in going on."""
        waiting = iter(enumerate(bodies))
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(min(self.config.concurrency, len(bodies))):
                    lanes.create_task(self._work(post, waiting, give))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        if self.fatal:
            raise ConfigError(self.fatal)

    def given_up(self) -> bool:
        """Return whether there is no use in going on."""
        return bool(self.fatal)

    async def _work(
        self, post: Post, waiting: Iterator[tuple[int, dict[str, Any]]], give: Callable[[Outcome], None]
    ) -> None:
        """Be one of the lanes: take the next body until there is none or no use in going on."""
        for place, body in waiting:
            if self.fatal:
                return
            answer, error, refused = await self._call(post, body)
            if answer is None and self.given_up():  # another lane may have given up meanwhile
                return
            self.failed_in_a_row = 0 if answer is not None else self.failed_in_a_row + 1
            self.refused_in_a_row = self.refused_in_a_row + 1 if refused else 0
            give((place, answer, error))
            if self.failed_in_a_row >= GIVE_UP and not self.fatal:
                self.fatal = self._hopeless(error)

    def _hopeless(self, error: str) -> str:
        """Return why there is no use in going on after calls that all failed, the last one with `error`."""
        if self.refused_in_a_row >= GIVE_UP:
            return f"{self.config.url} refused {GIVE_UP} calls in a row, the last one so: {error}; the answers so far are saved"
        return (
            f"{self.config.url} failed on {GIVE_UP} calls in a row, last with: {error}; the answers so far are saved: "
            "give the same command again when the server is well"
        )

    async def _call(self, post: Post, body: dict[str, Any]) -> tuple[Answer | None, str, bool]:
        """Return one call with its tries: the answer, or why there is none and whether the server refused it for good."""
        worst, error = worst_cost(self.config, body), ""
        for attempt in range(self.config.retries + 1):
            charge = await self._reserve(worst)
            if charge is None:
                return None, self.fatal, False
            try:
                await self._pace()
                if self.fatal:
                    return None, self.fatal, False
                return await self._try(post, body, charge), "", False
            except Retry as problem:
                error, wish = str(problem), problem.wait
            except Refused as problem:
                return None, str(problem), True
            finally:
                if charge.call:
                    self.ledger.settle(charge.call, charge.cost, **charge.tokens)
            if attempt < self.config.retries:
                await self._wait(attempt, wish)
        return None, f"{error} ({self.config.retries + 1} tries)", False

    async def _reserve(self, worst: float) -> Charge | None:
        """Set aside what a call can cost at most, waiting for calls under way to give back what they did not need.

        None, with `fatal` set, where even that is too little, or where another lane gave up meanwhile.
        """
        if not self.config.costs:
            return Charge("", 0.0)
        while not self.fatal:
            alone = not self.ledger.own
            call = self.ledger.reserve(worst, self.config.max_cost, model=self.model)
            if call is not None:
                return Charge(call, worst)
            if alone:
                self.fatal = (
                    f"the run has spent ${self.ledger.total:.4f} on its endpoints, and the next call at {self.config.url}, "
                    f"at ${worst:.4f} at most, could pass the limit endpoint.max_cost of ${self.config.max_cost:g}; the "
                    "answers so far are saved: raise the limit and give the same command to go on"
                )
                return None
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        return None

    async def _try(self, post: Post, body: dict[str, Any], charge: Charge) -> Answer:
        """Return one try. Raises Retry or Refused."""
        charge.cost = charge.worst
        try:
            response = await post(body)
            if 200 <= response.status < 300:
                return self._read(response.text, charge)
        except TimeoutError:
            raise Retry(f"no answer within {self.config.timeout:g} s") from None
        except UNSENT as error:
            charge.cost = 0.0
            raise self._failed("the connection failed", error) from None
        except (HTTPError, InvalidURL, OSError, OverflowError, UnicodeError) as error:
            raise self._failed("the connection failed", error) from None
        except BadAnswer as error:
            raise Retry(self.secrets.hide_in_message(str(error))) from None
        if response.status not in BILLED:
            charge.cost = 0.0
        raise self._refusal(response)

    def _failed(self, what: str, error: Exception) -> Retry:
        return Retry(f"{what}: {self.secrets.hide_in_message(str(error) or type(error).__name__)[:200]}")

    def _read(self, text: str, charge: Charge) -> Answer:
        """Return the body of a response as an answer, and what it cost, which counts even if it is none.

        The most it can cost, where the server does not say how much it did, or counts no token of a text.
        """
        try:
            payload = self.secrets.hide(json.loads(text))
        except (ValueError, RecursionError):
            raise BadAnswer(f"the answer is not JSON: {self.secrets.hide_in_message(text)[:100]!r}") from None
        usage = read_usage(payload)
        if usage is not None and usage.written:
            self._count(usage, charge)
        answer = read_answer(self.config, payload, self.count, self.choices)
        if usage is not None and not usage.written:
            if says_something(answer):
                usage = None
            else:
                self._count(usage, charge)
        read, written = (usage.read, usage.written) if usage is not None else (0, 0)
        return replace(answer, input_tokens=read, output_tokens=written, cost=charge.cost)

    def _count(self, usage: Usage, charge: Charge) -> None:
        charge.cost, charge.tokens = cost_of(self.config, usage), usage._asdict()

    def _refusal(self, response: Response) -> Exception:
        """Return what a status other than 2xx means."""
        status, url = response.status, self.config.url
        message = self.secrets.hide_in_message(sentence_of(response.text))[:300]
        said = f"the server answered {status}: {message}"
        if 300 <= status < 400:
            place = place_of(self.secrets.hide_in_message(response.headers.get("location", "")))
            self.fatal = (
                f"{url} sends its callers to {place} ({status}), and the prompts go nowhere but to endpoint.url: set "
                "endpoint.url to the address that answers"
            )
        elif status in PASSING or status >= 500:
            return Retry(said, seconds_of(response.headers.get("retry-after", "")))
        elif status in (401, 403):
            variable = self.config.key_variable
            self.fatal = f"{url} refuses the key ({status}): " + (
                f"set the environment variable {variable} to a valid one"
                if variable
                else "set endpoint.key_variable to the environment variable that holds one"
            )
        elif status == 404:
            self.fatal = f"{url} does not know what was asked for: {said}; check endpoint.url and model"
        return Refused(f"{said}; {cure_of(message)}")

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


def place_of(location: str) -> str:
    """Return the scheme and host that a redirect names; `elsewhere` where it names none that can be read."""
    try:
        target = urlsplit(location)
    except ValueError:
        return "elsewhere"
    return f"{target.scheme}://{target.hostname}"[:100] if target.hostname else "elsewhere"


def seconds_of(retry_after: str) -> float:
    """Seconds of a Retry-After header, given as a number or a date; 0 for none, for the past and for nonsense."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, IndexError, OSError):
            return 0.0
    return seconds if seconds > 0 else 0.0  # not a number is no time to wait either
