"""Which addresses are never asked on somebody else's word, and a connection that keeps to it.

A name is resolved once, every address that it has is judged, and what was judged is what is
dialled: a name server that changes its answer in between gains nothing. How an address is written
(decimal, octal, hex, inside an IPv6 address) does not matter, since the address itself is judged.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Judge = Callable[[Address], str]
"""An address → why it is not asked, or ""."""


class Refused(OSError):
    """The host has an address that is not asked. The message says why, without the address."""


_METADATA: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",  # the usual place, and all that is link-local besides
            "fd00:ec2::254/128",  # AWS
            "fd20:ce::254/128",  # Google Cloud
            "100.100.100.200/32",  # Alibaba Cloud
            "168.63.129.16/32",  # Azure
            "192.0.0.192/32",  # Oracle Cloud
        ),
    )
)
"""Where clouds hand out a machine's credentials and secrets."""

_EMBEDDING: Final = tuple(
    map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96"))
)
"""IPv6 networks whose last 32 bits are an IPv4 address: compatible, NAT64, local NAT64, SIIT."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)


def metadata(address: Address) -> str:
    """Judges what nobody may ask, not even the operator's own hooks."""
    for one in _faces(address):
        if one.is_link_local or any(
            one in network for network in _METADATA if network.version == one.version
        ):
            return "link-local and metadata addresses are not asked"
    return ""


def _never() -> bool:
    return False


def foreign(address: Address, *, loopback: Callable[[], bool] = _never) -> str:
    """Judges what a manifest may not have us ask. ``loopback``, called where it matters: are
    loopback addresses those of pods? In the sandbox they are, in a cluster never."""
    refusal = metadata(address)
    if refusal:
        return refusal
    for one in _faces(address):
        if one.is_loopback and not loopback():
            return "loopback addresses are not asked"
        if one.is_unspecified or (one.version == 4 and one in _THIS_NETWORK):
            return "unspecified addresses are not asked"
        if one.is_multicast or one == _BROADCAST:
            return "multicast and broadcast addresses are not asked"
    return ""


def leads_to(address: Address, place: Address) -> bool:
    """Is it ``place``, or an IPv6 address that holds it?"""
    return place in _faces(address)


_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


def _faces(address: Address) -> Iterator[Address]:
    """The address itself, and every IPv4 address that it may lead to."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if int(address) > 1 and address in _EMBEDDING[0]:
        yield _last(address)  # and not as IPv6: ::7f00:1 is no address of its own
        return
    yield address
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    isatap = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    if isatap or any(address in network for network in _EMBEDDING[1:]):
        yield _last(address)


def _last(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def literal(host: str) -> Address | None:
    """The address that a URL's host is, in any notation that a resolver takes; None: it is a
    name."""
    bare = host.strip("[]").rstrip(".").partition("%")[0]
    try:
        return ipaddress.ip_address(bare)
    except ValueError:
        pass
    if not re.fullmatch(r"(?i)(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}", bare):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(bare))
    except (OSError, ValueError):
        return None


def resolve(host: str, port: int, judge: Judge) -> list[Address]:
    """The addresses of a host, all of them judged: one that is refused refuses the host, since
    whoever may answer for the name may answer anything. Raises Refused, and OSError where the name
    has none."""
    known = literal(host)
    if known is not None:
        found = [known]
    else:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        texts = dict.fromkeys(str(info[4][0]).partition("%")[0] for info in infos)
        found = [ipaddress.ip_address(text) for text in texts]
    for address in found:
        refusal = judge(address)
        if refusal:
            raise Refused(refusal)
    return found


def shares(found: Sequence[Address], end: float) -> Iterator[tuple[Address, float]]:
    """Each address to dial, in order, and the seconds for it: an equal share of what is left until
    ``end``, so that one that drops packets leaves time for the next. Raises TimeoutError where none
    is left."""
    for index, address in enumerate(found):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        yield address, left / (len(found) - index)


def connect(host: str, port: int, *, timeout: float, judge: Judge) -> socket.socket:
    """A TCP connection to the first of the host's addresses that takes one, within ``timeout``
    seconds for all of them (the name server not counted). Raises Refused and OSError."""
    end = time.monotonic() + timeout
    trouble: OSError = OSError("the name has no address")
    for address, share in shares(resolve(host, port, judge), end):
        try:
            connected = socket.create_connection((str(address), port), timeout=share)
        except OSError as error:
            trouble = error
        else:
            connected.settimeout(timeout)
            return connected
    raise trouble
