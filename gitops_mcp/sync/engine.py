"""The engine: decides about servers one by one and carries the decisions out.

``Engine.work`` takes one server as far as it goes now: facts, decision, requests, and again, until
no action is left. What it works towards is an ``DesiredState``, which a new commit replaces. It is
deterministic: clock, randomness, API and probes are handed in. Whoever drives it sees to it that a
server is never worked on twice at the same time.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from gitops_mcp.base import objects, times
from gitops_mcp.base.bugs import place_of
from gitops_mcp.base.errors import KubeError, LeaseLost, Terminating, Transient
from gitops_mcp.base.model import (
    Action,
    Decision,
    Facts,
    Namespace,
    Outcome,
    Probe,
    ProbeResult,
    Result,
    Verb,
    Wait,
)
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Revision
from gitops_mcp.cluster.view import Live, View
from gitops_mcp.decide import ending, inquiries, ownership, planning, rollout, shutdown, writing
from gitops_mcp.sync import hooks, probes, secretheaders
from gitops_mcp.sync.execution import Execution
from gitops_mcp.sync.failures import MAX_RACES, Failures, is_lost_race
from gitops_mcp.sync.memory import Ask, DesiredState, Kube, Memory, held
from gitops_mcp.sync.namespaces import ACTIVE_HOLDS, NAMESPACE_HOLDS, Namespaces
from gitops_mcp.sync.preview import Preview

_log = logging.getLogger(__name__)


MAX_STEPS = 50
"""Decisions in a row about one server without a pause; more means that two writers fight."""
STALE_RETRY = timedelta(seconds=1)
STALE = "the cluster to be seen whole again"
HOOKS_MARGIN = timedelta(seconds=1)
"""Past the limit of the hooks, until a deletion goes on without their answer."""


def log_bug(key: ServerKey, error: Exception) -> None:
    """Write an unexpected error, with its traceback, to the log."""
    _log.error("%s: an unexpected error", key, exc_info=error, extra={"fields": {"server": key}})


class Engine:
    """Decides and acts for servers, one at a time or many at once.

    ``may_write`` is asked right before each write, with True for a server that kubectl made:
    False, once another writer may be at work. ``check``: every write is a dry-run, and what it
    would bring is remembered instead of done; ``dry_run`` False makes a check without the right to
    patch: local comparison only. ``wake`` is told of a server that is worth another look though
    nothing about it has changed. ``bug`` is told of an unexpected error in the work on a server,
    once. ``complete``: does the view hold all that there is? What is to be
    deleted waits until it does.
    """

    def __init__(
        self,
        kube: Kube,
        view: View,
        aim: DesiredState,
        *,
        check: bool = False,
        dry_run: bool = True,
        may_write: Callable[[bool], bool] = lambda _: True,
        ask: Ask = probes.ask,
        cleanup: Sequence[hooks.Hook] = (),
        wake: Callable[[ServerKey], None] = lambda _: None,
        complete: Callable[[], bool] = lambda: True,
        bug: Callable[[ServerKey, Exception], None] = log_bug,
        clock: Callable[[], datetime] = times.utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._view = view
        self._aim = aim
        self._may_write = may_write
        self._ask = ask
        self._hooks = cleanup
        self._wake = wake
        self._complete = complete
        self._bug = bug
        self._clock = clock
        self._memories: dict[ServerKey, Memory] = {}
        self._stopped = threading.Event()
        self._failures = Failures(
            self._memories,
            wake=wake,
            clock=clock,
            rng=rng or random.Random(),  # noqa: S311 -- spreads retries, guards nothing
        )
        self._namespaces = Namespaces(kube, clock=clock, terminating=self._wake_all_in)
        self._execution = Execution(kube, view, self._namespaces, clock=clock)
        self._preview = Preview(kube, view, self._failures, dry_run=dry_run) if check else None

    @property
    def foreseen(self) -> frozenset[str]:
        """Namespaces that a check would have made."""
        return frozenset(self._preview.namespaces if self._preview is not None else ())

    @property
    def refused_dry_runs(self) -> bool:
        """The ownership policy refuses dry-runs: the check is a local comparison."""
        return self._preview is not None and self._preview.refused_dry_runs

    def aim(self, aim: DesiredState) -> set[ServerKey]:
        """Work towards something else from now on. Returns the servers whose failures are worth
        another try for it: only somebody's mistake can have been mended by it."""
        self._aim = aim
        return self._failures.retry_for_commit()

    def set_back(self) -> None:
        """The clock was set back: what is remembered as of later than now would hold for too long.
        What failed is tried again."""
        now = self._clock()
        self._namespaces.clear()
        for key, memory in list(self._memories.items()):
            self._failures.clear(key, memory)
            if memory.probe is not None:
                memory.probe = replace(memory.probe, at=min(memory.probe.at, now))
            if memory.status_written_at is not None:
                memory.status_written_at = min(memory.status_written_at, now)
            memory.sessions_at = memory.cleanup_by = None
            memory.contests.clear()

    @property
    def revision(self) -> Revision:
        """The commit that is worked towards."""
        return self._aim.context.revision

    # --- facts ---

    def memory(self, key: ServerKey) -> Memory:
        """What is remembered of a server; made on first sight."""
        known = self._memories.get(key)
        if known is None:
            known = Memory(cleanup=None if self._hooks else "")
            known = self._memories.setdefault(key, known)
        return known

    def knows(self, key: ServerKey) -> bool:
        """Is anything remembered of the server?"""
        return key in self._memories

    def known(self) -> list[ServerKey]:
        """The servers of which something is remembered."""
        return list(self._memories)

    def forget(self, key: ServerKey) -> None:
        """Nothing is left of the server."""
        memory = self._memories.pop(key, None)
        if memory is not None:
            self._failures.clear(key, memory)

    def facts(self, key: ServerKey) -> Facts:
        """All that is known of a server now."""
        return self._facts(key, self._aim)

    def _facts(self, key: ServerKey, aim: DesiredState) -> Facts:
        live = self._live(key)
        memory = self._remembered(key, live)
        return Facts(
            key=key,
            now=self._clock(),
            desired=aim.loaded.servers.get(key),
            protected=key in aim.loaded.protected,
            problems=aim.problems.get(str(key), ()),
            held=held(key, aim, live, memory.failure),
            strange=live.cr is not None and aim.strange(key),
            former=aim.former(key) if live.cr is not None else None,
            deferred=aim.rollout.waits(key) if aim.rollout is not None else None,
            cr=live.cr,
            children=live.children,
            pods=tuple(live.pods.values()),
            namespace=self._namespace(key, live),
            probe=memory.probe,
            failure=memory.failure,
            status_written_at=memory.status_written_at,
            noise=frozenset(memory.noise),
            sessions=memory.sessions,
            sessions_at=memory.sessions_at,
            cleanup=self._cleanup(memory),
            contests=dict(memory.contests),
        )

    def _cleanup(self, memory: Memory) -> str | None:
        """How the hooks ended; None: they have still to be called, and there is time for that."""
        late = memory.cleanup_by is not None and self._clock() >= memory.cleanup_by + HOOKS_MARGIN
        if memory.cleanup is None and late:
            memory.cleanup = f"0 of {len(self._hooks)} hooks done: not in time"
        return memory.cleanup

    def _live(self, key: ServerKey) -> Live:
        overlay = self.memory(key).overlay
        return overlay if overlay is not None else self._view.live(key)

    def _remembered(self, key: ServerKey, live: Live) -> Memory:
        """The memory of this very MCPServer: what was learnt of a former one does not hold."""
        memory = self.memory(key)
        uid = objects.uid(live.cr)
        if uid and memory.uid not in ("", uid):
            memory = self._memories[key] = Memory(
                cleanup=None if self._hooks else "",
                failure=memory.failure,
                failing_since=memory.failing_since,
                refused=memory.refused,
                changes=memory.changes,
                contests=memory.contests,
                overlay=memory.overlay,
            )
        if uid:
            memory.uid = uid
        return memory

    def _namespace(self, key: ServerKey, live: Live) -> Namespace:
        """The namespace's phase; asked only where a create or a deletion depends on it."""
        needed = live.cr is None or objects.is_deleting(live.cr)
        known = self._namespaces.known(key.namespace)
        if not needed and known != "Terminating":
            return "Active"
        if self._preview is not None and key.namespace in self._preview.namespaces:
            return "Active"
        active = live.cr is None and known == "Active"
        return self._namespaces.phase(key.namespace, ACTIVE_HOLDS if active else NAMESPACE_HOLDS)

    def _wake_all_in(self, namespace: str) -> None:
        for key in list(self._memories):
            if key.namespace == namespace:
                self._wake(key)

    # --- work ---

    def stop(self) -> None:
        """Begin no further request that writes: work under way ends with LeaseLost."""
        self._stopped.set()

    def work(self, key: ServerKey) -> Decision:
        """Take a server as far as it goes now; returns the decision that leaves nothing to do."""
        for _ in range(MAX_STEPS):
            aim = self._aim  # a new commit overtakes the old one between two steps
            facts = self._facts(key, aim)
            memory = self.memory(key)
            memory.asked = inquiries.requested(facts.cr)
            memory.generation = objects.generation(facts.cr)
            decision = planning.decide(facts, aim.context, aim.renderer)
            if facts.cr is not None:
                memory.shutdown = shutdown.state_of(facts.cr) or memory.shutdown
            memory.pruned = memory.pruned or decision.result == "pruned"
            for change in decision.changes:
                memory.note(change)
            if not decision.actions:
                if memory.failure is None or ending.holds_off(facts):
                    break
                # Its time has come, and there is nothing left to try: it was done all the same, by
                # a request whose answer was lost, or by somebody else.
                self._failures.clear(key, memory)
                continue
            if self._preview is not None:
                if not self._preview.run(key, memory, decision, self._aim.recreate):
                    break
            elif not self._complete() and any(map(_takes_away, decision.actions)):
                later = facts.now + STALE_RETRY
                decision = replace(
                    decision, actions=(), look_again=later, waiting=STALE, wait=Wait.CACHES
                )
                break
            elif not self._carry_out(facts, memory, decision, aim):
                break
        else:
            self._failures.record(key, memory, Transient(f"{key}: no end after {MAX_STEPS} steps"))
        if self._preview is not None:
            # Nothing was done, so there is nothing to wait for, and no hook to call.
            decision = replace(decision, waiting="", wait=None, look_again=None, inquiry=None)
        if decision.inquiry is not None and decision.inquiry.kind == "cleanup":
            # Whoever has no thread for the hooks, or hangs in one, holds no deletion.
            until = self._clock() + decision.inquiry.timeout
            memory.cleanup_by = min(memory.cleanup_by or until, until)
            late = memory.cleanup_by + HOOKS_MARGIN
            decision = replace(decision, look_again=min(decision.look_again or late, late))
        memory.decision, memory.bug = decision, ""
        if aim.rollout is not None and not decision.actions and decision.wait is not Wait.CACHES:
            why = decision.waiting or decision.message
            for other in aim.rollout.heard(key, rollout.standing(decision), why):
                self._wake(other)
        return decision

    def _carry_out(
        self, facts: Facts, memory: Memory, decision: Decision, aim: DesiredState
    ) -> bool:
        """Make the requests, up to the first that fails; False: somebody must look again later."""
        key = facts.key
        kubectls = ownership.is_kubectls(facts, aim.context)
        for action in decision.actions:
            try:
                self._assert_may_write(kubectls)
                self._execution.carry_out(key, memory, action)
            except KubeError as error:
                return self._refused(key, memory, action, error)
            memory.races = 0
            if action.subresource != "status":
                self._failures.clear(key, memory)
            self._failures.succeeded(action)
        return True

    def _assert_may_write(self, kubectls: bool) -> None:
        if self._stopped.is_set():
            raise LeaseLost("the pass has ended")
        if not self._may_write(kubectls):
            raise LeaseLost("the lease for this server is not held any more")

    def ask(self, key: ServerKey, inquiry: Probe) -> None:
        """Have an inquiry answered, and remember it. Takes as long as the servers take. What comes
        to its turn once another MCPServer bears the name is not asked: it is none of that one's."""
        cr = self._view.resource(key)
        if cr is None or objects.uid(cr) != inquiry.uid:
            return
        memory = self.memory(key)
        if inquiry.kind == "cleanup":
            if memory.cleanup is None:  # else it was answered while this one waited for its turn
                end = memory.cleanup_by or self._clock() + inquiry.timeout
                left = min(max(end - self._clock(), timedelta(0)), inquiry.timeout)
                memory.cleanup = hooks.run(self._hooks, self._event(key), limit=left)
            return
        if inquiry.headers_from:
            try:
                inquiry = replace(
                    inquiry, headers=secretheaders.read(self._kube, key.namespace, inquiry)
                )
            except secretheaders.NoHeaders as missing:
                pods = frozenset(uid for uid, _ in inquiry.targets)
                found = ProbeResult(Reason.NOT_PROBED, str(missing), self._clock(), pods)
                memory.probe = inquiries.answered(found, inquiry, memory.probe)
                return
        try:
            answer = self._ask(inquiry, self._clock)
        except Exception as error:  # whatever an endpoint answers, it says nothing of the others
            answer = self._unanswered(key, memory, inquiry, error)
        if isinstance(answer, ProbeResult):
            memory.probe = inquiries.answered(answer, inquiry, memory.probe)
        else:
            memory.sessions, memory.sessions_at = answer, self._clock()

    def _unanswered(
        self, key: ServerKey, memory: Memory, inquiry: Probe, error: Exception
    ) -> ProbeResult | None:
        """The answer where asking ended with an unexpected error: nothing is known of these
        pods. They are asked again like any that gave no answer."""
        told = f"unexpected {type(error).__name__} in {place_of(error)}; this is a bug"
        if told != memory.puzzled:
            memory.puzzled = told
            self._bug(key, error)
        if inquiry.kind != "handshake":
            return None
        pods = frozenset(uid for uid, _ in inquiry.targets)
        return ProbeResult(Reason.UNREACHABLE, told, self._clock(), pods)

    def _event(self, key: ServerKey) -> JsonObject:
        """What a cleanup hook is told."""
        cr = self._view.live(key).cr
        status, context = objects.status(cr), self._aim.context
        return {
            "event": "cleanup",
            "server": str(key),
            "cluster": context.cluster,
            "source": context.source,
            "uid": objects.uid(cr) or None,
            "endpoint": status.get("endpoint"),
            "revision": str(context.revision),
        }

    # --- failures ---

    def _refused(self, key: ServerKey, memory: Memory, action: Action, error: KubeError) -> bool:
        """Sort a refusal; True: it only told us something new, decide again."""
        ends = isinstance(error, Terminating) or _misses_namespace(error)
        if ends and self._namespaces.refresh(key.namespace) == "Terminating":
            return True
        if is_lost_race(action, error) and memory.races < MAX_RACES:
            memory.races += 1
            try:
                self._execution.reread(key, action.ref)
            except KubeError as again:
                self._failures.record(key, memory, again)
            return True
        self._failures.record(key, memory, error, action)
        # What failed is said in the status; a status that cannot be written has to wait.
        return action.subresource != "status"

    def stumbled(self, key: ServerKey, error: Exception) -> Decision:
        """An unexpected error ended the work on the server: it has failed, and is tried again
        later. The other servers go on; a batch that it belongs to has failed."""
        memory = self.memory(key)
        told = f"unexpected {type(error).__name__} in {place_of(error)}; this is a bug"
        if told != memory.bug:
            memory.bug = told
            self._bug(key, error)
        self._failures.record(key, memory, Transient(f"{key}: {told}"))
        memory.decision = Decision("failed", message=told)
        if (batches := self._aim.rollout) is not None:
            for other in batches.heard(key, rollout.RolloutState.FAILED, told):
                self._wake(other)
        return memory.decision

    # --- outcome ---

    def contested(self, key: ServerKey) -> bool:
        """Did others undo lately what we applied for the server?"""
        memory, now = self._memories.get(key), self._clock()
        contests = memory.contests.values() if memory is not None else ()
        return any(one.undone and now < one.at + writing.STILL for one in contests)

    def finished(self, keys: Iterable[ServerKey]) -> list[ServerKey]:
        """Those that were done something about, and wait for nothing more."""
        memories = ((key, self._memories.get(key)) for key in keys)
        return [
            key
            for key, memory in memories
            if memory is not None and memory.changes and memory.decision.wait is not Wait.SHUTDOWN
        ]

    def outcome(self, key: ServerKey) -> Outcome:
        """How a server stands, and what was done about it since ``told``."""
        memory = self.memory(key)
        changes = tuple(memory.changes.values())
        result: Result = memory.decision.result
        message, reason = memory.decision.message, memory.decision.reason
        if memory.failure is not None and result != "blocked":
            result, message, reason = "failed", memory.failure.message, None
        elif memory.overdue:
            result, message, reason = "failed", f"not done in time: {memory.overdue}", None
        elif memory.pruned and key not in self._aim.loaded.servers:
            result = "pruned"
        elif result in ("ok", "skipped") and changes:
            result = "changed"
        ready = memory.decision.ready
        if self._preview is not None and changes:
            ready = None
        return Outcome(
            key,
            result,
            ready,
            changes,
            message,
            _told(memory.shutdown),
            reason=reason,
            elsewhere=memory.decision.elsewhere,
        )

    def told(self, key: ServerKey) -> None:
        """What ``outcome`` says of the server is known: from now on only what is new counts."""
        memory = self.memory(key)
        memory.changes = {}
        memory.pruned = False
        memory.shutdown = None


def _misses_namespace(error: KubeError) -> bool:
    """Was something to be made in a namespace that is not there?"""
    return error.code == 404 and isinstance(error, Transient)


def _takes_away(action: Action) -> bool:
    """Does the action end something, or let go of it?"""
    return action.verb in (Verb.DELETE, Verb.JSON_PATCH)


_TOLD = ("startedAt", "endedBy", "activeSessions", "cleanup")
"""What of a shutdown is worth remembering once it has ended."""


def _told(state: JsonObject | None) -> JsonObject | None:
    return {key: state[key] for key in _TOLD if key in state} if state else None
