"""Many servers at once: a few threads around a queue of names, and one pass over a fleet.

Whatever happens only names a server; the engine then looks at the facts. A server is never worked
on twice at the same time, and one that waits holds no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from gitops_mcp.base.errors import Category, GitOpsError
from gitops_mcp.base.limits import ASKERS, HOOKERS
from gitops_mcp.base.model import Decision, Probe, Progress, Wait
from gitops_mcp.base.names import ServerKey
from gitops_mcp.decide.rollout import Rollout, RolloutState
from gitops_mcp.sync.workqueue import Queue

if TYPE_CHECKING:
    from gitops_mcp.cluster.watches import Watches
    from gitops_mcp.sync.engine import Engine
    from gitops_mcp.sync.memory import Memory

WORKERS = 8
"""Requests in flight: what an API server takes from one client without queueing."""
RETRY_WITHIN = timedelta(seconds=60)
"""How long one pass tries a transient error again."""
SHORTLY = timedelta(seconds=2)
"""A look that is due so soon is waited for."""
SHUTDOWN_MARGIN = timedelta(seconds=60)
"""How long past its own deadline a shutdown is waited for before the server has failed."""
BATCH_PATIENCE = timedelta(minutes=11)
"""How long a server of a batch may make no progress: past a Deployment's own deadline of 10 min."""
SETTLED = timedelta(seconds=15)
"""How long a server must have been Failed before no wait is expected to cure it: longer than the
pause of 10 s after which a handshake, and a container, is tried again."""
PROGRESS_INTERVAL = timedelta(seconds=5)
"""Between two reports of what is waited for."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When one pass is done with a server.

    ``ready_by``: until then servers are waited for to be Ready; None: they are not.
    """

    ready_by: datetime | None = None

    def outstanding(
        self, decision: Decision, memory: Memory, now: datetime, started: datetime
    ) -> str:
        """What is still waited for, in words; "" when the pass is done with the server."""
        # What only a recreate can carry has not failed while that recreate is under way.
        recreate = decision.wait in (Wait.SHUTDOWN, Wait.RECREATE)
        recreate = recreate and memory.failure is not None and memory.failure.immutable
        if memory.failure is not None and memory.failing_since is not None and not recreate:
            transient = memory.failure.category is Category.TRANSIENT
            if transient and memory.failure.retry_at < memory.failing_since + RETRY_WITHIN:
                return f"to try again: {memory.failure.message}"
            return ""
        if decision.wait in (Wait.SHUTDOWN, Wait.RECREATE, Wait.DELETION):
            if now < (decision.deadline or started) + SHUTDOWN_MARGIN:
                return decision.waiting
            memory.overdue = decision.waiting
            return ""
        if decision.inquiry is not None:
            return f"{decision.inquiry.kind} of {len(decision.inquiry.targets)} target(s)"
        if decision.look_again is not None and decision.look_again - now <= SHORTLY:
            return "to write the status"
        if decision.deferred and decision.result == "skipped":
            return decision.waiting
        if decision.result in ("failed", "blocked"):
            return ""  # that it gets Ready would not mend that
        if self.ready_by is not None and decision.waiting and now < self.ready_by:
            return decision.waiting
        return ""


class Look(NamedTuple):
    """What one look at a server leaves: when to look again, and what to ask of the server first."""

    again: datetime | None = None
    inquiry: Probe | None = None


class _Lane:
    """Inquiries that share a few threads; those of one namespace leave some to others."""

    def __init__(self, threads: int, name: str) -> None:
        self.threads = threads
        self.name = name
        self.pool: ThreadPoolExecutor | None = None
        self._queue = Queue(shared=threads)
        self._waiting: dict[ServerKey, Probe] = {}
        self._asking: set[ServerKey] = set()

    def add(self, key: ServerKey, inquiry: Probe, now: datetime) -> None:
        """Have it asked in its turn. Of a server that waits the newest inquiry counts; one that is
        being asked is looked at after that, and says itself what is to be asked then."""
        if key not in self._asking:
            self._waiting[key] = inquiry
            self._queue.add(key, now)

    def take(self, now: datetime) -> Iterator[tuple[ServerKey, Probe]]:
        """Those whose turn it is, until ``done``."""
        while self._queue.running < self.threads:
            key = self._queue.take(now)
            if key is None:
                return
            self._asking.add(key)
            yield key, self._waiting.pop(key)

    def done(self, key: ServerKey) -> None:
        """The server is not asked any more."""
        self._asking.discard(key)
        self._queue.done(key)


