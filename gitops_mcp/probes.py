"""The MCP handshake over HTTP: an address in, what answered there out.

Both eras are spoken: first ``server/discover`` of 2026-07-28, which makes no session; then the
``initialize`` of 2025-11-25 and before, whose session is ended again; then the older HTTP+SSE.
Answers are judged by their JSON-RPC body, since servers send errors with status 200. The servers
are strangers: a handshake takes its time limit and 256 KiB at most, follows no redirect, and what
they say about themselves is cut and cleaned. Trouble on the network is an answer, never an error.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from gitops_mcp import __version__, addresses
from gitops_mcp.model import Inquiry, JsonObject, ProbeResult

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
HTTP_SSE: Final = "2024-11-05"

BODY_LIMIT: Final = 256 * 1024
"""Bytes of one answer that are read."""
AT_ONCE: Final = 8
"""Pods of one server that are asked at the same time."""
FAREWELL: Final = 1.0
"""Seconds for ending our session: also when the handshake has used up its time, since a session
that nobody ends may stay for ever."""

_CLIENT: Final = {"name": "gitops-mcp", "version": __version__}
_ACCEPT: Final = "application/json, text/event-stream"
_MODERN_ERRORS: Final = frozenset({-32020, -32021, -32022})
"""JSON-RPC errors of the modern era alone: header mismatch, capability missing, version."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Handshake:
    """What one address answered. ``reason`` is one of the Verified condition; ``server_info`` has
    name, version, protocolVersion and era, as far as they were told."""

    reason: str
    message: str
    server_info: JsonObject | None = None


def probe(
    url: str, *, host: str, timeout: float = 5.0, loopback: Callable[[], bool] = _always
) -> Handshake:
    """Handshakes with the server at ``url`` (``http://<pod address>:<port><path>``).

    ``host``: the Host header that its clients send, ``name:port``; servers keep lists of those that
    they accept. ``timeout``: seconds for the whole of it. ``loopback``: see
    ``addresses.foreign``. Never raises for what the network or the server does.
    """
    talk = _Talk(url, host, time.monotonic() + timeout, loopback)
    try:
        # A server that does not know the method may well be silent: leave time for the other era.
        modern = _discover(talk.until(timeout / 2))
    except _Slow:
        modern = None
    except _Ended as end:
        return end.handshake
    try:
        return modern or _initialize(talk)
    except _Ended as end:
        return end.handshake


def summary(answers: Mapping[str, Handshake], at: datetime) -> ProbeResult:
    """One result for a server from those of its pods (by uid, at least one): the worst of them,
    naming how many it speaks of."""
    worst = min(answers.values(), key=lambda answer: _SEVERITY.index(answer.reason))
    told = [answer for answer in answers.values() if answer.reason == worst.reason]
    message = worst.message
    if len(told) < len(answers):
        message = f"{len(told)} of {len(answers)} pods: {message}"
    known = (answer.server_info for answer in answers.values() if answer.server_info)
    passed = frozenset(uid for uid, answer in answers.items() if answer.reason in _WELL)
    return ProbeResult(worst.reason, message, at, frozenset(answers), next(known, None), passed)


_WELL: Final = ("HandshakeSucceeded", "AuthenticationRequired")


def asking(
    loopback: Callable[[], bool],
) -> Callable[[Inquiry, Callable[[], datetime]], ProbeResult | int | None]:
    """``ask``, where ``loopback`` says whether pods have loopback addresses (the sandbox's do)."""
    return partial(ask, loopback=loopback)


def ask(
    inquiry: Inquiry,
    now: Callable[[], datetime],
    *,
    loopback: Callable[[], bool] = lambda: False,
) -> ProbeResult | int | None:
    """The answer to an inquiry: a ProbeResult to a handshake, a number of sessions (None: a target
    did not say) to a count. ``AT_ONCE`` targets are asked at the same time, so that silent ones of
    a large server keep nobody else's inquiry waiting for long."""
    timeout = inquiry.timeout.total_seconds()
    uids = [uid for uid, _ in inquiry.targets]
    urls = [url for _, url in inquiry.targets]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="probe") as pool:
        if inquiry.kind == "handshake":
            shake = partial(probe, host=inquiry.host, timeout=timeout, loopback=loopback)
            return summary(dict(zip(uids, pool.map(shake, urls), strict=True)), now())
        count = partial(sessions, gauge=inquiry.gauge, timeout=timeout, loopback=loopback)
        counts = list(pool.map(count, urls))
    return None if None in counts else sum(count for count in counts if count is not None)


