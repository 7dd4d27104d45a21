"""The guard that conftest.py puts around every test really guards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import paths
import pytest


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "git.example.com"])
def test_another_machine_cannot_be_reached(host: str, strays: list[str]) -> None:
    with pytest.raises(OSError, match="loopback"):
        socket.create_connection((host, 80), timeout=1)
    assert host in strays[0]
    strays.clear()


def test_a_datagram_cannot_leave_either(strays: list[str]) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        pytest.raises(OSError, match="loopback"),
    ):
        sender.sendto(b"x", ("192.0.2.1", 9))
    assert len(strays) == 1
    strays.clear()


def test_nothing_is_started_without_permission(strays: list[str]) -> None:
    with socket.socket() as unbound:
        starts: list[Callable[[], object]] = [
            lambda: subprocess.run(["true"], check=True),
            lambda: os.posix_spawn("/bin/true", ["true"], {}),
            lambda: unbound.bind(("127.0.0.1", 0)),
        ]
        for start in starts:
            with pytest.raises(RuntimeError, match="needs the fixture `processes`"):
                start()
    assert len(strays) == len(starts)
    strays.clear()


def test_what_takes_the_permission_is_marked_and_nothing_else(
    request: pytest.FixtureRequest,
) -> None:
    for item in request.session.items:
        takes = "processes" in getattr(item, "fixturenames", ())
        assert takes == (item.get_closest_marker("real") is not None), item.nodeid


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_can_be_reached(host: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection((host, server.getsockname()[1]), timeout=5) as client,
    ):
        assert client.getpeername()[0] == "127.0.0.1"


def test_nothing_of_the_users_is_inherited() -> None:
    assert not Path.home().exists()
    assert "KUBECONFIG" not in os.environ
    assert os.environ["GIT_CONFIG_GLOBAL"] == os.devnull


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("how", ["as here", "ignored", "blocked"])
def test_signals_are_a_tests_own(how: str) -> None:
    """However the tests were started: in the background, under nohup, from a blocked thread."""
    numbers = [int(number) for number in SIGNALS]
    started = {
        "as here": "",
        "ignored": f"[signal.signal(n, signal.SIG_IGN) for n in {numbers}];",
        "blocked": f"signal.pthread_sigmask(signal.SIG_BLOCK, {numbers});",
    }[how]
    outer = (
        f"import signal, subprocess, sys; {started}"
        "import conftest;"
        "subprocess.run(['grep', '-E', '^Sig(Blk|Ign)', '/proc/self/status'], check=True)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", outer],
        cwd=paths.TESTS,
        capture_output=True,
        text=True,
        check=True,
    )
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in ended.stdout.splitlines()}
    wanted = sum(1 << (number - 1) for number in numbers)
    assert {name: mask & wanted for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0}
