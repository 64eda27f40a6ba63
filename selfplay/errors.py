"""The errors that a user can do something about. The command line prints their message, without a traceback."""


class ConfigError(ValueError):
    """A recipe, file or argument that cannot be used. The message names what, the value and the way out."""
