"""What is read from an answer, piece by piece, and that no bytes do any harm."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitops_mcp.base import answers, limits
from gitops_mcp.base.answers import Reading
from gitops_mcp.base.reasons import VERIFIED
from gitops_mcp.sync import probes, sessiongauge

REQUEST = "gitops-mcp-initialize"
RESPONSE = {"jsonrpc": "2.0", "id": REQUEST, "result": {"protocolVersion": "2025-11-25"}}
BODY = json.dumps(RESPONSE).encode()
EVENT = b"event: message\ndata: " + BODY + b"\n\n"
TYPES = {"json": "application/json", "events": "text/event-stream"}


def read(*pieces: bytes, kind: str = "json", encoding: str = "", ok: bool = True) -> Reading:
    headers = {"content-type": TYPES.get(kind, kind), "content-encoding": encoding}
    return answers.read(iter(pieces), headers, REQUEST, succeeded=ok)


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_events_are_read_however_they_are_cut(size: int, end: bytes, mark: bytes) -> None:
    stream = b": hello\nid: 1\ndata: {}\n\n" + EVENT
    sent = mark + stream.replace(b"\n", end)
    assert read(*cut(sent, size), kind="events").message == RESPONSE
    unfinished = sent.removesuffix(end)
    assert read(*cut(unfinished, size), kind="events").message is None


def test_data_of_several_lines_is_one_event_and_other_types_are_passed_over() -> None:
    split = BODY.replace(b'"result"', b'\ndata: "result"')
    assert read(b"data: " + split + b"\n\n", kind="events").message == RESPONSE
    assert read(b"event: update\n" + b"data: " + BODY + b"\n\n", kind="events").message is None
    assert read(b"event\ndata:" + BODY + b"\n\n", kind="events").message == RESPONSE


@pytest.mark.parametrize(
    ("body", "flaw"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"<html>", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[" * 500_000, "not JSON"),
        (b"9" * 500_000, "not JSON"),
        (b"null", "JSON without result or error"),
        (b'{"id": 1}', "JSON without result or error"),
        (b'{"id": 1, "result": {}}', "its id is not that of the request"),
        (b"[]", "a batch without the response"),
        (b'[1, {"id": 1, "result": {}}]', "a batch without the response"),
        (b" " * (limits.ANSWER + 1), "it is longer than 1 MiB"),
    ],
)
def test_a_body_without_the_response_says_why(body: bytes, flaw: str) -> None:
    assert read(*cut(body, 65536)) == Reading(None, flaw, read(body).start)
    assert len(read(body).start) <= answers.KEPT


def test_an_error_is_a_response_whatever_its_id() -> None:
    refusal = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600}}
    assert read(json.dumps(refusal).encode(), kind="text/plain", ok=False).message == refusal


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "raw deflate", "identity", ""])
@pytest.mark.parametrize("size", [1, 5, 65536])
def test_compression_is_undone_piece_by_piece(coding: str, size: int) -> None:
    raw = zlib.compressobj(wbits=-15)
    coded = {
        "gzip": gzip.compress(BODY),
        "x-gzip": gzip.compress(BODY),
        "deflate": zlib.compress(BODY),
        "raw deflate": raw.compress(BODY) + raw.flush(),
    }.get(coding, BODY)
    name = coding.removeprefix("raw ")
    assert read(*cut(coded, size), encoding=name).message == RESPONSE


def test_what_decompresses_without_end_is_given_up_at_the_limit() -> None:
    bomb = gzip.compress(b"[" * 30_000_000)
    tracemalloc.start()
    assert read(*cut(bomb, 65536), encoding="gzip").flaw == "it is longer than 1 MiB"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * limits.ANSWER


# --- any bytes --------------------------------------------------------------------------------

_WORDS = st.sampled_from(
    [
        BODY,
        EVENT,
        b"data: ",
        b"event: endpoint\n",
        b"\r",
        b"\n\n",
        b"\xef\xbb\xbf",
        b'{"jsonrpc":"2.0","error":{"code":',
        b'{"result":',
        b'"id":"gitops-mcp-initialize"',
        b"[",
        b"{",
        b"}",
        b"\\ud800",
        b"1e999",
        b"-32022",
        gzip.compress(BODY),
        zlib.compress(EVENT),
    ]
)
_BYTES = st.lists(st.one_of(_WORDS, st.binary(max_size=40)), max_size=12)


@settings(max_examples=400, deadline=None)
@given(
    pieces=_BYTES,
    kind=st.sampled_from([*TYPES, "text/html", "", "application/json; charset=utf-16"]),
    encoding=st.sampled_from(["", "gzip", "deflate", "br", "gzip, gzip"]),
    ok=st.booleans(),
)
def test_no_body_is_read_with_an_error(
    pieces: list[bytes], kind: str, encoding: str, ok: bool
) -> None:
    found = read(*pieces, kind=kind, encoding=encoding, ok=ok)
    assert (found.message is None) == bool(found.flaw)
    assert found.flaw.isprintable()


class Mouth:
    """Says to everybody who connects what it was told to say, and closes the connection."""

    def __init__(self) -> None:
        self.says = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/mcp"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(1)
                    connection.recv(65536)
                    connection.sendall(self.says)
                except OSError:
                    continue  # the client has gone, as it may

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def mouth() -> Iterator[Mouth]:
    speaker = Mouth()
    yield speaker
    speaker.close()


_HEADERS = st.lists(
    st.sampled_from(
        [
            b"Content-Type: application/json",
            b"Content-Type: text/event-stream",
            b"Content-Length: 10",
            b"Content-Length: -1",
            b"Content-Length: 99999999999999999999",
            b"Transfer-Encoding: chunked",
            b"Content-Encoding: gzip",
            b"Location: http://[evil/",
            b"Location: //[::1",
            b"Location: /mcp/\xe9",
            b"Location: http://web/\x00",
            b"Location: /a b",
            b"Mcp-Session-Id: abc",
            b"Mcp-Session-Id: \xff\x80",
            b"WWW-Authenticate: Bearer",
            b"Retry-After: 99999999999999999999",
            b"Retry-After: \xb2",
            b": no name",
            b"no colon",
            b"X: " + b"y" * 70_000,
        ]
    ),
    max_size=5,
)
_CODES = st.sampled_from(
    [0, 99, 100, 200, 202, 204, 301, 302, 307, 308, 400, 401, 403, 405, 421, 429, 503, 999]
)
_CHUNKS = st.sampled_from(
    [
        b"",
        b"5\r\n",
        b"0\r\n\r\n",
        b"-5\r\n",
        b"zz\r\n",
        b"ffffffffffffffff\r\n",
        b"1;" + b"e" * 70_000,
    ]
)


@pytest.mark.usefixtures("processes")
@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(code=_CODES, headers=_HEADERS, chunk=_CHUNKS, body=_BYTES, raw=st.booleans())
def test_no_answer_makes_a_handshake_raise(
    mouth: Mouth, code: int, headers: list[bytes], chunk: bytes, body: list[bytes], raw: bool
) -> None:
    head = b"" if raw else b"HTTP/1.1 %d x\r\n%s\r\n\r\n" % (code, b"\r\n".join(headers))
    mouth.says = head + chunk + b"".join(body)
    found = probes.probe(mouth.url, host="web.ai.svc:8080", timeout=2)
    assert found.reason in VERIFIED
    assert found.reason != "NotProbed", f"a bug: {mouth.says!r}"
    assert found.message.isprintable()
    assert "[evil" not in found.message
    assert sessiongauge.sessions(mouth.url, timeout=2) is None or code == 200 or raw


def endless_headers(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"X-Y: z\r\n" * 1000)


def endless_interim(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def endless_trailers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    while True:
        connection.sendall(b"X-Y: z\r\n" * 1000)


def tiny_chunks(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\nx\r\n" * 1000)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("speak", [endless_headers, endless_interim, endless_trailers, tiny_chunks])
def test_what_never_ends_is_bounded_in_time_and_memory(
    speak: Callable[[socket.socket], None],
) -> None:
    head = b"HTTP/1.1 200 OK\r\n" if speak is endless_headers else b""

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(head)
                speak(connection)
            except OSError:
                return  # the client has gone, as it should

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        found: Any = probes.probe(url, host="web", timeout=0.5)  # the answer never ends
    assert found.reason in ("HandshakeFailed", "Unreachable")
