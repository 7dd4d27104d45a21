"""Time: a heap of what happens next, and nothing else that moves the clock.

Receives callables and when to call them; calls them one after another, at equal times in the order
in which they came. Never reads a real clock.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(order=True, slots=True)
class Timer:
    """One call to come."""

    at: float
    order: int
    call: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """Do not call it."""
        self.call = None


class World:
    """A clock in seconds since ``BEGIN``; ``rng`` is the run's only randomness."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._heap: list[Timer] = []
        self._order = itertools.count()

    def clock(self) -> datetime:
        """The wall clock."""
        return BEGIN + timedelta(seconds=self.now)

    def seconds(self) -> float:
        """The monotonic clock."""
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call it after so many seconds."""
        timer = Timer(self.now + max(seconds, 0.0), next(self._order), call)
        heapq.heappush(self._heap, timer)
        return timer

    def step(self, until: float) -> bool:
        """What comes next, if it comes by ``until``; else the clock stands at ``until``."""
        while self._heap and self._heap[0].at <= until:
            timer = heapq.heappop(self._heap)
            if timer.call is not None:
                self.now = max(self.now, timer.at)
                timer.call()
                return True
        self.now = max(self.now, until)
        return False

    def run(self, until: float) -> None:
        """Everything up to that time."""
        while self.step(until):
            pass
