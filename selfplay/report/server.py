"""The report of a run that goes on, served on loopback: the same page, made anew whenever a stage has finished.

Answers this machine only: it listens on 127.0.0.1 and refuses requests under another host name, so that no web page
elsewhere can read it.
"""

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from selfplay.report.html import render_report
from selfplay.results.load import read_run
from selfplay.storage.files import hash_of

WATCHED = (
    "config.yaml",
    "metrics.jsonl",
    "iteration-*/*/manifest.json",
    "iteration-*/evaluate/*",
    "iteration-*/label/*.json",
)


def version(run_directory: Path) -> str:
    """Return a text that changes whenever something that the report shows has changed."""
    files = sorted(path for pattern in WATCHED for path in run_directory.glob(pattern) if path.is_file())
    return hash_of([(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files])[:16]


class LiveReport:
    """The page of one run, made when it is first asked for and again after each change."""

    def __init__(self, run_directory: Path) -> None:
        self.directory = run_directory
        self._lock = threading.Lock()
        self._made = ("", b"")

    def page(self) -> bytes:
        """Return the current page."""
        with self._lock:
            now = version(self.directory)
            if self._made[0] != now:
                self._made = (now, render_report(read_run(self.directory), live=True).encode())
            return self._made[1]


def make_server(run_directory: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server for one run's report on 127.0.0.1, port 0 for any free one. Raises ConfigError if there is no run."""
    report = LiveReport(run_directory)
    read_run(run_directory)

    class Handler(BaseHTTPRequestHandler):
        """`/` is the page, `/version` says whether it has changed."""

        def do_GET(self) -> None:
            """Answer one request."""
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers on 127.0.0.1 only\n")
            elif self.path == "/":
                self._answer(HTTPStatus.OK, "text/html", report.page())
            elif self.path == "/version":
                self._answer(HTTPStatus.OK, "text/plain", version(run_directory).encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is one page here: /\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal belongs to the user."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def serve_report(run_directory: Path, port: int = 8765) -> None:
    """Serve a run's report until interrupted. Raises ConfigError if there is no run, OSError if the port is taken."""
    with make_server(run_directory, port) as server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
