"""MCP handshakes: with the SDK's own server, and with scripted ones for other eras and trouble."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import paths
import pytest
from scripted import Answer, Asked, scripted

from gitops_mcp.base.model import Handshake, Probe, ProbeResult
from gitops_mcp.base.reasons import Reason
from gitops_mcp.sync import conversation, probes, sessiongauge

pytestmark = pytest.mark.usefixtures("processes")

HOST = "web.ai.svc.cluster.local:8080"
FAILED = Reason.HANDSHAKE_FAILED
SILENT = Handshake(Reason.UNREACHABLE, "takes the connection but gives no answer in time")


def ask(url: str, *, host: str = HOST, timeout: float = 5.0) -> Handshake:
    return probes.probe(url, host=host, timeout=timeout)


# --- the SDK's own server ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(), ("json", "stateless")], ids=["sse", "json-stateless"])
def real(
    processes: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a running server, without a path."""
    file = tmp_path_factory.mktemp("mcp") / "port"
    script = paths.TESTS / "mcp_server.py"
    process = subprocess.Popen([sys.executable, str(script), str(file), *request.param])
    try:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{file.read_text()}"
    finally:
        process.terminate()
        process.wait(20)


def local(url: str) -> str:
    return url.removeprefix("http://")


def test_the_modern_era_is_spoken_first(real: str) -> None:
    # The first answer waits until the server runs, which on a busy machine takes its time.
    found = ask(f"{real}/mcp", host=local(real), timeout=60)
    assert found.reason == "HandshakeSucceeded"
    assert found.message == "web-search 1.2 speaks 2026-07-28"
    assert found.server_info == {
        "name": "web-search",
        "version": "1.2",
        "protocolVersion": "2026-07-28",
        "era": "modern",
    }


def test_the_legacy_era_is_spoken_and_its_sessions_are_ended(real: str) -> None:
    before = sessiongauge.sessions(f"{real}/sessions", timeout=60)
    for _ in range(3):
        with conversation.Talk(f"{real}/mcp", local(real), 60) as talk:
            found = probes._initialize(talk)
        assert found.reason == "HandshakeSucceeded"
        assert found.server_info is not None
        assert found.server_info["era"] == "legacy"
    assert sessiongauge.sessions(f"{real}/sessions", timeout=60) == before == 0


def test_the_older_transport_is_recognised(real: str) -> None:
    found = ask(f"{real}/sse", host=local(real), timeout=60)
    assert found.message == "web-search 1.2 speaks 2024-11-05 (HTTP+SSE)"
    assert found.server_info == {
        "name": "web-search",
        "version": "1.2",
        "protocolVersion": "2024-11-05",
        "era": "legacy",
    }


def test_a_host_that_is_not_on_the_servers_list_is_a_reason_of_its_own(real: str) -> None:
    assert ask(f"{real}/mcp", timeout=60).reason == "HostRejected"


def test_a_path_with_nothing_behind_it_fails(real: str) -> None:
    found = ask(f"{real}/other", host=local(real), timeout=60)
    assert (found.reason, found.server_info) == (FAILED, None)
    assert found.message == "initialize answers 404 without a JSON-RPC response"


def test_sessions_are_read_from_a_gauge_and_from_a_number(real: str) -> None:
    assert sessiongauge.sessions(f"{real}/metrics", gauge="mcp_sessions", timeout=60) == 2
    assert sessiongauge.sessions(f"{real}/metrics", gauge="other", timeout=60) is None
    assert sessiongauge.sessions(f"{real}/sessions", timeout=60) == 0


# --- a server of the legacy era, as the SDK's 1.30 answers ------------------------------------

INFO = {"name": "old", "version": "1.30.0"}


def result(
    request: Asked, value: Any, headers: Mapping[str, str] | None = None, *, sse: bool = True
) -> Answer:
    message = json.dumps({"jsonrpc": "2.0", "id": request.body["id"], "result": value})
    headers = headers or {}
    if not sse:
        return Answer(200, message, {"Content-Type": "application/json", **headers})
    typed = {"Content-Type": "text/event-stream", **headers}
    return Answer(200, headers=typed, chunks=[f"event: message\r\ndata: {message}\r\n\r\n"])


def error(request: Asked, status: int, code: int, message: str, **headers: str) -> Answer:
    body = {"jsonrpc": "2.0", "id": request.body["id"], "error": {"code": code, "message": message}}
    return Answer(status, body, {"Content-Type": "application/json", **headers})


