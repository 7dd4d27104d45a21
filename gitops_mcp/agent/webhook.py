"""A forge's webhook: does it come from whoever knows our secret, and does it tell of a push?

Receives a request's headers and raw body, returns a ``Verdict``. Pure: it opens nothing and says
nothing. The body of a genuine request is parsed only where its headers do not tell whether it is a
push, and nothing else in it counts. A push only wakes the next look at git, and halves the wait
after a fetch that failed, once for each failure: a replayed or belated one is harmless.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import orjson

from gitops_mcp.base import limits

MAX_BODY: Final = limits.WEBHOOK_BODY


class Verdict(enum.Enum):
    """What a request to ``/webhook`` is worth; ``value`` is the HTTP status of the answer."""

    PUSH = 202
    """Look at git now."""
    IGNORED = 200
    """Genuine, and another event."""
    REFUSED = 401
    """No signature or token, or a wrong one."""
    ABSENT = 404
    """No secret is configured."""
    TOO_LARGE = 413


class _Forge(NamedTuple):
    """How one forge proves itself, and which of its events are pushes."""

    proof: str
    proves: Callable[[str, bytes, bytes], bool]
    event: str
    pushes: frozenset[str]
    by_body: str = ""
    """The event whose kind only the body tells; it is a push where ``event_name`` says so."""


def _signed(proof: str, body: bytes, secret: bytes) -> bool:
    """The hex HMAC-SHA256 of the body."""
    made = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(made.encode(), _raw(proof))


def _signed_by_name(proof: str, body: bytes, secret: bytes) -> bool:
    """The same behind its algorithm's name. Any other algorithm is refused."""
    algorithm, _, signature = proof.partition("=")
    return algorithm == "sha256" and _signed(signature, body, secret)


def _token(proof: str, _: bytes, secret: bytes) -> bool:
    """The secret itself."""
    return hmac.compare_digest(secret, _raw(proof))


def _raw(value: str) -> bytes:
    """A header's bytes: servers hand over what is no UTF-8 as surrogates."""
    return value.encode("utf-8", "surrogateescape")


def _event_name(body: bytes) -> str:
    """What the body of a genuine request calls its event; "" where it says nothing."""
    try:
        found = orjson.loads(body)
    except ValueError:
        return ""
    return str(found.get("event_name", "")) if isinstance(found, dict) else ""


_SYSTEM_PUSHES: Final = frozenset({"push", "tag_push", "repository_update"})
"""What GitLab's system hooks call a change of branches or tags."""

_FORGES: Final = (
    # Gitea and Forgejo come first: they send the headers of Gogs and GitHub, too.
    _Forge("x-gitea-signature", _signed, "x-gitea-event", frozenset({"push"})),
    # After Gitea and Forgejo, which send its headers, too.
    _Forge("x-gogs-signature", _signed, "x-gogs-event", frozenset({"push"})),
    _Forge("x-hub-signature-256", _signed_by_name, "x-github-event", frozenset({"push"})),
    _Forge(
        "x-gitlab-token",
        _token,
        "x-gitlab-event",
        frozenset({"Push Hook", "Tag Push Hook"}),
        by_body="System Hook",
    ),
    # Cloud, and Data Center.
    _Forge(
        "x-hub-signature",
        _signed_by_name,
        "x-event-key",
        frozenset({"repo:push", "repo:refs_changed"}),
    ),
)
"""The first whose proof a request bears judges it; nobody else is asked then."""


def verify(headers: Mapping[str, str], body: bytes, secret: bytes) -> Verdict:
    """What a request is worth. ``body`` is as it was sent; names of headers in any case.

    Without a ``secret`` nothing is: an empty key would sign for everybody.
    """
    if not secret:
        return Verdict.ABSENT
    if len(body) > MAX_BODY:
        return Verdict.TOO_LARGE
    given = {name.lower(): value for name, value in headers.items()}
    for forge in _FORGES:
        if forge.proof in given:
            if not forge.proves(given[forge.proof], body, secret):
                return Verdict.REFUSED
            event = given.get(forge.event)
            pushed = event in forge.pushes
            if event is not None and event == forge.by_body:
                pushed = _event_name(body) in _SYSTEM_PUSHES
            return Verdict.PUSH if pushed else Verdict.IGNORED
    return Verdict.REFUSED