class Workers:
    """Threads that look at whatever server is due, until it is over.

    ``look`` takes a server as far as it goes now; ``ask`` has an inquiry answered, after which the
    server is looked at again. Both are called from many threads, for one server never twice at
    once; ``ask`` counts cleanups apart. ``shared``: slow requests in one namespace leave workers to
    others; slow answers always leave askers to others. What a bug raises in ``look`` or ``ask``
    ends ``run``; ``broken_off`` is told of it before anything is waited for.
    """

    def __init__(
        self,
        look: Callable[[ServerKey], Look],
        ask: Callable[[ServerKey, Probe], None],
        *,
        clock: Callable[[], datetime],
        workers: int = WORKERS,
        shared: bool = False,
        broken_off: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self.changed = threading.Condition()
        self.queue = Queue(shared=workers if shared else None)
        """Guarded by ``changed``."""
        self._look = look
        self._ask = ask
        self._clock = clock
        self._workers = workers
        self._broken_off = broken_off
        asks = _Lane(ASKERS, "asker")
        self._lanes = {
            "handshake": asks,
            "sessions": asks,
            "cleanup": _Lane(HOOKERS, "cleanup"),
        }
        self._crashed: BaseException | None = None

    def wake(self, *keys: ServerKey) -> None:
        """Something about these servers changed: look at them."""
        now = self._clock()
        with self.changed:
            for key in keys:
                self.queue.add(key, now)
            self.changed.notify()

    def hear(self, key: ServerKey) -> None:
        """There is news of the server in the cluster: look at it, though a flood of news only every
        ``NEWS_SECONDS``."""
        with self.changed:
            self.queue.hear(key, self._clock())
            self.changed.notify()

    def waiting(self) -> tuple[int, timedelta]:
        """How many servers wait for their turn, and the first of them for how long."""
        with self.changed:
            return self.queue.depth, self.queue.oldest(self._clock())

    def crash(self, error: BaseException) -> None:
        """Nothing is to be relied on any more: ``run`` raises this."""
        with self.changed:
            self._crashed = error
            self.changed.notify()

    def run(self, over: Callable[[], bool], idle: Callable[[], None] = lambda: None) -> None:
        """Work until ``over()``, which is asked, with ``changed`` held, whenever that is notified.
        ``idle`` is called likewise when nothing happened for a while. Running requests end."""
        lanes = set(self._lanes.values())
        with ExitStack() as stack:
            pool = stack.enter_context(
                ThreadPoolExecutor(self._workers, thread_name_prefix="worker")
            )
            for lane in lanes:
                threads = ThreadPoolExecutor(lane.threads, thread_name_prefix=lane.name)
                lane.pool = stack.enter_context(threads)
            try:
                with self.changed:
                    self._loop(pool, over, idle)
            except BaseException as error:
                self._broken_off(error)
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for lane in lanes:
                    if lane.pool is not None:
                        lane.pool.shutdown(wait=False, cancel_futures=True)

    def _loop(
        self, pool: ThreadPoolExecutor, over: Callable[[], bool], idle: Callable[[], None]
    ) -> None:
        while self._crashed is None and not over():
            while self.queue.running < self._workers:
                key = self.queue.take(self._clock())
                if key is None:
                    break
                pool.submit(self._work, key)
            if not self.changed.wait(self._pause()) and not self.queue.running:
                idle()
        if self._crashed is not None:
            raise self._crashed

    def _pause(self) -> float:
        """Seconds until the next timer, or until it is time for ``idle``."""
        longest = PROGRESS_INTERVAL.total_seconds()
        timer = self.queue.next_at()
        if timer is None or self.queue.running >= self._workers:
            return longest
        return min(max((timer - self._clock()).total_seconds(), 0.0), longest)

    def _work(self, key: ServerKey) -> None:
        look = Look()
        try:
            look = self._look(key)
        except BaseException as error:
            self.crash(error)
        with self.changed:
            self.queue.done(key)
            self.queue.schedule(key, look.again)
            if look.inquiry is not None:
                lane = self._lanes[look.inquiry.kind]
                lane.add(key, look.inquiry, self._clock())
                self._hand_out(lane)
            self.changed.notify()

    def _hand_out(self, lane: _Lane) -> None:
        for key, inquiry in lane.take(self._clock()):
            with suppress(RuntimeError):  # it is over
                if lane.pool is not None:
                    lane.pool.submit(self._have_asked, lane, key, inquiry)

    def _have_asked(self, lane: _Lane, key: ServerKey, inquiry: Probe) -> None:
        try:
            self._ask(key, inquiry)
        except BaseException as error:
            self.crash(error)
        with self.changed:
            lane.done(key)
            self._hand_out(lane)
        self.wake(key)


class Fleet:
    """Runs one pass: every key until the pass is done with it."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], datetime],
        watches: Watches | None = None,
        rollout: Rollout | None = None,
        workers: int = WORKERS,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._rollout = rollout
        self._clock = clock
        self._watches = watches
        self._progress = progress
        self._workers = Workers(
            self._look,
            self._ask,
            clock=clock,
            workers=workers,
            broken_off=lambda _: engine.stop(),
        )
        self._open: dict[ServerKey, str] = {}
        """Guarded by the workers' ``changed``."""
        self._progressed: dict[ServerKey, tuple[str, datetime]] = {}
        """What a server of the batch under way waits for, and since when."""
        self._failed: dict[ServerKey, datetime] = {}
        """Servers that are waited for although their phase is Failed, and since when."""
        self._total = 0
        self._patience = Patience()
        self._started = self._tell_at = clock()

    def wake(self, *keys: ServerKey) -> None:
        """Something about servers changed: look at them again, if this pass is not done with
        them."""
        self._workers.wake(*filter(self._open.__contains__, keys))

    def hear(self, key: ServerKey) -> None:
        """The same where it is news in the cluster, which may be a flood."""
        if key in self._open:
            self._workers.hear(key)

    def run(self, keys: Iterable[ServerKey], patience: Patience) -> None:
        """Work until the pass is done with every key. Raises GitOpsError, and
        KeyboardInterrupt as it comes: running requests then end, no further one begins."""
        self._started, self._patience = self._clock(), patience
        self._tell_at = self._started + PROGRESS_INTERVAL
        self._open = dict.fromkeys(sorted(keys), "")
        self._total = len(self._open)
        self._workers.wake(*self._open)
        self._workers.run(self._over, self._look_around)

    def _over(self) -> bool:
        """Nothing is waited for but to be Ready, in vain."""
        now = self._clock()
        self._report(now)
        return all(key in self._failed and now >= self._failed[key] + SETTLED for key in self._open)

    def _look(self, key: ServerKey) -> Look:
        if key not in self._open:
            return Look()
        try:
            decision = self._engine.work(key)
        except GitOpsError:
            raise
        except Exception as error:
            self._stumbled(key, error)
            return Look()
        memory = self._engine.memory(key)
        patience, now = self._patience, self._clock()
        waiting = patience.outstanding(decision, memory, now, self._started)
        waiting = waiting or self._held_up(key, decision, now)
        hopeless = decision.phase == "Failed" and not decision.deferred and memory.failure is None
        with self._workers.changed:
            if not waiting:
                self._open.pop(key, None)
                return Look()
            self._open[key] = waiting
            if hopeless and patience.ready_by is not None:
                self._failed.setdefault(key, now)
            else:
                self._failed.pop(key, None)
        if self._watches is not None:
            self._watches.start()
        retry = memory.failure.retry_at if memory.failure is not None else None
        late = self._late_at(key) if key in self._progressed else None
        given_up = self._failed[key] + SETTLED if key in self._failed else None
        # Past these two there is nothing to look at again for them: it would be a loop.
        ends = [at for at in (patience.ready_by, given_up) if at and now < at]
        times = filter(None, (decision.look_again, retry, late, *ends))
        return Look(min(times, default=None), decision.inquiry)

    def _ask(self, key: ServerKey, inquiry: Probe) -> None:
        try:
            self._engine.ask(key, inquiry)
        except Exception as error:
            self._stumbled(key, error)

    def _stumbled(self, key: ServerKey, error: Exception) -> None:
        """An unexpected error is that server's alone: it has failed, the pass goes on."""
        self._engine.stumbled(key, error)
        with self._workers.changed:
            self._open.pop(key, None)

    def _held_up(self, key: ServerKey, decision: Decision, now: datetime) -> str:
        """What the next batch of a rollout waits for at this server; "" where it does not. A batch
        that is not Ready in time has failed."""
        if self._rollout is None or not self._rollout.holds_up(key):
            self._progressed.pop(key, None)
            return ""
        waiting = decision.waiting or "to be Ready"
        if self._progressed.get(key, ("", now))[0] != waiting:
            self._progressed[key] = waiting, now
        if now < self._late_at(key):
            return f"{waiting} (others wait for it)"
        late = f"not in time: {waiting}"
        for other in self._rollout.heard(key, RolloutState.FAILED, late):
            self.wake(other)
        return ""

    def _late_at(self, key: ServerKey) -> datetime:
        return self._patience.ready_by or self._progressed[key][1] + BATCH_PATIENCE

    def _look_around(self) -> None:
        """Nothing happened for a while: give up what is late, and say what is waited for."""
        now = self._clock()
        for key in list(self._open):
            memory = self._engine.memory(key)
            waiting = self._patience.outstanding(memory.decision, memory, now, self._started)
            if not waiting and not (self._rollout and self._rollout.holds_up(key)):
                del self._open[key]
        self._report(now)

    def _report(self, now: datetime) -> None:
        """Say how far the pass has come, from time to time."""
        if self._open and now >= self._tell_at:
            self._tell_at = now + PROGRESS_INTERVAL
            by = self._patience.ready_by
            left = max(by - now, timedelta(0)) if by is not None else None
            self._progress(Progress(self._total, dict(self._open), left))
