"""The agent: passes of a source, repeated by a scheduler until it is told to end.

Receives a function that makes one pass, calls it at once and then every interval; never two at a
time. SIGTERM and SIGINT let the pass that runs end, and start no further one.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

LOOK = 0.5
"""Seconds between two looks at whether a signal has come."""


def end_on_signals(ended: threading.Event) -> None:
    """SIGTERM and SIGINT set ``ended`` from now on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())


def run(one_pass: Callable[[], None], *, interval: timedelta, ended: threading.Event) -> None:
    """Repeat ``one_pass`` until ``ended`` is set. What it raises ends the agent.

    A pass that outlasts the interval is followed at once by the next; passes that were missed are
    not made up for.
    """
    crash: list[BaseException] = []

    def job() -> None:
        if ended.is_set():
            return
        try:
            one_pass()
        except BaseException as error:
            crash.append(error)
            ended.set()

    scheduler = BackgroundScheduler(
        timezone=UTC,
        executors={"default": ThreadPoolExecutor(1)},
        # The scheduler's own default would skip a pass that is a second late.
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )
    scheduler.add_job(
        job, "interval", seconds=interval.total_seconds(), next_run_time=datetime.now(UTC)
    )
    # A pass that outlasts the interval is no news; what one raises is handled above.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    scheduler.start()
    # A signal may come in on another thread, which does not wake this one: look for oneself.
    while not ended.wait(LOOK):
        pass
    scheduler.shutdown(wait=True)
    if crash:
        raise crash[0]
