"""The errors that a user can do something about. The command line prints their message, without a traceback."""


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
