"""What one reconcile of a server changed, worked out once for all that report it.

Receives each ``ReconcileResult`` and keeps the last one of each server; returns the ``Transition``
from that one to this. Log, Events, metrics and notes format and count it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Final

from gitops_mcp.base import objects, times
from gitops_mcp.base.model import Change, ReconcileResult, Result
from gitops_mcp.base.names import KIND, JsonObject, ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide import status

WRONG: Final = frozenset[Result]({"failed", "blocked"})
"""Results of a reconcile that did not do what git says."""

_DRAINING: Final = ("", "Withdrawing", "Draining")


class Kind(Enum):
    """What is not as it was after the last reconcile. Several may hold at once."""

    TROUBLED = "failed or blocked, with another result or message"
    RECOVERED = "neither failed nor blocked any more"
    REMARKED = "nothing is wrong, and there is another message"
    READY = "ready again"
    LAPSED = "no longer ready"
    FAILING = "not ready for a reason, or on a commit, that is new and that waiting does not cure"
    ATTEMPTED = "a request failed, for the first time or once more"
    REFUSED = "blocked or contested, for another reason"
    SHUTTING_DOWN = "a shutdown is under way, or was until now"
    TERMINATING = "a shutdown began"
    DRAINED = "the shutdown is past its drain"
    STOPPED = "the shutdown is over"
    REPLACED = "the MCPServer is not the one that it was, or there is none any more"
    ENDED = "an MCPServer that was shut down is not there any more: once for each shutdown"
    GONE = "there is no such server, and git wants none"


@dataclass(frozen=True, slots=True)
class Last:
    """What is kept of the last reconcile of a server. ``failing``: why waiting does not cure it,
    and of what commit that is, until it is ready again; ``ended``: when the last shutdown began
    whose end was reported; ``led``: no other agent led since. ``conditions`` (status and reason by
    type; None: not seen in this term), ``step`` of the shutdown, ``attempts`` of a request that
    fails and ``refused`` (why it is blocked) are the MCPServer's."""

    result: Result = "ok"
    message: str = ""
    ready: bool | None = None
    failing: tuple[str, str] | None = None
    uid: str = ""
    ended: str = ""
    led: bool = True
    conditions: Mapping[str, tuple[str, str]] | None = None
    step: str = ""
    attempts: int = 0
    refused: Reason | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """From the ``last`` reconcile of a server to this one, of which ``next`` is kept (None: the
    server is gone). Of the changes that were ``made``, ``followed`` carry on what ``kubectl scale``
    set on the MCPServer, ``healed`` undo what others did. ``failing``: the Ready condition that
    waiting does not cure. ``turned``: conditions with another status or reason, each after the
    status that it had ("" where that is not known)."""

    worked: ReconcileResult
    last: Last
    next: Last | None
    kinds: frozenset[Kind]
    made: tuple[Change, ...]
    followed: tuple[Change, ...]
    healed: tuple[Change, ...]
    failing: status.Failing | None
    turned: tuple[tuple[str, JsonObject], ...]


