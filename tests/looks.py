"""What one look of the agent at a server came to, as its listeners are told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from gitops_mcp.base.model import Change, ChangeAction, Outcome, ReconcileResult, Result
from gitops_mcp.base.names import API_VERSION, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Revision
from gitops_mcp.decide.transitions import Transition, Transitions

WEB = ServerKey("ai", "web")
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
VERSIONS = {"MCPServer": API_VERSION, "Deployment": "apps/v1", "Service": "v1"}


def change(kind: str = "Deployment", action: ChangeAction = "update") -> Change:
    return Change(action, WEB, ObjectRef(VERSIONS[kind], kind, "ai", "web"))


def look(
    result: Result = "ok",
    *changes: Change,
    key: ServerKey = WEB,
    ready: bool | None = None,
    message: str = "",
    shutdown: JsonObject | None = None,
    revision: Revision | str = "c1",
    commit: str = "c1",
    uid: str = "u1",
    at: datetime = NOW,
    seconds: float = 0.1,
    reason: Reason | None = None,
    **rest: Any,
) -> ReconcileResult:
    """A reconcile of so many ``seconds``; ``rest`` are further fields of ``ReconcileResult``."""
    outcome = Outcome(key, result, ready, changes, message, shutdown, reason=reason)
    enforced = Revision(revision) if isinstance(revision, str) else revision
    return ReconcileResult(key, outcome, enforced, commit, uid, at, seconds, **rest)


def feed(sink: Callable[[Transition], None]) -> Callable[[ReconcileResult], None]:
    """Gives the listener ``sink`` the transition to each look, as the controller does."""
    transitions = Transitions(clock=lambda: NOW)
    return lambda worked: sink(transitions.to(worked))


def failing(reason: str, message: str = "", *, synced: str = "Synced") -> JsonObject:
    """The status of a server in phase Failed; ``synced`` is the reason of that condition."""
    conditions = [
        {
            "type": "Synced",
            "status": "True" if synced == "Synced" else "False",
            "reason": synced,
            "message": "",
        },
        {"type": "Ready", "status": "False", "reason": reason, "message": message},
    ]
    return {"phase": "Failed", "conditions": conditions}
