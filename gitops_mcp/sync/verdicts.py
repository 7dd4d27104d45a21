"""What an answer that is no handshake says of a server."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from gitops_mcp.base import addresses, answers, limits, objects
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Handshake
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.reasons import Reason

_ERRORS: Final[Mapping[int, str]] = {
    -32700: "Parse error",
    -32600: "Invalid Request",
    -32601: "Method not found",
    -32602: "Invalid params",
    -32603: "Internal error",
    -32020: "header mismatch",
    -32021: "capability missing",
    -32022: "unsupported protocol version",
}
"""By code. A server's own words may hold a secret of its, and end up in the status."""


_HOST: Final = re.compile(
    rb"\b(?:http_)?hosts?\b.{0,80}\b(?:not|isn't|invalid|disallowed|blocked|forbidden|unknown"
    rb"|mismatch|rejected|denied|untrusted|unrecogni[sz]ed)\b"
    rb"|\b(?:not|invalid|bad|disallowed|blocked|forbidden|unknown|rejected|denied|untrusted"
    rb"|unrecogni[sz]ed|unexpected)\b.{0,40}\b(?:http_)?hosts?\b"
    rb"|allowed_?hosts|disallowedhost|dns.rebinding",
    re.DOTALL,
)
"""What frameworks and SDKs say to a Host header that is not on their list, in lower case."""


_TLS: Final = re.compile(rb"https server|https port|ssl-enabled|http request.{0,40}\b(?:tls|ssl)\b")
"""What web servers say, in lower case, to plain HTTP where they speak TLS."""


_CHALLENGE: Final = re.compile(r"(?:^|[\s,])(?:bearer|dpop)(?:$|[\s,])|resource_metadata=", re.I)
"""The WWW-Authenticate of MCP's authorization (RFC 6750, 9449, 9728)."""


BUSY: Final = (429, 503)


def gate(answer: Answer) -> None:
    """Answers that say all there is to say, whatever was asked."""
    code, body = answer.code, answer.start.lower()
    if code == 421 or (code in (400, 403) and _HOST.search(body)):
        hint = "allow the Service's name in the server's list of hosts"
        told = f"the server does not accept its own name: {hint}"
        raise Ended(Handshake(Reason.HOST_REJECTED, told), final=True)
    if code == 401 and _CHALLENGE.search(answer.headers.get("www-authenticate", "")):
        message = (
            "the server does not take the credentials of health.headersFrom (401)"
            if answer.with_credentials
            else "the server is running and asks for credentials (401)"
        )
        raise Ended(Handshake(Reason.AUTHENTICATION_REQUIRED, message), final=True)
    if code in (401, 403, 407):
        why = "and does not ask for MCP credentials: a policy, a gateway or a login in front of it?"
        if answer.with_credentials:
            why = "with the credentials of health.headersFrom"
        raise Ended(Handshake(Reason.ACCESS_DENIED, f"refuses the handshake ({code}) {why}"))
    if code in BUSY:
        raise Ended(_busy(code, answer.headers.get("retry-after", "")), final=True)
    if code == 400 and _TLS.search(body):
        raise _unheard(f"{_TLS_WORDS}: the server wants HTTPS on this port")
    if 300 <= code < 400:
        raise _redirected(answer)


def _busy(code: int, retry_after: str) -> Handshake:
    told = retry_after.strip()
    seconds = int(told) if re.fullmatch(r"[0-9]{1,9}", told) else 0
    wait = min(timedelta(seconds=seconds), timedelta(seconds=limits.HANDSHAKE_WAIT_SECONDS))
    words = f", asks to wait {seconds} s" if seconds else ""
    return Handshake(Reason.UNREACHABLE, f"too busy to answer ({code}{words})", wait=wait)


def _redirected(answer: Answer) -> Ended:
    """A redirect that clients of the Service cannot follow, or that we do not."""
    if answer.target is not None:
        path = clean(answer.target.partition("?")[0])
        if answer.with_credentials and answer.code in KEEPS_METHOD:
            message = f"redirects ({answer.code}) to {path}, which credentials do not follow"
            return Ended(Handshake(Reason.UNREACHABLE, f"{message}: set spec.path"))
        return failed(f"redirects ({answer.code}) to {path}: set spec.path")
    location = answer.headers.get("location", "").strip()
    if not location:
        return failed(f"answers {answer.code} and not where to go")
    scheme = location.partition("://")[0].lower()
    where = "https: the Service's clients speak plain HTTP" if scheme == "https" else "another host"
    return failed(f"redirects ({answer.code}) to {where}")


