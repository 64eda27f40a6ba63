"""A pool of Ray actors that each hold what they are told to open, such as an engine, and call its methods.

A call that is lost with its actor or its node is made again, by whichever actor is free; a new actor takes the place of
the lost one when there is room for it. An idle actor that dies costs nothing. So a loss costs the calls that were under way,
once. Not `ray.data.map_batches`: it starts its actors anew for each data set, and a judge asks in many small portions, for each
of which the models would be loaded again.
"""

import contextlib
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfplay import stopping
from selfplay.config import Launch
from selfplay.errors import ConfigError, EngineFailed, as_told, first_line
from selfplay.stopping import GO_ON

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_COME_UP = 600.0
SECONDS_TO_CLOSE = 20.0


@dataclass(frozen=True)
class Opening:
    """What an actor is to hold in a slot: `opener(*arguments)`. Another opening in the same slot takes its place."""

    slot: str
    opener: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass
class Holder:
    """Lives in an actor, and opens what it is asked for."""

    directory: str
    held: dict[str, tuple[Opening, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Work where the driver works, if this machine has that directory: a recipe's paths begin there."""
        with contextlib.suppress(OSError):
            os.chdir(self.directory)

    def ready(self) -> None:
        """Answer, to say that the actor is there."""

    def call(self, opening: Opening, method: str, arguments: Sequence[Any]) -> Any:
        """Return what a method of the opened thing returns, or an attribute; None for one that it does not have.

        Raises what that raises. An engine that failed is closed, and its actor is given up by the pool.
        """
        try:
            found = getattr(self._open(opening), method, None)
            return found(*arguments) if callable(found) else found
        except EngineFailed:
            with contextlib.suppress(Exception):
                self.close_all()
            raise
        except Exception as error:
            told = as_it_travels(error)
            if told is error:
                raise
            raise told from error

    def close(self, slot: str) -> None:
        """Close what a slot holds."""
        if slot in self.held:
            self.held.pop(slot)[1].close()

    def close_all(self) -> None:
        """Close what all slots hold, before the actor ends."""
        for slot in list(self.held):
            self.close(slot)

    def _open(self, opening: Opening) -> Any:
        if slot_is_other := self.held.get(opening.slot, (opening,))[0] != opening:
            self.close(opening.slot)
        if slot_is_other or opening.slot not in self.held:
            self.held[opening.slot] = (opening, opening.opener(*opening.arguments))
        return self.held[opening.slot][1]


def as_it_travels(error: Exception) -> Exception:
    """Return an error as another process can read it: itself, or one with its message if its class cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        code = getattr(error, "exit_code", None)
        name = type(error).__name__
        return RuntimeError(f"{name}: {error}") if code is None else as_told(name, str(error), code)


class Pool:
    """`launch.size` workers of a connected Ray, each with `gpus` GPUs where the cluster has any (then so many fewer)."""

    def __init__(self, launch: Launch, gpus: int = 1) -> None:
        """Start the actors. Raises ConfigError if the cluster has fewer GPUs than the recipe says."""
        import ray

        self.ray, self.restarts = ray, launch.restarts
        there = int(ray.cluster_resources().get("GPU", 0))
        if there and there < launch.size:
            raise ConfigError(
                f"launch asks for {launch.nodes} x {launch.workers} GPUs, and the Ray cluster has {there}: lower launch.nodes or "
                "launch.workers, or add machines to the cluster"
            )
        if there and launch.size % gpus:
            raise ConfigError(
                f"launch has {launch.size} workers, which engines of engine.tensor_parallel {gpus} cannot share out: make it a "
                f"multiple of {gpus}"
            )
        self.size = launch.size // gpus if there else launch.size
        self._actor = ray.remote(Holder).options(
            num_cpus=1, num_gpus=gpus if there else 0, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._idle: list[Any] = []
        self._busy: dict[Any, Any] = {}
        """What an actor is to finish before it is idle, such as its start -> the actor."""
        self._starting: set[Any] = set()
        """Those of what actors are to finish that are their starts."""
        self._begin_all()

    def map(self, opening: Opening, calls: Sequence[tuple[Any, ...]], method: str) -> Iterator[tuple[int, Any]]:
        """Make calls of a method of what `opening` opens; yield (place of the call, its result) as they are done.

        After `close` the actors start again. Raises what the method raises; EngineFailed for a call that was lost more than
        `launch.restarts` times, or if no actor comes up.
        """
        ray, todo, losses = self.ray, deque(enumerate(calls)), Counter[int]()
        running: dict[Any, tuple[Any, int, Any]] = {}
        if self._closed:
            self._begin_all()
        self._look_at_idle()
        came_up = time.monotonic()
        try:
            while todo or running:
                while todo and self._idle:
                    actor, (place, arguments) = self._idle.pop(), todo.popleft()
                    try:
                        running[actor.call.remote(opening, method, arguments)] = (actor, place, arguments)
                    except Exception:  # Ray knows already that it is dead, and raises nothing more precise
                        todo.appendleft((place, arguments))
                        self._begin()
                came_up = time.monotonic() if running else came_up
                if time.monotonic() - came_up > SECONDS_TO_COME_UP:
                    raise EngineFailed(f"no worker of Ray came up in {SECONDS_TO_COME_UP:g} s; {GO_ON}")
                done, _ = ray.wait([*running, *self._busy], timeout=SECONDS_BETWEEN_LOOKS)
                for reference in done:
                    if reference in self._busy:
                        self._settle(reference)
                        continue
                    actor, place, arguments = running.pop(reference)
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        if self._goes_on(error):
                            self._idle.append(actor)
                            raise error.cause from None
                        self._lost(actor, losses, place, method, error)
                        todo.append((place, arguments))
                        continue
                    self._idle.append(actor)
                    yield place, result
        finally:  # calls whose results nobody waits for any more
            self._busy |= {reference: actor for reference, (actor, _, _) in running.items()}

    def close(self) -> None:
        """End the actors; the next call starts others. What an idle one holds is closed first: it may be a GPU's memory."""
        closing = [actor.close_all.remote() for actor in self._idle]
        if closing:
            self.ray.wait(closing, num_returns=len(closing), timeout=SECONDS_TO_CLOSE)
        for actor in [*self._idle, *self._busy.values()]:
            self._end(actor)
        self._idle, self._busy, self._closed = [], {}, True
        self._starting.clear()

    def _begin_all(self) -> None:
        self._failed_starts, self._closed = 0, False
        for _ in range(self.size):
            self._begin()

    def _begin(self) -> None:
        actor: Any = self._actor.remote(os.getcwd())
        reference = actor.ready.remote()
        self._busy[reference] = actor
        self._starting.add(reference)

    def _look_at_idle(self) -> None:
        """Replace the idle actors that are dead, so that no call meets one; those that do not answer soon are busy."""
        asked = []
        while self._idle:
            actor = self._idle.pop()
            try:
                asked.append(actor.ready.remote())
            except Exception:  # as for a call: Ray knows already that it is dead
                self._begin()
                continue
            self._busy[asked[-1]] = actor
        if asked:
            for reference in self.ray.wait(asked, num_returns=len(asked), timeout=SECONDS_BETWEEN_LOOKS)[0]:
                self._settle(reference)

    def _settle(self, reference: Any) -> None:
        """Take an actor in that has finished what it was at, or another one in its place."""
        actor, starting = self._busy.pop(reference), reference in self._starting
        self._starting.discard(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            if not self._goes_on(error):  # else it is an error of a call whose result nobody waits for
                self._end(actor)
                self._failed_starts += starting
                if self._failed_starts > self.size * (1 + self.restarts):
                    raise EngineFailed(f"the workers of Ray do not come up: {first_line(error)}; {GO_ON}") from None
                self._begin()
                return
        self._idle.append(actor)

    def _goes_on(self, error: Any) -> bool:
        """Return whether an actor goes on behind an error: it is a call's own, not the death of the actor or of its engine."""
        return isinstance(error, self.ray.exceptions.RayTaskError) and not isinstance(error.cause, EngineFailed)

    def _end(self, actor: Any) -> None:
        """End an actor that is of no use any more: one whose engine died goes on by itself, and holds its cores and its GPU."""
        with contextlib.suppress(Exception):  # it may be dead already
            self.ray.kill(actor)

    def _lost(self, actor: Any, losses: Counter[int], place: int, method: str, error: Any) -> None:
        """End the actor that lost a call, count the call, and start another actor.

        Raises Stopped if a signal has asked to stop (it may have reached the actors too); EngineFailed if that was one too many.
        """
        self._end(actor)
        stopping.check()
        losses[place] += 1
        if losses[place] > self.restarts:
            reason = first_line(getattr(error, "cause", error)).removesuffix(f"; {GO_ON}")
            raise EngineFailed(
                f"a worker of Ray died {losses[place]} times in the same call of {method} (launch.restarts {self.restarts}): "
                f"{reason}; {GO_ON}"
            ) from None
        self._begin()
        self._look_at_idle()  # they may have been lost with it
