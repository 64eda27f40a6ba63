"""A loopback server that speaks OpenAI's protocol, badly on command."""

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


class Server(ThreadingHTTPServer):
    """Counts what it is asked. `fault(text, try)` names what goes wrong with the n-th try (from 0) of a text, or
    nothing."""

    daemon_threads = True

    def __init__(self, fault: Callable[[str, int], str], say: Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.say = fault, say
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.under_way = self.most_under_way = 0
        self.begun: list[float] = []
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
            server.begun.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.answer(server.fault(text, number), text, body)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, fault: str, text: str, body: dict[str, Any]) -> None:
        if fault.isdigit() or fault == "429 later":
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
            choice |= {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
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
        return {"choices": choices, "usage": {"prompt_tokens": 100, "completion_tokens": 10 * len(choices)}}

    def reply(
        self, text: str, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **(headers or {})}.items():
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
