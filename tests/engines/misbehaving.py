"""A loopback server that speaks OpenAI's protocol, badly on command.

    with serving(lambda text, number: "gzip bomb") as server:
        engine = EndpointEngine(Endpoint(url=url(server)), "model")

FAULTS fail on the way; HOSTILE answers look like answers and must be read as none.
"""

import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = (
    "429",
    "429 later",
    "500",
    "503",
    "timeout",
    "cut",
    "slow",
    "html",
    "empty",
    "no choices",
    "wrong json",
    "broken json",
    "list",
    "null text",
)
BOMB = gzip.compress(bytes(256 * 2**20))
"""256 MiB of zeros in a quarter of a MiB."""


def hostile_answers() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Name -> body and headers of an answer that is none, though its verdict is there for who looks no further."""
    good: dict[str, Any] = {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "[[A]]"}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    whole = json.dumps(good).encode()

    def counted(read: Any, written: Any) -> bytes:
        return json.dumps({**good, "usage": {"prompt_tokens": read, "completion_tokens": written}}).encode()

    def said(content: Any) -> bytes:
        return json.dumps({**good, "choices": [{"message": {"content": content}}]}).encode()

    return {
        "half a surrogate pair": (said("\ud800 [[A]]"), {}),
        "half a surrogate pair in a part": (said([{"type": "text", "text": "[[A]] \udfff"}]), {}),
        "a part that is no text": (said([{"type": "image", "image": "[[A]]"}]), {}),
        "usage of 1e30": (counted(1e30, 1e30), {}),
        "usage of a whole 1e30": (counted(10**30, 10), {}),
        "negative usage": (counted(100, -10_000_000), {}),
        "usage in words": (counted("100", "10"), {}),
        "usage of true": (counted(True, True), {}),
        "usage that is not a number": (whole.replace(b"100", b"NaN"), {}),
        "half of a usage": (counted(100, None), {}),
        "usage as a list": (json.dumps({**good, "usage": [100, 10]}).encode(), {}),
        "unknown charset": (whole, {"content-type": "application/json; charset=klingon"}),
        "charset with a null": (whole, {"content-type": "application/json; charset=\x01"}),
        "latin-1": (
            said("caf\u00e9 [[A]]").replace(b"\\u00e9", b"\xe9"),
            {"content-type": "text/plain; charset=latin-1"},
        ),
        "utf-16": (whole.decode().encode("utf-16"), {"content-type": "application/json; charset=utf-16"}),
        "broken utf-8": (whole.replace(b"[[A]]", b"\xff[[A]]"), {}),
        "gzip bomb": (BOMB, {"content-encoding": "gzip"}),
        "bomb in a bomb": (gzip.compress(BOMB), {"content-encoding": "gzip, gzip"}),
        "broken gzip": (gzip.compress(whole)[:-12] + bytes(12), {"content-encoding": "gzip"}),
        "half a gzip": (gzip.compress(whole)[:-12], {"content-encoding": "gzip"}),
        "an encoding nobody asked for": (whole, {"content-encoding": "br"}),
        "endless": (b" " * (17 * 2**20) + whole, {}),
        "deep": (b"[" * 200_000, {}),
        "deep in choices": (b'{"choices":' + b'[{"a":' * 900 + b"1" + b"}]" * 900 + b"}", {}),
        "long number": (b'{"choices": [' + b"9" * 5000 + b"]}", {}),
        "filtered": (
            json.dumps({**good, "choices": [{**good["choices"][0], "finish_reason": "content_filter"}]}).encode(),
            {},
        ),
    }


HOSTILE = hostile_answers()
ODD_WAITS = (
    "-5",
    "nan",
    "-inf",
    "1e999",
    "inf",
    "Wed, 21 Oct 2015 07:28:00 GMT",
    "Wed, 21 Oct 99999 07:28:00 GMT",
    "\xe9",
    "0x10",
)
"""Values of Retry-After under which a client must neither fail nor wait for long."""


class Server(ThreadingHTTPServer):
    """Counts what it is asked. `fault(text, try)` names what goes wrong with the n-th try (from 0) of a text, or
    nothing."""

    daemon_threads = True
    request_queue_size = 128  # with the usual 5, connections are lost where many are made at once

    def __init__(self, fault: Callable[[str, int], str], say: Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.say = fault, say
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each."""
        self.under_way = self.most_under_way = 0
        self.begun: list[float] = []
        self.usage: dict[str, Any] | None = {"prompt_tokens": 100, "completion_tokens": 10}
        """Of an answer with one text; more texts, more tokens written. None: the server does not count."""
        self.message: dict[str, Any] = {}
        """Further fields of each message, such as what the model thought."""
        self.moved_to = ""
        """Where the fault "redirect" sends its callers."""
        self.lock, self.closing = threading.Lock(), threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        server = self.server
        with server.lock:
            number = server.tries[text]
            server.tries[text] += 1
            server.bodies.append(body)
            server.keys.append(self.headers.get("authorization", ""))
            server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            server.begun.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.answer(server.fault(text, number), text, body)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, fault: str, text: str, body: dict[str, Any]) -> None:
        if fault in HOSTILE:
            data, headers = HOSTILE[fault]
            self.send(data, headers=headers)
        elif fault.startswith("echo"):
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            said = {"choices": [{"message": {"content": f"your key is {key}"}}]}
            self.reply(f"<html>{'x' * 70} your key is {key}" if fault == "echo in html" else json.dumps(said))
        elif fault == "redirect":
            self.reply("", 307, {"location": self.server.moved_to})
        elif fault.startswith("retry after "):
            self.reply("{}", 429, {"retry-after": fault.removeprefix("retry after ")})
        elif fault.startswith("refuse: "):
            self.reply(json.dumps({"error": {"message": fault.removeprefix("refuse: ")}}), 400)
        elif fault.isdigit() or fault == "429 later":
            self.reply(
                json.dumps({"error": {"message": f"no: {fault}, key {self.headers.get('authorization')}"}}),
                int(fault[:3]),
                {"retry-after": "0.2"} if fault == "429 later" else {},
            )
        elif fault == "timeout":
            self.server.closing.wait(60)
        elif fault == "cut":
            self.wfile.write(
                b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{"choices": ['
            )
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n")
            while not self.server.closing.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()
        elif fault:
            said = {
                "html": "<html><body>Bad gateway</body></html>",
                "empty": "",
                "no choices": '{"choices": []}',
                "wrong json": '{"id": 1}',
                "broken json": '{"choices": [{"mess',
                "list": "[]",
                "null text": '{"choices": [{"message": {"content": 7}, "text": 7}]}',
            }
            self.reply(said[fault], kind="text/html" if fault == "html" else "application/json")
        else:
            with self.server.lock:
                self.server.answered[text] += 1
            self.reply(json.dumps(self.good(text, body)))

    def good(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        said = self.server.say(text)
        choices: list[dict[str, Any]] = []
        for _ in range(body.get("n", 1)):
            choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if said.endswith("...") else "stop"}
            choice |= (
                {"message": {"role": "assistant", "content": said, **self.server.message}}
                if "messages" in body
                else {"text": said}
            )
            if body.get("logprobs"):
                rows = {"A": -0.1, "B": -2.5, " the": -4.0}
                choice["logprobs"] = (
                    {
                        "content": [
                            {
                                "token": "A",
                                "top_logprobs": [{"token": token, "logprob": value} for token, value in rows.items()],
                            }
                        ]
                    }
                    if "messages" in body
                    else {"top_logprobs": [rows]}
                )
            choices.append(choice)
        usage = self.server.usage
        if usage is not None:
            usage = {**usage, "completion_tokens": usage["completion_tokens"] * len(choices)}
        return {"choices": choices} | ({} if usage is None else {"usage": usage})

    def reply(
        self, text: str, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self.send(text.encode(), status, {"content-type": kind, **(headers or {})})

    def send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"content-type": "application/json", "content-length": str(len(data))}
        for name, value in {**own, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(
    fault: Callable[[str, int], str] = lambda text, number: "", say: Callable[[str], str] = lambda text: "[[A]]"
) -> Iterator[Server]:
    server = Server(fault, say)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1"
