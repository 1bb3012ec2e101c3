"""A small HTTP server that answers as a test tells it to, and keeps what it was asked.

For peers that misbehave: what a real archive does is tested with a real archive.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Says:
    """One answer.

    Attributes:
        length: What Content-Length claims; None: the truth.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stub:
    """A running server."""

    url: str
    asked: Queue[Asked]

    def seen(self) -> list[Asked]:
        """The requests so far, of which the queue forgets."""
        return [self.asked.get_nowait() for _ in range(self.asked.qsize())]


@contextmanager
def stub(
    answer: Callable[[Asked], Says], *, certificate: tuple[Path, Path] | None = None
) -> Iterator[Stub]:
    """Serves on a free port of loopback for a block; over TLS with a certificate and its key."""
    asked: Queue[Asked] = Queue()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            request = Asked(
                method=self.command,
                path=self.path,
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            )
            asked.put(request)
            says = answer(request)
            self.send_response(says.status)
            for name, value in says.headers.items():
                self.send_header(name, value)
            self.send_header(
                "Content-Length", str(len(says.body) if says.length is None else says.length)
            )
            self.end_headers()
            self.wfile.write(says.body)
            self.close_connection = says.length is not None

        do_GET = do_POST = respond  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is part of the test."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Stub(
            url=f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}",
            asked=asked,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
