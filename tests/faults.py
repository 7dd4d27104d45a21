"""Trouble between a client and an API server: a proxy on 127.0.0.1 that delays, refuses and breaks.

Receives the kubeconfig of a real API server (TLS and credentials as they are) and gives one that
leads through the proxy, by plain HTTP. What happens to a request is decided by `Proxy.rule`, asked
for each; None passes it on untouched. Watches are passed on event by event. Never changes a body.

    with Proxy(kubeconfig) as proxy:
        proxy.rule = sometimes(Random(7), 0.2, (TOO_MANY, LOST_AFTER), when=writes)
        ... agent(proxy.kubeconfig) ...
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import select
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import yaml


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    number: int
    """From 1, in the order of arrival."""
    method: str
    path: str
    """With its query."""
    body: bytes = field(repr=False, default=b"")

    @property
    def watch(self) -> bool:
        """True where the answer is a stream of events."""
        return "watch=true" in self.path.lower()


@dataclass(frozen=True)
class Answer:
    """What the client gets instead of the API server's answer."""

    code: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. The steps are in the order of the fields."""

    delay: float = 0.0
    """Seconds before it is passed on; infinity: until `Proxy.release`."""
    acts: bool = True
    """Whether it is passed on at all."""
    lag: float = 0.0
    """Seconds before the client gets the answer; infinity: until `Proxy.release`."""
    answer: Answer | None = None
    """Given in the API server's place."""
    lost: bool = False
    """The connection breaks instead of an answer."""


def refused(code: int, body: str, **headers: str) -> Fault:
    """An answer that the API server never sees the request for."""
    shown = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Fault(acts=False, answer=Answer(code, body, shown))


def _status(code: int, reason: str, message: str) -> str:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return json.dumps({**status, "reason": reason, "message": message, "code": code})


TOO_MANY = refused(429, "Too many requests, please try again later.", retry_after="1")
"""The API server's flow control: plain text, without a Status."""
BROKEN = refused(500, _status(500, "InternalError", "Internal error occurred: not now"))
STARTING = refused(
    503,
    _status(
        503,
        "ServiceUnavailable",
        "the request has been made before all known HTTP paths have been installed, please try"
        " again",
    ),
    retry_after="5",
)
LOST_BEFORE = Fault(acts=False, lost=True)
LOST_AFTER = Fault(lost=True)
"""The API server did what was asked; the client cannot know."""
HUNG = Fault(delay=math.inf)
"""Arrives when it is released, however late that is."""

Rule = Callable[[Request], Fault | None]
"""Asked by many threads at once."""


def writes(request: Request) -> bool:
    """True for a request that may change something, dry runs included."""
    return request.method != "GET"


def sometimes(
    rng: Random, share: float, faults: Sequence[Fault], *, when: Callable[[Request], bool] = bool
) -> Rule:
    """One of the faults for that share (0 to 1) of the requests that `when` is true for."""
    lock = threading.Lock()

    def rule(request: Request) -> Fault | None:
        with lock:
            return rng.choice(faults) if when(request) and rng.random() < share else None

    return rule


