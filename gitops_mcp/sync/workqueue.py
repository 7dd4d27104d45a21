"""Which servers are to be looked at: those that are due, those being worked on, and timers.

Whatever happens only names a server: a name that comes twice before its turn is looked at once, one
that comes while it is being worked on is looked at once more after that. News from outside is
gathered, so that a flood of it costs a reconcile a second. Nothing here starts a thread, reads a
clock or takes a lock: whoever drives the queue does.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

from gitops_mcp.base.limits import NEWS_AT_ONCE, NEWS_SECONDS
from gitops_mcp.base.names import ServerKey

_PACE = timedelta(seconds=NEWS_SECONDS)
_AHEAD = _PACE * (NEWS_AT_ONCE - 1)
"""How far ahead of its pace the news of one server may be."""


class Queue:
    """Names, oldest first and the namespaces in turn. ``shared``: so many workers are shared by the
    namespaces, none of which has more than three quarters of what the others leave it. So slow
    requests in one or two cannot take every worker (of 16: 12, then 3, and 1 for a third)."""

    def __init__(self, *, shared: int | None = None) -> None:
        self._shared = shared
        self._due: dict[str, dict[ServerKey, datetime]] = {}
        self._running: set[ServerKey] = set()
        self._busy: Counter[str] = Counter()
        self._timers = _Timers()
        self._gathered = _Timers()
        """Servers of which there was too much news: when they are due for it."""
        self._paced: dict[ServerKey, datetime] = {}
        """Until when the news of a server is at its pace, the latest news last."""

    def add(self, key: ServerKey, now: datetime) -> None:
        """The server is due."""
        self._due.setdefault(key.namespace, {}).setdefault(key, now)

    def hear(self, key: ServerKey, now: datetime) -> None:
        """There is news of the server, which anybody may cause as often as they like: it is due,
        at once the first ``NEWS_AT_ONCE`` times, then every ``NEWS_SECONDS``."""
        if self._gathered.at(key) is not None or key in self._due.get(key.namespace, ()):
            return
        # Never longer than the pace allows: the clock may have been set back.
        paced = min(self._paced.pop(key, now), now + _AHEAD + _PACE)
        self._paced[key] = max(paced, now) + _PACE
        while (first := next(iter(self._paced))) != key and self._paced[first] <= now:
            del self._paced[first]
        if paced <= now + _AHEAD:
            self.add(key, now)
        else:
            self._gathered.set(key, paced - _AHEAD)

    def schedule(self, key: ServerKey, at: datetime | None) -> None:
        """The server is due at that time, unless something happens before; None: only then. One
        timer a server: the last word counts."""
        self._timers.set(key, at)

    def take(self, now: datetime) -> ServerKey | None:
        """The next server to work on, until ``done``; None: none is due that may be taken."""
        for timers in (self._timers, self._gathered):
            for ended, at in timers.ended(now):
                self.add(ended, at)
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
        self._gathered.set(key, None)  # what was heard until now is seen
        self._running.add(key)
        self._busy[key.namespace] += 1

    def done(self, key: ServerKey) -> None:
        """The server is not worked on any more."""
        self._running.discard(key)
        self._busy[key.namespace] -= 1
        if not self._busy[key.namespace]:
            del self._busy[key.namespace]

    def next_at(self) -> datetime | None:
        """When the next timer ends."""
        return min(filter(None, (self._timers.next_at(), self._gathered.next_at())), default=None)

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


class _Timers:
    """One timer a server."""

    def __init__(self) -> None:
        self._at: dict[ServerKey, tuple[datetime, int]] = {}
        self._heap: list[tuple[datetime, int, ServerKey]] = []
        self._order = itertools.count()

    def at(self, key: ServerKey) -> datetime | None:
        """When that of a server ends."""
        return self._at[key][0] if key in self._at else None

    def set(self, key: ServerKey, at: datetime | None) -> None:
        """End at that time, and not at another; None: not at all."""
        if at is None:
            self._at.pop(key, None)
            return
        number = next(self._order)
        self._at[key] = at, number
        heapq.heappush(self._heap, (at, number, key))
        if len(self._heap) > 2 * len(self._at) + 64:  # mostly timers that were set again
            self._heap = [(at, number, key) for key, (at, number) in self._at.items()]
            heapq.heapify(self._heap)

    def ended(self, now: datetime) -> Iterator[tuple[ServerKey, datetime]]:
        """Those that end by now, each once."""
        while (at := self.next_at()) is not None and at <= now:
            key = heapq.heappop(self._heap)[2]
            del self._at[key]
            yield key, at

    def next_at(self) -> datetime | None:
        """When the first of them ends."""
        while self._heap:
            at, number, key = self._heap[0]
            if self._at.get(key) == (at, number):
                return at
            heapq.heappop(self._heap)
        return None
