"""How often an agent does what."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from apscheduler.triggers.base import BaseTrigger

from gitops_mcp.base import limits


@dataclass(frozen=True, slots=True)
class Periods:
    """How often the few periodic jobs run."""

    poll: timedelta = timedelta(seconds=60)
    full_check: timedelta = timedelta(minutes=10)


class Every(BaseTrigger):  # type: ignore[misc]
    """A job's next run is ``seconds`` after this one was due, or a random tenth more or less. A run
    that the clock has jumped over is not made up for: APScheduler's own trigger lists each of them,
    17 million for a lease after 400 days."""

    def __init__(self, seconds: float, *, jitter: bool = False) -> None:
        self._seconds = seconds
        self._jitter = seconds / 10 if jitter else 0.0

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """Always later than ``now``."""
        wait = self._seconds + random.uniform(-self._jitter, self._jitter)  # noqa: S311
        due = (previous or now) + timedelta(seconds=wait)
        return due if due > now else now + timedelta(seconds=wait)


class Pace:
    """When something that is asked for again and again begins: at most once in ``least`` seconds,
    and always once more after the last request. ``clock`` is monotonic, in seconds. Thread-safe.
    """

    def __init__(self, least: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least = least
        self._clock = clock
        self._lock = threading.Lock()
        self._began = float("-inf")
        self.asked = False
        """Whether a run was asked for that has not begun yet."""

    def ask(self) -> float | None:
        """Seconds until the run that this request needs; None: one is to begin already."""
        with self._lock:
            if self.asked:
                return None
            self.asked = True
            return max(self._began + self._least - self._clock(), 0.0)

    def begin(self) -> None:
        """A run begins: whoever asks from now on needs another one."""
        with self._lock:
            self._began, self.asked = self._clock(), False


CATCH_UP = timedelta(seconds=15)
"""Between two looks at git while what a former leader has read of it is not known here."""


STUCK = 60.0
"""Seconds without a single periodic job after which only a restart helps."""


UNREAD = 300.0
"""Seconds of failing looks at git after which the agent is not ready; at least three looks."""


SET_BACK = 2.0
"""Seconds that the wall clock may go back without anybody having to know."""


POKES = limits.WEBHOOK_SECONDS


STATUS = timedelta(seconds=5)
"""Between two writes of the source's status, if it has changed."""


NOTES = timedelta(seconds=3)
"""Between two flushes of the deployment notes."""


def ahead() -> float:
    return time.time() - time.monotonic()
