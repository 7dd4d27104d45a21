"""Kubernetes Events on the MCPServers: what ``kubectl describe`` shows of the agent's work.

Hears what each look at a server changed (``Transition``) and tells of it: applied, ready,
a drift healed, what keeps it from that, the steps of its end. The same Event again raises the count
of the first. It never delays the work that it tells of: a bounded queue, one writer at a slow pace,
and what does not fit is dropped and counted. No Event holds a value of a manifest.

Events are core/v1 with a count: of the two forms the one that every tool shows (the newer group's
are kept in the same place, but leave the times empty by which older tools sort).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol

from gitops_mcp.base import objects, times
from gitops_mcp.base.errors import (
    Category,
    Conflict,
    Gone,
    KubeError,
    Permanent,
    Terminating,
    Transient,
)
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Change, ReconcileResult
from gitops_mcp.base.names import API_VERSION, FIELD_MANAGER, KIND, JsonObject, ObjectRef
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide.transitions import Kind, Transition

_log = logging.getLogger(__name__)

QUEUE: Final = 2_000
"""Events that wait to be written; a Warning takes the place of the oldest other one."""
PACE: Final = 0.1
"""Seconds between two writes: ten a second are no load beside the work itself."""
REST: Final = 0.5
"""Seconds between two looks at whether there is anything to write."""
WINDOW: Final = timedelta(minutes=10)
"""How long after its last time an Event is the same one again, as client-go has it."""
REFRESH: Final = timedelta(seconds=60)
"""Between two writes of one Event's count."""
BURST: Final = 25
REFILL: Final = timedelta(seconds=300)
"""Writes about one server: client-go's budget, so many at once, then one for each refill."""
MUTED: Final = timedelta(minutes=5)
"""How long nothing is written into a namespace that refused (it is ending, or rights are
missing)."""
REMEMBERED: Final = 4_096
"""Events whose count can still be raised, and servers whose budget is known."""
PASSING_ATTEMPTS: Final = 3
"""A transient error is worth an Event from its third attempt on."""
LONGEST: Final = 1_000
"""Bytes of a message; the API takes 1,024."""


class Kube(Protocol):
    """The requests that are made; ``kube.Cluster`` is the real one."""

    def create(self, body: JsonObject) -> JsonObject: ...

    def merge_patch(self, ref: ObjectRef, body: JsonObject) -> JsonObject: ...


Type = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class _Fact:
    """What an Event says; equal ones are one Event with a count."""

    about: ObjectRef
    uid: str
    reason: Reason
    note: str

    @property
    def type(self) -> Type:
        return "Warning" if self.reason.event == "Warning" else "Normal"


@dataclass(slots=True)
class _Series:
    """One Event: how often it happened, and what of that was written."""

    first: datetime
    last: datetime
    count: int = 1
    name: str = ""
    """Of the object; the same at each attempt to make it."""
    written: int = 0
    """The count that the object has; 0: there is none."""
    written_at: datetime | None = None