_SEVERITY: Final = (
    "HandshakeFailed",
    "HostRejected",
    "ConnectionRefused",
    "Unreachable",
    "NotProbed",
    "AuthenticationRequired",
    "HandshakeSucceeded",
)


# --- the handshakes ---------------------------------------------------------------------------


def _discover(talk: _Talk) -> Handshake | None:
    """The modern era; None where the server does not speak it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": _CLIENT,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "server/discover"}
    answer = talk.call("server/discover", {"_meta": meta}, headers)
    if session := _session(answer):
        talk.leave(session)  # a legacy server may make one for anything that it is asked
    _gate(answer)
    result = answer.result
    if result is not None and isinstance(result.get("supportedVersions"), list):
        versions = [_clean(version) for version in result["supportedVersions"]]
        version = MODERN if MODERN in versions else max(versions, default="")
        return _succeeded(_server_info(result), version, "modern")
    if answer.error_code in _MODERN_ERRORS:
        return _succeeded({}, "", "modern", f" (refuses {MODERN}: {answer.error})")
    return None


def _initialize(talk: _Talk) -> Handshake:
    """The legacy era, with a session that is ended again."""
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": _CLIENT}
    answer = talk.call("initialize", params, {})
    session = _session(answer)
    headers = dict(session)
    try:
        _gate(answer)
        if answer.result is None:
            return _http_sse(talk, answer)
        version = str(answer.result.get("protocolVersion", ""))
        if not re.fullmatch(r"[\w.-]{1,32}", version):
            raise _failed("initialize names no protocol version")
        headers["MCP-Protocol-Version"] = version
        noted = talk.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, headers)
        if not 200 <= noted.code < 300:
            raise _failed(f"notifications/initialized {noted.words}")
        pong = talk.call("ping", {}, headers)
        if pong.result is None:
            raise _failed(f"ping {pong.words}")
        return _succeeded(_server_info(answer.result), version, "legacy")
    finally:
        if session:
            talk.leave(headers)


def _session(answer: _Answer) -> Mapping[str, str]:
    """The header that names the session which an answer opened; empty: it opened none."""
    session = answer.headers.get("mcp-session-id", "")
    known = re.fullmatch(r"[\x21-\x7e]{1,1024}", session)
    return {"Mcp-Session-Id": session} if known else {}


def _http_sse(talk: _Talk, refusal: _Answer) -> Handshake:
    """The transport before streamable HTTP: a GET that begins with where to post to."""
    if refusal.code in (400, 404, 405):
        try:
            if talk.first_event() == "endpoint":
                return _succeeded({}, HTTP_SSE, "legacy", " (HTTP+SSE)")
        except _Ended as end:
            if end.handshake.reason != "HandshakeFailed":
                raise
    raise _failed(f"initialize {refusal.words}")


def _gate(answer: _Answer) -> None:
    """Answers that say all there is to say, whatever was asked."""
    # Some servers have no 421 for a Host that is not on their list.
    if answer.code == 421 or (answer.code == 403 and b"invalid host" in answer.body.lower()):
        hint = "allow the Service's name in the server's list of hosts"
        raise _Ended(Handshake("HostRejected", f"the server does not accept its own name: {hint}"))
    if answer.code in (401, 403):
        message = f"the server is there and wants credentials ({answer.code})"
        raise _Ended(Handshake("AuthenticationRequired", message))
    if 300 <= answer.code < 400:
        target = _clean(urlsplit(answer.headers.get("location", "")).path)
        raise _failed(f"redirects ({answer.code}) to {target or 'elsewhere'}: set spec.path")


def _succeeded(info: JsonObject, version: str, era: str, more: str = "") -> Handshake:
    known = {**info, "protocolVersion": version, "era": era}
    told = {key: value for key, value in known.items() if value}
    name = " ".join(filter(None, (info.get("name"), info.get("version")))) or "the server"
    spoken = f" speaks {version}" if version else " speaks MCP"
    return Handshake("HandshakeSucceeded", f"{name}{spoken}{more}", told)


def _server_info(result: JsonObject) -> JsonObject:
    told = result.get("serverInfo")
    if not isinstance(told, dict):
        meta = result.get("_meta")
        told = meta.get("io.modelcontextprotocol/serverInfo") if isinstance(meta, dict) else None
    if not isinstance(told, dict):
        return {}
    return {key: _clean(told[key]) for key in ("name", "version") if key in told}


def _clean(text: object) -> str:
    """A stranger's words: one line, no control characters, not long."""
    printable = "".join(char if char.isprintable() else " " for char in str(text)[:500])
    return " ".join(printable.split())[:120]


# --- one request ------------------------------------------------------------------------------