def transition(before: Last | None, worked: ReconcileResult, since: datetime) -> Transition:
    """The one from ``before`` (None: nothing is known) to ``worked``. Of an MCPServer that is seen
    for the first time, and that this reconcile did not create, only those conditions are news that
    turned at ``since`` or later."""
    outcome, there, last = worked.outcome, bool(worked.uid), before or Last(uid=worked.uid)
    made = tuple(change for change in outcome.changes if change.action != "blocked")
    followed = tuple(change for change in made if _follows(worked, change))
    created = any(change.action == "create" and change.ref.kind == KIND for change in made)
    failing = status.failing(worked.status) if outcome.ready is False else None
    why = last.failing if outcome.ready is False else None
    now = _kept(worked, (failing.reason, worked.commit) if failing is not None else why)
    # What was seen of this MCPServer before, or would have been.
    replaced = last.conditions is not None and last.uid != worked.uid
    first = replaced or last.conditions is None
    old = last if not first else Last(conditions={}, step="" if created else now.step)
    known, shutdown = old.conditions or {}, objects.part(outcome.shutdown)
    began, led = shutdown.get("startedAt", ""), last if last.led else Last(uid=worked.uid)
    ended = began not in ("", led.ended) and (not there or led.uid != worked.uid)
    wrong, was_wrong = now.result in WRONG, last.result in WRONG
    gone = now.result == "pruned" or (not there and now.result == "ok")
    holds = {
        Kind.TROUBLED: wrong and (now.result, now.message) != (last.result, last.message),
        Kind.RECOVERED: was_wrong and not wrong,
        Kind.REMARKED: not wrong and now.message not in ("", last.message),
        Kind.READY: now.ready and last.ready is False,
        Kind.LAPSED: now.ready is False and last.ready,
        Kind.FAILING: failing is not None and now.failing != last.failing,
        Kind.ATTEMPTED: there and now.attempts not in (0, old.attempts),
        Kind.REFUSED: there and now.refused not in (None, old.refused),
        Kind.SHUTTING_DOWN: old.step or now.step,
        Kind.TERMINATING: now.step and not old.step,
        Kind.DRAINED: now.step not in _DRAINING and old.step in _DRAINING,
        Kind.STOPPED: last.step or shutdown if replaced else old.step and not now.step,
        Kind.REPLACED: replaced,
        Kind.ENDED: ended,
        Kind.GONE: gone,
    }
    seen = {**known, **(now.conditions or {})} if there else None
    return Transition(
        worked,
        last,
        None if gone else replace(now, ended=began if ended else led.ended, conditions=seen),
        frozenset(kind for kind, true in holds.items() if true),
        made,
        followed,
        tuple(change for change in made if worked.drift and not _follows(worked, change)),
        failing,
        tuple(_turned(worked, known, since if first and not created else None)),
    )


def _follows(worked: ReconcileResult, change: Change) -> bool:
    paths = {field.path for field in change.fields}
    return worked.scaled and change.ref.kind == "Deployment" and paths == {"/spec/replicas"}


def _kept(worked: ReconcileResult, failing: tuple[str, str] | None) -> Last:
    outcome = worked.outcome
    refused = outcome.result == "blocked" or outcome.reason is Reason.CONTESTED
    conditions = objects.by_type(worked.status)
    return Last(
        outcome.result,
        outcome.message,
        outcome.ready,
        failing,
        worked.uid,
        conditions={kind: (one["status"], one["reason"]) for kind, one in conditions.items()},
        step=objects.text(worked.status, "shutdown", "step"),
        attempts=worked.failure.attempts if worked.failure is not None else 0,
        refused=outcome.reason if refused else None,
    )


def _turned(
    worked: ReconcileResult, known: Mapping[str, tuple[str, str]], since: datetime | None
) -> Iterator[tuple[str, JsonObject]]:
    for condition in objects.items(worked.status, "conditions"):
        before = known.get(condition["type"], ("", ""))
        at = times.parse(condition.get("lastTransitionTime"))
        news = since is None or (at is not None and at >= since)
        if news and before != (condition["status"], condition["reason"]):
            yield before[0], condition


class Transitions:
    """The last reconcile of each server. Thread-safe, as long as those of one server come one by
    one."""

    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._last: dict[ServerKey, Last] = {}

    def to(self, worked: ReconcileResult) -> Transition:
        """The transition to this reconcile, which is the last one from now on."""
        with self._lock:
            found = transition(self._last.pop(worked.server, None), worked, self._since)
            if found.next is not None:
                self._last[worked.server] = found.next
            return found

    def begin(self) -> None:
        """We lead from now on: what was so before is no news, the last leader has reported it."""
        with self._lock:
            self._since = self._clock().replace(microsecond=0)
            self._last = {key: replace(one, conditions=None) for key, one in self._last.items()}

    def stand_by(self) -> None:
        """Another agent leads: what our last reconciles came to says nothing of the servers now."""
        with self._lock:
            self._last = {key: replace(one, led=False) for key, one in self._last.items()}

    def set_back(self) -> None:
        """The clock was set back: what turns from now on is news."""
        with self._lock:
            self._since = min(self._since, self._clock())

    def results(self) -> Counter[Result]:
        """How many servers' last reconcile had each result, since we lead."""
        with self._lock:
            return Counter(one.result for one in self._last.values() if one.led)


Listener = Callable[[Transition], None]
"""Told of each look. Quick: it is called by whoever looks."""