class Recorder:
    """Writes Events about servers. ``heard`` is quick and may come from any thread; ``run`` is for
    one thread of its own, ``flush`` writes what is due without a pause.

    ``instance`` names this process. ``warn`` hears once why Events are refused, ``dropped`` is
    called for each that is not written.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        instance: str,
        clock: Callable[[], datetime],
        warn: Callable[[str], None] = lambda _: None,
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self._kube = kube
        self._instance = instance
        self._clock = clock
        self._warn = warn
        self._dropped = dropped
        self._lock = threading.Lock()
        self._series: OrderedDict[_Fact, _Series] = OrderedDict()
        self._queues: dict[Type, dict[_Fact, _Series]] = {"Warning": {}, "Normal": {}}
        self._raised: dict[_Fact, _Series] = {}
        self._budgets: OrderedDict[str, tuple[float, datetime]] = OrderedDict()
        self._muted: dict[str, datetime] = {}
        self._wait = Transient.first_retry
        self._not_before: datetime | None = None
        self._warned: set[str] = set()
        self._serial = 0

    @property
    def pending(self) -> int:
        """Events that wait to be written."""
        return sum(map(len, self._queues.values())) + len(self._raised)

    # --- what is heard ---

    def set_back(self) -> None:
        """The clock was set back: whatever waits for a time has waited long enough."""
        with self._lock:
            self._not_before = None
            self._muted.clear()
            self._budgets.clear()
            for series in self._series.values():
                series.written_at = None

    def heard(self, transition: Transition) -> None:
        """A server was looked at."""
        with self._lock:
            for fact in dict.fromkeys(_facts(transition)):
                self._happened(fact, transition.worked.at)

    def about(self, ref: ObjectRef, uid: str, reason: Reason, note: str) -> None:
        """Something happened to another object than a server: the record of a source."""
        with self._lock:
            self._happened(_Fact(ref, uid, reason, _short(note)), self._clock())

    def _happened(self, fact: _Fact, at: datetime) -> None:
        series = self._series.get(fact)
        if series is not None and at - series.last < WINDOW:
            series.count += 1
            series.last = at
            self._series.move_to_end(fact)
            if series.written:
                self._raised[fact] = series
            return
        queue = self._queues[fact.type]
        if sum(map(len, self._queues.values())) >= QUEUE:
            others = self._queues["Normal"]
            self._dropped()
            if fact.type == "Normal" or not others:
                return
            del others[next(iter(others))]
        series = self._series[fact] = queue[fact] = _Series(at, at)
        if len(self._series) > max(REMEMBERED, QUEUE):
            oldest, _ = self._series.popitem(last=False)
            self._raised.pop(oldest, None)

    # --- what is written ---

    def run(self, stop: threading.Event) -> None:
        """Write at a slow pace until ``stop``, then what is left, for a second at most."""
        while not stop.wait(PACE if self._try_next() else REST):
            pass
        end = self._clock() + timedelta(seconds=1)
        while self._clock() < end and self._try_next(last=True):
            pass

    def _try_next(self, *, last: bool = False) -> bool:
        try:
            return self._write_next(last=last)
        except Exception:  # one Event less; the next ones are told all the same
            _log.exception("an Event could not be written: a bug")
            self._dropped()
            return True

    def flush(self, *, last: bool = False) -> None:
        """Write all that is due now; ``last``: counts that could still wait, too."""
        while self._write_next(last=last):
            pass

    def _write_next(self, *, last: bool = False) -> bool:
        """One write; False: nothing is due."""
        now = self._clock()
        with self._lock:
            if self._not_before is not None and now < self._not_before:
                return False
            due = self._next(now, last=last)
            if due is None:
                return False
            fact, series = due
            if self._silent(fact.about.namespace, now) or not self._afford(fact.uid, now):
                self._drop(fact, series, now, again=not last)
                return True
            if not series.name:
                self._serial = max(self._serial + 1, int(series.first.timestamp() * 1e9))
                series.name = f"{fact.about.name}.{self._serial:x}"
            count, last_at = series.count, series.last
        try:
            if series.written:
                self._raise(fact, series.name, count, last_at)
            else:
                self._create(fact, series.name, count, series.first, last_at)
        except KubeError as error:
            self._refused(fact, series, error, now)
            return True
        with self._lock:
            series.written, series.written_at = count, now
            if series.count > count:
                self._raised[fact] = series
            self._wait, self._not_before = Transient.first_retry, None
        return True

    def _drop(self, fact: _Fact, series: _Series, now: datetime, *, again: bool = True) -> None:
        """Let one write go. A count comes ``again`` later, an Event when it happens again."""
        self._dropped()
        if series.written and again:
            series.written_at = now
            self._raised[fact] = series
        else:
            self._series.pop(fact, None)

    def _next(self, now: datetime, *, last: bool) -> tuple[_Fact, _Series] | None:
        for queue in self._queues.values():
            for fact in queue:
                return fact, queue.pop(fact)
        for fact, series in self._raised.items():
            if last or series.written_at is None or now >= series.written_at + REFRESH:
                return fact, self._raised.pop(fact)
        return None

    def _create(self, fact: _Fact, name: str, count: int, first: datetime, last: datetime) -> None:
        namespace, of = fact.about.namespace, fact.about
        about = {"apiVersion": of.api_version, "kind": of.kind, "namespace": namespace}
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": name},
            "involvedObject": about | {"name": of.name, "uid": fact.uid},
            "type": fact.type,
            "reason": str(fact.reason),
            "message": fact.note,
            "firstTimestamp": times.rfc3339(first),
            "lastTimestamp": times.rfc3339(last),
            "count": count,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._instance,
        }
        with contextlib.suppress(Conflict):  # the answer to the attempt before was lost
            self._kube.create(body)

    def _raise(self, fact: _Fact, name: str, count: int, last: datetime) -> None:
        ref = ObjectRef("v1", "Event", fact.about.namespace, name)
        self._kube.merge_patch(ref, {"count": count, "lastTimestamp": times.rfc3339(last)})

    def _refused(self, fact: _Fact, series: _Series, error: KubeError, now: datetime) -> None:
        with self._lock:
            if isinstance(error, Gone) and series.written:  # Events are kept for an hour only
                series.name, series.written = "", 0
                self._queues[fact.type][fact] = series
                return
            passing = isinstance(error, Transient) and not isinstance(error, Terminating)
            if passing and error.code != 404:
                queue = self._raised if series.written else self._queues[fact.type]
                queue[fact] = series
                self._not_before = now + (error.retry_after or self._wait)
                self._wait = min(self._wait * 2, Transient.retry_cap)
                return
            if isinstance(error, Terminating | Permanent):
                self._muted = {name: end for name, end in self._muted.items() if now < end}
                self._muted[fact.about.namespace] = now + MUTED
            series.written = 0
            self._drop(fact, series, now)
        if not isinstance(error, Terminating) and error.reason not in self._warned:
            self._warned.add(error.reason)
            self._warn(f"Events are not written: {error.message}")

    def _silent(self, namespace: str, now: datetime) -> bool:
        until = self._muted.get(namespace)
        return until is not None and now < until

    def _afford(self, uid: str, now: datetime) -> bool:
        """Take one write out of the server's budget."""
        tokens, at = self._budgets.pop(uid, (float(BURST), now))
        # Also a clock that goes back by a little takes nothing away.
        tokens = min(float(BURST), tokens + max(now - at, timedelta(0)) / REFILL)
        affordable = tokens >= 1
        self._budgets[uid] = (tokens - 1 if affordable else tokens, now)
        if len(self._budgets) > REMEMBERED:
            self._budgets.popitem(last=False)
        return affordable


