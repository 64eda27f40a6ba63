"""One POST to an endpoint, over httpx: no redirects, a wall-clock limit, and a body that is bounded while it unpacks.

What comes back is bytes until it has been measured, and JSON is UTF-8, whatever a server says. Left out: streaming of
tokens, HTTP/2, and retries (`endpoint_client`).
"""

import asyncio
import codecs
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from selfplay.config import Endpoint
from selfplay.engines.endpoint_calls import BadAnswer
from selfplay.engines.endpoint_keys import Secrets

MOST_BYTES = 16 * 2**20
"""Largest body of an answer, unpacked. 16 answers of 8,192 tokens are less than 1 MiB."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)
"""Failures after which the server cannot have read the call, so that it costs nothing."""


class Response(NamedTuple):
    """What a server answered, unpacked and decoded."""

    status: int
    text: str
    headers: Mapping[str, str]


class Connections:
    """Connections to one endpoint, kept open between calls. To be used on one event loop."""

    def __init__(self, config: Endpoint, secrets: Secrets) -> None:
        self.timeout, self.query = config.timeout, dict(config.query)
        self.url = f"{config.url.rstrip('/')}/{'chat/completions' if config.api == 'chat' else 'completions'}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=config.concurrency)
        headers = {"accept-encoding": "gzip", "content-type": "application/json", **secrets.headers}
        self.client = httpx.AsyncClient(headers=headers, timeout=None, follow_redirects=False, limits=limits)

    async def post(self, body: Mapping[str, Any]) -> Response:
        """Return the server's answer, whatever its status.

        Raises TimeoutError after the endpoint's `timeout`, from the first byte sent to the last one read, httpx's errors
        for a connection that fails, and BadAnswer for a body that cannot be read.
        """
        async with (
            asyncio.timeout(self.timeout),
            self.client.stream("POST", self.url, params=self.query or None, content=json.dumps(body)) as response,
        ):
            data = await read_bounded(response)
        text = (
            decode(data, response.charset_encoding or "utf-8")
            if response.is_success
            else data.decode("utf-8", "replace")
        )
        return Response(response.status_code, text, response.headers)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()


async def read_bounded(response: httpx.Response) -> bytes:
    """Return the body, unpacked. Raises BadAnswer beyond MOST_BYTES, and for an encoding that was not asked for or is broken."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise BadAnswer(f"the answer has the encoding {encoding[:40]!r}, which was not asked for")
    unpacking = None if encoding in ("", "identity") else zlib.decompressobj(zlib.MAX_WBITS | 32)
    parts: list[bytes] = []
    size = received = 0
    async for packed in response.aiter_raw():
        received += len(packed)
        try:
            part = packed if unpacking is None else _unpack(unpacking, packed, MOST_BYTES - size + 1)
        except zlib.error as error:
            raise BadAnswer(f"the answer cannot be unpacked: {error}") from None
        parts.append(part)
        size += len(part)
        if max(size, received) > MOST_BYTES:
            raise BadAnswer(f"the answer is larger than {MOST_BYTES // 2**20} MiB")
    if unpacking is not None and not unpacking.eof:
        raise BadAnswer("the answer is packed, and its end is missing")
    return b"".join(parts)


def _unpack(unpacking: Any, packed: bytes, most: int) -> bytes:
    """Return what a part of a packed body holds; nothing for what stands behind the end, which zlib would keep."""
    return b"" if unpacking.eof else unpacking.decompress(packed, most)


def decode(data: bytes, charset: str) -> str:
    """Return the text of a body. Raises BadAnswer for a charset that does not exist, and for what is not UTF-8, as JSON is."""
    try:
        known = codecs.lookup(charset).name in ("utf-8", "ascii") or data.isascii()
    except (LookupError, ValueError):
        raise BadAnswer(f"the answer is in the unknown charset {charset[:40]!r}") from None
    try:
        if known:
            return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise BadAnswer(f"the answer is not UTF-8: {data[:40]!r}")
