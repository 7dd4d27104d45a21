"""The answers of the API that are not success: one exception, and a maker for each kind of answer.

Receives what went wrong; returns `ApiError`, whose `status()` is the body that a Kubernetes API
server sends. It never talks HTTP: the server turns the exception into a response, a controller
catches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gitops_mcp.sandbox.kinds import Kind


@dataclass(frozen=True)
class Cause:
    """One field error: a machine-readable reason, a message and the field's path."""

    reason: str
    message: str
    field: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class ApiError(Exception):
    """A failed request.

    `reason` is empty for the errors that the real server leaves unclassified (code 500);
    `text` marks the few answers that are plain text instead of a Status.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        causes: Iterable[Cause] = (),
        retry_after: int | None = None,
        text: bool = False,
        continue_token: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.causes = tuple(causes)
        self.retry_after = retry_after
        self.text = text
        self.continue_token = continue_token

    def status(self) -> dict[str, Any]:
        """The `Status` object; empty keys are left out, as the real server does."""
        details = {key: value for key, value in (self.details or {}).items() if value}
        if self.causes:
            details["causes"] = [
                {
                    key: value
                    for key, value in (
                        ("reason", cause.reason),
                        ("message", cause.message),
                        ("field", cause.field),
                    )
                    if value
                }
                for cause in self.causes
            ]
        if self.retry_after is not None and not self.text:
            details["retryAfterSeconds"] = self.retry_after
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self.continue_token} if self.continue_token else {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if details or self.details is not None:
            body["details"] = details
        body["code"] = self.code
        return body


def not_found(kind: Kind, name: str) -> ApiError:
    """404 for an object of a kind that is served."""
    return ApiError(
        404,
        "NotFound",
        f'{kind.resource} "{name}" not found',
        details={"name": name, "group": kind.group, "kind": kind.plural},
    )


def no_such_resource() -> ApiError:
    """404 for a resource that a built-in group does not have."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", details={})


def page_not_found() -> ApiError:
    """404 for a path that nobody serves: plain text."""
    return ApiError(404, "NotFound", "404 page not found", text=True)


def already_exists(kind: Kind, name: str, *, terminating: bool = False) -> ApiError:
    """409 for a create of a name that is taken."""
    prefix = "object is being deleted: " if terminating else ""
    return ApiError(
        409,
        "AlreadyExists",
        f'{prefix}{kind.resource} "{name}" already exists',
        details={"name": name, "group": kind.group, "kind": kind.plural},
    )


MODIFIED = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


def conflict(kind: Kind, name: str, why: str = MODIFIED) -> ApiError:
    """409 for a write that rests on another state of the object."""
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}',
        details={"name": name, "group": kind.group, "kind": kind.plural},
    )


def invalid(group: str, kind_name: str, name: str, causes: Iterable[Cause]) -> ApiError:
    """422 with the field errors, which are joined as the real server joins them."""
    causes = tuple(causes)
    said = dict.fromkeys(str(cause) for cause in causes)
    joined = ", ".join(said)
    if len(said) > 1:
        joined = f"[{joined}]"
    qualified = f"{kind_name}.{group}" if group else kind_name
    return ApiError(
        422,
        "Invalid",
        f'{qualified} "{name}" is invalid: {joined}',
        details={"name": name, "group": group, "kind": kind_name},
        causes=causes,
    )


def bad_request(message: str) -> ApiError:
    """400: the request itself cannot be understood."""
    return ApiError(400, "BadRequest", message)


def forbidden(kind: Kind, name: str, why: str, causes: Iterable[Cause] = ()) -> ApiError:
    """403: refused by what stands for admission here."""
    return ApiError(
        403,
        "Forbidden",
        f'{kind.resource} "{name}" is forbidden: {why}',
        details={"name": name, "group": kind.group, "kind": kind.plural},
        causes=causes,
    )


def unclassified(message: str) -> ApiError:
    """500 without reason and details: how apply answers a body that does not fit the schema."""
    return ApiError(500, "", message)


def internal(message: str) -> ApiError:
    """500 with a reason."""
    return ApiError(
        500,
        "InternalError",
        f"Internal error occurred: {message}",
        causes=[Cause("", message, "")],
    )


def expired(asked: int, oldest: int) -> ApiError:
    """410: the history does not reach back so far."""
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")
