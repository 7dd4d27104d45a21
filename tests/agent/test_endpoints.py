"""The agent's HTTP server: who asks is answered quickly, whatever else other clients do."""

from __future__ import annotations

import gzip
import http.client
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import pytest

from gitops_mcp.agent import endpoints
from gitops_mcp.agent.endpoints import Endpoints
from gitops_mcp.agent.webhook import MAX_BODY
from gitops_mcp.base.errors import UsageError

LOCAL = "127.0.0.1:0"
Serve = Callable[..., Endpoints]
Answered = tuple[int, Mapping[str, str], str]


@pytest.fixture
def serve(processes: None) -> Iterator[Serve]:
    """Starts endpoints that are fine; ends them after the test."""
    with ExitStack() as stack:

        def start(**given: Any) -> Endpoints:
            said: dict[str, Any] = {
                "alive": lambda: "",
                "ready": lambda: "",
                "metrics": lambda: b"gitops_mcp_queue_depth 0\n",
            }
            return stack.enter_context(Endpoints(LOCAL, **(said | given)))

        yield start


def port(served: Endpoints) -> int:
    return int(served.url.rpartition(":")[2])


def ask(
    served: Endpoints,
    path: str,
    *,
    method: str = "GET",
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answered:
    with closing(http.client.HTTPConnection("127.0.0.1", port(served), timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()


def connect(served: Endpoints) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port(served)), timeout=60)


def is_over(client: socket.socket) -> bool:
    """Whether the server ends the connection before the client's patience does."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.usefixtures("processes")
def test_an_address_is_free_again_however_soon_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Endpoints._serve

    async def late(self: Endpoints, *given: Any) -> None:
        time.sleep(3 * endpoints.STOPPING)  # as a first import of the HTTP library may take
        await serving(self, *given)

    monkeypatch.setattr(Endpoints, "_serve", late)
    with Endpoints(LOCAL, alive=str, ready=str, metrics=bytes) as first:
        taken = port(first)
    with Endpoints(f"127.0.0.1:{taken}", alive=str, ready=str, metrics=bytes) as second:
        assert port(second) == taken


# --- what is answered -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_all_is_well_is_200(serve: Serve, path: str) -> None:
    assert ask(serve(), path)[::2] == (200, "ok\n")


@pytest.mark.parametrize(("path", "name"), [("/healthz", "alive"), ("/readyz", "ready")])
def test_what_is_wrong_is_503_with_the_reason(serve: Serve, path: str, name: str) -> None:
    served = serve(**{name: lambda: "the queue has not moved\nfor 5 minutes"})
    assert ask(served, path)[::2] == (503, "the queue has not moved for 5 minutes\n")
    other = {"/healthz": "/readyz", "/readyz": "/healthz"}[path]
    assert ask(served, other)[0] == 200


def test_what_is_answered_is_asked_anew_each_time(serve: Serve) -> None:
    reasons = iter(["not synced yet", ""])
    served = serve(ready=lambda: next(reasons))
    assert [ask(served, "/readyz")[0] for _ in range(2)] == [503, 200]


def test_metrics_are_the_text_that_prometheus_reads(serve: Serve) -> None:
    status, headers, text = ask(serve(), "/metrics")
    assert (status, text) == (200, "gitops_mcp_queue_depth 0\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_head_is_get_without_the_body(serve: Serve, path: str) -> None:
    served = serve()
    status, headers, text = ask(served, path, method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) == len(ask(served, path)[2])


def test_a_query_is_ignored(serve: Serve) -> None:
    assert ask(serve(), "/healthz?verbose")[0] == 200


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics/x", "/..%2f..%2fetc/passwd", "//"])
def test_an_unknown_path_is_404(serve: Serve, path: str) -> None:
    assert ask(serve(), path)[::2] == (404, "not found\n")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("DELETE", "/metrics", {"GET", "HEAD"}),
        ("GET", "/webhook", {"POST"}),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_ones(
    serve: Serve, method: str, path: str, allowed: set[str]
) -> None:
    status, headers, _ = ask(serve(webhook=lambda *_: 202), path, method=method)
    assert status == 405
    assert set(headers["Allow"].split(",")) == allowed


def test_a_bug_is_500_without_its_words(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise RuntimeError("s3cret")

    status, _, text = ask(serve(metrics=broken), "/metrics")
    assert (status, text) == (500, "internal server error\n")
    assert "no answer to /metrics" in caplog.text


def test_no_answer_gives_credentials_or_the_software_away(serve: Serve) -> None:
    served = serve(ready=lambda: "cannot fetch https://bot:s3cret@git.example.com/fleet.git")
    _, headers, text = ask(served, "/readyz")
    assert "s3cret" not in text
    assert headers["Server"] == "gitops-mcp"
    assert headers["Cache-Control"] == "no-store"


# --- the webhook ----------------------------------------------------------------------------------


def test_without_a_webhook_its_path_does_not_exist(serve: Serve) -> None:
    served = serve()
    assert [ask(served, "/webhook", method=m)[0] for m in ("POST", "GET")] == [404, 404]


@pytest.mark.parametrize(
    ("status", "text"),
    [(202, "accepted\n"), (200, "ignored: not a push\n"), (401, "unauthorized\n")],
)
def test_a_webhook_is_answered_as_its_hearer_says(serve: Serve, status: int, text: str) -> None:
    served = serve(webhook=lambda *_: status)
    for path in ("/webhook", "/webhook/"):
        assert ask(served, path, method="POST")[::2] == (status, text)


def test_a_webhook_is_heard_with_its_headers_and_the_bytes_that_were_sent(serve: Serve) -> None:
    heard: list[tuple[Mapping[str, str], bytes]] = []

    def hear(headers: Mapping[str, str], body: bytes) -> int:
        heard.append((headers, body))
        return 202

    body = gzip.compress(b'{"ref": "refs/heads/main"}')  # a signature is made over these
    headers = {"X-Hub-Signature-256": "sha256=00", "Content-Encoding": "gzip"}
    assert ask(serve(webhook=hear), "/webhook", method="POST", body=body, headers=headers)[0] == 202
    assert heard[0][0]["x-hub-signature-256"] == "sha256=00"
    assert heard[0][1] == body


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413_and_nobody_hears_it(serve: Serve, chunked: bool) -> None:
    heard: list[int] = []

    def hear(_: Mapping[str, str], body: bytes) -> int:
        heard.append(len(body))
        return 202

    served = serve(webhook=hear)
    body = b" " * (MAX_BODY + 1)
    with connect(served) as client:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        client.sendall(f"POST /webhook HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n".encode())
        client.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    assert heard == []
    assert ask(served, "/webhook", method="POST", body=body[1:])[0] == 202
    assert heard == [MAX_BODY]


# --- bad company ----------------------------------------------------------------------------------


def test_a_connection_carries_one_request(serve: Serve) -> None:
    with connect(serve()) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in answer


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET /hea",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        b"POST /webhook HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
    ],
)
def test_a_slow_client_is_cut_off_however_it_drips(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(endpoints, "LIFETIME", 0.5)
    with connect(serve(webhook=lambda *_: 202)) as client:
        client.sendall(beginning)

        def drips() -> None:
            for _ in range(1000):
                client.sendall(b"A")
                time.sleep(0.05)

        with pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            drips()


def test_the_newest_client_is_served_when_others_hold_every_connection(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "CONNECTIONS", 3)
    served = serve()
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(served)) for _ in range(10)]
        assert ask(served, "/healthz")[0] == 200
        assert all(is_over(client) for client in idle[:8])
        idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle[-1].recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET /healthz HTTP/9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"X-Filler: a\r\n" * 1000 + b"\r\n",
    ],
)
def test_nonsense_is_refused_without_a_word_in_the_log(
    serve: Serve, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    with connect(served) as client:
        client.sendall(nonsense)
        assert client.recv(100).startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
        client.settimeout(5)
        while client.recv(4096):
            pass
    assert ask(served, "/healthz")[0] == 200
    assert caplog.text == ""


# --- its own life ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_the_end_does_not_wait_for_whoever_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "LIFETIME", 3600)
    with ExitStack() as stack:
        served = stack.enter_context(
            Endpoints(LOCAL, alive=str, ready=str, metrics=bytes, webhook=lambda *_: 202)
        )
        assert ask(served, "/healthz")[0] == 200
        clients = [stack.enter_context(connect(served)) for _ in range(3)]
        clients[1].sendall(b"GET /hea")
        clients[2].sendall(b"POST /webhook HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        served.__exit__(None, None, None)
        assert all(is_over(client) for client in clients)
    with pytest.raises(ConnectionRefusedError):
        connect(served)


@pytest.mark.usefixtures("processes")
def test_what_is_ended_before_it_began_to_serve_has_ended() -> None:
    with Endpoints(LOCAL, alive=str, ready=str, metrics=bytes) as served:
        pass
    with pytest.raises(ConnectionRefusedError):
        connect(served)


def test_a_port_that_is_taken_is_one_clear_error(serve: Serve) -> None:
    address = serve().url.removeprefix("http://")
    second = Endpoints(address, alive=str, ready=str, metrics=bytes)
    with pytest.raises(UsageError) as refused, second:
        pass
    assert refused.value.message == f"cannot listen on {address}: Address already in use"
    assert "--listen" in refused.value.hint


@pytest.mark.parametrize(
    "listen",
    ["", "8080", "a:b", "127.0.0.1:", ":65536", "::1:8080", ":-1", ":²", ":" + "9" * 5000],
)
def test_an_address_that_is_none_is_refused_at_once(listen: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        Endpoints(listen, alive=str, ready=str, metrics=bytes)


def test_a_host_that_does_not_exist_is_one_clear_error() -> None:
    nowhere = Endpoints("no.such.host.invalid:0", alive=str, ready=str, metrics=bytes)
    with pytest.raises(UsageError, match=r"cannot listen on no\.such\.host\.invalid:0: "), nowhere:
        pass


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("listen", ["0.0.0.0:0", "localhost:0", ":0", "127.0.0.1:0"])
def test_every_kind_of_address_is_reached_by_its_url(listen: str) -> None:
    with Endpoints(listen, alive=str, ready=str, metrics=bytes) as served:
        host = served.url.removeprefix("http://").rpartition(":")[0].strip("[]")
        with closing(http.client.HTTPConnection(host, port(served), timeout=60)) as connection:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200


def test_it_answers_while_the_thread_that_began_it_is_stuck(serve: Serve) -> None:
    """Nothing in it waits for another thread: only what is handed in could."""
    served = serve()
    ask(served, "/healthz")
    assert [ask(served, "/healthz")[0] for _ in range(20)] == [200] * 20
