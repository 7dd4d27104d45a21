"""The engine: decides about servers one by one and carries the decisions out.

``Engine.work`` takes one server as far as it goes now: facts, decision, requests, and again, until
no action is left. What it works towards is an ``Aim``, which a new commit replaces. It is
deterministic: clock, randomness, API and probes are handed in. Whoever drives it sees to it that a
server is never worked on twice at the same time.
"""

from __future__ import annotations

import base64
import copy
import logging
import random
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from gitops_mcp.base import merging, objects, times
from gitops_mcp.base.bugs import place_of
from gitops_mcp.base.errors import (
    Category,
    Configuration,
    Conflict,
    Gone,
    Immutable,
    KubeError,
    LeaseLost,
    Permanent,
    PolicyRefused,
    Terminating,
    Transient,
)
from gitops_mcp.base.model import (
    Action,
    Change,
    Contest,
    Decision,
    Facts,
    Failure,
    Inquiry,
    Namespace,
    Outcome,
    ProbeResult,
    Result,
    Verb,
    Wait,
)
from gitops_mcp.base.names import KIND, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Revision
from gitops_mcp.cluster.view import Live, View
from gitops_mcp.decide import (
    applying,
    diffing,
    ending,
    inquiries,
    managedfields,
    ownership,
    planning,
    rollout,
    shutdown,
    writing,
)
from gitops_mcp.sync import hooks, probes
from gitops_mcp.sync.memory import Aim, Ask, Kube, Memory, held

_log = logging.getLogger(__name__)


class _NoHeaders(Exception):
    """A Secret of ``health.headersFrom`` cannot be used; the text says why."""


MAX_STEPS = 50
"""Decisions in a row about one server without a pause; more means that two writers fight."""
NAMESPACE_HOLDS = timedelta(seconds=5)
"""How long a namespace is taken to be what it was."""
ACTIVE_HOLDS = timedelta(seconds=60)
"""The same of one that was Active, by who makes something in it: a refusal tells of its end."""
STALE_RETRY = timedelta(seconds=1)
STALE = "the cluster to be seen whole again"
NAMESPACES = 1_024
"""Namespaces of which that is known; one more costs another request."""
NOISE = 64
"""Applies of one server that are remembered to change nothing: more are of states long gone."""
HOOKS_MARGIN = timedelta(seconds=1)
"""Past the limit of the hooks, until a deletion goes on without their answer."""
CONTEST_FIRST = timedelta(seconds=1)
CONTEST_CAP = timedelta(minutes=5)
"""What somebody has undone once is applied again at once; after that this long apart, doubling."""
MAX_RACES = 10
"""Lost races in a row before one counts as a failure."""