class Legacy:
    """``live`` are the sessions that nobody has ended; ``change`` answers instead, if it does."""

    def __init__(self, change: Callable[[Asked], Answer | None] = lambda _: None) -> None:
        self.live: set[str] = set()
        self._change = change
        self._made = 0

    def __call__(self, request: Asked) -> Answer:
        session = request.headers.get("mcp-session-id")
        if request.method == "DELETE":
            self.live.discard(session or "")
            return Answer(200, "")
        method = request.body["method"] if request.body else request.method
        opened: dict[str, str] = {}
        if session is None and request.body:
            self._made += 1
            opened = {"mcp-session-id": f"session-{self._made}"}
            self.live |= set(opened.values())
        if changed := self._change(request):
            return Answer(changed.code, changed.body, {**changed.headers, **opened}, changed.chunks)
        if method == "initialize":
            return result(request, {"protocolVersion": "2025-06-18", "serverInfo": INFO}, opened)
        if session is None:
            return error(request, 400, -32600, "Bad Request: Missing session ID", **opened)
        assert request.headers["mcp-protocol-version"] == "2025-06-18"
        return Answer(202, "") if method.startswith("notifications/") else result(request, {})


def test_a_legacy_server_is_asked_again_and_left_without_a_session() -> None:
    legacy = Legacy()
    with scripted(legacy) as server:
        found = ask(f"{server.url}/mcp")
    assert found.message == "old 1.30.0 speaks 2025-06-18"
    assert found.server_info == {**INFO, "protocolVersion": "2025-06-18", "era": "legacy"}
    assert legacy.live == set()
    steps = [(r.body or {}).get("method", r.method) for r in server.asked]
    assert steps == [
        "server/discover",
        "DELETE",
        "initialize",
        "notifications/initialized",
        "ping",
        "DELETE",
    ]
    assert server.asked[-1].headers["mcp-protocol-version"] == "2025-06-18"
    assert {r.headers["host"] for r in server.asked} == {HOST}
    accepts = {r.headers["accept"] for r in server.asked if r.method == "POST"}
    assert accepts == {"application/json, text/event-stream"}


def change(method: str, answer: Callable[[Asked], Answer]) -> Legacy:
    """A legacy server that answers one method in another way."""

    def changed(request: Asked) -> Answer | None:
        asked = (request.body or {}).get("method", request.method)
        return answer(request) if asked == method else None

    return Legacy(changed)


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        (
            "initialize",
            lambda r: error(r, 200, -32602, "Invalid request parameters"),
            "initialize answers 200 with JSON-RPC error -32602 Invalid params",
        ),
        (
            "initialize",
            lambda r: result(r, {"protocolVersion": "x\ny"}),
            "initialize names no protocol version",
        ),
        (
            "initialize",
            lambda _: Answer(500, "oops"),
            "initialize answers 500 without a JSON-RPC response",
        ),
        (
            "notifications/initialized",
            lambda _: Answer(500, ""),
            "notifications/initialized answers 500 without a JSON-RPC response",
        ),
        (
            "ping",
            lambda _: Answer(200, "pong"),
            "ping answers 200 without a JSON-RPC response (not JSON)",
        ),
    ],
)
def test_a_handshake_that_fails_says_where_and_ends_its_session(
    method: str, answer: Callable[[Asked], Answer], message: str
) -> None:
    legacy = change(method, answer)
    with scripted(legacy) as server:
        assert ask(f"{server.url}/mcp") == Handshake(FAILED, message)
    assert legacy.live == set()


def test_a_server_that_leaves_no_time_is_still_left_without_a_session() -> None:
    legacy = change("ping", lambda _: Answer(200, chunks=["x"], wait=threading.Event()))
    hung = threading.Event()

    def answer(request: Asked) -> Answer:
        reply = legacy(request)
        pinged = bool(request.body) and request.body["method"] == "ping"
        return Answer(200, wait=hung) if pinged else reply

    with scripted(answer) as server:
        found = ask(f"{server.url}/mcp", timeout=0.5)
        assert found.reason == "HandshakeSucceeded"  # no client waits for a ping
        assert legacy.live == set()
        hung.set()


# --- answers that say it all ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (Answer(421, "Invalid Host header"), "HostRejected", "its own name"),
        (
            Answer(403, {"error": {"code": -32000, "message": "Invalid Host: x"}}),
            "HostRejected",
            "its own name",
        ),
        (
            Answer(307, "", {"Location": "http://192.0.2.1/mcp/?secret=1"}),
            FAILED,
            "redirects (307) to another host",
        ),
        (Answer(200, "<html>"), FAILED, "without a JSON-RPC response"),
        (Answer(200, "[" * 100_000), FAILED, "without a JSON-RPC response"),
        (Answer(200, "x" * 300_000), FAILED, "without a JSON-RPC response"),
        (Answer(406, ""), FAILED, "answers 406"),
        (
            Answer(
                200,
                {"id": None, "error": {"code": -32022, "message": "2027 only"}},
                {"Content-Type": "application/json"},
            ),
            "HandshakeSucceeded",
            "the server speaks MCP (refuses 2026-07-28: -32022 unsupported protocol version)",
        ),
        (
            Answer(200, {"id": "another", "result": {"supportedVersions": ["2026-07-28"]}}),
            FAILED,
            "without a JSON-RPC response",
        ),
    ],
)
def test_one_answer_may_say_it_all(answer: Answer, reason: str, words: str) -> None:
    with scripted(lambda _: answer) as server:
        found = ask(f"{server.url}/mcp")
    assert reason == found.reason
    assert words in found.message
    assert "secret" not in found.message


