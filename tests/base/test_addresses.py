"""Which addresses are asked on somebody else's word: judged as resolved, dialled as judged."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest
import urllib3
from scripted import Answer, scripted

from gitops_mcp.base import addresses
from gitops_mcp.base.model import Probe
from gitops_mcp.sync import hooks, probes, sessiongauge

METADATA = [
    "169.254.169.254",
    "169.254.0.1",
    "2852039166",  # the same as one number,
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "0xa9.254.0251.254",
    "169.16689662",
    "169.254.169.254.",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[64:ff9b::169.254.169.254]",  # NAT64,
    "[64:ff9b:1::a9fe:a9fe]",
    "[::ffff:0:a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",  # 6to4,
    "[fe80::5efe:a9fe:a9fe]",
    "[2001:db8::5efe:169.254.169.254]",  # ISATAP
    "[fe80::1%25eth0]",
    "[fd00:ec2::254]",
    "[FD00:0EC2:0:0:0:0:0:254]",
    "100.100.100.200",
    "0x646464c8.",
    "168.63.129.16",
    "192.0.0.192",
]
FOREIGN = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "017700000001",
    "0x7f.1",
    "[::1]",
    "[::7f00:1]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "0.0.0.0",
    "0",
    "0.1.2.3",
    "[::]",
    "[::ffff:0.0.0.0]",
    "224.0.0.1",
    "[ff02::1]",
    "255.255.255.255",
]
ORDINARY = ["10.0.0.1", "10.96.0.10", "192.168.1.1", "8.8.8.8", "[fd12:3456::1]", "[2001:db8::1]"]


@pytest.mark.parametrize("host", METADATA)
def test_nobody_asks_metadata_addresses_however_they_are_written(host: str) -> None:
    address = addresses.literal(host)
    assert address is not None
    assert addresses.metadata(address)
    assert addresses.foreign(address, loopback=lambda: True)


@pytest.mark.parametrize("host", FOREIGN)
def test_a_manifest_names_no_address_that_is_ours_or_everybodys(host: str) -> None:
    address = addresses.literal(host)
    assert address is not None
    assert addresses.foreign(address)
    assert not addresses.metadata(address)  # an operator's hook may go to a sidecar


@pytest.mark.parametrize("host", ORDINARY)
def test_other_addresses_are_asked(host: str) -> None:
    address = addresses.literal(host)
    assert address is not None
    assert not addresses.foreign(address)


@pytest.mark.parametrize("host", ["sessions.ai.svc", "a", "0x", "1.2.3.4.5", "256.256.256.256", ""])
def test_a_name_is_no_address(host: str) -> None:
    assert addresses.literal(host) is None


def _answers(monkeypatch: pytest.MonkeyPatch, *rounds: list[str]) -> list[str]:
    """A name server that gives another answer each time; the names that were asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **named: Any) -> Any:
        if str(host).replace(".", "").isdigit() or ":" in str(host):
            return real(host, port, *arguments, **named)
        asked.append(host)
        texts = rounds[min(len(asked), len(rounds)) - 1]
        return [
            (
                socket.AF_INET6 if ":" in text else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (text, 0),
            )
            for text in texts
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_one_bad_address_among_good_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, ["10.0.0.1", "127.0.0.1"])
    with pytest.raises(addresses.Refused, match="loopback addresses are not asked"):
        addresses.resolve("x.ai.svc", 80, addresses.foreign)


@pytest.mark.usefixtures("processes")
def test_what_was_judged_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that says something harmless first, and the metadata address next, is asked
    once."""
    asked = _answers(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
    dialled = []
    real = socket.create_connection

    def create_connection(address: tuple[str, int], **named: Any) -> socket.socket:
        dialled.append(address[0])
        return real(address, **named)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    with scripted(lambda _: Answer(200, "7")) as server:
        port = server.url.rpartition(":")[2]
        assert sessiongauge.sessions(f"http://rebinding.ai.svc:{port}/x") == 7
    assert (asked, dialled) == (["rebinding.ai.svc"], ["127.0.0.1"])
    assert server.asked[0].headers["host"] == f"rebinding.ai.svc:{port}"


@contextlib.contextmanager
def _silent(port: int) -> Iterator[str]:
    """An address that drops what wants to connect: its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((SILENT, port))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((SILENT, port))
        yield SILENT


