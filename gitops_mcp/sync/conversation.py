"""One conversation with an MCP server over HTTP: bounded in time, size and direction."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from gitops_mcp import __version__
from gitops_mcp.base import addresses, answers, limits
from gitops_mcp.base.model import Handshake
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.sync.verdicts import (
    KEEPS_METHOD,
    SILENT,
    UNREAD,
    Answer,
    Broken,
    Ended,
    Slow,
    clean,
    failed,
    gate,
    trouble,
)

CLIENT: Final = {"name": "gitops-mcp", "version": __version__}


_ACCEPT: Final = f"application/json, {answers.EVENTS}"


def always() -> bool:
    return True


def request_of(method: str, params: JsonObject) -> JsonObject:
    return {"jsonrpc": "2.0", "id": f"gitops-mcp-{method}", "method": method, "params": params}


@dataclass(slots=True)
class _Line:
    """One exchange in a thread of its own, so that nobody waits longer for it than he wants to,
    and it can still tell, later, which session it opened."""

    began: float = field(default_factory=time.monotonic)
    sockets: list[socket.socket] = field(default_factory=list)
    headed: threading.Event = field(default_factory=threading.Event)
    """The headers are there, or will never come."""

    def cut(self) -> None:
        _cut(self.sockets)


class Talk:
    """The requests of one handshake to one address. Each has a connection of its own, since an
    answer in events may never end. As a context it ends, at its own end, every session that was
    opened, also those whose id came too late for an answer to count."""

    def __init__(
        self,
        url: str,
        host: str,
        timeout: float,
        credentials: Mapping[str, str] | None = None,
        *,
        loopback: Callable[[], bool] = always,
    ) -> None:
        self._url = url
        self._host = host
        self._timeout = timeout
        self._end = time.monotonic() + limits.HANDSHAKE_ANSWERS * timeout
        self._credentials = dict(credentials or {})
        self._loopback = loopback
        self._path = ""
        """Where a redirect led; "": nowhere yet."""
        self._heard = False
        """Something spoke HTTP here: from now on it is the server that is silent."""
        self._lines: list[_Line] = []
        self._open: dict[str, Mapping[str, str]] = {}
        """The sessions that nobody has ended yet: by id, the headers of a request in them."""

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            until = min(self._end, line.began + limits.HANDSHAKE_LATE * self._timeout)
            if line.sockets:
                line.headed.wait(max(0.0, until - time.monotonic()))
            line.cut()
        self.leave()

    def call(self, method: str, params: JsonObject, headers: Mapping[str, str]) -> Answer:
        """A JSON-RPC request that may open a session, and the response to it. A late one is still
        waited for at the end, a while, for the session that it may open."""
        message = request_of(method, params)
        line = _Line()
        done: Future[Answer] = Future()

        def run() -> None:
            try:
                done.set_result(self.post(message, headers, line=line))
            except BaseException as error:  # whoever waits gets it
                done.set_exception(error)
            finally:
                line.headed.set()

        self._lines.append(line)
        threading.Thread(target=run, name="handshake", daemon=True).start()
        try:
            answer = done.result(max(0.0, min(self._timeout, self._end - time.monotonic())))
        except NotDone:
            late = Broken(TimeoutError(), connected=bool(line.sockets), late=True)
            raise trouble(late, answered=False, heard=self._heard) from None
        self._lines.remove(line)
        return answer

    def post(
        self,
        message: JsonObject,
        headers: Mapping[str, str],
        *,
        path: str = "",
        limit: float = 0,
        line: _Line | None = None,
    ) -> Answer:
        """A JSON-RPC message and the answer, read up to the response to it. ``line``: the time is
        that of the whole handshake."""
        sent = {"Content-Type": "application/json", "Accept": _ACCEPT, **headers}
        end = self._end if line else min(self._end, time.monotonic() + (limit or self._timeout))
        body = json.dumps(message).encode()
        path = path or self._path
        while True:
            with self._exchange("POST", sent, body, path=path, end=end, line=line) as reply:
                told = _headers(reply)
                ok = 200 <= reply.status < 300
                self._opened(told)
                if line is not None:
                    line.headed.set()
                target = self._target(reply.status, told)
                reading = UNREAD
                if "id" in message:
                    reading = answers.read(_pieces(reply), told, message["id"], succeeded=ok)
            follows = reply.status in KEEPS_METHOD and not path and not self._credentials
            if target is None or not follows:
                return Answer(reply.status, told, reading, target, bool(self._credentials))
            path = self._path = target

    def agreed(self, headers: Mapping[str, str]) -> None:
        """The headers of requests from now on, with a version: also of the one that ends it."""
        session = headers.get("Mcp-Session-Id")
        if session in self._open:
            self._open[session] = headers

    def _opened(self, told: Mapping[str, str]) -> None:
        if session := session_header(told):
            self._open.setdefault(session["Mcp-Session-Id"], session)

    @property
    def moved(self) -> str:
        """The path that a redirect led to, for a message."""
        return clean(self._path.partition("?")[0])

    def _target(self, code: int, told: Mapping[str, str]) -> str | None:
        """The path that a redirect leads to."""
        return self.resolved(told.get("location", "")) if 300 <= code < 400 else None

    def resolved(self, reference: str) -> str | None:
        """The path of a URL reference that a server gave; None: it is on another server. Its own
        name is the one that clients call it by, or the address that we did."""
        if not 0 < len(reference) <= 2048 or not reference.isprintable():
            return None
        try:
            asked = urlsplit(self._url)
            base = f"http://{self._host}{self._path or asked.path or '/'}"
            found = urlsplit(urljoin(base, reference.strip()))
            same = found.netloc.lower() in (self._host.lower(), asked.netloc.lower())
        except ValueError:  # http://[evil/
            return None
        if found.scheme != "http" or not same or " " in found.path + found.query:
            return None
        path = found.path or "/"
        return (path + (f"?{found.query}" if found.query else "")) if path.isascii() else None

    def listen(self) -> _Stream:
        """The events of a GET, in a thread of its own. Raises Ended where it has none."""
        line = _Line()
        self._lines.append(line)
        stream = _Stream(self, min(self._timeout, self._end - time.monotonic()))

        def run() -> None:
            try:
                self._listen(stream, line)
            except Ended as end:
                stream.put(end)
            except BaseException as error:  # whoever waits gets it
                stream.put(error)
            finally:
                line.headed.set()
                stream.put(None)

        threading.Thread(target=run, name="handshake-events", daemon=True).start()
        stream.opened()
        return stream

    def _listen(self, stream: _Stream, line: _Line) -> None:
        path = self._path
        for _ in range(2):
            accept = {"Accept": answers.EVENTS}
            with self._exchange("GET", accept, path=path, end=self._end, line=line) as reply:
                told = _headers(reply)
                line.headed.set()
                target = self._target(reply.status, told)
                if 300 <= reply.status < 400 and target and not path and not self._credentials:
                    path = self._path = target
                    continue
                ok = reply.status == 200
                reading = answers.read(
                    _pieces(reply) if not ok else (), told, None, succeeded=False
                )
                gate(Answer(reply.status, told, reading, target, bool(self._credentials)))
                if not ok or answers.media_type(told) != answers.EVENTS:
                    raise failed("no events")
                stream.put(("", b""))
                for event in answers.events(_pieces(reply), told):
                    stream.put(event)
            return

    def leave(self) -> None:
        """Ends the sessions that were opened; 405 means that the server ends them by itself."""
        while self._open:
            _, named = self._open.popitem()
            end = time.monotonic() + limits.HANDSHAKE_FAREWELL_SECONDS
            with (
                contextlib.suppress(Ended),
                self._exchange("DELETE", named, path=self._path, end=end) as reply,
            ):
                for _ in zip(range(8), _pieces(reply), strict=False):
                    pass

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        path: str = "",
        end: float,
        line: _Line | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request; trouble, also while the answer is read, is raised as Ended."""
        agent = f"gitops-mcp/{__version__}"
        ours = {"Host": self._host, "User-Agent": agent, "Connection": "close", **headers}
        taken = {name.lower() for name in ours} | {"content-length", "transfer-encoding"}
        more = {name: v for name, v in self._credentials.items() if name.lower() not in taken}
        answered = False
        sockets = line.sockets if line is not None else []
        try:
            with _connected(self._url, end, self._loopback, sockets) as (connection, own_path):
                connection.request(method, path or own_path, body=body, headers={**more, **ours})
                with connection.getresponse() as reply:
                    answered = self._heard = True
                    yield reply
        except Broken as broken:
            raise trouble(broken, answered=answered, heard=self._heard) from None


