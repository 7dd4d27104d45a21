"""What holds for every test: nothing of the user's leaks in, nothing leaves this machine, and
programs are started only with permission.

Git has an identity and reads no configuration of the user or the system, no kubeconfig and no
setting of ours is inherited, no signal is ignored or blocked, and each test has its own empty home.
A socket of the test process may reach loopback addresses only: anything else is refused, and fails
the test that tried.
(Programs that a test starts are not watched.)
The fixture ``processes`` is the permission to start programs and to listen: a test that takes it,
or a fixture that does, is marked ``real``. `make quick` runs the others.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import plane
import pytest
import realservers
import urllib3.util.connection  # noqa: F401 -- binds "::1" when imported, in no test's name

_GIT = {
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.com",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
# Where the real control plane is kept that some tests start: said while HOME is still the user's.
# Where the servers of other people are kept as well.
_PLANE = {
    "GITOPS_MCP_PLANE_DIR": str(plane.directory()),
    "GITOPS_MCP_SERVERS_DIR": str(realservers.directory()),
}
_INHERITED = (
    "GITOPS_MCP_PLANE",  # "require" builds it where it is missing
    "GITOPS_MCP_SERVERS",  # likewise for MCP servers
    "GITOPS_MCP_STORIES",  # "all" tells them with the rights of one namespace, too
)

for _name in list(os.environ):
    if _name.startswith(("GIT_", "GITOPS_MCP_", "KUBECONFIG")) and _name not in _INHERITED:
        del os.environ[_name]
# Agents of many tests at once: each takes a free port of its own.
_AGENT = {
    "GITOPS_MCP_LISTEN": "127.0.0.1:0",
    "GITOPS_MCP_NOTES": "on",  # in a sandbox, too
}

os.environ.update(_GIT | _PLANE | _AGENT)


def _survive(number: int, frame: object) -> None:
    """A handler that does nothing: programs that a test starts get the default instead."""


def own_signals() -> None:
    """A shell starts a background job with SIGINT ignored, nohup with SIGHUP, and every program
    that a test starts would inherit that: tests that interrupt one would wait for ever."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does; its children get the default
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _survive)


own_signals()

_STARTS = {
    *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"),
    *("socket.bind", "subprocess.Popen"),
}
_strays: list[str] = []
_current: list[pytest.Item] = []
"""The test that runs, with its fixtures of every scope; none while tests are collected."""


def _is_local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False  # a name: to resolve it would already ask somebody else


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event in _STARTS and _current and _current[0].get_closest_marker("real") is None:
        _strays.append(f"{event} needs the fixture `processes`")
        raise RuntimeError(_strays[-1])
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # a str is a UNIX socket's path
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if not _is_local(host):
        _strays.append(f"{event} {host}")
        # What a machine without a network answers: the code under test takes its usual way out.
        raise OSError(101, f"tests reach loopback addresses only, not {host}")


sys.addaudithook(_refuse)


@pytest.fixture(scope="session")
def processes() -> None:
    """Permission to start programs and to listen on a port."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "processes" in getattr(item, "fixturenames", ()):
            item.add_marker("real")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _current[:] = [item]
    try:
        return (yield)
    finally:
        _current.clear()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Beside the test's own directory, not in it: a test may make that one its repository.
    monkeypatch.setenv("HOME", str(tmp_path.with_name(f"{tmp_path.name}-home")))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_strangers() -> Iterator[None]:
    yield
    found = _strays.copy()
    _strays.clear()
    assert not found


@pytest.fixture
def strays() -> list[str]:
    """What was refused so far; a test that means to try clears it."""
    return _strays
