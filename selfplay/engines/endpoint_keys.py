"""Keys of endpoints: read from the environment, sent to the endpoint's own address, shown and written nowhere.

What an answer or an error repeats of a key is masked before anyone sees it. Imports nothing heavy, so that a recipe can
be checked for its keys before work starts.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfplay.config import Endpoint
from selfplay.errors import ConfigError

MASK = "***"
LEAST_MASKED = 8
"""Characters of a key from which on it is masked in answers too; a placeholder such as "none" may be a word in them."""


@dataclass(frozen=True, repr=False)
class Secrets:
    """The headers that carry keys, and the keys themselves. Has no `repr`, so that no traceback shows them."""

    headers: Mapping[str, str]
    values: tuple[str, ...]

    @classmethod
    def read(cls, config: Endpoint) -> "Secrets":
        """Return the endpoint's keys. Raises ConfigError, without showing any, for one that is missing or cannot be sent."""
        headers: dict[str, str] = {}
        values: list[str] = []
        key = read_key(config)
        if key:
            headers[config.key_header] = f"Bearer {key}" if config.key_header.lower() == "authorization" else key
            values.append(key)
        for name, value in config.headers.items():
            if value.startswith("$"):
                values.append(read_variable(value[1:], f"endpoint.headers.{name}"))
                value = values[-1]
            headers[name] = value
        return cls(headers, tuple(sorted(set(values), key=len, reverse=True)))

    def hide(self, value: Any) -> Any:
        """Return a JSON value in which no string, key of a mapping included, holds a secret of LEAST_MASKED characters
        or more.
        """
        if isinstance(value, str):
            return self._mask(value, LEAST_MASKED)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(name): self.hide(item) for name, item in value.items()}
        return value

    def hide_in_message(self, message: str) -> str:
        """Return an error message without any secret, however short, and with nothing that cannot be printed or stored."""
        return self._mask(message, 1).encode("utf-8", "backslashreplace").decode()

    def _mask(self, text: str, least: int) -> str:
        for secret in self.values:
            if len(secret) >= least:
                text = text.replace(secret, MASK)
        return text


def read_key(config: Endpoint) -> str:
    """Return the endpoint's key; empty if it needs none. Raises ConfigError as `read_variable` does."""
    if config.key_variable is None:
        return ""
    if not os.environ.get(config.key_variable) and not config.needs_key:
        return ""
    return read_variable(config.key_variable, "endpoint.key_variable")


def read_variable(name: str, setting: str) -> str:
    """Return a secret from the environment. Raises ConfigError if it is missing or holds what no header may hold."""
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(
            f"{setting} names the environment variable {name}, which is not set: set it to the key"
            + (", or set key_variable to null for a server that needs none" if setting.endswith("variable") else "")
        )
    wrong = re.search(r"[^\x21-\x7e]", value)
    if wrong is not None:
        kind = "whitespace or a control character" if ord(wrong.group()) < 0x80 else "a character outside ASCII"
        raise ConfigError(
            f"the environment variable {name} holds {kind} at place {wrong.start() + 1} of {len(value)}, which no key "
            "has: set it to the key alone"
        )
    return value
