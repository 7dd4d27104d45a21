"""Handshakes with real servers: official SDKs of three languages, fastmcp, and two bridges.

Each server is of `servers/`, in an environment that `python tests/realservers.py build` makes;
where there is none, its tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import realservers
from realservers import Running, compiled, mcp_proxy, python, python_2, supergateway, typescript

from gitops_mcp.base.model import Handshake
from gitops_mcp.sync import probes

pytestmark = pytest.mark.usefixtures("processes")

SERVICE = "web.ai.svc.cluster.local:8080"
WELL = "HandshakeSucceeded"
TIMES = 1000 if os.environ.get("GITOPS_MCP_SERVERS") == "require" else 50
"""Handshakes in a row with a server that can count its sessions."""


@contextmanager
def running(start: Callable[[], AbstractContextManager[Running]]) -> Iterator[Running]:
    try:
        context = start()
        server = context.__enter__()
    except realservers.Unavailable as error:
        pytest.skip(str(error))
    try:
        yield server
    finally:
        context.__exit__(None, None, None)


def shake(
    server: Running, path: str = "/mcp", *, host: str = "", timeout: float = 30, **headers: str
) -> Handshake:
    """The first answer waits until the server runs, which on a busy machine takes its time."""
    url = f"{server.url}{path}"
    return probes.probe(url, host=host or server.host, timeout=timeout, headers=headers)


@dataclass(frozen=True)
class Row:
    """A server, and what the handshake with it says. ``host``: the Host header, its own if empty;
    ``counts``: it tells how many sessions it has."""

    name: str
    start: Callable[[], AbstractContextManager[Running]]
    words: str
    reason: str = WELL
    path: str = "/mcp"
    host: str = ""
    counts: bool = True


OLD, LEGACY, NEW = realservers.PYTHONS
ROWS = (
    # SDK of Python, before 1.10: mounted with a slash at its end
    Row("python-1.9", lambda: python(OLD), "speaks 2025-03-26 (redirects to /mcp/)"),
    Row("python-1.9-sse", lambda: python(OLD, "sse"), "(HTTP+SSE)", path="/sse", counts=False),
    # SDK of Python, 1.30
    Row("python-1.30", lambda: python(LEGACY), "python 1.30.0 speaks 2025-11-25"),
    Row("python-1.30-json", lambda: python(LEGACY, "json"), "speaks 2025-11-25"),
    Row("python-1.30-stateless", lambda: python(LEGACY, "stateless"), "speaks 2025-11-25"),
    Row("python-1.30-open", lambda: python(LEGACY, "open"), "speaks 2025-11-25", host=SERVICE),
    Row("python-1.30-mounted", lambda: python(LEGACY, "mount"), "(redirects to /mcp/)"),
    Row("python-1.30-sse", lambda: python(LEGACY, "sse"), "(HTTP+SSE)", path="/sse", counts=False),
    Row("python-1.30-host", lambda: python(LEGACY), "", "HostRejected", host=SERVICE),
    Row("python-1.30-auth", lambda: python(LEGACY, "auth"), "(401)", "AuthenticationRequired"),
    # fastmcp
    Row("fastmcp-2", lambda: python(LEGACY, "fastmcp"), "fast "),
    Row("fastmcp-4", lambda: python(NEW, "fastmcp"), "speaks 2026-07-28", counts=False),
    Row(
        "fastmcp-4-slash",
        lambda: python(NEW, "fastmcp", "slash"),
        "speaks 2026-07-28 (redirects to /mcp/)",
        counts=False,
    ),
    # SDK of TypeScript, 1.x
    Row("typescript", typescript, "typescript 1 speaks 2025-11-25"),
    Row("typescript-json", lambda: typescript("json"), "typescript 1 speaks 2025-11-25"),
    Row("typescript-stateless", lambda: typescript("stateless"), "typescript 1"),
    Row("typescript-sse", lambda: typescript("sse"), "(HTTP+SSE)", path="/sse", counts=False),
    Row("typescript-host", lambda: typescript("hosts"), "", "HostRejected", host=SERVICE),
    Row("typescript-auth", lambda: typescript("auth"), "(401)", "AuthenticationRequired"),
    # SDK of Go
    Row("go", lambda: compiled("go"), "go 1 speaks 2025-11-25"),
    Row("go-open", lambda: compiled("go", "open"), "go 1 speaks 2025-11-25", host=SERVICE),
    Row("go-host", lambda: compiled("go"), "", "HostRejected", host=SERVICE),
    # SDK of Rust
    Row("rust", lambda: compiled("rust", "open"), "speaks 20", host=SERVICE, counts=False),
    Row("rust-host", lambda: compiled("rust"), "", "HostRejected", host=SERVICE, counts=False),
    # bridges from stdio
    Row("mcp-proxy", mcp_proxy, "mcp-time", counts=False),
    Row("mcp-proxy-stateless", lambda: mcp_proxy("--stateless"), "mcp-time", counts=False),
    Row("supergateway", supergateway, "typescript 1 speaks", counts=False),
    Row("supergateway-stateful", lambda: supergateway("--stateful"), "typescript 1", counts=False),
)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_real_server_is_judged_as_its_clients_would(row: Row) -> None:
    with running(row.start) as server:
        found = shake(server, row.path, host=row.host)
        assert (found.reason, row.words in found.message) == (row.reason, True), found
        if found.reason == WELL:
            assert found.server_info is not None
            assert found.server_info["era"] == (
                "modern" if "speaks 2026" in found.message else "legacy"
            )
        if row.counts:
            assert server.sessions() == 0


@pytest.mark.parametrize(
    "start",
    [
        lambda: python(OLD),
        lambda: python(LEGACY),
        lambda: python(LEGACY, "fastmcp"),
        python_2,
        typescript,
        lambda: compiled("go"),
    ],
    ids=["python-1.9", "python-1.30", "fastmcp-2", "python-2", "typescript", "go"],
)
def test_many_handshakes_leave_no_session(
    start: Callable[[], AbstractContextManager[Running]],
) -> None:
    with running(start) as server:
        for _ in range(TIMES):
            assert shake(server).reason == WELL
        assert server.sessions() == 0


@pytest.mark.parametrize("form", [(), ("json",)], ids=["events", "json"])
def test_a_server_that_is_slow_to_begin_sessions_is_left_without_any(form: tuple[str, ...]) -> None:
    with running(lambda: python(LEGACY, "slow=2.5", *form)) as server:
        shake(server, "/sessions", timeout=30)  # it runs
        for _ in range(3):
            assert shake(server, timeout=1.5).reason == "Unreachable"
        assert eventually(lambda: server.sessions() == 0)
        found = shake(server, timeout=30)
        assert found.reason == WELL
        assert eventually(lambda: server.sessions() == 0)


def test_a_bridge_whose_children_are_slow_is_left_without_any() -> None:
    with running(lambda: supergateway("--stateful", slow=2.5)) as server:
        for _ in range(3):
            assert shake(server, timeout=1).reason == "Unreachable"
        assert eventually(lambda: server.children() == 0)


def test_a_server_behind_authentication_is_verified_with_credentials() -> None:
    with running(lambda: typescript("auth")) as server:
        assert shake(server, Authorization="Bearer good").message.startswith("typescript 1 speaks")
        wrong = shake(server, Authorization="Bearer s3cret")
        assert (wrong.reason, "s3cret" in wrong.message) == ("AuthenticationRequired", False)


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    ("word", "kind", "refusal"),
    [
        ("", "node", realservers.Unavailable),
        ("require", "node", RuntimeError),
        ("require", "go", realservers.Unavailable),
        ("require", "rust", realservers.Unavailable),
    ],
)
def test_without_its_toolchain_a_server_is_skipped_but_where_it_is_required(
    word: str,
    kind: str,
    refusal: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITOPS_MCP_SERVERS_DIR", str(tmp_path))
    monkeypatch.setenv("GITOPS_MCP_SERVERS", word)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(refusal):
        realservers.environment(kind)
