"""The journal: gathers what the agent did, and writes it into the deployment notes, batch by batch.

Receives each ``ReconcileResult``, which commit was adopted, and when all servers were reconciled;
makes note records of that, each fact once. ``flush`` writes what has gathered and
pushes it; trouble with git is told and tried again later, it never stops anybody. ``recover`` finds
in the cluster what an agent that was killed did not write any more. Starts no thread, and reads no
clock but the one that it is given.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from gitops_mcp.agent.notes import (
    FleetState,
    Held,
    NoteStore,
    Server,
    Told,
    applied_at,
    is_commit,
    joined,
    noted_commit,
    ready_since,
    source_of,
)
from gitops_mcp.base.errors import Category, GitOpsError
from gitops_mcp.base.model import NoteRecord, Outcome, ReconcileResult, Result
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.source import Problem, Revision
from gitops_mcp.decide import ownership, status
from gitops_mcp.decide.transitions import WRONG, Transition
from gitops_mcp.report import noterecords, reports

PENDING: Final = 10_000
"""Records that are kept while they cannot be written anywhere; about 5 MB."""
PATIENCE: Final = timedelta(seconds=60)
"""How long a transient error is tried again before it counts as a failure of the server."""
KNOWN: Final = 1_000
"""Commits that are known to be in the repository: more are asked for again."""
FIRST_RETRY: Final = timedelta(seconds=5)
LAST_RETRY: Final = timedelta(seconds=60)
"""Waits after a flush that failed: doubled from the first to the last."""
OFTEN: Final = 10
"""Records of what was done to one server that are written as they come; a quiet hour later, or on
another commit, so many again."""
FIRST_HOLD: Final = timedelta(hours=1)
LAST_HOLD: Final = timedelta(days=1)
"""How long the ones after them are held back, to be one record: longer each time, for as long as
it goes on (two controllers that fight over a field never end)."""
FOUND: Final = "found in the cluster after a restart"
VANISHED: Final = "neither in git nor in the cluster any more after a restart"


class Journal:
    """The notes of one source in one cluster. ``heard``, ``adopted`` and ``settled`` are quick and
    may come from any thread; ``flush`` takes as long as git does, one at a time.

    ``warn`` hears each trouble once, ``count`` how many records were ``pushed`` or ``dropped``,
    and of each flush that ``failed``. Nothing is written before
    ``recover`` has been called: until then nobody knows what the last agent wrote.
    """

    def __init__(
        self,
        notes: NoteStore,
        *,
        cluster: str,
        source: str,
        clock: Callable[[], datetime],
        warn: Callable[[str], None] = lambda _: None,
        count: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        self._notes = notes
        self._notary = noterecords.NoteWriter(cluster, source)
        self._clock = clock
        self._warn = warn
        self._count = count
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._servers: dict[ServerKey, Server] = {}
        self._results: dict[ServerKey, Result] = {}
        self._revision = ""
        self._errors: tuple[Problem, ...] = ()
        self._broken: frozenset[str | None] = frozenset()
        self._eventful = False
        self._settled = False
        self._pending: list[NoteRecord] = []
        self._held: dict[tuple[ServerKey, Result], Held] = {}
        self._hold = FIRST_HOLD
        self._release_at = clock()
        self._unpushed = 0
        self._standing: Callable[[], FleetState] | None = None
        self._last_standing: Callable[[], FleetState] | None = None
        self._dropped: Counter[str] = Counter()
        self._known: Set[str] = frozenset()
        self._warned: tuple[str, ...] = ()
        self._wait = FIRST_RETRY
        self._not_before: datetime | None = None

    @property
    def pending(self) -> int:
        """Records that were not pushed yet."""
        return len(self._pending) + self._unpushed

    # --- what is heard ---

    def adopted(self, revision: Revision, problems: Iterable[Problem]) -> None:
        """A commit is enforced from now on; ``problems`` are the mistakes in its files."""
        with self._lock:
            self._release()
            self._revision = noted_commit(revision)
            self._eventful = self._settled = False
            self._begin_batch()
            self._servers = {key: one for key, one in self._servers.items() if one.seen}
            for one in self._servers.values():
                one.told = 0
            self._errors = tuple(one for one in problems if one.severity == "error")
            self._broken = frozenset(problem.server for problem in self._errors)
            if self._last_standing is not None:
                self._tell_errors()

    def _tell_errors(self) -> None:
        now = self._clock()
        for problem in self._errors if self._revision else ():
            self._keep(self._notary.problem(problem, now, self._revision))

    def heard(self, transition: Transition) -> None:
        """A server was looked at."""
        worked, result = transition.worked, transition.worked.outcome.result
        commit = noted_commit(worked.revision)
        if not commit:
            return
        with self._lock:
            server = self._servers.setdefault(worked.server, Server())
            server.seen = server.seen or bool(worked.uid)
            for change in transition.made:
                slim = replace(change, before=None, after=None, foreign=())
                server.changes[change.ref, change.action] = slim
            if result == "pruned":
                self._results[worked.server] = result
                if not worked.uid:  # else its shutdown is under way
                    if server.seen or server.changes:
                        self._tell(worked, server)
                    self._servers[worked.server] = Server()
            elif not worked.uid and result in ("ok", "skipped"):  # there is no such server
                self._servers.pop(worked.server)
                self._results.pop(worked.server, None)
            else:
                self._stands(transition, server, commit)

    def _stands(self, transition: Transition, server: Server, commit: str) -> None:
        worked, outcome = transition.worked, transition.worked.outcome
        if outcome.result in WRONG:
            self._results[worked.server] = outcome.result
            self._trouble(worked, server, commit)
            return
        server.trouble = server.failing_since = None
        changed = outcome.result == "changed" or bool(server.changes)
        # A status that names another commit: whoever applied that was killed just then.
        moved = bool(server.applied) and worked.commit not in server.applied
        moved = moved and is_commit(worked.commit)
        if changed:
            self._results[worked.server] = "changed"
            self._tell(worked, server)
            server.applied = frozenset({commit, worked.commit or commit})
            server.owed = True
        elif moved:
            self._keep(self._notary.applied(worked.server, worked.at, worked.commit, message=""))
            server.applied = frozenset({worked.commit})
        if not changed and self._results.get(worked.server) != "changed":
            self._results[worked.server] = outcome.result
        if outcome.ready:
            server.failing = None
            self._ready(worked, server, commit)
        elif transition.failing is not None:
            self._failing(worked, transition.failing, server, commit)

    def _ready(self, worked: ReconcileResult, server: Server, commit: str) -> None:
        """Once for a commit; a server that no commit brought (kubectl did), once for a change."""
        if not worked.commit:
            brought = commit if server.owed else server.ready
        else:
            brought = worked.commit if is_commit(worked.commit) else server.ready
        not_ready, server.owed, server.not_ready = server.not_ready, False, False
        if brought != server.ready:
            server.ready = brought
        elif not_ready and commit not in (server.ready, server.well):
            server.well = brought = commit
        else:
            return
        message = worked.outcome.message
        self._keep(self._notary.ready(worked.server, worked.at, brought, message=message))

    def _failing(
        self, worked: ReconcileResult, found: status.Failing, server: Server, commit: str
    ) -> None:
        """That waiting will not cure the server: once for the commit of its state and a reason. It
        is no pass that failed."""
        why = worked.commit or commit, found.reason
        if why == server.failing:
            return
        server.failing, server.not_ready = why, True
        message = f"{found.reason}: {found.message}"
        outcome = Outcome(worked.server, "failed", worked.outcome.ready, message=message)
        self._often(outcome, worked, server, eventful=False)

    def _trouble(self, worked: ReconcileResult, server: Server, commit: str) -> None:
        """Told once for a commit's state and a message; one that may pass, after a while."""
        outcome = worked.outcome
        fact = outcome.result, worked.commit or commit, outcome.message
        passing = worked.failure is not None and worked.failure.category is Category.TRANSIENT
        server.failing_since = server.failing_since or worked.at
        if passing and worked.at - server.failing_since < PATIENCE:
            return
        server.not_ready = True
        if str(worked.server) in self._broken or (fact == server.trouble and not server.changes):
            return
        server.trouble = fact
        self._tell(worked, server)

    def _tell(self, worked: ReconcileResult, server: Server) -> None:
        """The record of a look, with all changes since the last one; the end of a server, always
        at once."""
        result = worked.outcome.result
        blocked = (change for change in worked.outcome.changes if change.action == "blocked")
        outcome = replace(
            worked.outcome,
            changes=(*server.changes.values(), *blocked),
            result="changed" if result in ("ok", "skipped") else result,
        )
        server.changes = {}
        self._often(outcome, worked, server)

    def _often(
        self, outcome: Outcome, worked: ReconcileResult, server: Server, *, eventful: bool = True
    ) -> None:
        """A record as it comes, or held back where there were many."""
        at, commit = worked.at, noted_commit(worked.revision)
        if server.told_at is not None and at - server.told_at >= FIRST_HOLD:
            server.told = 0
        server.told, server.told_at = server.told + 1, at
        if server.told <= OFTEN or outcome.result == "pruned":
            self._keep(self._notary.outcome(outcome, at, commit), eventful=eventful)
        else:
            self._hold_back(outcome, at, commit)

    def _hold_back(self, outcome: Outcome, at: datetime, commit: str) -> None:
        if not self._held:
            if at >= self._release_at + self._hold:  # there was peace
                self._hold = FIRST_HOLD
            self._release_at = at + self._hold
        key = outcome.server, outcome.result
        held = self._held.get(key) or Held(outcome, commit, at, at, 0)
        whole = replace(outcome, changes=joined(held.outcome.changes, outcome.changes))
        self._held[key] = Held(whole, commit, held.since, at, held.count + 1)

    def _release(self) -> None:
        """Tell what was held back."""
        for held in self._held.values():
            record = self._notary.outcome(
                held.outcome, held.at, held.commit, count=held.count, since=held.since
            )
            self._keep(record)
        self._held.clear()

    def settled(self, revision: Revision) -> None:
        """Every server that the commit concerns was looked at: if that brought anything, it is told
        as ``synced``. So is what comes after it (a prune that ended, a drift), batch by batch."""
        with self._lock:
            if self._revision and noted_commit(revision) == self._revision:
                self._settled = True
                self._conclude()

    def _conclude(self) -> None:
        if self._settled and self._eventful:
            counts = reports.counted(self._results.values())
            failed = bool(counts["failed"] or counts["blocked"] or self._broken)
            now = self._clock()
            self._keep(self._notary.synced(counts, now, self._revision, failed=failed))
            self._eventful = False
            self._begin_batch()

    def _begin_batch(self) -> None:
        """What was done is done: it counts in one recap only."""
        left = {key: one for key, one in self._results.items() if one != "pruned"}
        self._results = {key: "ok" if one == "changed" else one for key, one in left.items()}

    def _keep(
        self, record: NoteRecord | None, *, found: bool = False, eventful: bool = True
    ) -> None:
        """Hold a record until it is written. The lock is held."""
        if record is None:
            return
        if record.commit == self._revision and record.event not in ("ready", "synced"):
            self._eventful = self._eventful or eventful
        if len(self._pending) >= PENDING and not found:
            self._dropped[record.event] += 1
        else:
            self._pending.append(record)

    # --- what is written ---

    def recover(self, standing: Callable[[], FleetState]) -> None:
        """Write anew from here on, beginning with what the agent before us did not: the next
        ``flush`` that reaches git asks for ``standing`` and compares it with the notes. To be
        called whenever leadership was won."""
        with self._lock:
            if self._last_standing is None:
                eventful = self._eventful
                self._tell_errors()
                self._eventful = eventful  # the notes know whether the last agent told of them
            self._standing = self._last_standing = standing
            self._not_before = None

    def set_back(self) -> None:
        """The clock was set back: whatever waits for a time has waited long enough."""
        with self._lock:
            self._release_at, self._not_before = self._clock(), None
            for server in self._servers.values():
                if server.failing_since is not None:
                    server.failing_since = min(server.failing_since, self._release_at)

    def stand_by(self) -> None:
        """Somebody else leads: write nothing before the next ``recover``. What was not written by
        now is theirs to find."""
        with self._lock:
            self._standing = self._last_standing = None
            self._pending.clear()
            self._held.clear()
            self._dropped.clear()

    def flush(self, *, last: bool = False) -> bool:
        """Write and push what has gathered; True: nothing is left. With nothing to do it costs
        nothing. ``last``: the process ends, so do not wait for the time of the next attempt, but
        for a flush that is under way. May take as long as git's time-outs: whoever cannot wait
        leaves it, what is not written is found by ``recover``."""
        if not self._flushing.acquire(blocking=last):
            return False
        try:
            with self._lock:
                late = last or self._clock() >= self._release_at
                if self._held and late and self._last_standing is not None:
                    self._release()
                    self._hold = min(self._hold * 2, LAST_HOLD)
                self._conclude()
                idle = not (self._pending or self._unpushed or self._standing or self._dropped)
                due = self._not_before is None or self._clock() >= self._not_before
            if idle or self._last_standing is None:
                return idle
            return (due or last) and self._attempt()
        finally:
            self._flushing.release()

    def _attempt(self) -> bool:
        try:
            warnings = self._write()
        except GitOpsError as error:
            warnings = (f"the deployment notes could not be written: {error.message}",)
        if not warnings:
            self._wait, self._not_before, self._warned = FIRST_RETRY, None, ()
            return not self.pending and self._standing is None
        self._not_before = self._clock() + self._wait
        self._wait = min(self._wait * 2, LAST_RETRY)
        self._count("failed", 1)
        for warning in warnings:
            if warning not in self._warned:
                self._warn(f"{warning}; this is tried again")
        self._warned = tuple(warnings)
        return False

    def _write(self) -> Sequence[str]:
        if not self._notes.kept():
            with self._lock:
                self._pending.clear()
                self._dropped.clear()
                self._standing = None
            return ()
        with self._lock:
            standing = self._standing
        if standing is not None:
            if warnings := self._notes.pull():
                return warnings
            self._compare(standing())
            with self._lock:
                if self._standing is standing:
                    self._standing = None
        with self._lock:
            batch = tuple(self._pending)
        if batch:
            writable = self._writable(batch)
            if writable and (warnings := self._notes.append(writable)):
                return warnings
            with self._lock:
                # Not by their number: somebody may have let them go meanwhile.
                written = set(map(id, batch))
                self._pending = [one for one in self._pending if id(one) not in written]
                self._unpushed += len(writable)
                dropped, self._dropped = self._dropped, Counter()
                if dropped:  # what of it still holds is found again in the cluster
                    self._standing = self._last_standing
            self._lost(dropped, "there were too many while they could not be written")
        if self._unpushed or standing is not None:  # a clone may hold what was never pushed
            pushed = self._unpushed
            if warnings := self._notes.push():
                return warnings
            self._unpushed -= pushed
            if pushed:
                self._count("pushed", pushed)
        return ()

    def _writable(self, batch: Sequence[NoteRecord]) -> list[NoteRecord]:
        """Without those of commits that the repository does not have: no note can hang there.
        That a server of a commit that was forced away is ready is heard at each start, though."""
        there = self._there({record.commit for record in batch})
        strange = Counter[str](
            r.event for r in batch if r.commit not in there and r.event != "ready"
        )
        self._lost(strange, "the repository does not have their commits")
        return [record for record in batch if record.commit in there]

    def _there(self, commits: Set[str]) -> Set[str]:
        """Those of the commits that the repository has."""
        known = self._known | self._notes.knows(commits - self._known)
        there = known & commits
        self._known = known if len(known) <= KNOWN else there
        return there

    def _lost(self, events: Mapping[str, int], why: str) -> None:
        if events:
            named = ", ".join(f"{number} {event}" for event, number in sorted(events.items()))
            self._warn(f"deployment notes were dropped ({named}): {why}")
            self._count("dropped", sum(events.values()))

    # --- what is found again ---

    def _compare(self, standing: FleetState) -> None:
        """Add what the notes lack of what the cluster shows."""
        commits = {
            key: commit
            for key, cr in standing.outlines.items()
            if ownership.owner_of(cr, self._notary.source) is ownership.Owner.OURS
            and is_commit(commit := source_of(cr))
        }
        there = self._there(set(commits.values()))
        told = Told({str(key): commit for key, commit in commits.items()})
        for record in self._notes.stream():
            if (record.cluster, record.source) == (self._notary.cluster, self._notary.source):
                told.add(record)
        with self._lock:
            for record in self._pending:
                told.add(record, lives=False)  # what we saw ourselves is not ours to miss
            enforced = noted_commit(standing.revision)
            for key, commit in sorted(commits.items()):
                if commit in there:
                    self._found(key, commit, standing, told)
            for name in sorted(told.running()) if enforced else ():
                namespace, _, short = name.partition("/")
                key = ServerKey(namespace, short)
                stands = key in standing.held or key in standing.outlines
                if not stands and standing.sees(key):
                    gone = Outcome(key, "pruned", message=VANISHED)
                    self._keep(self._notary.outcome(gone, self._clock(), enforced), found=True)
            if enforced == self._revision and told.unfinished(enforced):
                self._eventful = True
            self._conclude()

    def _found(self, key: ServerKey, commit: str, standing: FleetState, told: Told) -> None:
        server = self._servers.setdefault(key, Server())
        server.seen = True
        name = str(key)
        server.not_ready = server.not_ready or told.not_ready(name)
        applied, ready = ("applied", name, commit) in told, ("ready", name, commit) in told
        if applied:
            server.applied |= {commit}
        if ready:
            server.ready = server.ready or commit
        if applied and (ready or not status.is_ready(standing.outlines[key]["status"])):
            return
        cr = standing.whole(key)
        since = applied_at(cr) if cr is not None and source_of(cr) == commit else None
        if cr is None or since is None:
            return  # it has changed meanwhile, or is still to be applied
        if not applied:
            server.applied |= {commit}
            self._keep(self._notary.applied(key, since, commit, message=FOUND), found=True)
        if not ready and (turned := ready_since(cr)) is not None:
            server.ready = server.ready or commit
            turned = max(turned, since)
            self._keep(self._notary.ready(key, turned, commit, message=FOUND), found=True)
