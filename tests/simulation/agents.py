"""One agent process: the controller with a view, its feeds and a queue, on a simulated clock.

What the process's threads do in the product, calls on one heap do here. All that it knows is in
this object: a restart is a new one. What dies under a request unwinds to ``later`` and stays dead.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from gitops_mcp.base.errors import KubeError, LeaseLost
from gitops_mcp.base.model import Probe
from gitops_mcp.base.names import ServerKey
from gitops_mcp.cluster.view import WATCHED, View
from gitops_mcp.decide import planning
from gitops_mcp.decide.books import Books, Store
from gitops_mcp.decide.rollout import Serial
from gitops_mcp.sync.controller import Controller
from gitops_mcp.sync.fleet import Look
from gitops_mcp.sync.hooks import Hook
from gitops_mcp.sync.permissions import Leads
from gitops_mcp.sync.reading import Source
from gitops_mcp.sync.syncoptions import SyncOptions
from gitops_mcp.sync.workqueue import Queue
from simulation import feeds, probing
from simulation.cluster import Answer, Client, Plane, Request
from simulation.sources import SOURCE, Commit, Origin, source

POLL = 5.0
"""Seconds between two looks at git."""
FULL = 600.0
"""Seconds between two looks at every server."""
PAUSE = (0.0005, 0.003)
"""Seconds until a free thread takes up what is due."""
THOUGHT = (0.001, 0.06)
"""Seconds from the last decision about a server until it is known to be done with."""
WORKERS = 4
SOON = timedelta(seconds=15)
"""What is planned within so long is not overlooked."""
WISHES = SyncOptions(finalizer=True, create_namespace=True, probes=True)
HOOK = Hook("dns", "https://hooks.example.com/dns")


class Died(BaseException):
    """The process has been killed: nothing of it goes on."""


Wire = Callable[["Agent", Request], Answer]


class Agent:
    """One process. ``leads``: may it write? ``hooks``: are there any? ``serial``: in batches."""

    def __init__(
        self,
        plane: Plane,
        origin: Origin,
        name: str,
        wire: Wire,
        *,
        leads: Callable[[], bool],
        hooks: bool = False,
        serial: Serial | None = None,
    ) -> None:
        self.name = name
        self.alive = True
        self.peeking = False
        """Somebody outside looks into it: what that asks for costs no time and cannot fail."""
        self.asking = 0
        """Requests under way that hold a lock of the engine's."""
        self.commit: Commit | None = None
        self.working: dict[ServerKey, list[Commit]] = {}
        """What is worked on, and the commits that were enforced since that began."""
        self.leads = leads
        self.view = View()
        self._origin = origin
        self._world = plane.world
        self._queue = Queue()
        self._asked: set[ServerKey] = set()
        self._pumping = False
        self._waking: object = None
        self.client = Client(name, lambda request: wire(self, request))
        self.feeds = [
            feeds.Feed(plane, self.client, self.view, watched, self.later) for watched in WATCHED
        ]
        self._books = Books(
            Store(self.client, "default", "gitops-mcp-default", SOURCE),
            clock=self._world.clock,
            may_write=leads,
        )
        self.controller = Controller(
            self.client,
            self.view,
            replace(WISHES, hooks=(HOOK,) if hooks else (), serial=serial),
            leads=Leads(leads, leads),
            wake=self.wake,
            settled=self._settled,
            complete=self._complete,
            books=self._books,
            ask=lambda inquiry, clock: probing.ask(plane, inquiry, clock),
            clock=self._world.clock,
            rng=random.Random(self._world.rng.getrandbits(32)),
        )
        self.later(0.01, self._begin)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it, unless the process is dead by then."""

        def unless_dead() -> None:
            if self.alive:
                try:
                    call()
                except Died:
                    assert not self.alive

        self._world.later(seconds, unless_dead)

    def kill(self) -> None:
        """Nothing of it goes on."""
        if not self.alive:
            return
        self.alive = False
        for feed in self.feeds:
            feed.close()

    def _complete(self) -> bool:
        return all(feed.complete for feed in self.feeds)

    # --- start ---

    def _begin(self) -> None:
        """Read the cluster, then git."""
        try:
            for feed in self.feeds:
                if feed.missed:
                    feed.list()
        except KubeError:
            self.later(1.0, self._begin)
            return
        self.view.subscribe(self.hear)
        self._poll()
        self.later(FULL, self._full)

    def _poll(self) -> None:
        self.later(POLL if not self.asking else 0.1, self._poll)
        if self._origin.away or not self._origin.head or self.asking:
            return
        former, head = self.commit, self._origin.commits[self._origin.head]
        if head != former:
            self.commit = head
            for commits in self.working.values():
                commits.append(head)
            try:
                self.controller.adopt(source(self._origin, head))
            except (KubeError, LeaseLost):
                self.commit = former

    def _settled(self, adopted: Source) -> None:
        """The notes say so."""
        if self.leads():
            self._origin.synced = str(adopted.snapshot.revision)

    def _full(self) -> None:
        self.later(FULL, self._full)
        self.controller.look_at_all()

    # --- work ---

    def wake(self, *keys: ServerKey) -> None:
        """Something about these servers changed."""
        for key in keys:
            self._queue.add(key, self._world.clock())
        self._pump()

    def hear(self, key: ServerKey) -> None:
        """There is news of the server in the cluster."""
        self._queue.hear(key, self._world.clock())
        self._pump()

    def _pump(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.later(self._world.rng.uniform(*PAUSE), self._take)

    def _take(self) -> None:
        self._pumping = False
        if self.asking:
            self._pump()  # the others wait for the same lock
            return
        if self._queue.running < WORKERS:
            key = self._queue.take(self._world.clock())
            if key is not None:
                self._pump()
                self._look(key)
                return
        at = self._queue.next_at()
        if at is not None:
            wait = max((at - self._world.clock()).total_seconds(), 0.001)
            self._waking = token = object()
            self.later(wait, lambda: self._pump() if self._waking is token else None)

    def _look(self, key: ServerKey) -> None:
        self.working[key] = [self.commit] if self.commit is not None else []
        look = self.controller.look(key)
        # What comes between the last decision and this is news for the next look.
        self.later(self._world.rng.uniform(*THOUGHT), lambda: self._looked(key, look))

    def _looked(self, key: ServerKey, look: Look) -> None:
        self.working.pop(key, None)
        self._queue.done(key)
        self._queue.schedule(key, look.again)
        if look.inquiry is not None and key not in self._asked:
            self._asked.add(key)
            inquiry = look.inquiry
            self.later(self._world.rng.uniform(0.01, 0.5), lambda: self._ask(key, inquiry))
        self._pump()

    def _ask(self, key: ServerKey, inquiry: Probe) -> None:
        self.controller.ask(key, inquiry)
        self._asked.discard(key)
        self.wake(key)

    # --- looked at from outside ---

    @property
    def failing(self) -> bool:
        """Has anything failed that is to be tried again?"""
        engine = self.controller._engine
        if engine is None or not self.leads():
            return False
        keys = [key for key, _ in self.view.resources()]
        return any(engine.memory(key).failure is not None for key in keys)

    def overlooked(self) -> str:
        """What there is to do that nobody will look at; "" where there is none, or where somebody
        may be about to."""
        engine, now = self.controller._engine, self._world.clock()
        busy = self.working or self._queue.depth or self.asking or not self._complete()
        if engine is None or busy or not self.leads() or any(feed.behind for feed in self.feeds):
            return ""
        namespaces = engine._namespaces
        phases = dict(namespaces._phases)
        self.peeking = True
        try:
            for key in sorted(self.controller.servers()):
                namespaces._phases = dict(phases)  # what one is told is no news for others
                aim, queue = engine._aim, self._queue
                timers = (queue._timers.at(key), queue._gathered.at(key))
                timer = min(filter(None, timers), default=None)
                facts = engine.facts(key)
                decision = planning.decide(facts, aim.context, aim.renderer)
                if timer is not None and timer <= now + SOON:
                    continue
                if engine.memory(key).failure is not None:
                    if timer is None:
                        return f"{key}: to try again"
                elif decision.actions:
                    return f"{key}: {decision.actions[0].why} {decision.actions[0].ref}"
                elif decision.inquiry is not None and key not in self._asked:
                    return f"{key}: {decision.inquiry.kind}"
                elif facts.cr is not None and decision.look_again is not None and timer is None:
                    return f"{key}: to look again at {decision.look_again}"
        finally:
            self.peeking = False
            namespaces._phases = phases
        return ""
