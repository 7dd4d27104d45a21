"""A tiny HTTP server that answers as a test tells it, for what no real server does on demand."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One response. ``chunks`` are sent as they come, chunked; ``cut`` drops the connection at
    their end without the last chunk. ``body`` that is neither text nor bytes is sent as JSON."""

    code: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[Any] | None = None
    cut: bool = False
    wait: threading.Event | None = None
    """Waited for before the answer, or with ``chunks`` after the last one."""
    delay: float = 0
    """Seconds before the answer, or with ``chunks`` before the first one."""
    raw: bytes | None = None
    """Sent instead of everything else; then the connection is closed."""


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Scripted:
    """``answer`` is called for each request; ``asked`` are the requests so far."""

    url: str
    asked: list[Asked]


def encoded(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()


@contextlib.contextmanager
def scripted(answer: Callable[[Asked], Answer], address: str = "127.0.0.1") -> Iterator[Scripted]:
    """A server at ``address``, on a free port unless that is ``address:port``."""
    asked: list[Asked] = []
    ending = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Silent."""

        def handle_any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Asked(
                self.command,
                self.path,
                {key.lower(): value for key, value in self.headers.items()},
                json.loads(raw) if raw else None,
            )
            asked.append(request)
            reply = answer(request)
            if reply.chunks is None:
                ending.wait(reply.delay)
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                self.close_connection = True
            elif reply.chunks is None:
                self.hold(reply)
                self.whole(reply)
            else:
                self.stream(reply)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def hold(self, reply: Answer) -> None:
            while reply.wait and not reply.wait.wait(0.02) and not ending.is_set():
                pass

        def start(self, reply: Answer) -> None:
            self.send_response(reply.code)
            for key, value in reply.headers.items():
                self.send_header(key, value)

        def whole(self, reply: Answer) -> None:
            body = encoded(reply.body)
            self.start(reply)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def stream(self, reply: Answer) -> None:
            self.start(reply)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            ending.wait(reply.delay)
            for chunk in reply.chunks or ():
                sent = chunk if isinstance(chunk, str | bytes) else json.dumps(chunk) + "\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(encoded(sent)), encoded(sent)))
            self.wfile.flush()
            self.hold(reply)
            if not reply.cut:
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.close_connection = True

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is what some tests are about."""

    host, _, port = address.partition(":")
    server = Server((host, int(port or 0)), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield Scripted(f"http://{host}:{server.server_address[1]}", asked)
    finally:
        ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
