"""Every error that we raise on purpose.

    GitOpsError                 an expected failure: one line on stderr, no traceback
    ├── UsageError              the command line or the configuration is wrong
    ├── SourceError             the git source cannot be read
    │   ├── Obstructed          a former branch is in a new one's way
    │   ├── Unanswered          its server does not answer, or not now
    │   └── OverLimit           there is more of something than is ever read
    ├── LeaseLost               somebody else writes for this source
    └── KubeError               the API server refused, or could not be asked
        ├── Transient           worth trying again soon
        ├── Configuration       wrong until somebody changes a manifest
        └── Permanent           wrong until somebody changes rights

Messages name the object, the operation and the cause, and never hold a secret. A third-party
exception is translated once, at the edge that met it, with ``raise … from``.
"""

from __future__ import annotations

import enum
from datetime import timedelta

from gitops_mcp.base.reasons import Reason


class GitOpsError(Exception):
    """An expected failure. ``hint`` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GitOpsError):
    """A flag, an environment variable or a configuration file cannot be used."""


class SourceError(GitOpsError):
    """The git source cannot be read: no repository, no such ref, no answer from its server."""


class Unanswered(SourceError):
    """The git server could not be asked, or was too busy: nothing is known to be wrong."""


class Obstructed(SourceError):
    """A branch that is gone stands in the way of a new one, whose name begins with its own."""


class OverLimit(SourceError):
    """The git source, or its server, has more of something than is ever read: see ``limits``."""


class LeaseLost(GitOpsError):
    """Another process is, or has become, the one writer of this source."""


class Category(enum.StrEnum):
    """What a retry can hope for after a KubeError."""

    TRANSIENT = "Transient"
    CONFIGURATION = "Configuration"
    PERMANENT = "Permanent"


class KubeError(GitOpsError):
    """A request to the API server failed.

    ``code`` is the HTTP status (0: no answer), ``reason`` the Status reason (may be empty),
    ``causes`` the Status causes as ``(reason, field, message)``, ``retry_after`` what the server
    asked for. ``condition`` is the condition reason that a status shows for it.
    """

    category: Category
    first_retry: timedelta
    """The wait before the first retry; each further one is twice as long, up to ``retry_cap``."""
    retry_cap: timedelta

    def __init__(
        self,
        message: str,
        *,
        code: int = 0,
        reason: str = "",
        causes: tuple[tuple[str, str, str], ...] = (),
        retry_after: timedelta | None = None,
        condition: Reason = Reason.APPLY_FAILED,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.reason = reason
        self.causes = causes
        self.retry_after = retry_after
        self.condition = condition


class Transient(KubeError):
    """Worth trying again: a dependency missing, a lost race, an overloaded or absent server."""

    category = Category.TRANSIENT
    first_retry = timedelta(seconds=1)
    retry_cap = timedelta(seconds=60)


class Gone(Transient):
    """404 or a failed uid precondition: what we decided about is no longer there. Decide again."""


class Conflict(Transient):
    """409 of a resourceVersion: somebody wrote in between. Decide again, at once."""


class Expired(Transient):
    """410: the resourceVersion or continue token is too old. List again."""


class Silent(Transient):
    """The server took the request, and did not answer in time."""


class KindAbsent(Transient):
    """404 of a whole kind: its CRD is not installed, or the server is too old to serve it."""


class Terminating(Transient):
    """The namespace or the CRD is being deleted: no failure, but a wait for the watch."""


class Configuration(KubeError):
    """The object as written will never be accepted."""

    category = Category.CONFIGURATION
    first_retry = timedelta(minutes=5)
    retry_cap = timedelta(minutes=5)


class Immutable(Configuration):
    """422 that names an immutable field: only a recreate can carry the change out."""


class Permanent(KubeError):
    """401 or 403: rights are missing. An API server that has just started refuses everybody for a
    second or two, before it has read the roles: hence the first retries come soon."""

    category = Category.PERMANENT
    first_retry = timedelta(seconds=2)
    retry_cap = timedelta(minutes=30)


class PolicyRefused(Permanent):
    """403 of the admission policy that lets nobody but us write in our name."""
