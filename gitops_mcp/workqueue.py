"""Which servers are to be looked at: those that are due, those being worked on, and timers.

Whatever happens only names a server: a name that comes twice before its turn is looked at once, one
that comes while it is being worked on is looked at once more after that. Nothing here starts a
thread, reads a clock or takes a lock: whoever drives the queue does.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from datetime import datetime, timedelta

from gitops_mcp.model import ServerKey


class Queue:
    """Names, oldest first and the namespaces in turn. ``shared``: so many workers are shared by the
    namespaces, none of which has more than three quarters of what the others leave it. So slow
    requests in one or two cannot take every worker (of 16: 12, then 3, and 1 for a third)."""

    def __init__(self, *, shared: int | None = None) -> None:
        self._shared = shared
        self._due: dict[str, dict[ServerKey, datetime]] = {}
        self._running: set[ServerKey] = set()
        self._busy: Counter[str] = Counter()
        self._timers: dict[ServerKey, tuple[datetime, int]] = {}
        self._heap: list[tuple[datetime, int, ServerKey]] = []
        self._order = itertools.count()

    def add(self, key: ServerKey, now: datetime) -> None:
        """The server is due."""
        self._due.setdefault(key.namespace, {}).setdefault(key, now)

    def schedule(self, key: ServerKey, at: datetime | None) -> None:
        """The server is due at that time, unless something happens before; None: only then. One
        timer a server: the last word counts."""
        if at is None:
            self._timers.pop(key, None)
            return
        number = next(self._order)
        self._timers[key] = at, number
        heapq.heappush(self._heap, (at, number, key))
        if len(self._heap) > 2 * len(self._timers) + 64:  # mostly timers that were set anew
            self._heap = [(at, number, key) for key, (at, number) in self._timers.items()]
            heapq.heapify(self._heap)

    def take(self, now: datetime) -> ServerKey | None:
        """The next server to work on, until ``done``; None: none is due that may be taken."""
        while (first := self._first_timer()) is not None and first[0] <= now:
            heapq.heappop(self._heap)
            del self._timers[first[2]]
            self.add(first[2], first[0])
        for namespace, due in self._due.items():
            if not self._has_share(namespace):
                continue
            key = next((key for key in due if key not in self._running), None)
            if key is not None:
                self._hand_out(key)
                return key
        return None

    def _has_share(self, namespace: str) -> bool:
        """May the namespace be given another worker?"""
        free = self._shared - len(self._running) if self._shared is not None else None
        return free is None or self._busy[namespace] < 3 * free

    def _hand_out(self, key: ServerKey) -> None:
        due = self._due.pop(key.namespace)
        del due[key]
        if due:
            self._due[key.namespace] = due  # at the end: it is the others' turn
        self._running.add(key)
        self._busy[key.namespace] += 1

    def done(self, key: ServerKey) -> None:
        """The server is not worked on any more."""
        self._running.discard(key)
        self._busy[key.namespace] -= 1
        if not self._busy[key.namespace]:
            del self._busy[key.namespace]

    def _first_timer(self) -> tuple[datetime, int, ServerKey] | None:
        while self._heap:
            at, number, key = self._heap[0]
            if self._timers.get(key) == (at, number):
                return self._heap[0]
            heapq.heappop(self._heap)
        return None

    def next_at(self) -> datetime | None:
        """When the next timer ends."""
        first = self._first_timer()
        return first[0] if first is not None else None

    @property
    def running(self) -> int:
        """How many are being worked on."""
        return len(self._running)

    @property
    def depth(self) -> int:
        """How many are due and wait for a worker."""
        return sum(map(len, self._due.values()))

    def oldest(self, now: datetime) -> timedelta:
        """How long the first of them has waited."""
        since = min((next(iter(due.values())) for due in self._due.values()), default=now)
        return max(now - since, timedelta(0))
