"""The guard that conftest.py puts around every test really guards."""

from __future__ import annotations

import os
import socket
from pathlib import Path

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