def test_a_modern_server_of_other_versions_is_taken_at_its_newest() -> None:
    def answer(request: Asked) -> Answer:
        return result(request, {"supportedVersions": ["2026-09-01", "2027-01-01"]}, sse=False)

    with scripted(answer) as server:
        found = ask(server.url)
    assert found.server_info == {"protocolVersion": "2027-01-01", "era": "modern"}
    assert server.asked[0].path == "/"


def test_what_a_server_says_about_itself_is_cut_and_cleaned() -> None:
    info = {"name": "\x1b[31mred\r\n\u202ename " + "x" * 9999, "version": 1.5, "more": "no"}

    def answer(request: Asked) -> Answer:
        return result(request, {"supportedVersions": ["2026-07-28"], "serverInfo": info})

    with scripted(answer) as server:
        found = ask(server.url)
    assert found.server_info is not None
    assert found.server_info.keys() == {"name", "version", "protocolVersion", "era"}
    assert found.server_info["name"].startswith("[31mred name xxx")
    assert len(found.server_info["name"]) <= 120
    assert found.message.isprintable()


def test_what_a_server_says_is_repeated_without_its_secrets() -> None:
    said = "web password=hunter2 Bearer abc123def456 https://u:pw@db/x"

    def answer(request: Asked) -> Answer:
        info = {"name": said, "version": "ghp_" + "a1B2" * 9}
        return result(request, {"supportedVersions": ["2026-07-28"], "serverInfo": info})

    with scripted(answer) as server:
        found = ask(server.url)
    assert found.server_info is not None
    assert found.server_info["name"] == "web password=*** Bearer *** https://***@db/x"
    assert found.server_info["version"] == "***"
    assert not re.search("hunter2|abc123|u:pw|a1B2", found.message)


def test_other_messages_in_the_stream_are_passed_over() -> None:
    def answer(request: Asked) -> Answer:
        noted = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
        asked = {"jsonrpc": "2.0", "id": request.body["id"], "method": "roots/list"}
        reply = {
            "jsonrpc": "2.0",
            "id": request.body["id"],
            "result": {"supportedVersions": ["2026-07-28"]},
        }
        text = [
            ": hello\n\nid: 1\ndata:\n\n",
            *(f"data: {json.dumps(m)}\n\n" for m in (noted, asked)),
        ]
        half = json.dumps(reply).replace('"result"', '\ndata: "result"')
        headers = {"Content-Type": "Text/Event-Stream; charset=utf-8"}
        return Answer(200, headers=headers, chunks=[*text, f"data: {half}\n\n"], cut=True)

    with scripted(answer) as server:
        assert ask(server.url).reason == "HandshakeSucceeded"


# --- trouble below HTTP -----------------------------------------------------------------------


def test_a_port_where_nothing_listens_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        found = ask(f"http://127.0.0.1:{unused.getsockname()[1]}/mcp")
    assert found.reason == "ConnectionRefused"


def test_an_address_that_drops_packets_is_unreachable() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]  # no room in the queue for another
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        found = ask(f"http://127.0.0.1:{address[1]}/mcp", timeout=0.3)
        for client in waiting:
            client.close()
    assert found.reason == "Unreachable"
    assert "NetworkPolicy" in found.message


