"""The engine: decides about servers one by one and carries the decisions out.

``Engine.work`` takes one server as far as it goes now: facts, decision, requests, and again, until
no action is left. It is deterministic: clock, randomness, API and probes are handed in. ``Fleet``
drives many servers at once: a queue, timers and a few threads; a server is never worked on twice
at the same time, and waiting holds no thread.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from gitops_mcp import diffing, hooks, planning, probes, shutdown
from gitops_mcp.errors import (
    Configuration,
    Conflict,
    Gone,
    Immutable,
    KubeError,
    LeaseLost,
    Terminating,
    Transient,
)
from gitops_mcp.model import (
    KIND,
    Action,
    Change,
    Context,
    Decision,
    Facts,
    Failure,
    Inquiry,
    JsonObject,
    Loaded,
    Namespace,
    ObjectRef,
    Outcome,
    ProbeResult,
    Problem,
    Propagation,
    Result,
    ServerKey,
    Verb,
)
from gitops_mcp.view import Live, View

MAX_STEPS = 50
"""Decisions in a row about one server without a pause; more means that two writers fight."""
MAX_RACES = 10
"""Lost races in a row before one counts as a failure."""


class Kube(Protocol):
    """The requests that the engine makes; ``kube.Cluster`` is the real one."""

    def get(self, ref: ObjectRef) -> JsonObject | None: ...

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
    ) -> JsonObject: ...

    def json_patch(
        self,
        ref: ObjectRef,
        ops: list[JsonObject],
        *,
        manager: str,
        uid: str | None,
        resource_version: str | None,
    ) -> JsonObject: ...

    def delete(
        self,
        ref: ObjectRef,
        *,
        uid: str | None,
        resource_version: str | None,
        propagation: Propagation,
    ) -> JsonObject | None: ...


Ask = Callable[[Inquiry, Callable[[], datetime]], ProbeResult | int | None]
"""How an inquiry is answered; ``probes.ask`` is the real one."""


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Lasting:
    """What one pass remembers of a server for the next of the same process."""

    noise: set[str] = field(default_factory=set)
    """Its applies that were seen to change nothing."""
    probe: ProbeResult | None = None
    status_written_at: datetime | None = None


@dataclass(slots=True)
class Memory:
    """What this process remembers of one server. Losing it costs a request, never correctness."""

    lasting: Lasting = field(default_factory=Lasting)

    failure: Failure | None = None
    failing_since: datetime | None = None
    races: int = 0
    sessions: int | None = None
    sessions_at: datetime | None = None
    cleanup: str | None = ""
    shutdown: JsonObject | None = None
    changes: dict[tuple[ObjectRef, str], Change] = field(default_factory=dict)
    overlay: Live | None = None
    """In check mode: the server's objects as they would be by now."""
    taken: set[ObjectRef] = field(default_factory=set)
    """In check mode: objects of which we would have taken over what was added by hand."""
    decision: Decision = field(default_factory=Decision)
    pruned: bool = False
    overdue: str = ""
    """What a shutdown still waited for when the pass gave up on it."""


class Settled:
    """Decisions that left nothing to do, by all that they were made from: what one pass leaves for
    the next of the same process. A server of which nothing has changed costs no second look."""

    def __init__(self) -> None:
        self._frame: object = None
        self._decisions: dict[ServerKey, tuple[object, Decision]] = {}
        self._lasting: dict[ServerKey, Lasting] = {}

    def begin(self, frame: object, keys: Collection[ServerKey]) -> None:
        """Begin a pass over ``keys``. ``frame`` equals the last one's when all that holds for
        every server is the same: context and templates."""
        last = self._decisions if frame == self._frame else {}
        self._frame = frame
        self._decisions = {key: last[key] for key in keys if key in last}
        self._lasting = {key: self._lasting[key] for key in keys if key in self._lasting}

    def lasting(self, key: ServerKey) -> Lasting:
        """What holds of the server in any frame."""
        return self._lasting.setdefault(key, Lasting())

    def find(self, facts: Facts, context: Context) -> Decision | None:
        """What was decided from equal facts, whatever the time."""
        known = self._decisions.get(facts.key)
        return known[1] if known is not None and known[0] == _print(facts, context) else None

    def keep(self, facts: Facts, context: Context, decision: Decision) -> None:
        """Remember a decision, unless time alone may change it."""
        timeless = decision.look_again is None and facts.failure is None
        if timeless and not decision.actions and decision.inquiry is None:
            self._decisions[facts.key] = _print(facts, context), decision


