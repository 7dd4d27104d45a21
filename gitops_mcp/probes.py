"""The MCP handshake over HTTP: an address in, what answered there out.

Both eras are spoken: first ``server/discover`` of 2026-07-28, which makes no session; then the
``initialize`` of 2025-11-25 and before, whose session is ended again; then the older HTTP+SSE.
Answers are judged by their JSON-RPC body, since servers send errors with status 200, and as the
official clients judge them (``answers``). The servers are strangers: each answer has its limits of
time and bytes, all of them together have another, and nothing that they say is repeated but their
name and version, cut and cleaned. Trouble on the network is an answer, never an error.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from gitops_mcp import __version__, addresses, answers, limits
from gitops_mcp.masking import scrub
from gitops_mcp.model import Handshake, Inquiry, JsonObject, ProbeResult

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
HTTP_SSE: Final = "2024-11-05"

AT_ONCE: Final = 8
"""Pods of one server that are asked at the same time."""
_CLIENT: Final = {"name": "gitops-mcp", "version": __version__}
_ACCEPT: Final = f"application/json, {answers.EVENTS}"
_MODERN_ERRORS: Final = frozenset({-32020, -32021, -32022})
"""JSON-RPC errors of the modern era alone: header mismatch, capability missing, version."""
_ERRORS: Final[Mapping[int, str]] = {
    -32700: "Parse error",
    -32600: "Invalid Request",
    -32601: "Method not found",
    -32602: "Invalid params",
    -32603: "Internal error",
    -32020: "header mismatch",
    -32021: "capability missing",
    -32022: "unsupported protocol version",
}
"""By code. A server's own words may hold a secret of its, and end up in the status."""

_log = logging.getLogger(__name__)


def _always() -> bool:
    return True


def probe(
    url: str,
    *,
    host: str,
    timeout: float = 5.0,
    headers: Mapping[str, str] | None = None,
    loopback: Callable[[], bool] = _always,
) -> Handshake:
    """Handshakes with the server at ``url`` (``http://<pod address>:<port><path>``).

    ``host``: the Host header that its clients send, ``name:port``; servers keep lists of those that
    they accept. ``timeout``: seconds for each answer (``limits`` has the bound of all of them).
    ``headers``: more of them, credentials as a rule: secret, sent to this address alone, and no
    redirect is followed with them. ``loopback``: see ``addresses.foreign``. Never raises for what
    the network or the server does.
    """
    try:
        with _Talk(url, host, timeout, headers, loopback=loopback) as talk:
            return _discover(talk) or _initialize(talk)
    except _Ended as end:
        return end.handshake
    except Exception as error:  # ours: whatever a stranger sends, nobody else is to suffer from it
        _log.error("a bug: the handshake could not judge an answer: %s", type(error).__name__)
        return Handshake("NotProbed", "the agent could not judge the answer: a bug")


def summary(
    said: Mapping[str, Handshake], at: datetime, known: Mapping[str, Handshake] | None = None
) -> ProbeResult:
    """One result for a server from those of its pods (by uid, at least one): the worst of them,
    naming how many it speaks of. A pod that was too busy keeps the word that it gave before
    (``known``)."""
    known = known or {}
    words = {
        uid: answer if answer.wait is None else known.get(uid, answer)
        for uid, answer in said.items()
    }
    worst = min(words.values(), key=lambda answer: _SEVERITY.index(answer.reason))
    told = [answer for answer in words.values() if answer.reason == worst.reason]
    message = worst.message
    if len(told) < len(words):
        message = f"{len(told)} of {len(words)} pods: {message}"
    info = next((answer.server_info for answer in words.values() if answer.server_info), None)
    passed = frozenset(uid for uid, answer in words.items() if answer.reason in _WELL)
    wait = max((one.wait for one in said.values() if one.wait is not None), default=None)
    return ProbeResult(
        worst.reason, message, at, frozenset(words), info, passed, answers=words, wait=wait
    )


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
            shake = partial(
                probe,
                host=inquiry.host,
                timeout=timeout,
                headers=inquiry.headers,
                loopback=loopback,
            )
            said = dict(zip(uids, pool.map(shake, urls), strict=True))
            return summary(said, now(), inquiry.known)
        count = partial(
            sessions,
            gauge=inquiry.gauge,
            match=dict(inquiry.match),
            timeout=timeout,
            loopback=loopback,
        )
        counts = list(pool.map(count, urls))
    return None if None in counts else sum(count for count in counts if count is not None)