def _log_bug(key: ServerKey, error: Exception) -> None:
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
        aim: Aim,
        *,
        check: bool = False,
        dry_run: bool = True,
        may_write: Callable[[bool], bool] = lambda _: True,
        ask: Ask = probes.ask,
        cleanup: Sequence[hooks.Hook] = (),
        wake: Callable[[ServerKey], None] = lambda _: None,
        complete: Callable[[], bool] = lambda: True,
        bug: Callable[[ServerKey, Exception], None] = _log_bug,
        clock: Callable[[], datetime] = times.utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._view = view
        self._aim = aim
        self._check = check
        self._dry_run = dry_run
        self.refused_dry_runs = False
        """The ownership policy refuses dry-runs: the check is a local comparison."""
        self._may_write = may_write
        self._ask = ask
        self._hooks = cleanup
        self._wake = wake
        self._complete = complete
        self._bug = bug
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 -- spreads retries, guards nothing
        self._memories: dict[ServerKey, Memory] = {}
        self._naming = threading.Lock()
        self._asking: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        """By namespace, as long as somebody holds it: one at a time asks for it, or makes it."""
        self._stopped = threading.Event()
        self._namespaces: dict[str, tuple[Namespace, datetime]] = {}
        self._failing: dict[ServerKey, None] = {}
        """All servers whose last request failed; some that did so before may be among them."""
        self._refusals: dict[tuple[Verb, str, str], dict[ServerKey, None]] = {}
        """The rights that some servers were refused."""
        self.foreseen: set[str] = set()
        """Namespaces that a check would have made."""

    def aim(self, aim: Aim) -> set[ServerKey]:
        """Work towards something else from now on. Returns the servers whose failures are worth
        another try for it: only somebody's mistake can have been mended by it."""
        self._aim = aim
        again = set()
        for key in list(self._failing):
            memory = self._memories.get(key)
            failure = memory.failure if memory is not None else None
            if (
                memory is not None
                and failure is not None
                and failure.category is not Category.TRANSIENT
            ):
                self._recover(key, memory)
                again.add(key)
        return again

    def set_back(self) -> None:
        """The clock was set back: what is remembered as of later than now would hold for too long.
        What failed is tried again."""
        now = self._clock()
        self._namespaces.clear()
        for key, memory in list(self._memories.items()):
            self._recover(key, memory)
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
            self._recover(key, memory)

    def facts(self, key: ServerKey) -> Facts:
        """All that is known of a server now."""
        return self._facts(key, self._aim)

    def _facts(self, key: ServerKey, aim: Aim) -> Facts:
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
        known = self._namespaces.get(key.namespace)
        if not needed and (known is None or known[0] != "Terminating"):
            return "Active"
        if key.namespace in self.foreseen:
            return "Active"
        active = live.cr is None and known is not None and known[0] == "Active"
        return self._phase(key.namespace, ACTIVE_HOLDS if active else NAMESPACE_HOLDS)

    def _phase(self, namespace: str, holds: timedelta) -> Namespace:
        with self._alone(namespace):
            known = self._namespaces.get(namespace)
            if known is None or self._clock() >= known[1] + holds:
                return self._found(namespace, self._ask_namespace(namespace))
            return known[0]

    def _alone(self, namespace: str) -> threading.Lock:
        with self._naming:
            return self._asking.setdefault(namespace, threading.Lock())

    def _found(self, namespace: str, phase: Namespace) -> Namespace:
        """Hold what a namespace is now; of too many, the one known longest is let go. That it goes
        concerns all of its servers."""
        with self._naming:
            known = self._namespaces.get(namespace)
            self._namespaces[namespace] = phase, self._clock()
            if len(self._namespaces) > NAMESPACES:
                del self._namespaces[next(iter(self._namespaces))]
        if phase == "Terminating" and (known is None or known[0] != phase):
            for key in list(self._memories):
                if key.namespace == namespace:
                    self._wake(key)
        return phase

    def _ask_namespace(self, name: str) -> Namespace:
        try:
            found = self._kube.get(ObjectRef("v1", "Namespace", "", name))
        except KubeError:
            return "Active"  # without the right to look, the create itself will tell
        if found is None:
            return "Absent"
        return "Terminating" if objects.is_deleting(found) else "Active"

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
                _remember(memory, change)
            if not decision.actions:
                if memory.failure is None or ending.holds_off(facts):
                    break
                # Its time has come, and there is nothing left to try: it was done all the same, by
                # a request whose answer was lost, or by somebody else.
                self._recover(key, memory)
                continue
            if self._check:
                if not self._pretend(key, memory, decision):
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
            self._failed(key, memory, Transient(f"{key}: no end after {MAX_STEPS} steps"))
        if self._check:
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

    def _carry_out(self, facts: Facts, memory: Memory, decision: Decision, aim: Aim) -> bool:
        """Make the requests, up to the first that fails; False: somebody must look again later."""
        key = facts.key
        kubectls = ownership.is_kubectls(facts, aim.context)
        for action in decision.actions:
            try:
                self._request(key, memory, action, kubectls=kubectls)
            except KubeError as error:
                return self._refused(key, memory, action, error)
            memory.races = 0
            if action.subresource != "status":
                self._recover(key, memory)
            self._allowed(action)
        return True

    def _allowed(self, action: Action) -> None:
        """Rights that one server was refused, and another one has now, both may have by now."""
        right = _right(action)
        for key in list(self._refusals.pop(right, ())):
            memory = self._memories.get(key)
            if memory is not None and memory.refused == right:
                self._recover(key, memory)
                self._wake(key)

    def _request(self, key: ServerKey, memory: Memory, action: Action, *, kubectls: bool) -> None:
        if self._stopped.is_set():
            raise LeaseLost("the pass has ended")
        if not self._may_write(kubectls):
            raise LeaseLost("the lease for this server is not held any more")
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
                subresource=action.subresource,
                uid=action.uid,
                resource_version=action.resource_version,
            )
            released = objects.is_deleting(patched)
            released = released and not patched["metadata"].get("finalizers")
            self._now(before, None if released else patched)
            if action.subresource == "status":
                memory.status_written_at = self._clock()
        else:
            self._applied(memory, action, before)
            return
        _note(memory, action)

    def _make_namespace(self, action: Action) -> None:
        """Once, however many of its servers ask for it at the same time."""
        name = action.ref.name
        with self._alone(name):
            known = self._namespaces.get(name)
            if known is not None and known[0] == "Active":
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
            self._found(name, "Active")

    def _applied(self, memory: Memory, action: Action, before: LiveObject | None) -> None:
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
            memory.status_written_at = self._clock()
            _note(memory, action)
            return
        same = before is not None and diffing.same_content(before, after)
        if applying.unproven(DesiredObject(action.body), after) if action.claims else same:
            if len(memory.noise) >= NOISE:
                memory.noise.clear()
            memory.noise.add(action.key)
        if action.claims or not same:
            _note(memory, action)
        if action.wanted and not same:
            self._contested(memory, action)

    def _contested(self, memory: Memory, action: Action) -> None:
        """Remember what was applied: who undoes it again and again is answered ever more seldom."""
        now, known = self._clock(), memory.contests.get(action.ref)
        undone, by = 0, action.by
        if known is not None and known.wanted == action.wanted:
            undone = known.undone + 1 if now < known.at + writing.STILL else 1
            by = by or known.by
        wait = timedelta()
        if undone:
            wait = min(CONTEST_FIRST * 2 ** min(undone - 1, 16), CONTEST_CAP)
        memory.contests[action.ref] = Contest(
            action.wanted, undone, now, now + wait, memory.asked, by
        )

    def _reread(self, key: ServerKey, ref: ObjectRef) -> None:
        """Look at one object again: after a lost race the view may be wrong."""
        self._now(self._view.live(key).get(ref), self._kube.get(ref), asked=True)

    def _now(
        self, before: LiveObject | None, live: LiveObject | None, *, asked: bool = False
    ) -> None:
        """Hold what an object has become; None: it has gone."""
        if live is not None:
            self._view.put(live, asked=asked)
        elif before is not None:
            self._view.drop(before, for_good=True)

    def ask(self, key: ServerKey, inquiry: Inquiry) -> None:
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
                inquiry = replace(inquiry, headers=self._headers(key, inquiry))
            except _NoHeaders as missing:
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
        self, key: ServerKey, memory: Memory, inquiry: Inquiry, error: Exception
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

    def _headers(self, key: ServerKey, inquiry: Inquiry) -> dict[str, str]:
        """The values of ``health.headersFrom``, read anew each time: a rotated Secret counts at
        once, and none is kept. Raises _NoHeaders, which says why, and no value."""
        secrets: dict[str, JsonObject] = {}
        headers: dict[str, str] = {}
        for header in inquiry.headers_from:
            where = f"health.headersFrom: Secret {key.namespace}/{header.secret}"
            ref = ObjectRef("v1", "Secret", key.namespace, header.secret)
            try:
                secret = secrets.get(header.secret) or self._kube.get(ref)
            except Permanent:
                hint = "the agent may not read it (gitops-mcp install --handshake-secrets)"
                raise _NoHeaders(f"{where}: {hint}") from None
            except KubeError as error:
                raise _NoHeaders(f"{where} cannot be read: {error.category} error") from None
            if secret is None:
                raise _NoHeaders(f"{where} does not exist")
            secrets[header.secret] = secret
            coded = objects.part(secret, "data").get(header.key)
            if coded is None:
                raise _NoHeaders(f"{where} has no key {header.key}")
            try:
                value = base64.b64decode(coded).rstrip(b"\r\n")
            except ValueError:
                value = b""
            if not re.fullmatch(rb"[!-~](?:[ -~]*[!-~])?", value):
                raise _NoHeaders(f"{where}: the value of {header.key} is not one line of ASCII")
            headers[header.name] = header.prefix + value.decode()
        return headers

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
        if isinstance(error, Terminating) or _misses_namespace(error):
            phase = self._found(key.namespace, self._ask_namespace(key.namespace))
            if phase == "Terminating":
                return True
        if _is_news(action, error) and memory.races < MAX_RACES:
            memory.races += 1
            try:
                self._reread(key, action.ref)
            except KubeError as again:
                self._failed(key, memory, again)
            return True
        self._failed(key, memory, error)
        if isinstance(error, Permanent):
            self._lacks(key, memory, _right(action))
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
        self._failed(key, memory, Transient(f"{key}: {told}"))
        memory.decision = Decision("failed", message=told)
        if (batches := self._aim.rollout) is not None:
            for other in batches.heard(key, rollout.Standing.FAILED, told):
                self._wake(other)
        return memory.decision

    def _recover(self, key: ServerKey, memory: Memory) -> None:
        """It failed no more, or is to be tried at once."""
        self._failing.pop(key, None)
        self._lacks(key, memory, None)
        memory.failure = memory.failing_since = None

    def _lacks(self, key: ServerKey, memory: Memory, right: tuple[Verb, str, str] | None) -> None:
        """This is the right that the server was refused last."""
        if memory.refused is not None and (others := self._refusals.get(memory.refused)):
            others.pop(key, None)
            if not others:
                self._refusals.pop(memory.refused, None)
        memory.refused = right
        if right is not None:
            self._refusals.setdefault(right, {})[key] = None

    def _failed(self, key: ServerKey, memory: Memory, error: KubeError) -> None:
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
            asked=memory.asked,
            generation=memory.generation,
        )
        self._failing[key] = None

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
                if immutable and action.change is not None and not self._aim.recreate(key):
                    _note(memory, replace(action, change=replace(action.change, action="replace")))
                    memory.noise.add(action.key)
                    continue
                if action.ref in memory.taken and isinstance(error, Configuration):
                    # Refused for what was added by hand and is still there.
                    memory.noise.add(action.key)
                    memory.overlay.put(LiveObject(merging.merged(before or {}, action.body)))
                    continue
                if _is_news(action, error) and memory.races < MAX_RACES:
                    return self._learn(key, memory, memory.overlay, action.ref)
                self._failed(key, memory, error)
                return immutable
            same = before is not None and diffing.same_content(before, after)
            if same and not action.claims:
                memory.noise.add(action.key)
                continue
            if action.ref not in memory.taken:  # else all of it is told already
                _note(memory, action)
            if action.verb is Verb.JSON_PATCH:
                memory.taken.add(action.ref)
            memory.noise.add(action.key)
            if action.ref.kind != "Namespace":
                memory.overlay.put(after)
        return True

    def _hidden(self, overlay: Live, ref: ObjectRef) -> bool:
        """Is there a child that the view's selector hides, since somebody took its label away?"""
        if ref.kind in (KIND, "Namespace") or ref.namespace in self.foreseen:
            return False
        found = self._kube.get(ref)
        if found is not None:
            overlay.put(found)
        return found is not None

    def _learn(self, key: ServerKey, memory: Memory, overlay: Live, ref: ObjectRef) -> bool:
        """Look at what a dry-run told us of; True: decide again."""
        memory.races += 1
        try:
            live = self._kube.get(ref)
        except KubeError as error:
            self._failed(key, memory, error)
            return False
        if live is None:
            overlay.drop(ref)
        else:
            overlay.put(live)
        return True

    def _foresee(
        self, key: ServerKey, memory: Memory, action: Action, before: LiveObject | None
    ) -> LiveObject:
        if action.ref.kind == "Namespace":
            self.foreseen.add(key.namespace)
            return LiveObject(action.body)
        if action.verb is Verb.JSON_PATCH and before is not None:
            gone = (
                (f.path for f in action.change.fields if f.after is None) if action.change else ()
            )
            return managedfields.without(before, gone)
        roughly = LiveObject(merging.merged(before or {}, action.body))
        absent = before is None and key.namespace in self.foreseen
        if not self._dry_run or absent:
            return roughly
        try:
            after = self._kube.apply(
                action.body,
                manager=action.manager,
                force=action.uid is not None,
                dry_run=True,
                subresource=action.subresource,
                uid=action.uid,
                resource_version=action.resource_version,
            )
        except PolicyRefused:
            self._dry_run, self.refused_dry_runs = False, True
            return roughly
        if action.ref in memory.taken:
            return roughly  # the answer still holds what would be gone
        if before is None:
            # The uid of a dry-run is made up: children must not be rendered with it.
            after = copy.copy(after)
            after["metadata"] = {k: v for k, v in after["metadata"].items() if k != "uid"}
        return after

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
        if self._check and changes:
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


def _right(action: Action) -> tuple[Verb, str, str]:
    """What an action needs the right to."""
    return action.verb, action.ref.kind + action.subresource, action.ref.namespace


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