class _Ended(Exception):
    """The handshake is over."""

    def __init__(self, handshake: Handshake) -> None:
        super().__init__(handshake.message)
        self.handshake = handshake


class _Slow(_Ended):
    """The time is up, and the connection stood."""


def _failed(message: str) -> _Ended:
    return _Ended(Handshake("HandshakeFailed", message))


@dataclass(frozen=True, slots=True)
class _Answer:
    """One HTTP answer. ``message`` is the JSON-RPC response in it, JSON or SSE; None: none."""

    code: int
    headers: Mapping[str, str]
    body: bytes
    message: JsonObject | None

    @property
    def result(self) -> JsonObject | None:
        found = (self.message or {}).get("result")
        return found if isinstance(found, dict) else None

    @property
    def _error(self) -> JsonObject:
        found = (self.message or {}).get("error")
        return found if isinstance(found, dict) else {}

    @property
    def error_code(self) -> int | None:
        code = self._error.get("code")
        return code if isinstance(code, int) else None

    @property
    def error(self) -> str:
        return f"{self.error_code} {_clean(self._error.get('message', ''))}".strip()

    @property
    def words(self) -> str:
        """For a message: ``answers 200 with JSON-RPC error -32602 Invalid params``."""
        if self.error_code is not None:
            return f"answers {self.code} with JSON-RPC error {self.error}"
        return f"answers {self.code} without a JSON-RPC response"


class _Talk:
    """Requests to one address, until one point in time. Each has a connection of its own, since an
    answer in events may never end."""

    def __init__(
        self, url: str, host: str, end: float, loopback: Callable[[], bool] = _always
    ) -> None:
        self._url = url
        self._host = host
        self._end = end
        self._loopback = loopback

    def until(self, seconds: float) -> _Talk:
        """The same address with less time."""
        end = min(self._end, time.monotonic() + seconds)
        return _Talk(self._url, self._host, end, self._loopback)

    def call(self, method: str, params: JsonObject, headers: Mapping[str, str]) -> _Answer:
        """A JSON-RPC request and the response to it."""
        request = {"jsonrpc": "2.0", "id": f"gitops-mcp-{method}", "method": method}
        return self.post({**request, "params": params}, headers)

    def post(self, message: JsonObject, headers: Mapping[str, str]) -> _Answer:
        """A JSON-RPC message and the answer, read up to the response to it."""
        sent = {"Content-Type": "application/json", "Accept": _ACCEPT, **headers}
        with self._exchange("POST", sent, json.dumps(message).encode()) as answer:
            told = {key.lower(): value for key, value in answer.getheaders()}
            if told.get("content-type", "").lower().startswith("text/event-stream"):
                found = _response_in(_events(answer), message.get("id"))
                return _Answer(answer.status, told, b"", found)
            body = answer.read(BODY_LIMIT)
            return _Answer(answer.status, told, body, _response(body, message.get("id")))

    def first_event(self) -> str:
        """The type of the first event that a GET is answered with."""
        with self._exchange("GET", {"Accept": "text/event-stream"}) as answer:
            _gate(_Answer(answer.status, {}, b"", None))
            events = _events(answer) if answer.status == 200 else iter(())
            return next((kind for kind, _ in events), "")

    def leave(self, headers: Mapping[str, str]) -> None:
        """Ends our session; 405 means that the server ends sessions by itself."""
        end = max(self._end, time.monotonic() + FAREWELL)
        last = _Talk(self._url, self._host, end, self._loopback)
        with contextlib.suppress(_Ended), last._exchange("DELETE", headers):
            pass

    @contextlib.contextmanager
    def _exchange(
        self, method: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """One request; trouble, also while the answer is read, is raised as _Ended."""
        agent = f"gitops-mcp/{__version__}"
        sent = {"Host": self._host, "User-Agent": agent, "Connection": "close", **headers}
        with _connected(self._url, self._end, self._loopback) as (connection, path):
            connection.request(method, path, body=body, headers=sent)
            with connection.getresponse() as answer:
                yield answer


@contextlib.contextmanager
def _connected(
    url: str, end: float, loopback: Callable[[], bool]
) -> Iterator[tuple[http.client.HTTPConnection, str]]:
    """A connection to the URL's host, cut at ``end``, and the URL's path."""
    left = end - time.monotonic()
    if left <= 0:
        raise _Slow(Handshake("HandshakeFailed", "no answer in time"))
    connection: http.client.HTTPConnection | None = None
    connected: list[socket.socket] = []  # the connection forgets its socket once it is answered
    # A time limit of the socket starts anew with each byte; this one does not.
    timer = threading.Timer(left, lambda: _cut(connected))
    timer.daemon = True
    timer.start()
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=left)
        connection.sock = _dial(parts, connection.port, left, loopback, connected)
        if time.monotonic() >= end:
            raise TimeoutError  # the timer may have found no socket yet
        yield connection, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if time.monotonic() >= end:
            raise TimeoutError  # what was cut looks like an ordinary end
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _trouble(error, bool(connected), late=time.monotonic() >= end) from error
    finally:
        timer.cancel()
        if connection is not None:
            connection.close()