_SEVERITY: Final = (
    "HandshakeFailed",
    "HostRejected",
    "ConnectionRefused",
    "Unreachable",
    "AccessDenied",
    "NotProbed",
    "AuthenticationRequired",
    "HandshakeSucceeded",
)


# --- the handshakes ---------------------------------------------------------------------------


def _discover(talk: _Talk) -> Handshake | None:
    """The modern era; None where the server does not speak it. Silence and refusals are no answer
    yet: a server or a gateway that does not know the method may do anything about it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": _CLIENT,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "server/discover"}
    try:
        answer = talk.call("server/discover", {"_meta": meta}, headers)
    except _Ended as end:
        if end.final:
            raise
        return None
    talk.leave()  # a legacy server may make a session for anything that it is asked
    try:
        _gate(answer)
    except _Ended as end:
        if end.final:
            raise
        return None
    result = answer.result
    if result is not None:
        if version := _newest(result.get("supportedVersions")):
            more = f" (redirects to {talk.moved})" if talk.moved else ""
            return _succeeded(_server_info(result), version, "modern", more)
    elif answer.error_code in _MODERN_ERRORS:
        offered = answer.error_data.get("supported")
        version = _newest(offered)
        if version or not isinstance(offered, list):
            return _succeeded({}, version, "modern", f" (refuses {MODERN}: {answer.error})")
    return None


def _newest(offered: object) -> str:
    """The version of the modern era among those that a server offers, ours if it can be; "" where
    there is none: some servers answer ``server/discover`` with versions of the other era alone."""
    known = offered if isinstance(offered, list) else []
    versions = [v for v in known if isinstance(v, str) and _VERSION.fullmatch(v) and v >= MODERN]
    return MODERN if MODERN in versions else max(versions, default="")


_VERSION: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")


def _initialize(talk: _Talk) -> Handshake:
    """The legacy era, with a session that is ended again."""
    answer = talk.call("initialize", _initialization(LEGACY), {})
    _gate(answer)
    if answer.result is None:
        return _http_sse(talk, answer)
    version = _agreed(answer.result)
    headers = {**_session(answer.headers), "MCP-Protocol-Version": version}
    talk.agreed(headers)
    with contextlib.suppress(_Slow):
        _works(talk.post(_INITIALIZED, headers), "notifications/initialized")
    with contextlib.suppress(_Slow):
        pong = talk.post(_request("ping", {}), headers, limit=limits.HANDSHAKE_PING_SECONDS)
        _works(pong, "ping")
        if pong.code == 200 and pong.message is None:
            raise _failed(f"ping {pong.words}")
    more = f" (redirects to {talk.moved})" if talk.moved else ""
    return _succeeded(_server_info(answer.result), version, "legacy", more)


_INITIALIZED: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def _initialization(version: str) -> JsonObject:
    return {"protocolVersion": version, "capabilities": {}, "clientInfo": _CLIENT}


def _agreed(result: JsonObject) -> str:
    version = result.get("protocolVersion")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise _failed("initialize names no protocol version")
    return version


def _works(answer: _Answer, method: str) -> None:
    """After initialize, refusals (4xx) are a server's or a gateway's way, and clients go on; what
    breaks down breaks down for them as well."""
    if answer.code >= 500 and answer.code not in (501, *_BUSY):
        raise _failed(f"{method} {answer.words}")


def _http_sse(talk: _Talk, refusal: _Answer) -> Handshake:
    """The transport before streamable HTTP: a GET that begins with where to post to, and goes on
    with the answers."""
    if refusal.code not in (400, 404, 405):
        raise _failed(f"initialize {refusal.words}")
    refused = _failed(f"initialize {refusal.words}")
    try:
        stream = talk.listen()
        kind, data = stream.first()
    except _Ended as end:
        # Silence may be a stream that is late; who refused in MCP's words has none to open.
        spoke = isinstance(end, _Slow) and refusal.error_code is not None
        raise (refused if spoke or end.handshake.reason == "HandshakeFailed" else end) from None
    if kind != "endpoint":
        raise refused
    endpoint = talk.resolved(data.decode(errors="replace"))
    if endpoint is None:
        raise _failed("HTTP+SSE: its endpoint event names another server")
    request = _request("initialize", _initialization(HTTP_SSE))
    posted = talk.post(request, {}, path=endpoint)
    _gate(posted)
    if not 200 <= posted.code < 300:
        raise _failed(f"HTTP+SSE: initialize answers {posted.code} at its endpoint")
    message = stream.response(request["id"])
    answer = _Answer(posted.code, {}, answers.Reading(message, "its events have no response"))
    if answer.result is None:
        raise _failed(f"HTTP+SSE: initialize {answer.words}")
    version = _agreed(answer.result)
    with contextlib.suppress(_Slow):
        noted = talk.post(_INITIALIZED, {}, path=endpoint)
        _works(noted, "HTTP+SSE: notifications/initialized")
    return _succeeded(_server_info(answer.result), version, "legacy", " (HTTP+SSE)")


_HOST: Final = re.compile(
    rb"\b(?:http_)?hosts?\b.{0,80}\b(?:not|isn't|invalid|disallowed|blocked|forbidden|unknown"
    rb"|mismatch|rejected|denied|untrusted|unrecogni[sz]ed)\b"
    rb"|\b(?:not|invalid|bad|disallowed|blocked|forbidden|unknown|rejected|denied|untrusted"
    rb"|unrecogni[sz]ed|unexpected)\b.{0,40}\b(?:http_)?hosts?\b"
    rb"|allowed_?hosts|disallowedhost|dns.rebinding",
    re.DOTALL,
)
"""What frameworks and SDKs say to a Host header that is not on their list, in lower case."""
_TLS: Final = re.compile(rb"https server|https port|ssl-enabled|http request.{0,40}\b(?:tls|ssl)\b")
"""What web servers say, in lower case, to plain HTTP where they speak TLS."""
_CHALLENGE: Final = re.compile(r"(?:^|[\s,])(?:bearer|dpop)(?:$|[\s,])|resource_metadata=", re.I)
"""The WWW-Authenticate of MCP's authorization (RFC 6750, 9449, 9728)."""
_BUSY: Final = (429, 503)