def clean(text: object) -> str:
    """A stranger's words: one line, no control characters, no secrets, not long."""
    said = text if isinstance(text, str | int | float) else ""
    printable = "".join(char if char.isprintable() else " " for char in str(said)[:500])
    return scrub(" ".join(printable.split()))[:120]


class Ended(Exception):
    """The handshake is over; ``final``: also for the other era."""

    def __init__(self, handshake: Handshake, *, final: bool = False) -> None:
        super().__init__(handshake.message)
        self.handshake = handshake
        self.final = final


class Slow(Ended):
    """The time is up, and the connection stood."""


def failed(message: str) -> Ended:
    return Ended(Handshake(Reason.HANDSHAKE_FAILED, message))


def _unheard(message: str) -> Ended:
    """Nothing that the server can be blamed for: it may never have been asked."""
    return Ended(Handshake(Reason.UNREACHABLE, message))


_TLS_WORDS: Final = "TLS on the port"


SILENT: Final = "takes the connection but gives no answer in time"


KEEPS_METHOD: Final = (307, 308)
"""Redirects that a client follows with another POST."""


UNREAD: Final = answers.Reading(None)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. ``target`` is the path that it redirects to, on the same host; None: none,
    or elsewhere."""

    code: int
    headers: Mapping[str, str]
    reading: answers.Reading = UNREAD
    target: str | None = None
    with_credentials: bool = False

    @property
    def start(self) -> bytes:
        return self.reading.start

    @property
    def message(self) -> JsonObject | None:
        """The JSON-RPC response."""
        return self.reading.message

    @property
    def result(self) -> JsonObject | None:
        found = objects.at(self.message, "result")
        return found if isinstance(found, dict) else None

    @property
    def _error(self) -> JsonObject:
        return objects.part(self.message, "error")

    @property
    def error_code(self) -> int | None:
        code = self._error.get("code")
        return code if isinstance(code, int) and abs(code) < 2**31 else None

    @property
    def error_data(self) -> JsonObject:
        found = self._error.get("data")
        return found if isinstance(found, dict) else {}

    @property
    def error(self) -> str:
        code = self.error_code
        return f"{code} {_ERRORS.get(code or 0, '')}".strip()

    @property
    def words(self) -> str:
        """For a message: ``answers 200 with JSON-RPC error -32602 Invalid params``."""
        if self.error_code is not None:
            return f"answers {self.code} with JSON-RPC error {self.error}"
        flaw = self.reading.flaw or ("its result is no object" if self.message else "")
        why = f" ({flaw})" if flaw and 200 <= self.code < 300 else ""
        return f"answers {self.code} without a JSON-RPC response{why}"


class Broken(Exception):
    """Trouble below HTTP. ``connected``: not before the connection stood; ``late``: the time was
    up."""

    def __init__(self, error: Exception, *, connected: bool, late: bool) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.connected = connected
        self.late = late


_UNREACHABLE_HINT: Final = "a NetworkPolicy in between, or an agent outside the cluster's network?"


_MESH_HINT: Final = "TLS on the port, or a mesh that lets only its own in (mTLS)?"


def trouble(broken: Broken, *, answered: bool, heard: bool) -> Ended:
    """What went wrong below HTTP, as an end of the handshake. ``answered``: in the middle of an
    answer; ``heard``: this address has spoken HTTP before, so that nothing in between is to
    blame."""
    error = broken.error
    if isinstance(error, addresses.Refused):
        return Ended(Handshake(Reason.UNREACHABLE, str(error)), final=True)
    slow = broken.late or isinstance(error, TimeoutError)
    if not broken.connected:
        if isinstance(error, ConnectionRefusedError):
            refused = Handshake(Reason.CONNECTION_REFUSED, "nothing listens at the port")
            return Ended(refused, final=True)
        why = "no connection in time" if slow else "no route"
        return Ended(Handshake(Reason.UNREACHABLE, f"{why}: {_UNREACHABLE_HINT}"), final=True)
    if slow:
        return Slow(Handshake(Reason.UNREACHABLE, SILENT))
    if answered:
        return failed("breaks off in the middle of an answer")
    if isinstance(error, OSError):  # of which RemoteDisconnected is one, too
        ends = "ends the connection without an answer"
        return failed(ends) if heard else _unheard(f"{ends}: {_MESH_HINT}")
    if isinstance(error, http.client.BadStatusLine) and str(error.args[0]).startswith(_TLS_ALERT):
        return _unheard(f"{_TLS_WORDS}: it answers plain HTTP with an alert")
    return failed("does not speak HTTP")


_TLS_ALERT: Final = "\x15\x03"
