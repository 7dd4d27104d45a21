"""One verdict for each kind of server: the same that the official clients would come to.

Each row is a scripted server and what the handshake with it must say. The comments name how many of
four official clients (Python 1 and 2, TypeScript 1 and 2) can list the tools of such a server.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scripted import Answer, Asked, scripted

from gitops_mcp.base.model import Handshake
from gitops_mcp.base.reasons import Reason
from gitops_mcp.sync import probes

pytestmark = pytest.mark.usefixtures("processes")

HOST = "web.ai.svc.cluster.local:8080"
VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
JSON = {"Content-Type": "application/json"}
EVENTS = {"Content-Type": "text/event-stream"}
HTML = {"Content-Type": "text/html"}

WELL = Reason.HANDSHAKE_SUCCEEDED
FAILED = Reason.HANDSHAKE_FAILED
REJECTED = "HostRejected"
AUTH = "AuthenticationRequired"
DENIED = "AccessDenied"
AWAY = "Unreachable"


def event(message: Any) -> bytes:
    return b"event: message\r\ndata: " + json.dumps(message).encode() + b"\r\n\r\n"


Form = Callable[[Any, Mapping[str, str]], Answer]
"""How a server wraps a JSON-RPC message and more headers into an answer."""


def as_json(message: Any, headers: Mapping[str, str], kind: str = JSON["Content-Type"]) -> Answer:
    return Answer(200, json.dumps(message), {"Content-Type": kind, **headers})


def in_bytes(make: Callable[[bytes], bytes], **more: str) -> Form:
    """JSON whose bytes are changed."""
    named = {key.replace("_", "-"): value for key, value in more.items()}

    def form(message: Any, headers: Mapping[str, str]) -> Answer:
        return Answer(200, make(json.dumps(message).encode()), {**JSON, **named, **headers})

    return form


def in_events(make: Callable[[Any], bytes] = event, **more: str) -> Form:
    named = {key.replace("_", "-"): value for key, value in more.items()}

    def form(message: Any, headers: Mapping[str, str]) -> Answer:
        return Answer(200, make(message), {**EVENTS, **named, **headers})

    return form


def data(message: Any) -> bytes:
    return json.dumps(message).encode()


@dataclass
class Server:
    """A small stateful server of the legacy era. ``live`` are its sessions."""

    form: Form = as_json
    versions: tuple[str, ...] = VERSIONS
    demanding: int = 0
    """The status with which it refuses a version that it does not know; 0: it offers another."""
    stateless: bool = False
    slow: float = 0
    """Seconds before each answer."""
    slow_body: float = 0
    """Seconds between the headers of initialize and its body."""
    change: Callable[[Any], Any] = lambda message: message
    """What becomes of each response."""
    instead: Mapping[str, Callable[[Asked], Answer]] = field(default_factory=dict)
    """Other answers, by method."""
    live: set[str] = field(default_factory=set)

    def __call__(self, asked: Asked) -> Answer:
        method = (asked.body or {}).get("method", asked.method)
        if method in self.instead:
            return self.instead[method](asked)
        if asked.method == "DELETE":
            if asked.headers.get("mcp-protocol-version", self.versions[0]) not in self.versions:
                return error(asked, 400, -32000)
            self.live.discard(asked.headers.get("mcp-session-id", ""))
            return Answer(200, "")
        if asked.method != "POST":
            return Answer(405, "", {"Allow": "POST, DELETE"})
        return self._later(self._answered(asked, method), method)

    def _later(self, answer: Answer, method: str) -> Answer:
        slow = {"delay": self.slow} if self.slow else {}
        if self.slow_body and method == "initialize":
            body = {"chunks": [answer.body], "delay": self.slow_body}
            return Answer(answer.code, headers=answer.headers, **body)  # type: ignore[arg-type]
        return Answer(answer.code, answer.body, answer.headers, **slow)  # type: ignore[arg-type]

    def _answered(self, asked: Asked, method: str) -> Answer:
        session = asked.headers.get("mcp-session-id")
        if method == "initialize":
            wanted = asked.body["params"]["protocolVersion"]
            if self.demanding and wanted not in self.versions:
                return error(asked, self.demanding, -32602)
            version = wanted if wanted in self.versions else self.versions[0]
            opened = {} if self.stateless else {"Mcp-Session-Id": uuid.uuid4().hex}
            self.live |= set(opened.values())
            info = {"name": "web", "version": "1"}
            said = {"protocolVersion": version, "capabilities": {}, "serverInfo": info}
            return self._said(asked, said, opened)
        if not self.stateless and session not in self.live:
            return error(asked, 404 if session else 400, -32000)
        if asked.headers.get("mcp-protocol-version", VERSIONS[0]) not in self.versions:
            return error(asked, 400, -32000)
        if "id" not in asked.body:
            return Answer(202, "")
        return self._said(asked, {}) if method == "ping" else error(asked, 200, -32601)

    def _said(self, asked: Asked, result: Any, headers: Mapping[str, str] | None = None) -> Answer:
        message = {"jsonrpc": "2.0", "id": asked.body["id"], "result": result}
        return self.form(self.change(message), headers or {})


def error(asked: Asked, status: int, code: int, data: Any = None, words: str = "no") -> Answer:
    told = {"code": code, "message": words, **({"data": data} if data is not None else {})}
    body = {"jsonrpc": "2.0", "id": (asked.body or {}).get("id"), "error": told}
    return Answer(status, body, JSON)


@dataclass
class Modern:
    """A small server of the modern era."""

    versions: tuple[str, ...] = ("2026-07-28",)
    slow: float = 0
    discovers: bool = True
    live: tuple[str, ...] = ()

    def __call__(self, asked: Asked) -> Answer:
        if asked.method != "POST":
            return Answer(405, "")
        meta = (asked.body.get("params") or {}).get("_meta") or {}
        version = meta.get("io.modelcontextprotocol/protocolVersion")
        if version not in self.versions:
            offered = {"supported": list(self.versions), "requested": version}
            return error(asked, 400, -32022, offered)
        if asked.body["method"] != "server/discover" or not self.discovers:
            return error(asked, 404, -32601)
        info = {"io.modelcontextprotocol/serverInfo": {"name": "new", "version": "2"}}
        result = {"supportedVersions": list(self.versions), "capabilities": {}, "_meta": info}
        message = {"jsonrpc": "2.0", "id": asked.body["id"], "result": result}
        return Answer(200, message, JSON, delay=self.slow)


def always(code: int, body: Any = "", **headers: str) -> Callable[[Asked], Answer]:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda _: Answer(code, body, named)


def raw(sent: bytes) -> Callable[[Asked], Answer]:
    return lambda _: Answer(raw=sent)


def hang(_: Asked) -> Answer:
    return Answer(200, "", wait=threading.Event())


def endless(_: Asked) -> Answer:
    return Answer(200, headers=EVENTS, chunks=[": ping\n\n"], wait=threading.Event())


def instead(method: str, answer: Callable[[Asked], Answer], **more: Any) -> Server:
    return Server(instead={method: answer}, **more)


def redirecting(code: int, location: str) -> Callable[[Asked], Answer]:
    """Its endpoint has moved from /mcp to the path at the end of ``location``."""
    server = Server()

    def answer(asked: Asked) -> Answer:
        if asked.path == "/mcp":
            return Answer(code, "", {"Location": location.replace("HOST", asked.headers["host"])})
        return server(asked)

    answer.live = server.live  # type: ignore[attr-defined]
    return answer


def limited(asked: Asked, times: list[float] = []) -> Answer:  # noqa: B006 -- its memory
    """Two requests, and then no more for a while."""
    times.append(time.monotonic())
    if len(times) > 2:
        return Answer(429, {"error": "rate limited"}, {**JSON, "Retry-After": "2"})
    return Server()(asked)


def legacy_offers(asked: Asked) -> Answer:
    """As the Go SDK answers server/discover where it keeps sessions."""
    result = {"supportedVersions": list(VERSIONS), "capabilities": {}}
    return as_json({"jsonrpc": "2.0", "id": asked.body["id"], "result": result}, {})


def big(message: Any) -> Any:
    if "protocolVersion" in message["result"]:
        message["result"]["instructions"] = "x" * 300_000
    return message


@dataclass(frozen=True)
class Row:
    """``words``: part of the message. ``timeout``: seconds for an answer."""

    name: str
    server: Callable[[Asked], Answer]
    reason: str
    words: str = ""
    timeout: float = 5.0


VITE = "Blocked request. This host (&quot;web&quot;) is not allowed."
RESOURCE = 'Bearer resource_metadata="http://x/.well-known/oauth-protected-resource"'
INFO = "web 1 speaks 2025-11-25"

ROWS = (
    # --- works for all clients
    Row("good", Server(), WELL, INFO),
    Row("good-events", Server(in_events()), WELL, INFO),
    Row("stateless", Server(stateless=True), WELL, INFO),
    Row("delete-405", instead("DELETE", always(405), stateless=True), WELL),
    Row("pretty", Server(in_bytes(lambda b: json.dumps(json.loads(b), indent=2).encode())), WELL),
    Row("initialized-200", instead("notifications/initialized", always(200)), WELL),
    Row("initialized-204", instead("notifications/initialized", always(204)), WELL),
    Row("only-2024-11-05", Server(versions=("2024-11-05",)), WELL, "speaks 2024-11-05"),
    Row("only-2025-03-26", Server(versions=("2025-03-26",)), WELL, "speaks 2025-03-26"),
    Row("only-2025-06-18", Server(versions=("2025-06-18",)), WELL, "speaks 2025-06-18"),
    Row(
        "notifications-before",
        Server(in_events(lambda m: event({"method": "notifications/message"}) + event(m))),
        WELL,
    ),
    Row("2000-comments", Server(in_events(lambda m: b": ping\n\n" * 2000 + event(m))), WELL),
    Row("discover-500", instead("server/discover", always(500, "Traceback")), WELL),
    Row("discover-403", instead("server/discover", always(403, {"error": "policy"})), WELL),
    Row("discover-401-basic", instead("server/discover", always(401)), WELL),
    Row("discover-405", instead("server/discover", always(405)), WELL),
    Row("discover-closes", instead("server/discover", raw(b"")), WELL),  # 3 of 4
    Row("discover-hangs", instead("server/discover", hang), WELL, INFO, 0.4),
    Row("slow-1", Server(slow=0.2), WELL, INFO, 1),
    Row("slow-2", Server(slow=0.4), WELL, INFO, 1),
    Row("slow-3", Server(slow=0.6), WELL, INFO, 1),
    Row("rate-limit", limited, WELL, INFO),
    Row("no-ping", instead("ping", lambda r: error(r, 200, -32601)), WELL, INFO),
    Row("no-ping-400", instead("ping", lambda r: error(r, 400, -32601)), WELL, INFO),
    Row(
        "ping-null",
        instead("ping", lambda r: as_json({"id": r.body["id"], "result": None}, {})),
        WELL,
    ),
    Row("ping-hangs", instead("ping", hang), WELL, INFO),
    Row("gzip", Server(in_bytes(gzip.compress, Content_Encoding="gzip")), WELL, INFO),
    Row("deflate", Server(in_bytes(zlib.compress, Content_Encoding="deflate")), WELL, INFO),
    Row(
        "gzip-events",
        Server(in_events(lambda m: gzip.compress(event(m)), Content_Encoding="gzip")),
        WELL,
    ),
    Row("300-kB-of-instructions", Server(change=big), WELL, INFO),
    Row(
        "slash-307",
        redirecting(307, "http://HOST/mcp/"),
        WELL,
        f"{INFO} (redirects to /mcp/)",
    ),
    Row("relative-308", redirecting(308, "/good/"), WELL, f"{INFO} (redirects to /good/)"),
    # --- works for some clients
    Row("initialized-400", instead("notifications/initialized", always(400)), WELL),  # 1
    Row("initialized-404", instead("notifications/initialized", always(404)), WELL),
    Row("initialized-405", instead("notifications/initialized", always(405)), WELL),
    Row("batch", Server(in_bytes(lambda b: b"[" + b + b"]")), WELL),  # 2
    Row(
        "batch-and-notification",
        Server(in_bytes(lambda b: b'[{"method":"notifications/message"},' + b + b"]")),
        WELL,  # 2
    ),
    Row("json-bom", Server(in_bytes(lambda b: b"\xef\xbb\xbf" + b)), WELL),  # 2
    Row("events-bom", Server(in_events(lambda m: b"\xef\xbb\xbf" + event(m))), WELL),  # 2
    Row("events-cr", Server(in_events(lambda m: event(m).replace(b"\r\n", b"\r"))), WELL),  # 2
    # --- the modern era
    Row("modern", Modern(), WELL, "new 2 speaks 2026-07-28"),
    Row("modern-2027", Modern(("2027-03-01",)), WELL, "speaks 2027-03-01 (refuses 2026-07-28"),
    Row("modern-slow", Modern(slow=0.6), WELL, "new 2", 1),
    Row("modern-without-discover", Modern(discovers=False), FAILED),
    Row("legacy-offers", instead("server/discover", legacy_offers), WELL, INFO),
    Row(
        "legacy-offers-in-an-error",
        instead("server/discover", lambda r: error(r, 400, -32022, {"supported": [*VERSIONS]})),
        WELL,
        INFO,
    ),
    # --- works for no client
    Row(
        "demands-400",
        Server(versions=("2025-06-18",), demanding=400),
        FAILED,
        "initialize answers 400 with JSON-RPC error -32602 Invalid params",
    ),
    Row("demands-200", Server(versions=("2025-06-18",), demanding=200), FAILED, "-32602"),
    Row("id-null", Server(change=lambda m: {**m, "id": None}), FAILED, "(its id is not that of"),
    Row("id-other", Server(change=lambda m: {**m, "id": "x"}), FAILED, "(its id is not that of"),
    Row("id-zero", Server(change=lambda m: {**m, "id": 0}), FAILED, "(its id is not that of"),
    Row(
        "events-batch",
        Server(in_events(lambda m: event([m]))),
        FAILED,
        "(a batch in an event)",
    ),
    Row(
        "events-unfinished",
        Server(in_events(lambda m: b"data: " + data(m))),
        FAILED,
        "(its events have no response)",
    ),
    Row(
        "no-content-type",
        Server(lambda m, h: Answer(200, json.dumps(m), dict(h))),
        FAILED,
        "(its Content-Type is missing, not application/json or text/event-stream)",
    ),
    Row(
        "text-plain",
        Server(lambda m, h: as_json(m, h, "text/plain; charset=utf-8")),
        FAILED,
        "(its Content-Type is text/plain, not",
    ),
    Row("html-200", always(200, "<html>", **HTML), FAILED, "(not JSON)"),
    Row("html-404", always(404, "<html>404 Not Found", **HTML), FAILED, "initialize answers 404"),
    Row("nginx-405", always(405, "<html>405 Not Allowed", **HTML), FAILED, "answers 405"),
    Row("python-501", always(501, "Unsupported method ('POST')"), FAILED, "answers 501"),
    Row("graphql-400", always(400, {"errors": [{"message": "query"}]}), FAILED, "answers 400"),
    Row(
        "graphql-200",
        always(200, {"errors": [{"message": "query"}], "data": None}, **JSON),
        FAILED,
        "(JSON without result or error)",
    ),
    Row("rest-422", always(422, {"detail": [{"msg": "field required"}]}), FAILED, "answers 422"),
    Row("other-json-rpc", lambda r: error(r, 200, -32601), FAILED, "-32601 Method not found"),
    Row("echo", lambda r: Answer(200, r.body or "", JSON), FAILED, "(JSON without result or error"),
    Row(
        "echo-result",
        lambda r: as_json({"id": (r.body or {}).get("id"), "result": {"ok": True}}, {}),
        FAILED,
        "initialize names no protocol version",
    ),
    Row("500", always(500, "Internal Server Error"), FAILED, "initialize answers 500"),
    Row("502", always(502, "upstream connect error"), FAILED, "initialize answers 502"),
    Row("crash-in-initialize", instead("initialize", raw(b"")), FAILED, "ends the connection"),
    Row(
        "half-a-body",
        raw(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"j'),
        FAILED,
        "breaks off in the middle of an answer",
    ),
    Row("https-302", redirecting(302, "https://HOST/good/"), FAILED, "redirects (302) to https"),
    Row("slash-302", redirecting(302, "/good/"), FAILED, "(302) to /good/: set spec.path"),
    Row("other-host-307", redirecting(307, "http://192.0.2.1/mcp/"), FAILED, "to another host"),
    Row("login-302", redirecting(302, "/login?next=s3cret"), FAILED, "to /login: set spec.path"),
    Row("redirect-loop", always(307, "", Location="/mcp/"), FAILED, "redirects (307) to /mcp/"),
    Row("redirect-evil", always(302, "", Location="http://[evil/"), FAILED, "to another host"),
    Row("redirect-nowhere", always(302), FAILED, "answers 302 and not where to go"),
    Row("brotli", Server(in_bytes(bytes, Content_Encoding="br")), FAILED, "Content-Encoding"),
    Row("no-gzip", Server(in_bytes(bytes, Content_Encoding="gzip")), FAILED, "not decompress"),
    Row(
        "gzip-bomb",
        always(200, gzip.compress(b"[" * 50_000_000), Content_Encoding="gzip", **JSON),
        FAILED,
        "(it is longer than 1 MiB)",
    ),
    Row("an-event-feed", lambda r: feed(r, "update"), FAILED, "initialize answers 404"),
    # --- it does not accept its own name
    Row("rust-sdk", always(403, "Forbidden: Host header is not allowed"), REJECTED, "own name"),
    Row("go-sdk", always(403, "Forbidden: invalid Host header\n"), REJECTED),
    Row("python-sdk", always(421, "Invalid Host header"), REJECTED),
    Row("typescript-sdk", lambda r: error(r, 403, -32000, words="Invalid Host: web"), REJECTED),
    Row("trusted-host", always(400, "Invalid host header"), REJECTED),
    Row("vite", always(403, VITE), REJECTED),
    Row("webpack", always(403, "Invalid Host header"), REJECTED),
    Row("rails", always(403, "<h1>Blocked hosts: web.ai.svc</h1>"), REJECTED),
    Row(
        "django-debug",
        always(400, "DisallowedHost at /mcp: Invalid HTTP_HOST header: 'web'. You may need to add"),
        REJECTED,
    ),
    Row("django-name", always(400, "<h1>Bad Request (400)</h1> DisallowedHost"), REJECTED),
    # --- it wants to know who asks, or somebody does not want us
    Row("401-bearer", always(401, "", WWW_Authenticate=RESOURCE), AUTH, "credentials (401)"),
    Row("401-bearer-alone", always(401, "", WWW_Authenticate="Bearer"), AUTH),
    Row("401-several", always(401, "", WWW_Authenticate='Basic realm="x", Bearer'), AUTH),
    Row(
        "401-basic",
        always(401, "<html>Grafana", WWW_Authenticate='Basic realm="Bearers"'),
        DENIED,
        "(401)",
    ),
    Row("401-without", always(401, {"error": "invalid_token"}), DENIED, "refuses the handshake"),
    Row("403-csrf", always(403, "CSRF verification failed. token=s3cret"), DENIED, "(403)"),
    Row("403-rbac", always(403, "RBAC: access denied"), DENIED, "(403)"),
    Row("403-hosted", always(403, "Forbidden. Hosted by localhost."), DENIED),
    Row("407", always(407), DENIED),
    Row("auth-on-tools", Server(stateless=True), WELL),
    # --- nobody can tell
    Row("429", always(429, "", Retry_After="5"), AWAY, "busy to answer (429, asks to wait 5 s)"),
    Row("503", always(503, "warming up", Retry_After="soon"), AWAY, "too busy to answer (503)"),
    Row("429-to-initialize", instead("initialize", always(429)), AWAY, "(429)"),
    Row("never", hang, AWAY, "gives no answer in time", 0.3),
    Row("endless-comments", endless, AWAY, "gives no answer in time", 0.3),
    Row("slow-8", instead("initialize", hang), AWAY, "gives no answer in time", 0.3),
    Row("closes", raw(b""), AWAY, "a mesh that lets only its own in"),
    Row("tls-alert", raw(b"\x15\x03\x01\x00\x02\x02\x46"), AWAY, "TLS on the port"),
    Row("tls-go", always(400, "Client sent an HTTP request to an HTTPS server."), AWAY, "HTTPS"),
    Row("tls-nginx", always(400, "The plain HTTP request was sent to HTTPS port"), AWAY, "HTTPS"),
    Row("ssh", raw(b"SSH-2.0-OpenSSH_9\r\n"), FAILED, "does not speak HTTP"),
)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_verdict_is_that_of_the_clients(row: Row) -> None:
    with scripted(row.server) as server:
        found = probes.probe(f"{server.url}/mcp", host=HOST, timeout=row.timeout)
    assert (found.reason, row.words in found.message) == (row.reason, True), found
    assert found.message.isprintable()
    assert "s3cret" not in found.message
    assert getattr(row.server, "live", set()) in (set(), ())  # no session is left
    assert (
        found.reason.conditions["Verified"]
        == {
            WELL: "True",
            AUTH: "True",
            FAILED: "False",
            REJECTED: "False",
            DENIED: "Unknown",
            AWAY: "Unknown",
        }[row.reason]
    )


# --- the older transport ----------------------------------------------------------------------


def feed(asked: Asked, kind: str, where: str = "/messages?session=1") -> Answer:
    """A stream of events that begins with one of a kind; a POST finds nothing."""
    if asked.method != "GET":
        return Answer(404, "nope")
    first = f"event: {kind}\ndata: {where}\n\n"
    return Answer(200, headers=EVENTS, chunks=[first], wait=threading.Event())


class Events:
    """An HTTP+SSE server. ``change`` answers a POST to its endpoint in another way."""

    def __init__(
        self,
        change: Callable[[Asked], Answer | None] = lambda _: None,
        where: str = "/messages?session=1",
    ) -> None:
        self._change = change
        self._where = where
        self._asked = threading.Event()
        self._request: Any = None

    def __call__(self, asked: Asked) -> Answer:
        if asked.path.startswith("/messages"):
            if changed := self._change(asked):
                return changed
            if asked.body["method"] == "initialize":
                self._request = asked.body
                self._asked.set()
            return Answer(202, "Accepted")
        if asked.method != "GET":
            return Answer(405, "Method Not Allowed")
        return Answer(200, headers=EVENTS, chunks=self._stream())

    def _stream(self) -> Any:
        yield f"event: endpoint\ndata: {self._where}\n\n"
        if self._asked.wait(2):
            info = {"name": "older", "version": "3"}
            result = {"protocolVersion": "2024-11-05", "serverInfo": info}
            yield event({"jsonrpc": "2.0", "method": "notifications/message"})
            yield event({"jsonrpc": "2.0", "id": self._request["id"], "result": result})


def of_events(answer: Callable[[Asked], Answer], timeout: float = 5.0) -> Handshake:
    with scripted(answer) as server:
        return probes.probe(f"{server.url}/sse", host=HOST, timeout=timeout)


def test_the_older_transport_is_initialized_over_its_endpoint() -> None:
    found = of_events(Events())
    assert (found.reason, found.message) == (WELL, "older 3 speaks 2024-11-05 (HTTP+SSE)")
    assert of_events(Events(where=f"http://{HOST}/messages")).reason == WELL


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (Events(lambda _: Answer(404, "")), FAILED, "answers 404 at its endpoint"),
        (Events(where="http://192.0.2.1/messages"), FAILED, "names another server"),
        (Events(where="http://[evil/messages"), FAILED, "names another server"),
        (Events(lambda _: Answer(401, "")), DENIED, "(401)"),
        (Events(lambda _: Answer(202, "")), AWAY, "no answer in time"),
        (lambda r: feed(r, "endpoint", "/nowhere"), FAILED, "answers 404 at its endpoint"),
        (
            lambda r: Answer(*((405, "") if r.method == "POST" else (403, ""))),
            DENIED,
            "(403)",
        ),
        (lambda r: Answer(405 if r.method == "POST" else 503, ""), AWAY, "too busy"),
        (lambda r: Answer(405, "") if r.method == "POST" else hang(r), AWAY, "in time"),
        (lambda r: Answer(405, "") if r.method == "POST" else endless(r), AWAY, "in time"),
        (
            lambda r: error(r, 400, -32602) if r.method == "POST" else endless(r),
            FAILED,
            "-32602",
        ),
    ],
    ids=[
        "dead",
        "elsewhere",
        "evil",
        "guarded",
        "silent",
        "feed",
        "refused",
        "busy",
        "late",
        "idle",
        "refused-in-mcp",
    ],
)
def test_an_endpoint_event_alone_is_no_handshake(
    answer: Callable[[Asked], Answer], reason: str, words: str
) -> None:
    found = of_events(answer, timeout=0.5)
    assert (found.reason, words in found.message) == (reason, True), found


# --- sessions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server",
    [
        Server(slow_body=0.8),
        instead("server/discover", hang, slow=0.8),
        Server(slow=0.8),
    ],
    ids=["late-body", "late-after-silence", "late-headers"],
)
def test_a_session_is_ended_also_when_its_id_comes_after_the_time(server: Server) -> None:
    with scripted(server) as running:
        found = probes.probe(f"{running.url}/mcp", host=HOST, timeout=0.5)
        assert found.reason == AWAY
        assert any(asked.method == "DELETE" for asked in running.asked)
        deadline = time.monotonic() + 60
        while server.live and time.monotonic() < deadline:  # the server is slow to that, too
            time.sleep(0.02)
    assert server.live == set()


def test_a_thousand_handshakes_leave_no_session() -> None:
    server = Server()
    before = threading.active_count()
    with scripted(server) as running:
        for _ in range(1000):
            running.asked.clear()
            found = probes.probe(f"{running.url}/mcp", host=HOST, timeout=30)
            assert found.reason == WELL
        assert server.live == set()
    assert threading.active_count() <= before + 2


def test_a_handshake_has_a_limit_for_each_answer_and_a_longer_one_for_all() -> None:
    server = Server(slow=0.35, instead={"server/discover": hang})
    with scripted(server) as running:
        found = probes.probe(f"{running.url}/mcp", host=HOST, timeout=0.5)
    assert found.reason == WELL  # although all answers together take longer than one may


# --- busy servers -----------------------------------------------------------------------------

GOOD = Handshake(WELL, "web 1 speaks", {"name": "web"})
BAD = Handshake(FAILED, "no")
"""What pods said before."""


def test_a_busy_pod_keeps_its_last_word() -> None:
    with scripted(always(429, "", Retry_After="7")) as server:
        busy = probes.probe(f"{server.url}/mcp", host=HOST)
    assert busy.wait is not None
    now = datetime(2026, 1, 1, tzinfo=UTC)
    first = probes.summary({"a": busy, "b": GOOD}, now)
    assert (first.reason, first.wordless) == (AWAY, False)
    assert first.passed == frozenset("b")
    then = probes.summary({"a": busy, "b": busy}, now, {"a": BAD, "b": GOOD})
    assert (then.reason, then.message) == (FAILED, "1 of 2 pods: no")
    assert then.passed == frozenset("b")
    assert (then.wait, then.server_info) == (timedelta(seconds=7), GOOD.server_info)
    again = probes.summary({"a": busy, "b": busy}, now, then.answers)
    assert again.answers == then.answers
    assert probes.summary({"a": busy}, now).wordless


# --- credentials ------------------------------------------------------------------------------


def guarded(asked: Asked, server: Server = Server(stateless=True)) -> Answer:  # noqa: B008
    if asked.headers.get("authorization") != "Bearer s3cret":
        return Answer(401, "", {"WWW-Authenticate": "Bearer"})
    return server(asked)


def test_credentials_go_to_the_pod_with_every_request() -> None:
    sent = {"Authorization": "Bearer s3cret", "host": "evil", "Mcp-Session-Id": "x"}
    with scripted(guarded) as server:
        found = probes.probe(f"{server.url}/mcp", host=HOST, headers=sent)
    assert found.message == INFO
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer s3cret"}
    assert {asked.headers["host"] for asked in server.asked} == {HOST}


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (always(401, "", WWW_Authenticate="Bearer"), AUTH, "does not take the credentials"),
        (always(403), DENIED, "with the credentials of health.headersFrom"),
        (
            redirecting(307, "/good/"),
            AWAY,
            "redirects (307) to /good/, which credentials do not follow: set spec.path",
        ),
        (redirecting(307, "http://192.0.2.1/"), FAILED, "to another host"),
    ],
)
def test_credentials_are_never_told_nor_redirected(
    answer: Callable[[Asked], Answer], reason: str, words: str
) -> None:
    sent = {"Authorization": "Bearer s3cret"}
    with scripted(answer) as server:
        found = probes.probe(f"{server.url}/mcp", host=HOST, headers=sent)
    assert (found.reason, words in found.message) == (reason, True), found
    assert "s3cret" not in str(found)
    assert {asked.path for asked in server.asked} == {"/mcp"}
