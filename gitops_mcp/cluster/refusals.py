"""What the API server refused, as one of our errors, without the values that it quotes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import orjson

from gitops_mcp.base import objects
from gitops_mcp.base.errors import (
    Configuration,
    Conflict,
    Expired,
    Gone,
    Immutable,
    KindAbsent,
    KubeError,
    Permanent,
    PolicyRefused,
    Silent,
    Terminating,
    Transient,
)
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import INSTALL_CRD
from gitops_mcp.base.names import API_VERSION, KIND, OWNERSHIP_POLICY, JsonObject, ObjectRef
from gitops_mcp.base.reasons import Reason

if TYPE_CHECKING:
    pass
from gitops_mcp.cluster.kinds import plural

Causes = tuple[tuple[str, str, str], ...]
"""Why a body was refused, each ``(reason, field, message)``."""


LEAST_RETRY_AFTER: Final = 1.0


LONGEST_RETRY_AFTER: Final = 3600.0
"""Seconds. A server that asks for less gets our own backoff, one that asks for more no more than
that."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One kind of answer. Every condition that is set must hold; the first rule that fits wins."""

    code: int
    error: type[KubeError]
    message: str = ""
    """A regular expression, searched for in the Status message."""
    cause: str = ""
    """A cause's reason."""
    field: str = ""
    """A cause's field."""
    refusal: str = ""
    """A regular expression, searched for in the causes without the values that they quote: a value
    could say anything."""
    details: str = ""
    """``details.kind``."""
    condition: Reason = Reason.APPLY_FAILED
    hint: str = ""
    retry_after: timedelta | None = None

    def fits(self, code: int, status: JsonObject, causes: Causes) -> bool:
        """Whether this rule describes the answer."""
        return (
            code == self.code
            and (not self.message or bool(re.search(self.message, status.get("message", ""))))
            and (not self.cause or any(reason == self.cause for reason, _, _ in causes))
            and (not self.field or any(field == self.field for _, field, _ in causes))
            and (not self.refusal or any(re.search(self.refusal, text) for _, _, text in causes))
            and (not self.details or objects.part(status, "details").get("kind") == self.details)
        )


_RULES: Final = (
    # The user's mistake, though the server says 500: no retry can help.
    _Rule(500, Configuration, message=r"^failed to (create typed patch|convert new) object"),
    _Rule(500, Configuration, message="request is too large", hint="make the object smaller"),
    _Rule(403, Terminating, cause="NamespaceTerminating"),
    _Rule(403, Terminating, message="because it is being terminated"),
    _Rule(403, Terminating, message="custom resource definition is terminating"),
    _Rule(
        403,
        Transient,
        message="exceeded quota",
        condition=Reason.RESOURCES_EXHAUSTED,
        hint="raise the quota, or remove something",
        retry_after=Transient.retry_cap,
    ),
    _Rule(409, Configuration, cause="FieldManagerConflict"),
    _Rule(409, Gone, message=r"uid mismatch|UID in (the )?precondition"),
    _Rule(422, Gone, field="metadata.uid"),
    # Only a JSON patch is refused with this text, and only when its test did not hold.
    _Rule(422, Conflict, message="rejected our request due to an error in our request"),
    _Rule(422, Immutable, refusal="field is immutable|may not change once set"),
    _Rule(404, KindAbsent, message=r"^404 page not found|could not find the requested resource"),
    _Rule(
        404,
        Transient,
        details="namespaces",
        hint="create the namespace, or use --create-namespace",
    ),
    _Rule(404, Gone),
    _Rule(409, Conflict),
    _Rule(410, Expired),
    _Rule(401, Permanent, hint="the credentials are not accepted: log in again"),
    _Rule(403, PolicyRefused, message=re.escape(OWNERSHIP_POLICY)),
    _Rule(403, Permanent),
    *(_Rule(code, Configuration) for code in (400, 405, 406, 413, 414, 415, 422)),
)


_NAMES_ONLY: Final = frozenset({401, 403, 404, 409, 410, 429, 503, 504})
"""Codes whose messages quote names of objects and users, never values, as long as they are the API
server's own: an admission webhook or policy, which may answer with any code, says what it likes."""


_DENIED = re.compile(r"denied (the )?request")


_QUOTED = re.compile(r'(?P<kept>field |webhook |\[[\w.-]*=)?"(?:[^"\\]|\\.)*(?:"|$)')


_VALUE = re.compile(r'(?:"(?:[^"\\]|\\.)*"|-?\d[\w.+-]*|true|false|null|<nil>)(?:: |$)')


_OBJECT = re.compile(r"[{\[&]|map\[|\w+\.\w+\{")


LONGEST: Final = 600


_READ: Final = 8 * LONGEST
"""Characters of a message that are read: an admission webhook may answer with megabytes."""


def _redact(text: str) -> str:
    """The text without the values that it quotes; names of fields and of list keys stay."""
    text = re.sub(r", got [^\n]*", "", text[:_READ])
    text = _QUOTED.sub(lambda match: match[0] if match["kept"] else '"…"', text)
    return " ".join(text.split())[:LONGEST]


