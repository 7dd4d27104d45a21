"""Many servers at once: a queue of names, timers and a few threads around one engine.

Whatever happens only names a server; the engine then looks at the facts. A server is never worked
on twice at the same time, and one that waits holds no thread.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from gitops_mcp.model import Decision, Inquiry, ServerKey

if TYPE_CHECKING:
    from gitops_mcp.engine import Engine, Memory
    from gitops_mcp.watches import Watches

WORKERS = 8
"""Requests in flight: what an API server takes from one client without queueing."""
ASKERS = 16
"""Servers that are asked for a handshake or their sessions at the same time: a silent one takes its
whole time-out, and must not delay the API requests of others."""
RETRY_WITHIN = timedelta(seconds=60)
"""How long one pass tries a transient error again."""
SHUTDOWN_MARGIN = timedelta(seconds=60)
"""How long past its own deadline a shutdown is waited for before the server has failed."""
PROGRESS_INTERVAL = timedelta(seconds=5)
"""Between two lines that say what is waited for."""

Progress = Callable[[dict[ServerKey, str]], None]


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
        recreate = decision.waiting.startswith(("shutdown", "recreate"))
        recreate = recreate and memory.failure is not None and memory.failure.immutable
        if memory.failure is not None and memory.failing_since is not None and not recreate:
            transient = memory.failure.category == "Transient"
            if transient and memory.failure.retry_at < memory.failing_since + RETRY_WITHIN:
                return f"to try again: {memory.failure.message}"
            return ""
        if decision.waiting.startswith(("shutdown", "deletion", "recreate")):
            if now < (decision.deadline or started) + SHUTDOWN_MARGIN:
                return decision.waiting
            memory.overdue = decision.waiting
            return ""
        if decision.inquiry is not None:
            return f"{decision.inquiry.kind} of {len(decision.inquiry.targets)} target(s)"
        if decision.look_again is not None and decision.look_again - now <= timedelta(seconds=1):
            return "to write the status"
        if self.ready_by is not None and decision.waiting and now < self.ready_by:
            return decision.waiting
        return ""


class Fleet:
    """Runs one pass: every key until the pass is done with it."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], datetime],
        watches: Watches | None = None,
        workers: int = WORKERS,
        progress: Progress = lambda _: None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._watches = watches
        self._workers = workers
        self._progress = progress
        self._changed = threading.Condition()
        self._due: dict[ServerKey, None] = {}
        self._running: set[ServerKey] = set()
        self._timers: list[tuple[datetime, int, ServerKey]] = []
        self._order = itertools.count()
        self._open: dict[ServerKey, str] = {}
        self._asked: set[ServerKey] = set()
        self._crashed: BaseException | None = None
        self._tell_at = clock()

    def wake(self, key: ServerKey) -> None:
        """Something about a server changed: look at it again, if this pass is not done with it."""
        with self._changed:
            if key in self._open:
                self._due[key] = None
                self._changed.notify()

    def run(self, keys: Iterable[ServerKey], patience: Patience) -> None:
        """Work until the pass is done with every key. Raises what a bug raises in a worker, and
        KeyboardInterrupt as it comes: running requests then end, no further one begins."""
        started = self._clock()
        self._tell_at = started + PROGRESS_INTERVAL
        self._open = dict.fromkeys(sorted(keys), "")
        self._due = dict.fromkeys(self._open)
        with (
            ThreadPoolExecutor(self._workers, thread_name_prefix="worker") as pool,
            ThreadPoolExecutor(ASKERS, thread_name_prefix="asker") as askers,
        ):
            self._askers = askers
            try:
                self._loop(pool, patience, started)
            except BaseException:
                self._engine.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                askers.shutdown(wait=False, cancel_futures=True)
                raise

    def _loop(self, pool: ThreadPoolExecutor, patience: Patience, started: datetime) -> None:
        with self._changed:
            while self._open and self._crashed is None:
                self._start_due(pool, patience, started)
                # What was quick is done already: nobody will notify us of it any more.
                if not self._open or self._due.keys() - self._running:
                    continue
                if not self._changed.wait(self._pause()) and not self._running:
                    self._look_around(patience, started)
        if self._crashed is not None:
            raise self._crashed

    def _start_due(self, pool: ThreadPoolExecutor, patience: Patience, started: datetime) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            key = heapq.heappop(self._timers)[2]
            if key in self._open:
                self._due[key] = None
        for key in [key for key in self._due if key not in self._running]:
            del self._due[key]
            self._running.add(key)
            future = pool.submit(self._engine.work, key)
            future.add_done_callback(
                lambda done, key=key: self._done(key, done, patience, started)  # type: ignore[misc]
            )

    def _pause(self) -> float:
        """Seconds until the next timer, or the next line of progress."""
        longest = PROGRESS_INTERVAL.total_seconds()
        if not self._timers:
            return longest
        wait = (self._timers[0][0] - self._clock()).total_seconds()
        return min(max(wait, 0.0), longest)

    def _look_around(self, patience: Patience, started: datetime) -> None:
        """Nothing happened for a while: give up what is late, and say what is waited for."""
        now = self._clock()
        for key in list(self._open):
            memory = self._engine.memory(key)
            waiting = patience.outstanding(memory.decision, memory, now, started)
            if not waiting:
                del self._open[key]
        if self._open and now >= self._tell_at:
            self._tell_at = now + PROGRESS_INTERVAL
            self._progress(dict(self._open))

    def _done(
        self, key: ServerKey, future: Future[Decision], patience: Patience, started: datetime
    ) -> None:
        with self._changed:
            self._running.discard(key)
            self._changed.notify()
            if future.cancelled():
                return
            if (error := future.exception()) is not None:
                self._crashed = error
                return
            decision = future.result()
            memory = self._engine.memory(key)
            now = self._clock()
            waiting = patience.outstanding(decision, memory, now, started)
            if not waiting:
                self._open.pop(key, None)
                self._due.pop(key, None)
                return
            self._open[key] = waiting
            if decision.inquiry is not None and key not in self._asked:
                self._asked.add(key)
                self._askers.submit(self._ask, key, decision.inquiry)
            retry = memory.failure.retry_at if memory.failure is not None else None
            # Past that time there is nothing to look at again for it: it would be a loop.
            by = patience.ready_by if patience.ready_by and now < patience.ready_by else None
            for time in filter(None, (decision.look_again, retry, by)):
                heapq.heappush(self._timers, (time, next(self._order), key))
        if self._watches is not None:
            self._watches.start()

    def _ask(self, key: ServerKey, inquiry: Inquiry) -> None:
        try:
            self._engine.ask(key, inquiry)
        except BaseException as error:
            self._crashed = error
        finally:
            with self._changed:
                self._asked.discard(key)
                self._changed.notify()
            self.wake(key)
