"""The judge of a run, its model, and the server that may hold it."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from selfplay.config.base import Count, NonNegative, Positive, Section, Texts
from selfplay.config.models import Architecture, Optimisation

A_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|gsk|hf|xai|pk|rk|nvapi)[-_](?=[-_A-Za-z0-9]*\d|[A-Za-z0-9]{30})[-_A-Za-z0-9]{12,}|AIza[-_A-Za-z0-9]{16,})"
    r"|Bearer \S+",
)
"""What looks like a key: refused where none may stand, and hidden in messages. Without a digit it has 30 letters (the hub's)."""
KEY_NAMES = "key|secret|token|authorization|password|credential"
NAMES_A_KEY = re.compile(KEY_NAMES, re.IGNORECASE)
NAMES_A_KEY_IN_EXTRA = re.compile(r"^(x-)?(api[-_]?key|authorization|password|secret|access[-_]?token)$", re.IGNORECASE)
PLURAL_FIELDS = {"n": "set sampling.n", "best_of": "leave it out", "stream": "leave it out"}
"""Fields of a call that `extra` may take out, but not set, since they change how many texts are paid for or how they come ->
what to do instead."""
HEADER = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


class Endpoint(Section):
    """A server that speaks OpenAI's protocol: `vllm serve`, or a hosted model."""

    url: str
    """Where it is, up to and with `/v1`. A server that answers with a redirect is refused."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends messages; `completions` sends the text of a single message, for models without a chat template."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null for a server that needs none. The key itself never stands in a file.
    One that is not set is refused before work starts, unless it is the default and the URL begins with http://."""
    key_header: str = "Authorization"
    """Header that carries the key: `Authorization: Bearer KEY`, or, under any other name, the key alone (Azure: api-key)."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Further headers. `$NAME` stands for the environment variable NAME, which is kept as secret as the key."""
    query: dict[str, str] = Field(default_factory=dict)
    """Query parameters of every call, such as {api-version: preview}."""
    concurrency: Count = 16
    """Most calls under way at once."""
    requests_per_minute: Count | None = None
    """Most calls begun in any minute."""
    timeout: Positive = 120.0
    """Seconds by the clock after which a call is given up, from the first byte sent to the last one read."""
    retries: Annotated[int, Field(ge=0)] = 5
    """How often a call that failed on the way (429, 5xx, timeout, cut connection, unreadable answer) is made again."""
    longest_wait: Positive = 60.0
    """Most seconds between two tries; they double from 1, with jitter, and a server's Retry-After counts."""
    guided: bool = True
    """Send the JSON schema with the call (`response_format`), for servers that can decode along it."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each call, such as {reasoning_effort: low}; null takes out one that is sent by default."""
    input_price: NonNegative = 0.0
    """Dollars per million tokens read."""
    cached_input_price: NonNegative | None = None
    """Dollars per million tokens read that the server remembers from an earlier call; default `input_price`."""
    output_price: NonNegative = 0.0
    """Dollars per million tokens written, thinking included."""
    max_cost: Positive | None = None
    """Dollars that one run may spend, over all its judges; then it stops, with everything saved. Needs the prices."""

    @property
    def costs(self) -> bool:
        """Whether a call has a price."""
        return any((self.input_price, self.cached_input_price, self.output_price))

    @property
    def needs_key(self) -> bool:
        """Whether a key that is not set is a mistake: one was named, or the address is not one of a local network."""
        return self.key_variable != "OPENAI_API_KEY" or self.url.startswith("https://")

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that change an answer and are not as they are by default."""
        names = ("api", "guided", "extra", "query")
        return {
            name: value for name in names if (value := getattr(self, name)) != getattr(Endpoint(url=self.url), name)
        }

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        """Check a URL without showing in a message what may hold a key."""
        try:
            parts = urlsplit(url)
            names = (parts.hostname or "none").removesuffix(".").split(".")
            reachable = parts.port != 0 and all(0 < len(name) < 64 for name in names)
        except ValueError:  # a bracket that is not closed, or a port that is no number
            reachable = False
        if not reachable or re.search(r"[\s\x00-\x1f\x7f]", url):
            raise ValueError(
                "nothing can be at this address: its host or its port, from 1 to 65535, is not one; write http://HOST:PORT/v1"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address begins with http:// or https:// and names a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the address holds a user name or a key: take it out, and set key_variable instead")
        if parts.query or parts.fragment:
            raise ValueError("the address ends with a query: put its parameters into `query`")
        return url

    @field_validator("key_variable")
    @classmethod
    def _check_key_variable(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z_]\w{0,63}", name, re.ASCII) or A_KEY.match(name)):
            raise ValueError("this is the name of an environment variable, such as MY_KEY, and never the key itself")
        return name

    @field_validator("headers", "query", "extra")
    @classmethod
    def _check_no_secrets(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for name, value in values.items():
            if info.field_name == "headers" and not (HEADER.fullmatch(name) and HEADER_VALUE.fullmatch(value)):
                raise ValueError(
                    f"{name!r} is not a header that can be sent: names are letters, digits and -, values ASCII"
                )
            from_environment = info.field_name == "headers" and value.startswith("$")
            secret = NAMES_A_KEY if info.field_name != "extra" else NAMES_A_KEY_IN_EXTRA
            if not from_environment and (secret.search(name) or (isinstance(value, str) and A_KEY.match(value))):
                raise ValueError(
                    f"{name!r} looks like a key, which never stands in a file: set key_variable and key_header, or give "
                    "`$NAME` as the value of a header, to read it from the environment"
                )
        return values

    @field_validator("extra")
    @classmethod
    def _check_plural(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in PLURAL_FIELDS.keys() & {name for name, value in values.items() if value is not None}:
            raise ValueError(
                f"{name!r} changes how many texts a call is paid for, or how they come: {PLURAL_FIELDS[name]}"
            )
        return values

    @model_validator(mode="after")
    def _check(self) -> "Endpoint":
        if self.max_cost is not None and not self.costs:
            raise ValueError(
                "max_cost limits nothing while input_price and output_price are 0: set the prices, in dollars per "
                "million tokens"
            )
        return self


class JudgeBootstrap(Section):
    """A judge from text alone: a small Llama that learns from rules to answer `judge.file`, over pairs of the built-in
    stories. It is in the run's `iteration-000/judge`."""

    rules: str = "stories"
    """The judge that teaches, of mode `rules`. Nothing else in the run sees what it says, unless it also measures."""
    also: Texts = ()
    """Further judge files that the same model learns to answer."""
    vocabulary: Annotated[int, Field(ge=512)] = 1280
    """Size of the BPE vocabulary, which is the judge's own; words of the prompts' columns are tokens of their own."""
    architecture: Architecture = Architecture(context=768)
    training: Optimisation = Optimisation(steps=1800, batch_size=16)
    """Each step learns from `batch_size` lessons it has not seen before."""
    heldout: Count = 512
    """Pairs of held-out stories on which the judge's agreement with the rules is measured."""


class Judge(Section):
    """Who says which completion is better."""

    file: str = "stories"
    """A judge file: the name of a shipped one, or the path of a YAML file of your own."""
    model: str | None = None
    """Overrides the file's model: a checkpoint, a hub id, `policy`, or an endpoint's model name."""
    bootstrap: JudgeBootstrap | None = None
    """Make the judge's model from text instead of naming one."""
    precheck: bool = True
    """Before a completion is generated, run the judge file's tests and ask about its gold pairs and canaries, and stop if its
    thresholds are not met. False leaves that to the first labels, which are checked in any case."""

    @model_validator(mode="after")
    def _check(self) -> "Judge":
        if self.model is not None and self.bootstrap is not None:
            raise ValueError(f"judge.bootstrap makes a model, and judge.model names {self.model!r}: remove one of them")
        return self
