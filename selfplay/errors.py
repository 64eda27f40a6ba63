"""The errors that a user can do something about. The command line prints their message, without a traceback.

Exit codes of `selfplay`: 0 done; 1 failed, or a check found a problem; 2 a mistake in a recipe, file or argument; 3 the run
ended before its last iteration by its own rules; 75 stopped by a signal, the same command goes on; 130 Ctrl-C.
"""

ENDED_EARLY = 3
"""Exit code of a run that the brake or the guard ended before its last iteration; `outcome.json` says why."""


class SelfplayError(Exception):
    """Base of all of them. The message says what is wrong, with which value, and the way out."""

    exit_code = 1


class ConfigError(SelfplayError, ValueError):
    """A recipe, file or argument that cannot be used; found before work starts wherever it can be."""

    exit_code = 2


class JudgeStopped(SelfplayError):
    """Judging was given up. The message says why, with examples of what the judge said."""


class Diverged(SelfplayError):
    """Training met a gradient or a loss that is not finite. The last checkpoint is kept."""


class EngineFailed(SelfplayError):
    """An engine's process died or no longer answers. What is finished is saved: the same command goes on."""


class WorkersFailed(SelfplayError):
    """A stage's workers failed more often than they may be restarted. What is finished is saved: the same command goes on."""


class Stopped(SelfplayError):
    """A signal asked to stop, and what was done is saved. The code is EX_TEMPFAIL: the same command goes on."""

    exit_code = 75


class Interrupted(SelfplayError):
    """Ctrl-C. The code is that of a shell for a command that SIGINT ended."""

    exit_code = 130


def as_told(kind: str, message: str, exit_code: int) -> SelfplayError:
    """Return the error that another process raised, of a class of this module or its base."""
    found = globals().get(kind, SelfplayError)
    error: SelfplayError = found(message)
    error.exit_code = exit_code
    return error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, without the full stop; the name of its class if it says nothing."""
    return [*str(error).strip().splitlines(), type(error).__name__][0].rstrip(". ")
