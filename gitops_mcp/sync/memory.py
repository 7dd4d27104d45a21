"""What is remembered of one server between two reconciles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from gitops_mcp.base.model import (
    Action,
    Change,
    Contest,
    Context,
    Decision,
    Failure,
    Former,
    Probe,
    ProbeResult,
    Propagation,
    Verb,
)
from gitops_mcp.base.names import JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.source import Loaded, Problem
from gitops_mcp.cluster.view import Live
from gitops_mcp.decide import ownership, writing
from gitops_mcp.decide.rollout import Rollout

CONTEST_FIRST = timedelta(seconds=1)
CONTEST_CAP = timedelta(minutes=5)
"""What was undone once is applied again at once; after that this long apart, doubling."""

Permission = tuple[Verb, str, str]
"""A verb, a kind with its subresource, and a namespace."""


class Kube(Protocol):
    """The requests that the engine makes; ``kube.Cluster`` is the real one."""

    def get(self, ref: ObjectRef) -> LiveObject | None: ...

    def apply(
        self,
        body: JsonObject,
        *,
        manager: str,
        force: bool,
        dry_run: bool,
        subresource: str,
        uid: str | None,
        resource_version: str | None,
    ) -> LiveObject: ...

    def json_patch(
        self,
        ref: ObjectRef,
        ops: list[JsonObject],
        *,
        manager: str,
        subresource: str,
        uid: str | None,
        resource_version: str | None,
    ) -> LiveObject: ...

    def delete(
        self,
        ref: ObjectRef,
        *,
        uid: str | None,
        resource_version: str | None,
        propagation: Propagation,
    ) -> LiveObject | None: ...


Ask = Callable[[Probe, Callable[[], datetime]], ProbeResult | int | None]
"""How an inquiry is answered; ``probes.ask`` is the real one."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What is worked towards: a source at one commit, and what keeps from carrying it out.

    ``prune`` is asked, of a server that git no longer holds, why it is kept (""; it may go), and
    ``recreate`` the same of one that only a new object can bring to what git says. ``rollout``
    says whose pods may be replaced now, and is told how each server stands. ``strange`` servers
    bear this source's label though this repository's git never held what is in the cluster;
    ``former`` tells of those that are to be moved from another source id of this repository.
    """

    loaded: Loaded
    renderer: ownership.Renderer
    context: Context
    prune: Callable[[ServerKey], str] = lambda _: ""
    recreate: Callable[[ServerKey], str] = lambda _: ""
    strange: Callable[[ServerKey], bool] = lambda _: False
    former: Callable[[ServerKey], Former | None] = lambda _: None
    rollout: Rollout | None = None
    problems: Mapping[str, tuple[Problem, ...]] = field(init=False)
    """The mistakes of each manifest, by ``namespace/name``."""

    def __post_init__(self) -> None:
        problems: dict[str, tuple[Problem, ...]] = {}
        for one in self.loaded.problems:
            if one.server is not None and one.severity == "error":
                problems[one.server] = (*problems.get(one.server, ()), one)
        object.__setattr__(self, "problems", problems)


@dataclass(slots=True)
class Memory:
    """What this process remembers of one server. Losing it costs a request, never correctness."""

    uid: str = ""
    """The MCPServer that this is remembered of: of its successor nothing is known."""
    noise: set[str] = field(default_factory=set)
    """Its applies that were seen to change nothing."""
    probe: ProbeResult | None = None
    status_written_at: datetime | None = None
    failure: Failure | None = None
    refused: Permission | None = None
    """The permission that was missing last."""
    failing_since: datetime | None = None
    asked: str = ""
    """The request for a fresh look that stood at the last look."""
    generation: int = 0
    """The MCPServer's, at the last look."""
    races: int = 0
    sessions: int | None = None
    sessions_at: datetime | None = None
    cleanup: str | None = ""
    cleanup_by: datetime | None = None
    """When the hooks must be done, their wait for a free thread included."""
    shutdown: JsonObject | None = None
    changes: dict[tuple[ObjectRef, str], Change] = field(default_factory=dict)
    contests: dict[ObjectRef, Contest] = field(default_factory=dict)
    """What was applied last to the MCPServer and to each child."""
    overlay: Live | None = None
    """In check mode: the server's objects as they would be by now."""
    taken: set[ObjectRef] = field(default_factory=set)
    """In check mode: objects of which we would have taken over what was added by hand."""
    decision: Decision = field(default_factory=Decision)
    pruned: bool = False
    puzzled: str = ""
    """The unexpected error that ended the last inquiry, once it was reported."""
    bug: str = ""
    """The unexpected error that ended the last reconcile, once it was reported."""
    overdue: str = ""
    """What a shutdown still waited for when the pass gave up on it."""

    def note(self, change: Change | None) -> None:
        """Keep a change for the report. A replaced object is reported as that alone, not as
        updated before and created after it."""
        if change is None:
            return
        if change.action == "replace":
            self.changes.pop((change.ref, "update"), None)
        elif (change.ref, "replace") in self.changes:
            return
        self.changes[change.ref, change.action] = change

    def applied(self, action: Action, now: datetime) -> None:
        """Keep what was applied: the more often it is undone, the later it is applied again."""
        known = self.contests.get(action.ref)
        undone, by = 0, action.by
        if known is not None and known.wanted == action.wanted:
            undone = known.undone + 1 if now < known.at + writing.STILL else 1
            by = by or known.by
        wait = timedelta()
        if undone:
            wait = min(CONTEST_FIRST * 2 ** min(undone - 1, 16), CONTEST_CAP)
        self.contests[action.ref] = Contest(action.wanted, undone, now, now + wait, self.asked, by)


def held(key: ServerKey, aim: DesiredState, live: Live, failure: Failure | None) -> str:
    """Why the server is kept though git no longer holds it, or though only a new object can carry
    what git says."""
    if live.cr is None:
        return ""
    if not _is_held(key, aim):
        return aim.prune(key)
    return aim.recreate(key) if failure is not None and failure.immutable else ""


def _is_held(key: ServerKey, aim: DesiredState) -> bool:
    """Does git hold a manifest of the server, valid or not?"""
    return key in aim.loaded.servers or key in aim.loaded.protected