def _redact_cause(text: str) -> str:
    """``Invalid value: "s3cret": must be shorter`` becomes ``Invalid value: must be shorter``."""
    kind, separator, rest = text[:_READ].partition(": ")
    if not separator:
        return _redact(text)
    if value := _VALUE.match(rest):
        rest = rest[value.end() :]
    elif _OBJECT.match(rest) or rest.startswith('"'):
        # What follows the last bracket is the rule; a text cut off in its middle has none.
        tail = re.search(r"[}\]]: (?!.*[}\]]: )(.*)$", rest, re.DOTALL)
        rest = tail[1] if tail else ""
    rest = re.sub(r'(: "…")+$', "", _redact(rest))
    return f"{kind}: {rest}" if rest else kind


def _causes(status: JsonObject) -> Causes:
    found = objects.items(status, "details", "causes")
    return tuple(
        (cause.get("reason", ""), cause.get("field", ""), _redact_cause(cause.get("message", "")))
        for cause in found
        # With CEL in the CRD every type error brings this companion along.
        if "some validation rules were not checked" not in cause.get("message", "")
    )


def _cause_text(code: int, status: JsonObject, causes: Causes) -> str:
    message = str(status.get("message", ""))
    if code in _NAMES_ONLY and not _DENIED.search(message):
        return " ".join(message.split())[:LONGEST]
    if code == 422 and causes:
        return "; ".join(f"{field}: {text}" if field else text for _, field, text in causes[:5])
    typed = re.sub(
        r"^failed to (?:create|convert)[^(]*\([^)]*\)(?: to \w+ typed)?:? *", "", message
    )
    return _redact(typed)


def _retry_after(headers: Mapping[str, str], status: JsonObject) -> timedelta | None:
    """What the server asks for, as far as it is a wait: whoever answers in its place may ask for
    none, and that would be a loop without a pause."""
    asked = headers.get("Retry-After") or objects.part(status, "details").get("retryAfterSeconds")
    try:
        seconds = float(asked or 0)
    except (TypeError, ValueError, OverflowError):
        return None  # an HTTP date: our own backoff will do
    if not (math.isfinite(seconds) and seconds >= LEAST_RETRY_AFTER):
        return None
    return timedelta(seconds=min(seconds, LONGEST_RETRY_AFTER))


def place(operation: str, ref: ObjectRef | None) -> str:
    """``apply deployment/web in namespace ai``; a list has no name."""
    if ref is None:
        return operation
    name = str(ref) if ref.name else plural(ref.api_version, ref.kind)
    return f"{operation} {name}" + (f" in namespace {ref.namespace}" if ref.namespace else "")


def translate(
    code: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    operation: str,
    ref: ObjectRef | None,
) -> KubeError:
    """The error that an answer of the API server (status ``code``, not 2xx) means.

    The body decides before the code. The message names the operation, the object and the cause;
    values that the server quotes are left out, since they may be secrets.
    """
    try:
        status = orjson.loads(body)
    except ValueError:
        status = {"message": body[:LONGEST].decode(errors="replace").strip()}
    if not isinstance(status, dict):
        status = {}
    causes = _causes(status)
    rule = next((r for r in _RULES if r.fits(code, status, causes)), _Rule(code, Transient))
    if code == 404 and ref is not None and ref.kind == "Namespace":
        rule = _Rule(404, Gone)  # the namespace is the object itself, not where it should be
    cause = _cause_text(code, status, causes) or f"HTTP {code}"
    hint = rule.hint
    own = ref is not None and (ref.api_version, ref.kind) == (API_VERSION, KIND)
    if rule.error is KindAbsent and ref is not None:
        cause = f"the API server serves no {ref.api_version} {ref.kind}"
        if own:
            hint = INSTALL_CRD
    elif own and code == 500 and rule.error is Configuration and "not declared" in cause:
        hint = f"the CRD is older than this version: {INSTALL_CRD}"
    return rule.error(
        f"{place(operation, ref)}: {cause}",
        code=code,
        reason=status.get("reason", ""),
        causes=causes,
        retry_after=rule.retry_after or _retry_after(headers, status),
        condition=rule.condition,
        hint=hint,
    )


def no_answer(error: Exception, operation: str, ref: ObjectRef | None) -> Transient:
    """Translates what the HTTP library raises: no answer at all, or half of one."""
    import urllib3.exceptions as http

    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, Exception) else error
    text = {
        http.NameResolutionError: "the API server's name cannot be resolved",
        http.NewConnectionError: "connection refused or no route",
        http.ConnectTimeoutError: "no connection in time",  # the parent of the two above
        http.ReadTimeoutError: "no answer in time",
        http.SSLError: "the TLS handshake failed",
        http.ProxyError: "the proxy could not be used",
        http.ProtocolError: "the connection was lost",
    }
    known = next((words for kind, words in text.items() if isinstance(cause, kind)), "")
    kind = Silent if isinstance(cause, http.ReadTimeoutError) else Transient
    return kind(
        f"{place(operation, ref)}: {known or type(cause).__name__}",
        reason=type(cause).__name__,
        hint="is the API server up, and is this the right context?",
    )


CERTIFICATE: Final = frozenset({"clientCertificateData", "clientKeyData"})


class PluginFailed(Exception):
    """A credential plugin gave no credentials; ``hint`` is what the kubeconfig says of that."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = " ".join(scrub(hint).split())[:LONGEST]
