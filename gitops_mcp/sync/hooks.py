"""Cleanup hooks: HTTP calls that tear down what a server has outside of the cluster.

The operator configures them (DNS, registries, load balancers, monitoring); a source never can. Each
is called once a server's pods are gone, before its objects are deleted: a signed POST, tried again
within a bound, its end reported. A hook that fails never holds a deletion past that bound, and may
be called again after a restart, so it must be idempotent. Nothing here raises for what a hook does.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import orjson

from gitops_mcp.base import addresses, durations
from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import JsonObject

if TYPE_CHECKING:
    import urllib3

SIGNATURE = "X-Gitops-Mcp-Signature-256"
"""``sha256=`` and the hex HMAC-SHA256 of ``<timestamp>.<body>``."""
TIMESTAMP = "X-Gitops-Mcp-Timestamp"
"""Seconds since 1970, part of what is signed, so that a receiver can refuse a replay."""

DEFAULT_TIMEOUT = timedelta(seconds=10)
LIMIT = timedelta(seconds=60)
"""For all hooks of one server together, retries included."""
_FIRST_WAIT = 1.0
_KEYS = frozenset({"name", "url", "secretFile", "timeout"})


@dataclass(frozen=True, slots=True)
class Hook:
    """One configured call. ``secret_file`` is read at each use, so that a rotated Secret counts."""

    name: str
    url: str
    secret_file: Path | None = None
    timeout: timedelta = DEFAULT_TIMEOUT


def parse(configured: object) -> tuple[Hook, ...]:
    """The hooks of a configuration file's ``hooks``: a list of name, url, secretFile, timeout.

    Raises UsageError, which names the hook and never its URL's credentials.
    """
    if not isinstance(configured, list):
        raise UsageError("hooks: expected a list")
    return tuple(_parse_one(one, f"hooks[{index}]") for index, one in enumerate(configured))


def _parse_one(one: object, place: str) -> Hook:
    if not isinstance(one, dict):
        raise UsageError(f"{place}: expected a map with name and url")
    unknown = sorted(str(key) for key in one.keys() - _KEYS)
    if unknown:
        raise UsageError(f"{place}: no key {unknown[0]!r}; there are {', '.join(sorted(_KEYS))}")
    name, url = one.get("name"), one.get("url")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{place}: name is missing")
    parts = _address(url)
    if parts is None:
        raise UsageError(f"{place}: url must be an http or https address")
    if parts.username or parts.password:
        raise UsageError(f"{place}: no credentials in the url; sign with secretFile instead")
    known = addresses.literal(parts.hostname or "")
    if known is not None and (refusal := addresses.metadata(known)):
        raise UsageError(f"{place}: {refusal}")
    try:
        timeout = durations.parse(str(one.get("timeout", "10s")))
    except durations.DurationError as error:
        raise UsageError(f"{place}: timeout is no duration such as 10s") from error
    if timeout <= timedelta():
        raise UsageError(f"{place}: timeout must be longer than 0s")
    secret = one.get("secretFile")
    return Hook(name, str(url), Path(secret) if secret else None, timeout)


def _address(url: object) -> SplitResult | None:
    """The parts of an http or https address; None for anything else."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        usable = parts is not None and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is no number
        return None
    return parts if usable and parts is not None and parts.hostname else None


def run(
    hooks: Sequence[Hook],
    event: JsonObject,
    *,
    limit: timedelta = LIMIT,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Call every hook with ``event`` as its JSON body; says how they ended, in one line."""
    end = clock() + limit.total_seconds()
    failed = {}
    for hook in hooks:
        trouble = _call(hook, event, end, clock, sleep)
        if trouble:
            failed[hook.name] = trouble
    done = f"{len(hooks) - len(failed)} of {len(hooks)} hooks done"
    return "; ".join([done, *(f"{name}: {trouble}" for name, trouble in failed.items())])


def _call(
    hook: Hook,
    event: JsonObject,
    end: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> str:
    """Why the hook failed, or ""."""
    wait = _FIRST_WAIT
    while True:
        left = end - clock()
        if left <= 0:
            return "no time left"
        trouble, again = _post(hook, event, min(left, hook.timeout.total_seconds()))
        if not trouble or not again or clock() + wait >= end:
            return trouble
        sleep(wait)
        wait *= 2


def _post(hook: Hook, event: JsonObject, timeout: float) -> tuple[str, bool]:
    """One try: why it failed (""), and whether another may help."""
    import urllib3

    body = orjson.dumps(event | {"hook": hook.name})
    try:
        headers = _headers(hook, body)
    except OSError as error:
        return f"its secret cannot be read: {error.strerror}", False
    except ValueError as error:
        return str(error), False
    try:
        status = _status(hook.url, body, headers, timeout)
    except addresses.Refused as error:
        return str(error), False
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        return f"no answer ({type(error).__name__})", True
    if 200 <= status < 300:
        return "", False
    return f"HTTP {status}", status in (408, 429) or status >= 500


def _status(url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> int:
    """The answer of the first address of the URL's host that takes a connection. All addresses are
    judged before one is dialled. Raises Refused, OSError, ValueError and urllib3's HTTPError."""
    import urllib3

    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    end = time.monotonic() + timeout
    trouble: Exception = OSError("the name has no address")
    found = addresses.resolve(parts.hostname or "", port, addresses.metadata)
    for address, share in addresses.shares(found, end):
        times = urllib3.Timeout(total=end - time.monotonic(), connect=share)
        try:
            with _pool(parts, address, port) as pool:
                answer = pool.request(
                    "POST",
                    _target(url),
                    body=body,
                    headers={**headers, "Host": parts.netloc},
                    timeout=times,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
                answer.close()
                return answer.status
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.ConnectTimeoutError,
        ) as error:
            trouble = error  # nothing was sent
    raise trouble


def _pool(parts: SplitResult, address: addresses.Address, port: int) -> urllib3.HTTPConnectionPool:
    """Connections to an address that the URL's host has, once it was judged; TLS is still for the
    host's name. Private addresses are the operator's own business."""
    import urllib3

    if parts.scheme == "https":
        host = parts.hostname or ""
        return urllib3.HTTPSConnectionPool(
            str(address), port, server_hostname=host, assert_hostname=host
        )
    return urllib3.HTTPConnectionPool(str(address), port)


def _target(url: str) -> str:
    """The path of a URL, with its query."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _headers(hook: Hook, body: bytes) -> Mapping[str, Any]:
    """Raises OSError where the secret cannot be read, ValueError where there is none in it: what
    an empty key signs, anybody can sign."""
    stamp = str(int(time.time()))
    headers = {"Content-Type": "application/json", TIMESTAMP: stamp}
    if hook.secret_file is not None:
        secret = hook.secret_file.read_bytes().strip()
        if not secret:
            raise ValueError("its secret is empty")
        signed = hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        headers[SIGNATURE] = f"sha256={signed}"
    return headers