def _print(facts: Facts, context: Context) -> object:
    """Equal where all facts but the time are. The revision counts only where it would be written:
    a server keeps the one at which its present state came."""
    desired = facts.desired.digest if facts.desired is not None else ""
    source = ((facts.cr or {}).get("status") or {}).get("source") or {}
    stands = "revision" in source and source.get("digest") == desired[:16]
    objects = (facts.cr, *facts.children.values(), *facts.pods)
    return (
        desired,
        "" if stands else str(context.revision),
        frozenset((o["metadata"]["uid"], o["metadata"]["resourceVersion"]) for o in objects if o),
        facts.protected,
        facts.problems,
        facts.held,
        facts.namespace,
        facts.probe,
        facts.failure,
        facts.noise,
        facts.sessions,
        facts.cleanup,
    )


class Engine:
    """Decides and acts for the servers of one pass.

    ``may_write`` is asked right before each write: False, once another writer may be at work.
    ``check``: every write is a dry-run, and what it would bring is remembered instead of done;
    ``dry_run`` False makes a check without the right to patch: local comparison only.
    ``held``: why servers that git no longer holds are kept; ``guard`` is asked the same of all the
    servers that the pass recreates, once for each further one.
    """

    def __init__(
        self,
        kube: Kube,
        view: View,
        renderer: planning.Renderer,
        context: Context,
        loaded: Loaded,
        *,
        held: Mapping[ServerKey, str] | None = None,
        guard: Callable[[Collection[ServerKey]], str] = lambda _: "",
        check: bool = False,
        dry_run: bool = True,
        may_write: Callable[[], bool] = lambda: True,
        ask: Ask = probes.ask,
        cleanup: Sequence[hooks.Hook] = (),
        settled: Settled | None = None,
        clock: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._view = view
        self._renderer = renderer
        self._context = context
        self._loaded = loaded
        self._held = dict(held or {})
        self._guard = guard
        self._recreates: set[ServerKey] = set()
        self._check = check
        self._dry_run = dry_run
        self._may_write = may_write
        self._ask = ask
        self._hooks = cleanup
        self._settled = settled or Settled()
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 -- spreads retries, guards nothing
        self._memories: dict[ServerKey, Memory] = {}
        self._asking = threading.Lock()
        self._stopped = threading.Event()
        self._namespaces: dict[str, Namespace] = {}
        self._foreseen: set[str] = set()
        """Namespaces that a check would have made."""
        self._problems: dict[str, list[Problem]] = {}
        for problem in loaded.problems:
            if problem.server is not None and problem.severity == "error":
                self._problems.setdefault(problem.server, []).append(problem)

    # --- facts ---

    def memory(self, key: ServerKey) -> Memory:
        """What is remembered of a server; made on first sight."""
        new = Memory(self._settled.lasting(key), cleanup=None if self._hooks else "")
        return self._memories.setdefault(key, new)

    def facts(self, key: ServerKey) -> Facts:
        """All that is known of a server now."""
        memory = self.memory(key)
        live = memory.overlay if memory.overlay is not None else self._view.live(key)
        return Facts(
            key=key,
            now=self._clock(),
            desired=self._loaded.servers.get(key),
            protected=key in self._loaded.protected,
            problems=tuple(self._problems.get(str(key), ())),
            held=self._held.get(key, ""),
            cr=live.cr,
            children=live.children,
            pods=tuple(live.pods.values()),
            namespace=self._namespace(key, live),
            probe=memory.lasting.probe,
            failure=memory.failure,
            status_written_at=memory.lasting.status_written_at,
            noise=frozenset(memory.lasting.noise),
            sessions=memory.sessions,
            sessions_at=memory.sessions_at,
            cleanup=memory.cleanup,
        )

    def _namespace(self, key: ServerKey, live: Live) -> Namespace:
        """The namespace's phase; asked only where a create or a deletion depends on it."""
        needed = live.cr is None or "deletionTimestamp" in live.cr["metadata"]
        if not needed and self._namespaces.get(key.namespace) != "Terminating":
            return "Active"
        return "Active" if key.namespace in self._foreseen else self._phase(key.namespace)

    def _phase(self, namespace: str) -> Namespace:
        with self._asking:
            known = self._namespaces.get(namespace)
            if known is None:
                known = self._namespaces[namespace] = self._ask_namespace(namespace)
            return known

    def _ask_namespace(self, name: str) -> Namespace:
        try:
            found = self._kube.get(ObjectRef("v1", "Namespace", "", name))
        except KubeError:
            return "Active"  # without the right to look, the create itself will tell
        if found is None:
            return "Absent"
        return "Terminating" if "deletionTimestamp" in found["metadata"] else "Active"

    # --- work ---

    def stop(self) -> None:
        """Begin no further request that writes: work under way ends with LeaseLost."""
        self._stopped.set()

    def work(self, key: ServerKey) -> Decision:
        """Take a server as far as it goes now; returns the decision that leaves nothing to do."""
        memory = self.memory(key)
        for _ in range(MAX_STEPS):
            facts = self.facts(key)
            decision = self._decide(facts)
            if facts.cr is not None:
                memory.shutdown = shutdown.state_of(facts.cr) or memory.shutdown
            memory.pruned = memory.pruned or decision.result == "pruned"
            for change in decision.changes:
                _remember(memory, change)
            if not decision.actions:
                if memory.failure is None or self._clock() < memory.failure.retry_at:
                    break
                # Its time has come, and there is nothing left to try: it was done all the same, by
                # a request whose answer was lost, or by somebody else.
                memory.failure = memory.failing_since = None
                continue
            step = self._pretend if self._check else self._carry_out
            if not step(key, memory, decision):
                break
        else:
            self._failed(memory, Transient(f"{key}: no end after {MAX_STEPS} steps"))
        if self._check:
            # Nothing was done, so there is nothing to wait for, and no hook to call.
            decision = replace(decision, waiting="", look_again=None, inquiry=None)
        memory.decision = decision
        return decision

    def _decide(self, facts: Facts) -> Decision:
        if self._check:  # it foresees objects, which have no version yet
            return planning.decide(facts, self._context, self._renderer)
        decision = self._settled.find(facts, self._context)
        if decision is None:
            decision = planning.decide(facts, self._context, self._renderer)
            self._settled.keep(facts, self._context, decision)
        return decision

    def _carry_out(self, key: ServerKey, memory: Memory, decision: Decision) -> bool:
        """Make the requests, up to the first that fails; False: somebody must look again later."""
        for action in decision.actions:
            try:
                self._request(key, memory, action)
            except KubeError as error:
                return self._refused(key, memory, action, error)
            memory.races = 0
            if action.subresource != "status":
                memory.failure = memory.failing_since = None
        return True

    def _request(self, key: ServerKey, memory: Memory, action: Action) -> None:
        if self._stopped.is_set():
            raise LeaseLost("the pass has ended")
        if not self._may_write():
            raise LeaseLost("another writer has taken the lease of this source")
        if action.ref.kind == "Namespace":
            self._make_namespace(action)
            return
        before = self._view.live(key).get(action.ref)
        if action.verb is Verb.DELETE:
            left = self._kube.delete(
                action.ref,
                uid=action.uid,
                resource_version=action.resource_version,
                propagation=action.propagation,
            )
            self._now(before, left)
        elif action.verb is Verb.JSON_PATCH:
            patched = self._kube.json_patch(
                action.ref,
                action.body["patch"],
                manager=action.manager,
                uid=action.uid,
                resource_version=action.resource_version,
            )
            released = "deletionTimestamp" in patched["metadata"]
            released = released and not patched["metadata"].get("finalizers")
            self._now(before, None if released else patched)
        else:
            self._applied(memory, action, before)
            return
        _note(memory, action)

    def _make_namespace(self, action: Action) -> None:
        """Once, however many of its servers ask for it at the same time."""
        name = action.ref.name
        with self._asking:
            if self._namespaces.get(name) == "Active":
                return
            self._kube.apply(
                action.body,
                manager=action.manager,
                force=False,
                dry_run=False,
                subresource="",
                uid=None,
                resource_version=None,
            )
            self._namespaces[name] = "Active"

    def _applied(self, memory: Memory, action: Action, before: JsonObject | None) -> None:
        after = self._kube.apply(
            action.body,
            manager=action.manager,
            force=action.uid is not None or action.subresource == "status",
            dry_run=False,
            subresource=action.subresource,
            uid=action.uid,
            resource_version=action.resource_version,
        )
        self._view.put(after)
        if action.subresource == "status" and action.ref.kind == KIND:
            memory.lasting.status_written_at = self._clock()
            _note(memory, action)
        elif before is not None and diffing.same_content(before, after):
            memory.lasting.noise.add(action.key)
        else:
            _note(memory, action)

    def _reread(self, key: ServerKey, ref: ObjectRef) -> None:
        """Look at one object again: after a lost race the view may be wrong."""
        self._now(self._view.live(key).get(ref), self._kube.get(ref))

    def _now(self, before: JsonObject | None, live: JsonObject | None) -> None:
        """Hold what an object has become; None: it has gone."""
        if live is not None:
            self._view.put(live)
        elif before is not None:
            self._view.drop(before)

    def ask(self, key: ServerKey, inquiry: Inquiry) -> None:
        """Have an inquiry answered, and remember it. Takes as long as the servers take."""
        memory = self.memory(key)
        if inquiry.kind == "cleanup":
            memory.cleanup = hooks.run(self._hooks, self._event(key), limit=inquiry.timeout)
            return
        answer = self._ask(inquiry, self._clock)
        if isinstance(answer, ProbeResult):
            memory.lasting.probe = answer
        else:
            memory.sessions, memory.sessions_at = answer, self._clock()

    def _event(self, key: ServerKey) -> JsonObject:
        """What a cleanup hook is told."""
        cr = self._view.live(key).cr or {}
        status = cr.get("status") or {}
        return {
            "event": "cleanup",
            "server": str(key),
            "cluster": self._context.cluster,
            "source": self._context.source,
            "uid": cr.get("metadata", {}).get("uid"),
            "endpoint": status.get("endpoint"),
            "revision": str(self._context.revision),
        }

    # --- failures ---

    def _refused(self, key: ServerKey, memory: Memory, action: Action, error: KubeError) -> bool:
        """Sort a refusal; True: it only told us something new, decide again."""
        if isinstance(error, Terminating):
            phase = self._namespaces[key.namespace] = self._ask_namespace(key.namespace)
            if phase == "Terminating":
                return True
        if _is_news(action, error) and memory.races < MAX_RACES:
            memory.races += 1
            try:
                self._reread(key, action.ref)
            except KubeError as again:
                self._failed(memory, again)
            return True
        if isinstance(error, Immutable):
            self._may_recreate(key)
        self._failed(memory, error)
        # What failed is said in the status; a status that cannot be written has to wait.
        return action.subresource != "status"

    def _may_recreate(self, key: ServerKey) -> bool:
        """Only a new object can carry what was refused: a recreate counts as a prune."""
        with self._asking:
            if key not in self._recreates:
                self._recreates.add(key)
                if reason := self._guard(self._recreates):
                    self._held[key] = reason
                    self._recreates.remove(key)
        return key not in self._held

    def _failed(self, memory: Memory, error: KubeError) -> None:
        now = self._clock()
        attempts = memory.failure.attempts + 1 if memory.failure else 1
        memory.failing_since = memory.failing_since or now
        memory.failure = Failure(
            category=error.category,
            reason=error.condition,
            message=error.message,
            attempts=attempts,
            retry_at=now + self._delay(error, attempts),
            immutable=isinstance(error, Immutable),
        )

    def _delay(self, error: KubeError, attempts: int) -> timedelta:
        if error.retry_after is not None:
            return error.retry_after
        # The exponent is bounded: 2**34 seconds would overflow long before anybody waits them.
        wait: timedelta = min(error.first_retry * 2 ** min(attempts - 1, 16), error.retry_cap)
        return wait * self._rng.uniform(0.8, 1.2)

    # --- check mode ---

    def _pretend(self, key: ServerKey, memory: Memory, decision: Decision) -> bool:
        """Learn by dry-run what the actions would bring; False: the rest cannot be foreseen."""
        if memory.overlay is None:
            memory.overlay = self._view.live(key)
        for action in decision.actions:
            lets_go = action.verb is Verb.JSON_PATCH and not (
                action.change is not None and action.change.fields
            )
            if action.verb is Verb.DELETE or action.subresource == "status" or lets_go:
                _note(memory, action)
                if action.ref.kind == KIND:
                    return False
                memory.overlay.drop(action.ref)
                continue
            before = memory.overlay.get(action.ref)
            try:
                if before is None and self._hidden(memory.overlay, action.ref):
                    return True
                after = self._foresee(key, memory, action, before)
            except KubeError as error:
                immutable = isinstance(error, Immutable) and action.change is not None
                if immutable and action.change is not None and self._may_recreate(key):
                    _note(memory, replace(action, change=replace(action.change, action="replace")))
                    memory.lasting.noise.add(action.key)
                    continue
                if action.ref in memory.taken and isinstance(error, Configuration):
                    # Refused for what is still there.
                    memory.overlay.put(_merged(before, action.body))
                    continue
                if _is_news(action, error) and memory.races < MAX_RACES:
                    return self._learn(memory, memory.overlay, action.ref)
                self._failed(memory, error)
                return immutable
            if before is not None and diffing.same_content(before, after):
                memory.lasting.noise.add(action.key)
                continue
            if action.ref not in memory.taken:  # else all of it is told already
                _note(memory, action)
            if action.verb is Verb.JSON_PATCH:
                memory.taken.add(action.ref)
            memory.lasting.noise.add(action.key)
            if action.ref.kind != "Namespace":
                memory.overlay.put(after)
        return True

    def _hidden(self, overlay: Live, ref: ObjectRef) -> bool:
        """Is there a child that the view's selector hides, since somebody took its label away?"""
        if ref.kind in (KIND, "Namespace") or ref.namespace in self._foreseen:
            return False
        found = self._kube.get(ref)
        if found is not None:
            overlay.put(found)
        return found is not None

    def _learn(self, memory: Memory, overlay: Live, ref: ObjectRef) -> bool:
        """Look at what a dry-run told us of; True: decide again."""
        memory.races += 1
        try:
            live = self._kube.get(ref)
        except KubeError as error:
            self._failed(memory, error)
            return False
        if live is None:
            overlay.drop(ref)
        else:
            overlay.put(live)
        return True

    def _foresee(
        self, key: ServerKey, memory: Memory, action: Action, before: JsonObject | None
    ) -> JsonObject:
        if action.ref.kind == "Namespace":
            self._foreseen.add(key.namespace)
            return action.body
        if action.verb is Verb.JSON_PATCH and before is not None:
            gone = (
                (f.path for f in action.change.fields if f.after is None) if action.change else ()
            )
            return diffing.without(before, gone)
        absent = before is None and key.namespace in self._foreseen
        if not self._dry_run or absent:
            return _merged(before, action.body)
        after = self._kube.apply(
            action.body,
            manager=action.manager,
            force=action.uid is not None,
            dry_run=True,
            subresource=action.subresource,
            uid=action.uid,
            resource_version=action.resource_version,
        )
        if action.ref in memory.taken:
            return _merged(before, action.body)  # the answer still holds what would be gone
        if before is None:
            # The uid of a dry-run is made up: children must not be rendered with it.
            after = copy.copy(after)
            after["metadata"] = {k: v for k, v in after["metadata"].items() if k != "uid"}
        return after

    # --- outcome ---

    def finished(self, keys: Iterable[ServerKey]) -> list[ServerKey]:
        """Those that were done something about, and wait for nothing more."""
        memories = ((key, self._memories.get(key)) for key in keys)
        return [
            key
            for key, memory in memories
            if memory is not None
            and memory.changes
            and not memory.decision.waiting.startswith("shut")
        ]

    def outcome(self, key: ServerKey) -> Outcome:
        """How a server stands at the end of the pass."""
        memory = self.memory(key)
        changes = tuple(memory.changes.values())
        result: Result = memory.decision.result
        message = memory.decision.message
        if memory.failure is not None and result != "blocked":
            result, message = "failed", memory.failure.message
        elif memory.overdue:
            result, message = "failed", f"not done in time: {memory.overdue}"
        elif memory.pruned and key not in self._loaded.servers:
            result = "pruned"
        elif result in ("ok", "skipped") and changes:
            result = "changed"
        ready = memory.decision.ready
        if self._check and changes:
            ready = None
        return Outcome(key, result, ready, changes, message, _told(memory.shutdown))


_TOLD = ("startedAt", "endedBy", "activeSessions", "cleanup")
"""What of a shutdown is worth remembering once it has ended."""


def _told(state: JsonObject | None) -> JsonObject | None:
    return {key: state[key] for key in _TOLD if key in state} if state else None


def _is_news(action: Action, error: KubeError) -> bool:
    """Does a refusal only tell that somebody was quicker, or made an object that we did not see?"""
    unseen = action.uid is None and isinstance(error, Configuration) and error.code == 409
    return unseen or isinstance(error, Gone | Conflict)


def _note(memory: Memory, action: Action) -> None:
    if action.change is not None:
        _remember(memory, action.change)


def _remember(memory: Memory, change: Change) -> None:
    """A replaced object is told as that alone, not as updated before and created after it."""
    if change.action == "replace":
        memory.changes.pop((change.ref, "update"), None)
    elif (change.ref, "replace") in memory.changes:
        return
    memory.changes[change.ref, change.action] = change


def _merged(before: JsonObject | None, body: JsonObject) -> JsonObject:
    """What an apply would roughly leave, where no dry-run may be asked for, or would be refused
    since what was added by hand is still there."""
    if before is None:
        return body
    return before | {
        name: _merged(before[name], value)
        if isinstance(value, dict) and isinstance(before.get(name), dict)
        else value
        for name, value in body.items()
    }