def _gate(answer: _Answer) -> None:
    """Answers that say all there is to say, whatever was asked."""
    code, body = answer.code, answer.start.lower()
    if code == 421 or (code in (400, 403) and _HOST.search(body)):
        hint = "allow the Service's name in the server's list of hosts"
        told = f"the server does not accept its own name: {hint}"
        raise _Ended(Handshake("HostRejected", told), final=True)
    if code == 401 and _CHALLENGE.search(answer.headers.get("www-authenticate", "")):
        message = (
            "the server does not take the credentials of health.headersFrom (401)"
            if answer.with_credentials
            else "the server is running and asks for credentials (401)"
        )
        raise _Ended(Handshake("AuthenticationRequired", message), final=True)
    if code in (401, 403, 407):
        why = "and does not ask for MCP credentials: a policy, a gateway or a login in front of it?"
        if answer.with_credentials:
            why = "with the credentials of health.headersFrom"
        raise _Ended(Handshake("AccessDenied", f"refuses the handshake ({code}) {why}"))
    if code in _BUSY:
        raise _Ended(_busy(code, answer.headers.get("retry-after", "")), final=True)
    if code == 400 and _TLS.search(body):
        raise _unheard(f"{_TLS_WORDS}: the server wants HTTPS on this port")
    if 300 <= code < 400:
        raise _redirected(answer)


def _busy(code: int, retry_after: str) -> Handshake:
    told = retry_after.strip()
    seconds = int(told) if re.fullmatch(r"[0-9]{1,9}", told) else 0
    wait = min(timedelta(seconds=seconds), timedelta(seconds=limits.HANDSHAKE_WAIT_SECONDS))
    words = f", asks to wait {seconds} s" if seconds else ""
    return Handshake("Unreachable", f"too busy to answer ({code}{words})", wait=wait)


def _redirected(answer: _Answer) -> _Ended:
    """A redirect that clients of the Service cannot follow, or that we do not."""
    if answer.target is not None:
        path = _clean(answer.target.partition("?")[0])
        if answer.with_credentials and answer.code in _KEEPS_METHOD:
            message = f"redirects ({answer.code}) to {path}, which credentials do not follow"
            return _Ended(Handshake("Unreachable", f"{message}: set spec.path"))
        return _failed(f"redirects ({answer.code}) to {path}: set spec.path")
    location = answer.headers.get("location", "").strip()
    if not location:
        return _failed(f"answers {answer.code} and not where to go")
    scheme = location.partition("://")[0].lower()
    where = "https: the Service's clients speak plain HTTP" if scheme == "https" else "another host"
    return _failed(f"redirects ({answer.code}) to {where}")


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
    """A stranger's words: one line, no control characters, no secrets, not long."""
    said = text if isinstance(text, str | int | float) else ""
    printable = "".join(char if char.isprintable() else " " for char in str(said)[:500])
    return scrub(" ".join(printable.split()))[:120]


# --- one request ------------------------------------------------------------------------------


