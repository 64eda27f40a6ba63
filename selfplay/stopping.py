"""Stop when a signal asks for it, at the next point from which the same command goes on.

    with listening():          # the command line, around a run
        ...
        check()                # work that has just saved what it did: raises Stopped if a signal came

SIGTERM, and SIGUSR1 with which SLURM warns, only set a flag: an optimizer step or a batch that is under way is finished
and saved first. Without `listening`, and in processes that were started within it, nothing changes. Left out: saving, which
is the caller's.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from selfplay.errors import EngineFailed, Interrupted, Stopped

GO_ON = "what is finished is saved: give the same command again to go on"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_asked: list[str] = []
"""Names of the signals that came since `listening` began."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn SIGTERM and SIGUSR1 in the block into a stop at the next `check`, and Ctrl-C into one sentence.

    A second SIGTERM ends the process at once. Raises Stopped (exit code 75) and Interrupted (130). Only for the main thread.
    """
    own = os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that was forked off: it ends, as it would without us
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            _ask(signal.Signals(number))

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    except EngineFailed as error:
        if not requested():
            raise
        raise stopped() from error  # the signal reached the engine's processes too
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {GO_ON}") from None
    finally:
        _asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _ask(number: signal.Signals) -> None:
    """Note a signal and say so; a second SIGTERM is left to end the process."""
    if number.name not in _asked:
        _asked.append(number.name)
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        line = f"{number.name}: the step or batch under way is finished and saved first; a second SIGTERM ends at once"
        os.write(2, f"{line}\n".encode())  # a handler may have come in the middle of a print


def ask(name: str) -> None:
    """Ask this process to stop as the signal of that name would, on behalf of another process that got it."""
    if name not in _asked:
        _asked.append(name)


def requested() -> bool:
    """Return whether a signal has asked to stop."""
    return bool(_asked)


def stopped() -> Stopped:
    """Return the error that says what stopped the run and how to go on. Under torchrun, another process may have been asked."""
    return Stopped(f"stopped by {_asked[0] if _asked else 'a signal'}; {GO_ON}")


def check() -> None:
    """Raise Stopped if a signal has asked to stop. Call it where all that was done is saved."""
    if requested():
        raise stopped()