def session_header(told: Mapping[str, str]) -> Mapping[str, str]:
    """The header that names the session which an answer opened; empty: it opened none."""
    session = told.get("mcp-session-id", "")
    known = re.fullmatch(r"[\x21-\x7e]{1,1024}", session)
    return {"Mcp-Session-Id": session} if known else {}


def _headers(reply: http.client.HTTPResponse) -> dict[str, str]:
    """By lower-case name; one that comes several times joined as lists are."""
    told: dict[str, str] = {}
    for name, value in reply.getheaders():
        key = name.lower()
        told[key] = f"{told[key]}, {value}" if key in told else value
    return told


def _pieces(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it arrives. Raises IncompleteRead where it ends before its stated length."""
    left = reply.length  # None: it ends with the connection, or in chunks
    while left is None or left > 0:
        piece = reply.read1(_PIECE if left is None else min(left, _PIECE))
        if not piece:
            if left:
                raise http.client.IncompleteRead(b"", left)
            return
        yield piece
        if left is not None:
            left -= len(piece)


_PIECE: Final = 65536


class _Stream:
    """The events of an HTTP+SSE server as they arrive."""

    def __init__(self, talk: Talk, limit: float) -> None:
        self._talk = talk
        self._limit = limit
        self._events: queue.SimpleQueue[tuple[str, bytes] | BaseException | None]
        self._events = queue.SimpleQueue()

    def put(self, event: tuple[str, bytes] | BaseException | None) -> None:
        """An event, what went wrong, or None at the end."""
        self._events.put(event)

    def opened(self) -> None:
        """Waits until it is known that there will be events."""
        self._next(time.monotonic() + self._limit)

    def first(self) -> tuple[str, bytes]:
        """The first event; of no type where the stream ends without one."""
        return self._next(time.monotonic() + self._limit) or ("", b"")

    def response(self, request: object) -> JsonObject | None:
        """The response to ``request`` among the events that come."""
        end = time.monotonic() + self._limit
        while event := self._next(end):
            found = answers.response(event[1], request) if event[0] == "message" else None
            if found is not None:
                return found
        return None

    def _next(self, end: float) -> tuple[str, bytes] | None:
        try:
            event = self._events.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise Slow(Handshake(Reason.UNREACHABLE, SILENT)) from None
        if isinstance(event, BaseException):
            raise event
        return event


@contextlib.contextmanager
def _connected(
    url: str, end: float, loopback: Callable[[], bool], connected: list[socket.socket]
) -> Iterator[tuple[http.client.HTTPConnection, str]]:
    """A connection to the URL's host, cut at ``end``, and the URL's path. Its socket is added to
    ``connected``, by which others may cut it. Raises Broken."""
    left = end - time.monotonic()
    if left <= 0:
        raise Broken(TimeoutError(), connected=True, late=True)
    connection: http.client.HTTPConnection | None = None
    before = len(connected)  # the connection forgets its socket once it is answered
    # A time limit of the socket starts anew with each byte; this one does not.
    timer = threading.Timer(left, lambda: _cut(connected))
    timer.daemon = True
    timer.start()
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        # With no port, http.client would take the end of an IPv6 address for one.
        port = parts.port or kind.default_port
        connection = kind(parts.hostname or "", port, timeout=left)
        connection.sock = _dial(parts, port, left, loopback, connected)
        if time.monotonic() >= end:
            raise TimeoutError  # the timer may have found no socket yet
        yield connection, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if time.monotonic() >= end:
            raise TimeoutError  # what was cut looks like an ordinary end
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= end
        raise Broken(error, connected=len(connected) > before, late=late) from None
    finally:
        timer.cancel()
        if connection is not None:
            connection.close()


def _cut(connected: Iterable[socket.socket]) -> None:
    for connection in list(connected):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _dial(
    parts: SplitResult,
    port: int,
    timeout: float,
    loopback: Callable[[], bool],
    connected: list[socket.socket],
) -> socket.socket:
    """A connection to the address that was judged; TLS is still for the URL's name. It is put into
    ``connected`` before a word is exchanged on it."""
    host = parts.hostname or ""

    api_server = addresses.literal(os.environ.get("KUBERNETES_SERVICE_HOST", ""))

    def judge(address: addresses.Address) -> str:
        if api_server is not None and addresses.leads_to(address, api_server):
            return "the API server is not asked"
        return addresses.foreign(address, loopback=loopback)

    plain = addresses.connect(host, port, timeout=timeout, judge=judge)
    connected.append(plain)
    if parts.scheme != "https":
        return plain
    secure = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    connected[:] = [secure]
    return secure