class _Ended(Exception):
    """The handshake is over; ``final``: also for the other era."""

    def __init__(self, handshake: Handshake, *, final: bool = False) -> None:
        super().__init__(handshake.message)
        self.handshake = handshake
        self.final = final


class _Slow(_Ended):
    """The time is up, and the connection stood."""


def _failed(message: str) -> _Ended:
    return _Ended(Handshake("HandshakeFailed", message))


def _unheard(message: str) -> _Ended:
    """Nothing that the server can be blamed for: it may never have been asked."""
    return _Ended(Handshake("Unreachable", message))


_TLS_WORDS: Final = "TLS on the port"
_SILENT: Final = "takes the connection but gives no answer in time"
_KEEPS_METHOD: Final = (307, 308)
"""Redirects that a client follows with another POST."""


_UNREAD: Final = answers.Reading(None)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One HTTP answer. ``target`` is the path that it redirects to, on the same host; None: none,
    or elsewhere."""

    code: int
    headers: Mapping[str, str]
    reading: answers.Reading = _UNREAD
    target: str | None = None
    with_credentials: bool = False

    @property
    def start(self) -> bytes:
        return self.reading.start

    @property
    def message(self) -> JsonObject | None:
        """The JSON-RPC response."""
        return self.reading.message

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
        return code if isinstance(code, int) and abs(code) < 2**31 else None

    @property
    def error_data(self) -> JsonObject:
        found = self._error.get("data")
        return found if isinstance(found, dict) else {}

    @property
    def error(self) -> str:
        code = self.error_code
        return f"{code} {_ERRORS.get(code or 0, '')}".strip()

    @property
    def words(self) -> str:
        """For a message: ``answers 200 with JSON-RPC error -32602 Invalid params``."""
        if self.error_code is not None:
            return f"answers {self.code} with JSON-RPC error {self.error}"
        flaw = self.reading.flaw or ("its result is no object" if self.message else "")
        why = f" ({flaw})" if flaw and 200 <= self.code < 300 else ""
        return f"answers {self.code} without a JSON-RPC response{why}"


def _request(method: str, params: JsonObject) -> JsonObject:
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


class _Talk:
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
        loopback: Callable[[], bool] = _always,
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

    def __enter__(self) -> _Talk:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            until = min(self._end, line.began + limits.HANDSHAKE_LATE * self._timeout)
            if line.sockets:
                line.headed.wait(max(0.0, until - time.monotonic()))
            line.cut()
        self.leave()

    def call(self, method: str, params: JsonObject, headers: Mapping[str, str]) -> _Answer:
        """A JSON-RPC request that may open a session, and the response to it. A late one is still
        waited for at the end, a while, for the session that it may open."""
        message = _request(method, params)
        line = _Line()
        done: Future[_Answer] = Future()

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
            late = _Broken(TimeoutError(), connected=bool(line.sockets), late=True)
            raise _trouble(late, answered=False, heard=self._heard) from None
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
    ) -> _Answer:
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
                reading = _UNREAD
                if "id" in message:
                    reading = answers.read(_pieces(reply), told, message["id"], succeeded=ok)
            follows = reply.status in _KEEPS_METHOD and not path and not self._credentials
            if target is None or not follows:
                return _Answer(reply.status, told, reading, target, bool(self._credentials))
            path = self._path = target

    def agreed(self, headers: Mapping[str, str]) -> None:
        """The headers of requests from now on, with a version: also of the one that ends it."""
        session = headers.get("Mcp-Session-Id")
        if session in self._open:
            self._open[session] = headers

    def _opened(self, told: Mapping[str, str]) -> None:
        if session := _session(told):
            self._open.setdefault(session["Mcp-Session-Id"], session)

    @property
    def moved(self) -> str:
        """The path that a redirect led to, for a message."""
        return _clean(self._path.partition("?")[0])

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
        """The events of a GET, in a thread of its own. Raises _Ended where it has none."""
        line = _Line()
        self._lines.append(line)
        stream = _Stream(self, min(self._timeout, self._end - time.monotonic()))

        def run() -> None:
            try:
                self._listen(stream, line)
            except _Ended as end:
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
                _gate(_Answer(reply.status, told, reading, target, bool(self._credentials)))
                if not ok or answers.media_type(told) != answers.EVENTS:
                    raise _failed("no events")
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
                contextlib.suppress(_Ended),
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
        """One request; trouble, also while the answer is read, is raised as _Ended."""
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
        except _Broken as broken:
            raise _trouble(broken, answered=answered, heard=self._heard) from None


def _session(told: Mapping[str, str]) -> Mapping[str, str]:
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

    def __init__(self, talk: _Talk, limit: float) -> None:
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
            raise _Slow(Handshake("Unreachable", _SILENT)) from None
        if isinstance(event, BaseException):
            raise event
        return event


class _Broken(Exception):
    """Trouble below HTTP. ``connected``: not before the connection stood; ``late``: the time was
    up."""

    def __init__(self, error: Exception, *, connected: bool, late: bool) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.connected = connected
        self.late = late


@contextlib.contextmanager
def _connected(
    url: str, end: float, loopback: Callable[[], bool], connected: list[socket.socket]
) -> Iterator[tuple[http.client.HTTPConnection, str]]:
    """A connection to the URL's host, cut at ``end``, and the URL's path. Its socket is added to
    ``connected``, by which others may cut it. Raises _Broken."""
    left = end - time.monotonic()
    if left <= 0:
        raise _Broken(TimeoutError(), connected=True, late=True)
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
        raise _Broken(error, connected=len(connected) > before, late=late) from None
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


_UNREACHABLE_HINT: Final = "a NetworkPolicy in between, or an agent outside the cluster's network?"
_MESH_HINT: Final = "TLS on the port, or a mesh that lets only its own in (mTLS)?"


def _trouble(broken: _Broken, *, answered: bool, heard: bool) -> _Ended:
    """What went wrong below HTTP, as an end of the handshake. ``answered``: in the middle of an
    answer; ``heard``: this address has spoken HTTP before, so that nothing in between is to
    blame."""
    error = broken.error
    if isinstance(error, addresses.Refused):
        return _Ended(Handshake("Unreachable", str(error)), final=True)
    slow = broken.late or isinstance(error, TimeoutError)
    if not broken.connected:
        if isinstance(error, ConnectionRefusedError):
            refused = Handshake("ConnectionRefused", "nothing listens at the port")
            return _Ended(refused, final=True)
        why = "no connection in time" if slow else "no route"
        return _Ended(Handshake("Unreachable", f"{why}: {_UNREACHABLE_HINT}"), final=True)
    if slow:
        return _Slow(Handshake("Unreachable", _SILENT))
    if answered:
        return _failed("breaks off in the middle of an answer")
    if isinstance(error, OSError):  # of which RemoteDisconnected is one, too
        ends = "ends the connection without an answer"
        return _failed(ends) if heard else _unheard(f"{ends}: {_MESH_HINT}")
    if isinstance(error, http.client.BadStatusLine) and str(error.args[0]).startswith(_TLS_ALERT):
        return _unheard(f"{_TLS_WORDS}: it answers plain HTTP with an alert")
    return _failed("does not speak HTTP")


_TLS_ALERT: Final = "\x15\x03"


# --- drain ------------------------------------------------------------------------------------


def sessions(
    url: str,
    *,
    gauge: str = "",
    match: Mapping[str, str] | None = None,
    host: str = "",
    timeout: float = 2.0,
    loopback: Callable[[], bool] = _always,
) -> int | None:
    """How many sessions a server says it has; None where it does not say.

    With ``gauge`` the answer is Prometheus text, and the samples of that name are added up, those
    with the labels of ``match`` where it has any; else it is a number, or a JSON object with
    ``activeSessions``. ``host``: the Host header, if it is not the URL's; ``loopback``: see
    ``addresses.foreign``. Never raises for what the network or the server does.
    """
    accept = {"Accept": "text/plain, application/json"}
    try:
        talk = _Talk(url, host or urlsplit(url).netloc, timeout, loopback=loopback)
        with talk._exchange("GET", accept, end=time.monotonic() + timeout) as answer:
            if answer.status != 200:
                return None
            body = answer.read(limits.COUNT + 1)
    except (_Ended, ValueError):  # ValueError: not even a URL
        return None
    if len(body) > limits.COUNT:
        return None  # the gauge may stand in what was cut off
    count = _gauge(body, gauge, match or {}) if gauge else _number(body)
    return int(count) if count is not None and 0 <= count < 1e9 else None


def _number(body: bytes) -> float | None:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get("activeSessions")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _gauge(body: bytes, name: str, match: Mapping[str, str]) -> float | None:
    """The sum of the samples that match. None of them count as 0 where others of the gauge have
    those labels with other values: a sample is often there only once it has been counted."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [
            sample
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == name and match.keys() <= sample.labels.keys()
        ]
    except (ValueError, KeyError, IndexError):
        return None
    if not samples:
        return None
    return sum(one.value for one in samples if match.items() <= one.labels.items())
