"""The agent's process: signals, memory, the wait for a first commit."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from gitops_mcp.agent.endpoints import Endpoints
from gitops_mcp.agent.metrics import Metrics
from gitops_mcp.base import masking
from gitops_mcp.base.errors import (
    GitOpsError,
    OverLimit,
    SourceError,
    Transient,
    Unanswered,
)
from gitops_mcp.cluster.leadership import Say
from gitops_mcp.git.gitmirror import Absent, Empty, Nothing
from gitops_mcp.sync import connecting
from gitops_mcp.sync.reading import Source

_log = logging.getLogger(__name__)


_Found = TypeVar("_Found")


LOOK = 0.25
"""Seconds between two looks at whether a signal has come."""


FIRST_WORDS = timedelta(seconds=15)
"""The longest wait for an API server or a git server that cannot answer yet."""


LAST_WORDS = 2.0
"""Seconds that requests under way are given when the agent is told to end. Whatever hangs, it has
ended 5 s after the signal, the time that the endpoints take included."""


HANGING = 0.4
"""Seconds that threads are given to end once there is nothing left to do."""


M_ARENA_MAX = -8
"""Of glibc's malloc.h: how many heaps threads may have."""


def end_on_signals(ended: threading.Event) -> Callable[[], int]:
    """SIGTERM and SIGINT set ``ended`` from now on. Returns what tells the exit code: an agent is
    told to end by SIGTERM; SIGINT interrupts it as any verb."""
    heard: list[int] = []

    def hear(number: int, _: object) -> None:
        heard.append(number)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    return lambda: 128 + signal.SIGINT if signal.SIGINT in heard[:1] else 0


def share_one_heap() -> None:
    """Have all threads take their memory from one place. Call it before there is a second thread.

    glibc gives each thread a heap of its own, which keeps what the thread has freed: with 5,000
    servers that is a fifth of all memory. Python's own lock lets one thread allocate at a time, so
    there is nothing to gain by it. Another C library is left as it is.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def leave(code: int = 0, *, within: float = HANGING) -> None:
    """Let the process end, though a request may still hang in one of its threads: the interpreter
    would wait for as long as that request may take. Everything else has been put in order, or is
    within that time."""
    late = threading.Timer(within, os._exit, (code,))
    late.daemon = True
    late.start()


def first_source(
    read: Callable[[], Source],
    ended: threading.Event,
    *,
    listen: str,
    metrics: Metrics,
    warn: Say,
    waits: Say = lambda _: None,
) -> Source | None:
    """What ``read`` reads; None where we are told to end before that. Meanwhile we are alive, but
    not ready. ``waits`` hears, after each try, what is waited for.

    The first commit, and its branch, is waited for everywhere. In a pod a git server that does not
    answer is waited for, and so is a branch that is not there, or a commit that can be read, since
    a restart would not help: only what git refuses us ends the agent. Elsewhere, whoever has typed
    it is told.
    """
    lacks = ""

    def passes(error: Exception) -> bool:
        nonlocal lacks
        refused = isinstance(error, SourceError)
        refused = refused and not isinstance(error, Unanswered | OverLimit | Nothing)
        # The first push may come between two questions of one look: then there are commits, and
        # yet no branch.
        waited = isinstance(error, Empty) or (lacks and isinstance(error, Absent))
        if refused or not (connecting.in_cluster() or waited):
            return False
        lacks = _LACKS.get(type(error), "")
        if isinstance(error, GitOpsError):
            warn(f"{error.message}; trying again")
            waits(masking.scrub(error.message))
        else:  # a commit that meets a bug is mended by the next commit
            _log.error("the commit cannot be read: unexpected error", exc_info=error)
            waits(f"unexpected {type(error).__name__}")
        return True

    with Endpoints(
        listen,
        alive=lambda: "",
        ready=lambda: f"git was not read yet{lacks}",
        metrics=metrics.text,
    ):
        return unless(ended, lambda: tried(read, ended, passes))


def tried(
    look: Callable[[], _Found], ended: threading.Event, passes: Callable[[Exception], bool]
) -> _Found:
    """What ``look`` finds, tried again with growing waits. ``passes`` is told of each failure: one
    that does not pass by itself is raised, and so is the last one once we are told to end."""
    wait = Transient.first_retry
    while True:
        try:
            return look()
        except Exception as error:
            if not passes(error):
                raise
            asked = error.retry_after if isinstance(error, Transient) else None
            if ended.wait((asked or wait).total_seconds()):
                raise
            wait = min(wait * 2, FIRST_WORDS)


_LACKS: dict[type[Exception], str] = {
    Empty: ": there is no commit yet",
    Absent: ": the branch or ref is not there",
}
"""What the source has yet to get, as anybody may read it at ``/readyz``."""


def unless(ended: threading.Event, look: Callable[[], _Found]) -> _Found | None:
    """What ``look`` finds, or raises, however long that takes; None once we are told to end."""
    found: list[_Found] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(look())
        except BaseException as error:
            failed.append(error)

    looking = threading.Thread(target=run, name="first look", daemon=True)
    looking.start()
    while looking.is_alive() and not ended.is_set():
        looking.join(LOOK)
    if ended.is_set():
        return None
    if failed:
        raise failed[0]
    return found[0]


LAST_SAYING = 3.0
"""Seconds in which it is said what an agent has died of."""


LAST_RELEASE = 1.0
"""Seconds after those in which a lease is given back, or ends by itself."""


LAST_NOTES = 0.6
"""Seconds that the notes are given at least: what is not written is found by the next agent."""