SILENT = "127.0.0.77"
REFUSING = "127.0.0.78"


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("asks", ["sessions", "gauge", "hook"])
def test_of_several_addresses_the_first_that_takes_a_connection_is_asked(
    asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(monkeypatch, [REFUSING, SILENT, "127.0.0.1"])
    with scripted(lambda _: Answer(200, "g 7" if asks == "gauge" else "7")) as server:
        port = int(server.url.rpartition(":")[2])
        url = f"http://several.ai.svc:{port}/x"
        with _silent(port):
            if asks == "hook":
                hook = hooks.Hook("dns", url, timeout=timedelta(seconds=2))
                assert hooks.run([hook], {}, limit=timedelta(seconds=2)) == "1 of 1 hooks done"
            else:
                gauge = "g" if asks == "gauge" else ""
                assert sessiongauge.sessions(url, gauge=gauge, timeout=2) == 7
    assert [one.headers["host"] for one in server.asked] == [f"several.ai.svc:{port}"]


@pytest.mark.usefixtures("processes")
def test_a_hook_that_no_address_takes_ends_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, [SILENT, REFUSING])
    given: list[tuple[float, float]] = []

    class Noted(urllib3.Timeout):
        def __init__(self, *, total: float, connect: float) -> None:
            given.append((total, connect))
            super().__init__(total=total, connect=connect)

    monkeypatch.setattr(urllib3, "Timeout", Noted)
    with socket.create_server((REFUSING, 0)) as taken:
        port = taken.getsockname()[1]
    with _silent(port):
        hook = hooks.Hook("dns", f"http://several.ai.svc:{port}/x")
        said = hooks.run([hook], {}, limit=timedelta(seconds=0.5))
    assert said == "0 of 1 hooks done; dns: no answer (NewConnectionError)"
    (first, share), (second, _) = given
    assert second <= first <= 0.5
    assert share <= 0.25  # the other address has its half


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "url", ["http://{host}:{port}/", "http://localhost:{port}/", "http://2130706433:{port}/"]
)
def test_loopback_is_asked_only_where_pods_have_such_addresses(url: str) -> None:
    with scripted(lambda _: Answer(200, "7")) as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        target = url.format(host=host, port=port)
        inquiry = Probe("sessions", (("", target),), timedelta(seconds=5))
        assert probes.ask(inquiry, lambda: datetime.now(UTC)) is None
        assert server.asked == []
        assert probes.asking(lambda: True)(inquiry, lambda: datetime.now(UTC)) == 7


@pytest.mark.usefixtures("processes")
def test_the_api_server_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda _: Answer(200, "7")) as server:
        assert sessiongauge.sessions(server.url) == 7
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        assert sessiongauge.sessions(server.url) is None
    assert len(server.asked) == 1


@pytest.mark.parametrize("host", ["10.96.0.1", "[::ffff:10.96.0.1]", "[64:ff9b::a60:1]"])
def test_no_notation_of_the_api_servers_address_is_asked(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    found = probes.probe(f"http://{host}/mcp", host="web.ai.svc:8080", timeout=0.2)
    assert found.message == "the API server is not asked"


def test_an_ipv6_address_without_a_port_is_dialled_at_that_of_its_scheme(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled: list[tuple[str, int]] = []

    def refuse(place: tuple[str, int], **_: object) -> NoReturn:
        dialled.append(place)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    for url in ("http://[2001:db8::1]/mcp", "https://[2001:db8::1]/mcp"):
        probes.probe(url, host="web.ai.svc:8080")
    assert dialled == [("2001:db8::1", 80), ("2001:db8::1", 443)]


def test_a_pod_with_a_metadata_address_is_not_asked() -> None:
    found = probes.probe("http://169.254.169.254:8080/mcp", host="web.ai.svc:8080")
    assert found.reason == "Unreachable"
    assert found.message == "link-local and metadata addresses are not asked"


def test_a_hook_never_goes_to_a_metadata_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _answers(monkeypatch, ["169.254.169.254"])
    hook = hooks.Hook("dns", "http://hooks.example.com/dns")
    said = hooks.run([hook], {"event": "cleanup"}, limit=timedelta(seconds=5))
    assert said == "0 of 1 hooks done; dns: link-local and metadata addresses are not asked"
    assert asked == ["hooks.example.com"]  # it is not tried again


def test_addresses_of_other_versions_compare() -> None:
    assert not addresses.metadata(ipaddress.ip_address("2001:db8::2"))