@pytest.fixture
def raw(processes: None) -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Starts servers that speak bytes; each connection is handed to a function of its own."""
    listeners: list[socket.socket] = []

    def start(speak: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=run, args=(connection,), daemon=True).start()

        def run(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(65536)
                    speak(connection)
                except OSError:
                    pass  # the client has gone, as it should

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"

    yield start
    for listener in listeners:
        listener.close()


Raw = Callable[[Callable[[socket.socket], None]], str]


def drip(connection: socket.socket) -> None:
    """A byte now and then, so that no wait between two is ever long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def drip_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def swallow(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ")
    while True:
        connection.sendall(b"x" * 65536)


@pytest.mark.parametrize(
    ("speak", "said"),
    [
        (drip, SILENT),
        (drip_headers, SILENT),
        (swallow, SILENT),
        (lambda c: c.sendall(b"SSH-2.0-OpenSSH_9\r\n"), Handshake(FAILED, "does not speak HTTP")),
        (
            lambda _: None,
            Handshake(
                Reason.UNREACHABLE,
                "ends the connection without an answer: "
                "TLS on the port, or a mesh that lets only its own in (mTLS)?",
            ),
        ),
        (
            flood,
            Handshake(
                FAILED,
                "initialize answers 200 without a JSON-RPC response (it is longer than 1 MiB)",
            ),
        ),
    ],
    ids=["drip", "drip-headers", "silent", "ssh", "closing", "flood"],
)
def test_a_server_that_misbehaves_costs_its_time_limit_at_most(
    raw: Raw, speak: Callable[[socket.socket], None], said: Handshake
) -> None:
    assert ask(raw(speak), timeout=0.4) == said  # none of them ends by itself


def test_a_server_that_is_silent_to_the_modern_era_has_time_for_the_other() -> None:
    legacy = Legacy()
    silence = threading.Event()

    def answer(request: Asked) -> Answer:
        modern = bool(request.body) and request.body["method"] == "server/discover"
        return Answer(wait=silence) if modern else legacy(request)

    with scripted(answer) as server:
        assert ask(f"{server.url}/mcp", timeout=2).reason == "HandshakeSucceeded"
        silence.set()


# --- several pods, and the drain --------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = Handshake(Reason.HANDSHAKE_SUCCEEDED, "web speaks", {"name": "web"})


def test_the_worst_pod_speaks_for_the_server() -> None:
    bad = Handshake(FAILED, "no")
    found = probes.summary({"a": GOOD, "b": bad, "c": GOOD}, NOW)
    assert (found.reason, found.message) == (FAILED, "1 of 3 pods: no")
    assert (found.pods, found.at, found.server_info) == (frozenset("abc"), NOW, {"name": "web"})
    assert probes.summary({"a": GOOD, "b": GOOD}, NOW).message == "web speaks"


@pytest.mark.parametrize(
    ("body", "gauge", "count"),
    [
        ("3", "", 3),
        (" 0\n", "", 0),
        ('{"activeSessions": 4}', "", 4),
        ('{"sessions": 4}', "", None),
        ("-1", "", None),
        ("true", "", None),
        ("NaN", "", None),
        ("1e400", "", None),
        ("many", "", None),
        ("[" * 100_000, "", None),
        ('s{a="}"} 1\ns{a="b"} 2\nsessions 9\n', "s", 3),
        ("s NaN\n", "s", None),
        ("s_total 5\n", "s", None),
        ('s{a="b" 1\n', "s", None),
        ("s 1\n" + "# x\n" * 100_000, "s", None),
        ("", "s", None),
    ],
)
def test_session_counts_are_read_or_not_known(body: str, gauge: str, count: int | None) -> None:
    with scripted(lambda _: Answer(200, body)) as server:
        assert count == sessiongauge.sessions(f"{server.url}/x?y=1", gauge=gauge)
    assert server.asked[0].path == "/x?y=1"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ('s{method="GET"} 1\ns{method="POST"} 2\ns{method="POST",path="/x"} 3\n', 5),
        ('s{method="GET"} 1\n', 0),
        ('s{verb="POST"} 1\n', None),
        ("s 1\n", None),
    ],
)
def test_only_samples_that_match_are_counted(body: str, count: int | None) -> None:
    with scripted(lambda _: Answer(200, body)) as server:
        assert count == sessiongauge.sessions(server.url, gauge="s", match={"method": "POST"})


@pytest.mark.parametrize("code", [204, 302, 404, 500])
def test_other_answers_say_nothing_about_sessions(code: int) -> None:
    with scripted(lambda _: Answer(code, "0" if code != 204 else "", {"Location": "/"})) as server:
        assert sessiongauge.sessions(server.url) is None
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://[::1", "http://127.0.0.1:x/", ""])
def test_addresses_where_nobody_is_say_nothing_about_sessions(url: str) -> None:
    assert sessiongauge.sessions(url) is None


def test_the_silent_pods_of_one_server_are_asked_at_the_same_time() -> None:
    count = probes.AT_ONCE
    together = threading.Barrier(count, timeout=60)

    def answer(_: Asked) -> Answer:
        together.wait()  # silent until the last of them is asked
        return Answer(404)

    with scripted(answer) as server:
        targets = tuple((f"pod-{number}", server.url) for number in range(count))
        inquiry = Probe("handshake", targets, timedelta(seconds=60), host=HOST)
        found = probes.asking(lambda: True)(inquiry, lambda: datetime.now(UTC))
    assert isinstance(found, ProbeResult)
    assert (len(found.pods), found.passed) == (count, frozenset())
    assert not together.broken