def _cut(connected: Iterable[socket.socket]) -> None:
    for connection in connected:
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

    def judge(address: addresses.Address) -> str:
        if address == addresses.literal(os.environ.get("KUBERNETES_SERVICE_HOST", "")):
            return "the API server is not asked"
        return addresses.foreign(address, loopback=loopback)

    plain = addresses.connect(host, port, timeout=timeout, judge=judge)
    connected.append(plain)
    if parts.scheme != "https":
        return plain
    secure = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    connected[:] = [secure]
    return secure


_UNREACHABLE_HINT: Final = "a NetworkPolicy in between, or an agent outside the cluster's network?"


def _trouble(error: Exception, connected: bool, *, late: bool) -> _Ended:
    """What went wrong below HTTP, as an end of the handshake."""
    if isinstance(error, addresses.Refused):
        return _Ended(Handshake("Unreachable", str(error)))
    if not connected:
        if isinstance(error, ConnectionRefusedError):
            return _Ended(Handshake("ConnectionRefused", "nothing listens at the port"))
        why = "no connection in time" if late or isinstance(error, TimeoutError) else "no route"
        return _Ended(Handshake("Unreachable", f"{why}: {_UNREACHABLE_HINT}"))
    if late or isinstance(error, TimeoutError):
        return _Slow(Handshake("HandshakeFailed", "takes the connection but gives no answer"))
    silent = isinstance(error, OSError)  # of which RemoteDisconnected is one, too
    return _failed("ends the connection without an answer" if silent else "does not speak HTTP")


# --- reading answers --------------------------------------------------------------------------


def _response(body: bytes, request: object) -> JsonObject | None:
    """The JSON-RPC response to ``request`` in a body. An error may name another id, or none: who
    refuses a request has not always read it."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    ours = "error" in message or ("result" in message and message.get("id") == request)
    return message if ours else None


def _response_in(events: Iterator[tuple[str, bytes]], request: object) -> JsonObject | None:
    """The response among a stream's events; requests and notifications of the server are not."""
    for _, data in events:
        found = _response(data, request)
        if found is not None:
            return found
    return None


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, bytes]]:
    """The server-sent events of an answer, each ``(type, data)``, within BODY_LIMIT."""
    kind, data, left = "message", list[bytes](), BODY_LIMIT
    while left > 0:
        line = answer.readline(left)
        left -= len(line)
        if not line:
            return
        line = line.rstrip(b"\r\n")
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data or kind != "message":
                yield kind, b"\n".join(data)
            kind, data = "message", []
        elif field == b"data":
            data.append(value)
        elif field == b"event":
            kind = value.decode(errors="replace")


# --- drain ------------------------------------------------------------------------------------


def sessions(
    url: str,
    *,
    gauge: str = "",
    host: str = "",
    timeout: float = 2.0,
    loopback: Callable[[], bool] = _always,
) -> int | None:
    """How many sessions a server says it has; None where it does not say.

    With ``gauge`` the answer is Prometheus text, and the samples of that name are added up; else it
    is a number, or a JSON object with ``activeSessions``. ``host``: the Host header, if it is not
    the URL's; ``loopback``: see ``addresses.foreign``. Never raises for what the network or the
    server does.
    """
    try:
        netloc = urlsplit(url).netloc
        talk = _Talk(url, host or netloc, time.monotonic() + timeout, loopback)
        with talk._exchange("GET", {"Accept": "text/plain, application/json"}) as answer:
            if answer.status != 200:
                return None
            body = answer.read(BODY_LIMIT + 1)
    except (_Ended, ValueError):  # ValueError: not even a URL
        return None
    if len(body) > BODY_LIMIT:
        return None  # the gauge may stand in what was cut off
    count = _gauge(body, gauge) if gauge else _number(body)
    return int(count) if count is not None and 0 <= count < 1e9 else None


def _number(body: bytes) -> float | None:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get("activeSessions")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _gauge(body: bytes, name: str) -> float | None:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [
            sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == name
        ]
    except (ValueError, KeyError, IndexError):
        return None
    return sum(samples) if samples else None
