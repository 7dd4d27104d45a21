"""Stories of what the API server cannot tell: handshakes, session counts, cleanup hooks.

On the sandbox, whose pods have loopback addresses: a real server is put where a pod's would be.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from scripted import Answer, Asked, scripted
from stories.telling import Story

from gitops_mcp.base.names import KIND
from gitops_mcp.sync.hooks import Hook

SERVER = Path(__file__).parents[1] / "mcp_server.py"
PORT = 18080


pytestmark = pytest.mark.parametrize("ground", ["sandbox"], indirect=True)
"""Nothing may be sent to the addresses of a plane's pods."""


@contextlib.contextmanager
def answering(address: str, answer: Callable[[str, bytes], tuple[int, str]]) -> Iterator[str]:
    """A real HTTP server at ``address`` (a free port, or address:port); its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, text = answer(self.path, body)
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    host, _, port = address.partition(":")
    server = ThreadingHTTPServer((host, int(port or 0)), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def mcp_server(folder: Path, *flags: str) -> Iterator[None]:
    """A real MCP server of the SDK, as its ``flags`` say."""
    ready = folder / "port"
    process = subprocess.Popen([sys.executable, str(SERVER), str(ready), *flags])
    try:
        deadline = time.monotonic() + 60  # imports take their time on a busy machine
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def address_of(story: Story) -> str:
    (pod,) = story.pods()
    ip: str = pod["status"]["podIP"]
    return ip


def test_a_server_that_speaks_mcp_is_verified(story: Story, tmp_path: Path) -> None:
    story.put("web", transport="streamable-http", port=PORT)
    assert story.sync(wait=10) == {"web": "changed"}
    assert story.conditions()["Verified"] == "?NotProbed"
    with mcp_server(tmp_path, f"{address_of(story)}:{PORT}", "open"):
        story.sync(probes=True)
        assert story.conditions()["Verified"] == "HandshakeSucceeded"
        assert story.sync(probes=True) == {"web": "ok"}
        assert story.deeds() == []  # asked again, and nothing is new
    assert story.conditions()["Verified"] == "HandshakeSucceeded"
    assert story.conditions()["Ready"] == "MCPServerReady"
    assert story.status()["serverInfo"]["name"] == "web-search"


def test_a_server_that_refuses_its_own_name_is_not_ready(story: Story, tmp_path: Path) -> None:
    story.put("web", transport="streamable-http", port=PORT + 3)
    assert story.sync(wait=10) == {"web": "changed"}
    with mcp_server(tmp_path, f"{address_of(story)}:{PORT + 3}"):
        story.sync(probes=True)
        assert story.conditions()["Verified"] == "!HostRejected"
        assert story.conditions()["Ready"] == "!HostRejected"
        story.sync(probes=True)
        assert story.deeds() == []  # not Ready in between either


def test_a_server_behind_authentication_is_verified_with_a_secret(story: Story) -> None:
    port = PORT + 5
    header = {
        "name": "Authorization",
        "prefix": "Bearer ",
        "secretKeyRef": {"name": "web", "key": "token"},
    }
    story.put("web", transport="http", port=port, health={"headersFrom": [header]})
    assert story.sync(wait=10) == {"web": "changed"}
    token = "s3cret"

    def answer(asked: Asked) -> Answer:
        if asked.headers.get("authorization") != f"Bearer {token}":
            return Answer(401, "", {"WWW-Authenticate": "Bearer"})
        result = {"supportedVersions": ["2026-07-28"]}
        message = {"jsonrpc": "2.0", "id": asked.body["id"], "result": result}
        return Answer(200, message, {"Content-Type": "application/json"})

    def give(value: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "web", "namespace": story.namespace},
            "data": {"token": base64.b64encode(value.encode()).decode()},
        }
        story.hand.apply(body, manager="kubectl")

    with scripted(answer, f"{address_of(story)}:{port}"):
        story.sync(probes=True)
        assert story.conditions()["Verified"] == "?NotProbed"  # there is no such Secret
        give(token)
        story.sync(probes=True)
        assert story.conditions()["Verified"] == "HandshakeSucceeded"
        token = "rotated"
        story.sync(probes=True)
        assert story.conditions()["Verified"] == "AuthenticationRequired"
        give(token)
        story.sync(probes=True)
        assert story.conditions()["Verified"] == "HandshakeSucceeded"
    assert "s3cret" not in json.dumps([story.get(KIND), story.deeds()])


def test_a_readiness_gate_opens_with_the_handshake(story: Story, tmp_path: Path) -> None:
    port = PORT + 4
    story.put("web", transport="streamable-http", port=port, health={"gate": True})
    assert story.sync() == {"web": "changed"}
    story.until(lambda: [p for p in story.pods() if p["status"].get("podIP")], "an address")
    assert story.sync() == {"web": "ok"}
    assert story.conditions()["Ready"].startswith("!")
    with mcp_server(tmp_path, f"{address_of(story)}:{port}", "open"):
        story.sync(probes=True, wait=20)
    assert story.conditions()["Ready"] == "MCPServerReady"


def test_a_server_that_does_not_listen_is_not_ready(story: Story) -> None:
    story.put("web", transport="http", port=PORT + 1)
    assert story.sync(wait=10) == {"web": "changed"}
    assert story.conditions()["Ready"] == "MCPServerReady"
    story.sync(probes=True)
    assert story.conditions()["Verified"] == "!ConnectionRefused"
    assert story.conditions()["Ready"] == "!ConnectionRefused"
    assert story.status()["phase"] == "Failed"


def test_a_drain_ends_with_the_last_session(story: Story) -> None:
    port = PORT + 2
    drain = {"timeout": "60s", "preStop": "0s", "gauge": {"name": "left", "port": port}}
    story.put("web", transport="http", health={"mode": "tcp"}, drain=drain)
    assert story.sync(wait=10) == {"web": "changed"}
    story.remove("web")
    told = iter([2, 1])
    with answering(f"{address_of(story)}:{port}", lambda *_: (200, f"left {next(told, 0)}\n")):
        assert story.sync(probes=True, allow_prune=1) == {"web": "pruned"}
    shutdown = story.outcome().shutdown
    assert shutdown is not None
    assert shutdown["endedBy"] == "SessionsClosed"
    assert next(note for note in story.notes() if note.event == "pruned").extra["shutdown"]


def test_a_cleanup_hook_is_called_when_the_pods_are_gone_and_holds_nothing_up(
    story: Story,
) -> None:
    calls: list[tuple[str, int]] = []

    def answer(path: str, body: bytes) -> tuple[int, str]:
        calls.append((path, len(story.pods())))
        assert json.loads(body)["server"] == f"{story.namespace}/web"
        return (204 if path == "/dns" else 400), ""

    story.created()
    story.remove("web")
    with answering("127.0.0.1", answer) as url:
        hooks = (Hook("dns", f"{url}/dns"), Hook("lb", f"{url}/lb", timeout=timedelta(seconds=1)))
        assert story.sync(hooks=hooks, allow_prune=1) == {"web": "pruned"}
    assert calls == [("/dns", 0), ("/lb", 0)]
    assert story.find(KIND) is None
    shutdown = story.outcome().shutdown
    assert shutdown is not None
    assert shutdown["cleanup"] == "1 of 2 hooks done; lb: HTTP 400"