# --- what a look tells ------------------------------------------------------------------------


def _facts(transition: Transition) -> Iterator[_Fact]:
    """In the order in which they are written."""
    worked, kinds = transition.worked, transition.kinds
    state = objects.part(worked.status, "shutdown")
    ended = objects.part(worked.outcome.shutdown).get("endedBy", "unknown")
    stopped = _fact(worked, Reason.STOPPED, f"shut down, ended by {ended}", transition.last.uid)
    if {Kind.STOPPED, Kind.REPLACED} <= kinds:
        yield stopped
    if not worked.uid:
        return
    if Kind.SHUTTING_DOWN not in kinds:
        yield from _actions_taken(transition)
    yield from _trouble(transition)
    yield from _conditions(transition)
    if Kind.TERMINATING in kinds:
        note = f"shutting down, to be done by {state.get('deadline', '')}"
        yield _fact(worked, Reason.TERMINATING, note)
    if Kind.DRAINED in kinds:
        by, left = state.get("endedBy", "unknown"), state.get("activeSessions")
        sessions = f", {left} session(s) left" if left is not None else ""
        yield _fact(worked, Reason.DRAINED, f"the drain ended by {by}{sessions}")
    if Kind.STOPPED in kinds and Kind.REPLACED not in kinds:
        yield stopped


def _fact(worked: ReconcileResult, reason: Reason, note: str, uid: str = "") -> _Fact:
    about = ObjectRef(API_VERSION, KIND, worked.server.namespace, worked.server.name)
    return _Fact(about, uid or worked.uid, reason, _short(note))


def _short(note: str) -> str:
    text = " ".join(scrub(note).split())
    return text.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")


def _actions_taken(transition: Transition) -> Iterator[_Fact]:
    """A drift healed, with the fields; or applied, with the commit."""
    worked = transition.worked
    undone = {
        Reason.SCALE_FOLLOWED: transition.followed,
        Reason.DRIFT_HEALED: transition.healed,
    }
    for reason, changes in undone.items():
        if changes:
            yield _fact(worked, reason, "; ".join(map(_healed, changes)))
    if worked.drift or not transition.made:
        return
    done: dict[str, list[str]] = {}
    for change in transition.made:
        done.setdefault(change.action, []).append(change.ref.kind)
    deeds = "; ".join(f"{action} {', '.join(kinds)}" for action, kinds in done.items())
    revision = worked.commit or ("" if worked.status else worked.revision.sha)
    note = f"revision {revision}: {deeds}" if revision else deeds
    yield _fact(worked, Reason.APPLIED, note)


def _healed(change: Change) -> str:
    if change.action == "create":
        return f"{change.ref.kind} was missing"
    if change.action == "delete":
        return f"{change.ref.kind} was too much"
    by = f" ({change.reason})" if change.reason else ""
    return f"{change.ref.kind}: {', '.join(one.path for one in change.fields)}{by}"


def _trouble(transition: Transition) -> Iterator[_Fact]:
    """A request that failed, each attempt anew; what is blocked, once."""
    worked, failure = transition.worked, transition.worked.failure
    if failure is not None and Kind.ATTEMPTED in transition.kinds:
        passing = failure.category is Category.TRANSIENT and failure.reason is Reason.APPLY_FAILED
        if not passing or failure.attempts >= PASSING_ATTEMPTS:
            yield _fact(worked, failure.reason, failure.message)
    outcome, refused = worked.outcome, worked.outcome.reason
    if refused is not None and Kind.REFUSED in transition.kinds and not _says(worked, refused):
        yield _fact(worked, refused, outcome.message.removeprefix(f"{refused}: "))


def _conditions(transition: Transition) -> Iterator[_Fact]:
    """What turned."""
    worked = transition.worked
    failing = worked.failure.reason if worked.failure is not None else ""
    for before, condition in transition.turned:
        kind, reason = condition["type"], condition["reason"]
        message = condition.get("message", "")
        row = next((one for one in Reason if one == reason), None)
        if row is None:
            continue
        if kind == "Ready":
            if condition["status"] == "True" != before:
                yield _fact(worked, row, message)
        elif kind in ("Reconciling", "Stalled") or reason == failing:
            continue  # it is told as that
        elif row is Reason.CONFIGURATION_INVALID and _says(worked, Reason.MANIFEST_INVALID):
            continue
        elif condition["status"] != "True" and row.event:
            yield _fact(worked, row, message)


def _says(worked: ReconcileResult, reason: str) -> bool:
    conditions = objects.items(worked.status, "conditions")
    return any(condition["reason"] == reason for condition in conditions)