class Proxy:
    """A proxy in front of a kubeconfig's API server; use as a context manager."""

    def __init__(self, kubeconfig: str | Path) -> None:
        self.rule: Rule = lambda _: None
        self.seen: list[tuple[Request, Fault | None, int]] = []
        """Each request that was answered: with its fault, and the code (0: broken) given back."""
        self._config = yaml.safe_load(Path(kubeconfig).read_text())
        cluster = self._config["clusters"][0]["cluster"]
        self._server = urlsplit(cluster["server"])
        authority = cluster.get("certificate-authority")
        self._tls = ssl.create_default_context(cafile=authority) if authority else None
        self._lock = threading.Lock()
        self._arrived = 0
        self._sockets: set[socket.socket] = set()
        self._released = threading.Event()
        self._closed = False

    def __enter__(self) -> Proxy:
        self._http = _Server(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._home = tempfile.TemporaryDirectory(prefix="proxy-")
        self.kubeconfig = Path(self._home.name) / "kubeconfig"
        """Path of the kubeconfig that leads through here, with the same credentials."""
        config = {**self._config}
        config["clusters"] = [{**config["clusters"][0], "cluster": {"server": self.url}}]
        self.kubeconfig.write_text(yaml.safe_dump(config))
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._http.shutdown()
        self.release()
        self.cut()
        self._http.server_close()
        self._home.cleanup()

    def cut(self) -> None:
        """Break every open connection, watches too. New ones are taken."""
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Let everything that hangs or is delayed go on now."""
        with self._lock:
            released, self._released = self._released, threading.Event()
        released.set()

    # --- for its threads

    def arrived(self, method: str, path: str, body: bytes) -> Request:
        with self._lock:
            self._arrived += 1
            return Request(self._arrived, method, path, body)

    def answered(self, request: Request, fault: Fault | None, code: int) -> None:
        with self._lock:
            self.seen.append((request, fault, code))

    def wait(self, seconds: float) -> None:
        with self._lock:
            released = self._released
        if seconds and not self._closed:
            released.wait(None if seconds == math.inf else seconds)

    def connect(self) -> http.client.HTTPConnection:
        host, port = str(self._server.hostname), self._server.port
        connection = (
            http.client.HTTPSConnection(host, port, context=self._tls)
            if self._server.scheme == "https"
            else http.client.HTTPConnection(host, port)
        )
        connection.connect()
        self.track(connection.sock)
        return connection

    def track(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.add(connection)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's mistake here."""


_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
"""Headers that each side has its own of."""


class _Handler(BaseHTTPRequestHandler):
    """One client connection, and the connection to the API server that goes with it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.proxy = self.server.proxy
        self.upstream: http.client.HTTPConnection | None = None
        self.proxy.track(self.connection)

    def finish(self) -> None:
        self.proxy.forget(self.connection)
        self._drop_upstream()
        super().finish()

    def do_GET(self) -> None:
        """Handles a request of any method."""
        length = int(self.headers.get("Content-Length") or 0)
        request = self.proxy.arrived(self.command, self.path, self.rfile.read(length))
        fault = self.proxy.rule(request)
        code = 0
        try:
            code = self._serve(request, fault or Fault())
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            self.proxy.answered(request, fault, code)

    do_DELETE = do_PATCH = do_POST = do_PUT = do_GET

    def _serve(self, request: Request, fault: Fault) -> int:
        """Do what the fault leaves of the request; returns the code that the client gets."""
        self.proxy.wait(fault.delay)
        answer = self._ask(request) if fault.acts else None
        self.proxy.wait(fault.lag)
        if fault.lost or (answer is None and fault.answer is None):
            self._drop_upstream()
            self.close_connection = True
            return 0
        if fault.answer is not None:
            if answer is not None:
                answer.read()
            self._begin(fault.answer.code, fault.answer.headers, len(fault.answer.body.encode()))
            self.wfile.write(fault.answer.body.encode())
            return fault.answer.code
        assert answer is not None
        self._pass_back(answer)
        return answer.status

    def _ask(self, request: Request) -> http.client.HTTPResponse:
        if self.upstream is not None and select.select([self.upstream.sock], [], [], 0)[0]:
            self._drop_upstream()  # the API server closed it meanwhile
        if self.upstream is None:
            self.upstream = self.proxy.connect()
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_THE_CONNECTION}
        body = request.body if request.body or request.method != "GET" else None
        self.upstream.request(request.method, request.path, body, headers)
        return self.upstream.getresponse()

    def _pass_back(self, answer: http.client.HTTPResponse) -> None:
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in _OF_THE_CONNECTION}
        if answer.length is not None:
            content = answer.read()
            self._begin(answer.status, headers, len(content))
            self.wfile.write(content)
        else:
            self._begin(answer.status, headers, None)
            while content := answer.read1(65536):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
            self.wfile.write(b"0\r\n\r\n")
        if answer.will_close:
            self._drop_upstream()

    def _begin(self, code: int, headers: Mapping[str, str], length: int | None) -> None:
        self.send_response_only(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _drop_upstream(self) -> None:
        if self.upstream is not None:
            self.proxy.forget(self.upstream.sock)
            self.upstream.close()
            self.upstream = None
